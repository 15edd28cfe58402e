"""Every stage on a random tiny DeepSeek-V3: latent attention, experts, multi-token prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aha.models import Transformer, load_model
from aha.models.shapes import SHAPES
from aha.train import train
from aha.train.balance import gates_of
from aha.train.batches import TrainingSequence, pack
from aha.train.job import Job
from aha.train.logprobs import token_logprobs
from aha.train.pipeline import _open_model
from aha.train.sft import SFTConfig
from aha.train.speed import active_body_parameters
from aha.types import SamplingParams
from tests.train.conftest import (
    CLOCK,
    Aha,
    FirstToken,
    assert_refused,
    rows,
    stop_after_one_step,
    write_recipe,
    write_stages,
)
from tests.train.test_stages import AGAIN, COLD, FOLLOWED, LAST, REJECTED, RL, SHARED

MakeModel = Callable[..., Transformer]


@pytest.fixture
def run(tmp_path: Path, v3_folder: Path, first_token: FirstToken) -> Any:
    def call(*stages: dict[str, object], **changes: object) -> Path:
        recipe = write_stages(tmp_path / "many.toml", {**SHARED, "model": str(v3_folder), **changes}, *stages)
        return train(recipe, out=tmp_path / "out")

    return call


def biases(model: Transformer) -> list[torch.Tensor]:
    return [gate.selection_bias for gate in gates_of(model)]


@pytest.mark.slow
def test_the_five_stages_of_r1_raise_the_score_of_a_v3(run: Any) -> None:
    folder = run(COLD, {**RL, "kl_coef": 0.05}, REJECTED, AGAIN, LAST)
    before, after = rows(folder, "eval")[0], rows(folder, "eval")[-1]
    assert after["pass_at_1"] > before["pass_at_1"] + 0.5
    steps = rows(folder, "step")
    assert all(step["mtp_loss"] > 0 for step in steps if "loss" in step and "reward_mean" not in step)
    gaps = [step["sampler_gap"] for step in steps if step.get("sampler_gap") is not None]
    assert gaps
    assert max(gaps) < 1e-4
    trained = load_model(folder / "model", dtype="float32")
    assert trained.config.num_mtp_layers == 2
    assert all(bias.abs().max() > 0 for bias in biases(trained)), "the biases were moved, and saved"


@pytest.mark.slow
def test_student_follows_a_v3(run: Any) -> None:
    folder = run(COLD, FOLLOWED)
    steps = [row for row in rows(folder, "step") if "divergence" in row]
    divergences = [step["divergence"] for step in steps]
    # Means of six: a single batch of so few tokens says little.
    assert sum(divergences[-6:]) < 0.5 * sum(divergences[:6])
    assert all("expert_load_cv" in step for step in steps)


@pytest.mark.slow
def test_adapters_train_and_leave_the_biases_where_they_are(run: Any, v3_folder: Path) -> None:
    folder = run({**COLD, "steps": 10, "learning_rate": 1e-3}, {**RL, "kl_coef": 0.05}, lora_rank=4)
    losses = [row["loss"] for row in rows(folder, "step") if "mtp_loss" in row]
    assert losses[-1] < losses[0]
    base, trained = load_model(v3_folder, dtype="float32"), load_model(folder / "model", dtype="float32")
    for ours, theirs in zip(biases(trained), biases(base), strict=True):
        assert torch.equal(ours, theirs)


def test_adapter_wider_than_the_narrowest_matrix_is_refused(
    tmp_path: Path, v3_folder: Path, aha: Aha, first_token: FirstToken
) -> None:
    recipe = write_recipe(
        tmp_path / "wide.toml", {"stage": "sft", "model": str(v3_folder), "task": "first_token", "lora_rank": 64}
    )
    assert_refused(aha(recipe, "--out", tmp_path / "out"), "lora_rank must be from 1 to 16")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_the_trainer(v3_job: Job, temperature: float) -> None:
    """Sampled by absorbed attention over the cached latents, trained by expanded attention."""
    model = v3_job.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
        for bias in model.buffers():
            bias.uniform_(-0.05, 0.05)
    model.weight_version += 1
    prompts = [(1, 20, 7), (1, 20, 7, 9, 11, 30, 2), (5, *range(40, 83))]
    params = SamplingParams(num_samples=3, max_tokens=40, temperature=temperature, seed=3)
    groups = v3_job.engine.generate(prompts, [params] * 3)
    assert sum(len(done.token_ids) for group in groups for done in group) > 150
    for prompt, group in zip(prompts, groups, strict=True):
        batch = pack([TrainingSequence(prompt, done.token_ids) for done in group])
        trained = token_logprobs(model, batch, temperature=temperature).logprobs_M.tolist()
        assert trained == pytest.approx([value for done in group for value in done.logprobs], abs=1e-4)


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


@pytest.mark.slow
def test_stopped_run_resumes_to_the_same_bits_of_weights_and_biases(
    tmp_path: Path, v3_folder: Path, first_token: FirstToken
) -> None:
    settings = {**SHARED, "checkpoint_every": 1, "balance_speed": 0.003, "model": str(v3_folder)}
    recipe = write_stages(tmp_path / "two.toml", settings, {**COLD, "steps": 4}, {**RL, "balance_speed": 0.001})
    whole = train(recipe, out=tmp_path / "whole")
    stopped = stop_after_one_step(recipe, overrides=[], out=tmp_path / "stopped")
    saved = load_model(stopped / "checkpoints" / "step_000001", dtype="float32")
    assert all(bias.abs().max() == pytest.approx(0.003) for bias in biases(saved))
    train(stopped, resume=True)
    assert logged(stopped) == logged(whole)
    for name in ("model/model.safetensors", "checkpoints/step_000006/optimizer.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_stage_that_starts_from_the_base_has_its_biases_again(run: Any, v3_folder: Path) -> None:
    again = {**AGAIN, "data": [], "steps": 1, "learning_rate": 1e-12, "balance_speed": 0.0}
    folder = run({**COLD, "steps": 2}, again)
    for ours, theirs in zip(biases(load_model(folder / "model")), biases(load_model(v3_folder)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_by_name_is_made_from_nothing_with_the_built_in_tokenizer(name: str) -> None:
    model, chat = _open_model(
        SFTConfig(task="countdown", model="scratch", architecture=name, dtype="float32", device="cpu")
    )
    assert model.config.vocab_size == len(chat.vocabulary)
    assert set(model.config.eos_token_ids) == set(chat.stop_token_ids)


def test_v3_tiny_has_the_built_in_models_active_parameters() -> None:
    def active(architecture: str) -> float:
        config = SFTConfig(task="countdown", model="scratch", architecture=architecture, dtype="float32", device="cpu")
        model, _ = _open_model(config)
        return active_body_parameters(model)

    assert active("v3_tiny") == pytest.approx(active("tiny"), rel=0.01)


def test_unknown_architecture_is_refused_before_there_is_a_folder(tmp_path: Path, aha: Aha) -> None:
    recipe = write_recipe(
        tmp_path / "scratch.toml", {"stage": "sft", "model": "scratch", "task": "countdown", "steps": 1}
    )
    assert_refused(aha(recipe, "--out", tmp_path / "out"), 'model = "scratch" needs architecture', "v3_tiny")
    ran = aha(recipe, "architecture=v3_tinny", "--out", tmp_path / "out")
    assert_refused(ran, "architecture: unknown model 'v3_tinny'", "or one of the shapes: v3_tiny")
    assert not (tmp_path / "out").exists()
