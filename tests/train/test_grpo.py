"""GRPO on a task that a random model can learn in seconds, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aha.engine import Engine
from aha.errors import ConfigError
from aha.tasks import TASKS
from aha.tasks.base import Task
from aha.train import grpo
from aha.train.grpo_config import GRPOConfig
from aha.train.job import Job
from aha.train.losses import LOSSES, PolicyTokens, TokenLosses
from aha.train.optimizer import Optimizer
from aha.train.run import load_parameters
from aha.types import Completion, Problem, Score

CONFIG = GRPOConfig(
    task="first_token", steps=20, prompts_per_step=4, group_size=8, max_tokens=2, learning_rate=1e-2, eval_problems=0,
    checkpoint_every=1000, dtype="float32",
)  # fmt: skip


def run(config: GRPOConfig, job: Job, **arguments: Any) -> list[dict[str, Any]]:
    """Train, and read the steps back from metrics.jsonl."""
    grpo.train(config, job, optimizer=Optimizer(job.model), **arguments)
    return rows(job.run.folder / "metrics.jsonl")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mean(steps: list[dict[str, Any]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)


@pytest.mark.usefixtures("first_token")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"updates_per_step": 2},
        {"loss": "grpo"},
        {"loss": "dr_grpo"},
        {"loss": "gspo"},
        {"loss": "cispo"},
        {"loss": "rloo"},
        {"kl_coef": 0.01},
    ],
)
def test_twenty_steps_raise_the_reward(job: Job, settings: dict[str, Any]) -> None:
    steps = run(replace(CONFIG, **settings), job)
    assert [step["step"] for step in steps] == list(range(1, 21))
    assert mean(steps[:4], "reward_mean") < 0.3
    assert mean(steps[-4:], "reward_mean") > 0.8
    assert not any(step["is_skipped"] for step in steps)


@pytest.mark.usefixtures("first_token")
def test_step_logs_what_the_report_needs(job: Job) -> None:
    (step,) = run(replace(CONFIG, steps=1, samples_per_step=3), job)
    assert step["kind"] == "step"
    assert step["pass_at_1"] == step["reward_mean"]
    assert (step["num_groups"], step["num_rollouts"]) == (4, 32)
    assert step["completion_tokens"] == round(step["mean_tokens"] * 32)
    assert 0 < step["trained_tokens"] <= step["completion_tokens"]
    assert step["teaching_fraction"] * 4 == round(step["teaching_fraction"] * 4)
    # The engine's log-probabilities are the trainer's: on policy the two models are one.
    assert step["sampler_gap"] < 1e-5
    assert step["kl"] == step["clip_low_fraction"] == step["clip_high_fraction"] == 0.0
    assert 0.0 < step["entropy"] < math.log(job.model.config.vocab_size)
    assert step["cost_usd"] > 0
    samples = rows(job.run.folder / "samples.jsonl")
    assert len(samples) == 3
    for sample in samples:
        assert sample["step"] == 1
        assert {"problem_id", "prompt", "gold", "text", "reasoning", "answer", "note", "finish_reason"} < sample.keys()
        assert sample["reward"] == float(sample["is_correct"])


class Fixed:
    """Every completion is worth the same, or cannot be judged."""

    def __init__(self, task: Task, *, reward: float) -> None:
        self.name, self.system_prompt, self.problems = "fixed", "", task.problems
        self.reward = reward

    def score(self, problem: object, completion: object) -> Any:
        return Score(self.reward, self.reward == 1.0)


@pytest.mark.parametrize(("reward", "words"), [(1.0, "every completion was right"), (0.0, "cut off before its answer")])
def test_flat_groups_cost_no_training_and_change_nothing(
    job: Job, first_token: Task, monkeypatch: pytest.MonkeyPatch, reward: float, words: str
) -> None:
    monkeypatch.setitem(TASKS, "fixed", lambda: Fixed(first_token, reward=reward))
    before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    steps = run(replace(CONFIG, task="fixed", steps=2, refill_budget=0.5), job)
    for step in steps:
        assert step["trained_tokens"] == 0
        assert step["teaching_fraction"] == step["loss"] == step["grad_norm"] == 0.0
        assert step["entropy"] is None
        assert words in step["note"]
        # Four prompts, and two more within the budget of a half.
        assert step["num_groups"] == 6
    for name, parameter in job.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert job.phases["training"].trained_tokens == 0


@pytest.mark.usefixtures("first_token")
def test_refill_samples_replacements_and_counts_them(job: Job) -> None:
    # Pairs are flat more often than not, so that replacements are needed.
    config = replace(CONFIG, steps=4, group_size=2, refill_budget=1.0, learning_rate=1e-5)
    steps = run(config, job)
    assert all(4 <= step["num_groups"] <= 8 for step in steps)
    assert any(step["num_groups"] > 4 for step in steps)
    teaching = [round(step["teaching_fraction"] * step["num_groups"]) for step in steps]
    assert all(count <= 4 for count in teaching)


class Shaped:
    """Right or wrong as the first token says, and a bit more for the last token, so that no group has equal rewards."""

    def __init__(self, task: Task) -> None:
        self.name, self.system_prompt, self.problems = "shaped", "", task.problems
        self._task = task

    def score(self, problem: Problem, completion: Completion) -> Score:
        score = self._task.score(problem, completion)
        parts = {"accuracy": score.reward, "last_token": completion.token_ids[-1] * 1e-4}
        return replace(score, reward=sum(parts.values()), parts=parts)


@pytest.mark.parametrize("filter_groups", ["reward", "accuracy"])
def test_dynamic_sampling_replaces_groups_that_are_all_right_or_all_wrong(
    job: Job, first_token: Task, monkeypatch: pytest.MonkeyPatch, filter_groups: str
) -> None:
    monkeypatch.setitem(TASKS, "shaped", lambda: Shaped(first_token))
    config = replace(
        CONFIG, task="shaped", steps=2, group_size=3, refill_budget=2.0, filter_groups=filter_groups, learning_rate=1e-5
    )  # fmt: skip
    for step in run(config, job):
        one_sided = step["all_right_fraction"] + step["all_wrong_fraction"]
        assert one_sided > 0
        if filter_groups == "reward":
            assert (step["num_groups"], step["teaching_fraction"]) == (4, 1.0)
        else:
            assert step["num_groups"] > 4
            assert step["teaching_fraction"] == pytest.approx(1.0 - one_sided)
            assert step["teaching_fraction"] * step["num_groups"] <= 4
        assert step["reward_accuracy_mean"] == step["pass_at_1"]
        assert step["reward_last_token_std"] > 0


@pytest.mark.usefixtures("first_token")
def test_every_update_says_how_stale_its_samples_are(job: Job) -> None:
    (step,) = run(replace(CONFIG, steps=1, updates_per_step=4, group_size=16), job)
    assert step["staleness"] == (0 + 1 + 2 + 3) / 4
    assert step["clip_low_fraction"] + step["clip_high_fraction"] > 0


@pytest.mark.usefixtures("first_token")
def test_sampler_of_other_numbers_is_measured_and_corrected(job: Job) -> None:
    exact = run(replace(CONFIG, steps=1), job)[-1]
    assert exact["mismatch_kl"] < 1e-9
    assert exact["importance_mean"] == pytest.approx(1.0, abs=1e-4)
    rounded = copy.deepcopy(job.model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_((parameter * 32).round() / 32)
    job.engine = Engine(rounded, stop_token_ids=job.chat.stop_token_ids)
    step = run(replace(CONFIG, steps=1, importance_cap=1.0), job)[-1]
    assert step["mismatch_kl"] > 1e-3
    assert step["sampler_gap"] > 1e-4
    assert step["importance_max"] > 1.01
    assert 0.0 < step["importance_capped_fraction"] < 1.0
    assert not step["is_skipped"]


@pytest.mark.usefixtures("first_token")
def test_step_with_a_gradient_that_is_not_finite_is_skipped_and_dumped(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(tokens: PolicyTokens, **clips: float) -> TokenLosses:
        result = LOSSES["dapo"].token_losses(tokens, **clips)
        return replace(result, losses_M=result.losses_M * float("inf"))

    monkeypatch.setitem(LOSSES, "exploding", replace(LOSSES["dapo"], token_losses=explode))
    before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    (step,) = run(replace(CONFIG, steps=1, loss="exploding"), job)
    assert step["is_skipped"] is True
    assert step["grad_norm"] is None
    assert "the gradient was not finite" in step["note"]
    for name, parameter in job.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    dumped = json.loads((job.run.folder / "skipped" / "step_000001.json").read_text())["sequences"]
    assert sum(len(s["completion_ids"]) for s in dumped) == step["trained_tokens"]
    assert {"prompt_ids", "completion_ids", "advantage", "sampled_logprobs"} <= dumped[0].keys()


@pytest.mark.usefixtures("first_token")
def test_kl_keeps_the_model_near_its_start(job: Job) -> None:
    held = run(replace(CONFIG, kl_coef=5.0, steps=15), job)
    assert held[0]["kl"] == 0.0
    assert 0.0 < mean(held[-5:], "kl") < 0.3
    assert mean(held[-5:], "reward_mean") < 0.5, "without the KL term it is above 0.8 by then"
    assert (job.run.folder / "checkpoints" / "reference_0" / "model.safetensors").exists()


@pytest.mark.usefixtures("first_token")
def test_same_seed_gives_the_same_run_and_another_seed_another(job: Job, base_folder: Path) -> None:
    def grad_norms(seed: int) -> list[float]:
        load_parameters(job.model, base_folder)
        (job.run.folder / "metrics.jsonl").unlink(missing_ok=True)
        return [step["grad_norm"] for step in run(replace(CONFIG, steps=3, seed=seed), job)]

    first = grad_norms(0)
    assert max(first) > 0
    assert grad_norms(0) == first
    assert grad_norms(1) != first


@pytest.mark.usefixtures("first_token")
def test_evaluations_during_training_are_logged_between_the_steps(job: Job) -> None:
    logged = run(replace(CONFIG, steps=4, eval_every=2, eval_problems=5), job)
    assert [(row["kind"], row["step"]) for row in logged] == [
        ("step", 1), ("step", 2), ("eval", 2), ("step", 3), ("step", 4)
    ]  # fmt: skip
    assert (job.run.folder / "eval" / "step_000002.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"loss": "grppo"}, "unknown loss 'grppo'; did you mean 'grpo'?"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"loss": ""}, "choose from: cispo, dapo, dr_grpo, grpo, gspo, rloo"),
        ({"clip_low": 1.5}, "clip_low must be between 0 (the loss's own) and 1, got 1.5"),
        ({"clip_high": -0.1}, "clip_high must be 0 (the loss's own) or more"),
        ({"importance_cap": 0.5}, "importance_cap must be 0 (off) or at least 1"),
        ({"refill_budget": -0.1}, "refill_budget must be 0 or more"),
        ({"eval_top_p": 0.0}, "eval_top_p must be above 0 and at most 1"),
        ({"eval_temperature": -1.0}, "eval_temperature must be between 0 and 10"),
        ({"final_learning_rate_ratio": 2.0}, "final_learning_rate_ratio must be between 0 and 1"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_value_out_of_range_is_refused_with_its_rule(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        GRPOConfig(task="countdown", **settings)
