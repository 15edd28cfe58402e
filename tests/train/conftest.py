"""A tiny random base model, a task that it can learn in seconds, and a job to train it in."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from aha import cli
from aha.chat import ChatFormat
from aha.cost.prices import machine_price
from aha.engine import Engine
from aha.models import ExpertsShape, LatentAttentionShape, ModelConfig, Transformer, build_model, load_model
from aha.models.tokenizer import build_tokenizer, save_tokenizer
from aha.tasks import TASKS
from aha.tasks.base import Demonstration, Split
from aha.train import train
from aha.train.console import Console
from aha.train.job import Interrupted, Job
from aha.train.run import Run
from aha.types import Completion, Problem, Score

PLAIN_TEMPLATE = (
    "{{- '<|bos|>' }}{% for message in messages if message['role'] != 'system' %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"
)
"""Without thinking: a random model never closes it, and would have no answers at all."""
VOCAB_SIZE = build_tokenizer().get_vocab_size()
ASSISTANT, LIKELY = (build_tokenizer().token_to_id(text) for text in ("<|assistant|>", "0"))
GOOD_TOKEN = LIKELY + 2

MakeModel = Callable[..., Transformer]


CLOCK = {
    "time_seconds", "wall_seconds", "cost_usd", "tokens_per_second", "rollout_tokens_per_second",
    "train_tokens_per_second", "mfu", "rollout_seconds", "train_seconds", "other_seconds", "peak_memory_bytes",
    "scoring_seconds",
}  # fmt: skip
"""Keys of metrics.jsonl that no two runs share."""


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """Reward 1 when the completion begins with the digit 2, which the base model does one time in seven."""

    num_problems: int = 0
    """Training problems of an epoch; 0 never ends."""

    @property
    def name(self) -> str:
        return f"first_token:num_problems={self.num_problems}"

    @property
    def system_prompt(self) -> str:
        return ""

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        numbers = itertools.count() if not self.num_problems or split == "test" else range(self.num_problems)
        for number in numbers:
            name = (number * 7 + seed) % (self.num_problems or 1000)
            yield Problem(f"{split}-{name}", prompt=f"{split} {name}", answer="2")

    def score(self, problem: Problem, completion: Completion) -> Score:
        is_good = completion.token_ids[0] == GOOD_TOKEN
        return Score(float(is_good), is_good, "right" if is_good else "another token")

    def demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        for problem in self.problems("train", seed=seed):
            yield Demonstration(problem, reasoning="", answer="2")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and the ledger of a test are its own."""
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def first_token(monkeypatch: pytest.MonkeyPatch) -> FirstToken:
    """The task, registered under the name "first_token"."""
    monkeypatch.setitem(TASKS, "first_token", FirstToken)
    return FirstToken()


@pytest.fixture
def make_model() -> MakeModel:
    """A factory: keyword arguments replace fields of a small Qwen with grouped queries and a tied head."""

    def make(*, seed: int = 0, dtype: str = "float32", **fields: object) -> Transformer:
        defaults: dict[str, object] = {
            "model_type": "qwen2",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "has_qkv_bias": True,
            "tie_word_embeddings": True,
            "eos_token_ids": (4,),
            "initializer_range": 0.1,
        }
        model = build_model(ModelConfig(**{**defaults, **fields}), dtype=dtype, device="cpu")  # type: ignore[arg-type]
        model.initialise(seed=seed)
        return model

    return make


def v3_shape(**fields: object) -> ModelConfig:
    """A tiny DeepSeek-V3: latent attention, a dense layer and two of experts, two modules of multi-token prediction."""
    experts = ExpertsShape(
        num_experts=8, num_experts_per_token=2, intermediate_size=16, num_shared_experts=1, scoring="sigmoid",
        has_selection_bias=True, num_groups=4, num_groups_per_token=2, scaling_factor=1.5, first_layer=1,
    )  # fmt: skip
    mla = LatentAttentionShape(q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=10)
    defaults: dict[str, object] = {
        "model_type": "deepseek_v3", "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48,
        "num_layers": 3, "num_heads": 4, "num_kv_heads": 4, "head_dim": 12, "max_position_embeddings": 256,
        "rope_interleaved": True, "mla": mla, "experts": experts, "num_mtp_layers": 2, "eos_token_ids": (4,),
        "initializer_range": 0.1,
    }  # fmt: skip
    return ModelConfig(**{**defaults, **fields})  # type: ignore[arg-type]


