"""LoRA runs: they learn, stop and go on to the same bits, and end in a model that is proven to be what was trained."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aha import hub
from aha.chat import ChatFormat
from aha.engine import Engine
from aha.errors import ConfigError, ModelError
from aha.models import BaseWeights, attach_lora, hash_weights, load_model, merge, save_adapter
from aha.models.lora import adapters
from aha.train import train
from aha.train.batches import TrainingSequence, pack
from aha.train.job import Job
from aha.train.logprobs import token_logprobs
from aha.train.optimizer import Optimizer
from aha.train.run import list_checkpoints, load_parameters
from aha.types import SamplingParams

from .conftest import (
    CLOCK,
    SETTINGS,
    Aha,
    assert_refused,
    rows,
    status,
    stop_after_one_step,
    write_recipe,
    write_stages,
)

LORA: dict[str, object] = {"lora_rank": 4, "lora_alpha": 8.0}


@pytest.fixture(autouse=True)
def _tasks(first_token: object) -> None:
    """Every test here may train on "first_token"."""


@pytest.fixture
def base(base_folder: Path, tmp_path: Path) -> Path:
    """A base of the test's own, so that it can be changed.

    Its head tells the likely tokens apart, which adapters cannot do for a head that does not.
    """
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors["lm_head.weight"] += 0.2 * torch.empty_like(tensors["lm_head.weight"]).normal_(generator=generator)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Path:
    return write_recipe(tmp_path / "quick.toml", {"stage": "grpo", "model": str(base), **SETTINGS, **LORA})


@pytest.fixture
def both(tmp_path: Path, base: Path) -> Path:
    """A cold start, then GRPO with a KL term, whose reference is the model as the cold start left it."""
    shared = {"task": "first_token", "dtype": "float32", "eval_problems": 20, "max_tokens": 2, "model": str(base)}
    return write_stages(
        tmp_path / "both.toml",
        {**shared, **LORA, "learning_rate": 1e-2, "checkpoint_every": 2},
        {"kind": "sft", "steps": 8, "examples_per_step": 8},
        {"kind": "grpo", "steps": 3, "prompts_per_step": 3, "group_size": 4, "kl_coef": 0.05, "learning_rate": 1e-3},
    )


def test_run_learns_and_ends_in_a_merged_model_with_its_proof_and_an_adapter(
    tmp_path: Path, both: Path, base: Path
) -> None:
    folder = train(both, out=tmp_path / "out")
    before, _, after = rows(folder, "eval")
    assert after["pass_at_1"] > before["pass_at_1"] + 0.2, "the cold start teaches this task"
    losses = [row["loss"] for row in rows(folder, "step")][:8]
    assert losses[-1] < losses[0] - 0.5
    assert status(folder) == "finished"

    merged = load_model(folder / "model", dtype="float32", device="cpu")
    adapted = load_model(folder / "adapter", dtype="float32", device="cpu")
    assert merged.lora is None
    assert adapted.lora is not None
    ids_BT = torch.randint(0, 100, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(merged(ids_BT), adapted(ids_BT), atol=2e-5, rtol=1e-4)
        untouched = load_model(base, dtype="float32", device="cpu")(ids_BT)
        assert (adapted(ids_BT) - untouched).abs().max() > 0.1
    proof = json.loads((folder / "merge.json").read_text())
    assert proof["parity"]["mean_probability_difference"] <= proof["bound"] == 1e-5
    assert proof["parity"]["num_same_continuations"] == proof["parity"]["num_continued"] == 4
    assert proof["adapter_effect"]["mean_probability_difference"] > 0.001
    card = (folder / "model" / "README.md").read_text()
    assert "Adapter merged in float32, rounded to float32, read back and compared with base and adapter" in card
    assert f"{proof['parity']['max_logit_difference']:.2g}" in card


def test_rewards_rise_in_a_grpo_stage_with_an_adapter(tmp_path: Path, recipe: Path) -> None:
    overrides = ["steps=12", "prompts_per_step=6", "learning_rate=2e-2", "eval_problems=0", "preflight_prompts=0"]
    folder = train(recipe, overrides=overrides, out=tmp_path / "out")
    rewards = [row["reward_mean"] for row in rows(folder, "step")]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.6


def test_checkpoint_holds_the_adapter_alone_and_can_be_talked_to(tmp_path: Path, recipe: Path, base: Path) -> None:
    run = stop_after_one_step(
        recipe, overrides=["eval_problems=0", "lora_targets=attention", "preflight_prompts=0"], out=tmp_path / "run"
    )
    folder = hub.resolve(run)
    assert folder.parent.name == "checkpoints"
    assert not (folder / "model.safetensors").exists()
    names = set(load_file(folder / "optimizer.safetensors"))
    assert names
    assert all(".qkv_proj.adapter." in name or ".o_proj.adapter." in name for name in names)
    model, chat = load_model(folder, dtype="float32", device="cpu"), ChatFormat.load(folder)
    assert model.lora is not None
    assert model.lora.base is not None
    assert model.lora.base.folder == base.resolve()
    assert any(adapter.b.any() for _, adapter in adapters(model)), "one step was taken"
    assert len(Engine(model, stop_token_ids=chat.stop_token_ids).generate([[1, 2]], SamplingParams(max_tokens=3))) == 1


def test_kl_is_measured_from_the_model_as_the_stage_began(tmp_path: Path, both: Path) -> None:
    folder = train(both, overrides=["eval_problems=0"], out=tmp_path / "out")
    kls = [row["kl"] for row in rows(folder, "step")[8:]]
    # From the untouched base the cold start would show: its loss fell by more than a nat.
    assert kls[0] == pytest.approx(0.0, abs=1e-6), "at its first step the policy is its own reference"
    assert kls[-1] > 1e-4
    reference = load_file(folder / "checkpoints" / "reference_1" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in reference.items() if "lora_B" in name)
    assert not (folder / "checkpoints" / "reference_1" / "model.safetensors").exists()


def test_reference_of_a_job_shares_the_base_and_follows_no_step(job: Job) -> None:
    from aha.models import BaseWeights

    base = BaseWeights(job.chat.folder, "0" * 64)
    attach_lora(job.model, rank=2, alpha=4.0, base=base)
    reference = job.load_reference(first_step=0)
    assert reference.embed_tokens is job.model.embed_tokens
    batch = pack([TrainingSequence((1, 2), (7, 4))])
    before = token_logprobs(reference, batch).logprobs_M
    optimizer = Optimizer(job.model)
    (-token_logprobs(job.model, batch).logprobs_M.sum()).backward()
    optimizer.step(learning_rate=0.05)
    assert torch.equal(token_logprobs(reference, batch).logprobs_M, before)
    assert not torch.equal(token_logprobs(job.model, batch).logprobs_M, before)
    again = job.load_reference(first_step=1)
    assert torch.equal(token_logprobs(again, batch).logprobs_M, before), "a resumed run measures from the same model"


def test_resumed_run_refuses_a_base_that_has_changed(tmp_path: Path, recipe: Path, base: Path, aha: Aha) -> None:
    run = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "run")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, base / "model.safetensors")
    assert_refused(aha(run, "--resume"), "belongs to base weights with sha256", "put the old base back")
    with pytest.raises(ModelError, match="put the old base back"):
        load_model(hub.resolve(run))
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="the adapter's base .* is not a folder here"):
        load_model(hub.resolve(run))


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, recipe: Path, base: Path, aha: Aha) -> None:
    out = tmp_path / "none"
    assert_refused(aha(recipe, "lora_rank=-1", "--out", out), "lora_rank must be at least 0, got -1")
    assert_refused(aha(recipe, "lora_rank=500", "--out", out), "lora_rank must be from 1 to 32")
    assert_refused(aha(recipe, "lora_alpha=0", "--out", out), "lora_alpha must be above 0")
    assert_refused(aha(recipe, "lora_targets=heads", "--out", out), "lora_targets must be one of all_linear, attention")
    scratch = ("model=scratch", f"architecture={base}")
    assert_refused(aha(recipe, *scratch, "--out", out), "lora_rank needs a base", "scratch")
    assert not out.exists()
    run = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "run")
    assert_refused(aha(run, "--resume", "lora_rank=8"), "began with lora_rank=4, which a resumed run cannot change")
    assert_refused(aha(recipe, f"model={run}", "--out", out), "is a LoRA adapter itself", "aha export")


def test_stages_share_one_adapter(both: Path) -> None:
    with pytest.raises(ConfigError, match="lora_rank is decided by the first stage"):
        train(both, overrides=["stage.grpo.lora_rank=2"])


def test_full_training_can_start_from_a_stopped_lora_run(tmp_path: Path, recipe: Path) -> None:
    run = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "run")
    adapted = load_model(hub.resolve(run), dtype="float32", device="cpu")
    folder = train(
        recipe, overrides=[f"model={run}", "lora_rank=0", "steps=1", "eval_problems=0", "learning_rate=1e-9"],
        out=tmp_path / "full",
    )  # fmt: skip
    assert not (folder / "adapter").exists()
    ids_BT = torch.randint(0, 100, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = load_model(folder / "model", dtype="float32", device="cpu")(ids_BT)
        torch.testing.assert_close(full, adapted(ids_BT), atol=1e-4, rtol=1e-4)


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


@pytest.mark.slow
def test_killed_lora_run_resumes_to_the_same_bits(
    tmp_path: Path, base: Path, child_environment: dict[str, str]
) -> None:
    data = tmp_path / "data.jsonl"
    problems = [{"prompt": f"question {n}", "answer": "(?s)[01].*"} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in problems))
    shared = {"model": str(base), "dtype": "float32", "checkpoint_every": 2, "eval_problems": 4, "max_tokens": 6}
    path = write_stages(
        tmp_path / "recipe.toml",
        {**shared, **LORA, "learning_rate": 2e-2},
        {"kind": "sft", "task": "countdown", "steps": 3, "examples_per_step": 3},
        {"kind": "grpo", "task": f"{data}:verify=regex,test_fraction=0.3", "steps": 6, "prompts_per_step": 4,
         "group_size": 4, "kl_coef": 0.05, "updates_per_step": 2},
    )  # fmt: skip
    whole, out = train(path, out=tmp_path / "whole"), tmp_path / "killed"
    command = [sys.executable, "-W", "error", "-m", "aha", "train"]
    options: dict[str, Any] = {"env": child_environment, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    process = subprocess.Popen([*command, str(path), "--out", str(out), "--quiet"], **options)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 7):
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = subprocess.Popen([*command, str(out), "--resume", "--quiet"], **options)
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert logged(out, name) == logged(whole, name)
    newest = [list_checkpoints(folder)[-1] for folder in (out, whole)]
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes()
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "merge.json", "eval/after.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_stage_that_starts_from_the_base_again_gets_an_adapter_run_merged(tmp_path: Path, base: Path) -> None:
    """The run's first model is an adapter's folder: what it began with is the base with that adapter."""
    model = load_model(base, dtype="float32")
    attach_lora(model, rank=2, alpha=4.0, base=BaseWeights(base.resolve(), hash_weights(base)))
    with torch.no_grad():
        for _, low_rank in adapters(model):
            low_rank.b.fill_(0.05)
    folder = tmp_path / "adapter"
    save_adapter(model, folder)
    ChatFormat.load(base).save(folder)
    merge(model)
    other = load_model(base, dtype="float32")
    load_parameters(other, folder)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


@pytest.mark.parametrize("method", ["sequences", "on_policy"])
@pytest.mark.slow
def test_previous_stage_teaches_with_its_adapter_a_student_that_begins_anew(
    tmp_path: Path, base: Path, method: str
) -> None:
    shared = {**SETTINGS, **LORA, "model": str(base), "eval_problems": 40, "seed": 1}
    shared = {key: value for key, value in shared.items() if key not in ("group_size", "preflight_prompts")}
    recipe = write_stages(
        tmp_path / "taught.toml",
        shared,
        {"kind": "sft", "name": "cold", "steps": 16, "examples_per_step": 4},
        {
            "kind": "distill", "name": "taught", "teacher": "previous", "start": "base", "method": method, "steps": 16,
            "prompts_per_step": 8, "num_samples": 4, "examples_per_step": 4, "collect_steps": 2,
        },
    )  # fmt: skip
    folder = train(recipe, out=tmp_path / "out")
    before, teacher, student = (row["pass_at_1"] for row in rows(folder, "eval"))
    assert teacher > before + 0.4
    assert student > before + 0.4