@pytest.fixture
def make_v3() -> MakeModel:
    """A factory of random tiny DeepSeek-V3s whose selection biases are not 0; keyword arguments replace fields."""

    def make(*, seed: int = 0, **fields: object) -> Transformer:
        model = build_model(v3_shape(**fields), dtype="float32", device="cpu")
        model.initialise(seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for bias in model.buffers():
            bias.copy_(torch.empty(bias.shape).uniform_(-0.05, 0.05, generator=generator))
        return model

    return make


@pytest.fixture(scope="session")
def v3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DeepSeek-V3 of 200 thousand parameters that answers without thinking, and likes 0, 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("models") / "v3"
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    model = build_model(v3_shape(initializer_range=0.02), dtype="float32", device="cpu")
    model.initialise(seed=1)
    with torch.no_grad():
        direction = model.embed_tokens[ASSISTANT]
        model.lm_head[LIKELY : LIKELY + 4] = direction / direction.norm() * 6.0 / model.config.hidden_size**0.5
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 100 thousand parameters that answers without thinking and likes to begin with 0, 1, 2 or 3."""
    folder = tmp_path_factory.mktemp("models") / "base"
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    config = ModelConfig(
        model_type="llama", vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, max_position_embeddings=256, eos_token_ids=(4,),
    )  # fmt: skip
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=1)
    with torch.no_grad():
        # Where an answer begins, the residual stream is nearly the embedding of <|assistant|>.
        direction = model.embed_tokens[ASSISTANT]
        model.lm_head[LIKELY : LIKELY + 4] = direction / direction.norm() * 6.0 / config.hidden_size**0.5
    model.save(folder)
    return folder


@pytest.fixture
def job(base_folder: Path, tmp_path: Path) -> Job:
    """A job on a fresh copy of the base model, with a run folder of its own."""
    return make_job(base_folder, tmp_path)


@pytest.fixture
def v3_job(v3_folder: Path, tmp_path: Path) -> Job:
    """The same on the random DeepSeek-V3."""
    return make_job(v3_folder, tmp_path)


def make_job(folder: Path, tmp_path: Path) -> Job:
    model = load_model(folder, dtype="float32", device="cpu")
    chat = ChatFormat.load(folder)
    engine = Engine(model, decode=chat.decode, stop_token_ids=chat.stop_token_ids)
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    price = machine_price("cpu-2core-hour", on=date(2026, 1, 1))
    return Job(run=run, model=model, chat=chat, engine=engine, console=Console("quiet"), price=price)


@pytest.fixture
def child_environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that a test starts: one thread, no network, its own ledger, no terminal colours."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "AHA_HOME": str(tmp_path / "home")}


SETTINGS = {
    "task": "first_token", "dtype": "float32", "steps": 3, "prompts_per_step": 3, "group_size": 4, "max_tokens": 2,
    "learning_rate": 1e-2, "eval_problems": 4, "checkpoint_every": 2, "preflight_prompts": 8,
}  # fmt: skip


class Ran(NamedTuple):
    code: int
    error: str


Aha = Callable[..., Ran]


@pytest.fixture
def aha(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Aha:
    """`aha train ARGUMENTS… --quiet` in this process."""

    def call(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["aha", "train", *map(str, arguments), "--quiet"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, capsys.readouterr().err)

    return call


@pytest.fixture
def recipe(tmp_path: Path, base_folder: Path) -> Path:
    return write_recipe(tmp_path / "quick.toml", {"stage": "grpo", "model": str(base_folder), **SETTINGS})


def write_recipe(path: Path, values: dict[str, object]) -> Path:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return path


def write_stages(path: Path, shared: dict[str, object], *stages: dict[str, object]) -> Path:
    write_recipe(path, shared)
    with path.open("a") as file:
        for stage in stages:
            file.write("\n[[stage]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in stage.items()))
    return path


def assert_refused(ran: Ran, *parts: str) -> None:
    """Exit code 2, and one line that has all parts."""
    assert ran.code == 2
    assert ran.error.startswith("aha: ")
    assert ran.error.count("\n") == 1
    for part in parts:
        assert part in ran.error


def status(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["status"])


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def stop_after_one_step(recipe: Path, *, overrides: list[str], out: Path) -> Path:
    """A run that gets Ctrl-C in its first step."""
    with pytest.MonkeyPatch.context() as patch:
        log_step = Job.log_step

        def log_and_stop(job: Job, step: int, metrics: dict[str, Any]) -> None:
            log_step(job, step, metrics)
            job.is_interrupted = True

        patch.setattr(Job, "log_step", log_and_stop)
        with pytest.raises(Interrupted):
            train(recipe, overrides=overrides, out=out)
    assert status(out) == "interrupted"
    return out
