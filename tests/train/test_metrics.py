"""metrics.jsonl: what a step says about its rollouts, and that docs/metrics.md knows every key of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aha.train import grpo, sft
from aha.train.grpo_config import GRPOConfig
from aha.train.job import Job
from aha.train.metrics import rollout_metrics
from aha.train.optimizer import Optimizer
from aha.train.sft import SFTConfig
from aha.train.tally import merge
from aha.types import Completion, FinishReason, Outcome, Problem, Rollout, RolloutGroup, Score

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
CONDITIONAL = {
    "reward_NAME_mean", "reward_NAME_std", "scoring_seconds", "mean_turns", "mean_observation_tokens",
    "num_kept", "num_examples", "divergence", "stage", "stage_kind", "num_steps", "wall_seconds",
    "mtp_loss", "balance_loss", "expert_load_cv", "expert_load_cv_worst", "expert_max_violation", "unused_experts",
}  # fmt: skip
"""Keys that not every run has."""


def rollout(reward: float, *, num_tokens: int = 3, is_finished: bool = True, **of_score: object) -> Rollout:
    reason = FinishReason.STOP if is_finished else FinishReason.LENGTH
    completion = Completion(tuple(range(num_tokens)), (-0.5,) * num_tokens, reason)
    return Rollout(completion, Score(reward, reward >= 1.0, **of_score))  # type: ignore[arg-type]


def group(*rollouts: Rollout) -> RolloutGroup:
    return RolloutGroup(Problem("p", "prompt", "answer"), (1, 2), rollouts)


def measured(*groups: RolloutGroup) -> dict[str, float]:
    return rollout_metrics(groups, num_thinking_tokens=())


def test_lengths_are_told_apart_by_whether_the_answer_ended() -> None:
    found = measured(
        group(rollout(1.0, num_tokens=2), rollout(0.0, num_tokens=6), rollout(0.0, num_tokens=10, is_finished=False))
    )
    assert (found["mean_tokens"], found["shortest_tokens"], found["longest_tokens"]) == (6.0, 2, 10)
    finished = [found[f"{name}_finished_tokens"] for name in ("mean", "shortest", "longest")]
    assert finished == [4.0, 2, 6]
    assert found["truncated_fraction"] == pytest.approx(1 / 3)


def test_lengths_of_finished_answers_are_unknown_when_none_is() -> None:
    found = measured(group(rollout(0.0, is_finished=False), rollout(0.0, is_finished=False)))
    assert all(found[f"{name}_finished_tokens"] != found[f"{name}_finished_tokens"] for name in ("mean", "longest"))


def test_deviation_within_groups_is_apart_from_that_of_all_rewards() -> None:
    found = measured(group(rollout(1.0), rollout(1.0)), group(rollout(0.0), rollout(2.0)))
    # Deviations 0 and 1 within; 1, 1, 0 and 2 together have mean 1 and deviation sqrt(1/2).
    assert found["group_reward_std"] == pytest.approx(0.5)
    assert found["reward_std"] == pytest.approx(0.5**0.5)


def test_every_part_of_a_reward_has_a_mean_and_a_deviation_of_judged_completions() -> None:
    found = measured(
        group(
            rollout(1.1, parts={"accuracy": 1.0, "format": 0.1}),
            rollout(0.0, parts={"accuracy": 0.0, "format": 0.0}),
            rollout(9.0, parts={"accuracy": 9.0}, outcome=Outcome.ERROR),
        )
    )
    assert found["reward_accuracy_mean"] == pytest.approx(0.5)
    assert found["reward_format_mean"] == pytest.approx(0.05)
    assert found["reward_format_std"] == pytest.approx(0.05)


def test_one_sided_groups_are_counted_by_side() -> None:
    right, wrong = rollout(1.0), rollout(0.0)
    found = measured(group(right, right), group(wrong, wrong), group(right, wrong), group(wrong, wrong))
    assert (found["all_right_fraction"], found["all_wrong_fraction"]) == (0.25, 0.5)


def test_updates_of_a_step_are_averaged_and_their_maximum_kept() -> None:
    update = dict.fromkeys(merge([]), 1.0)
    merged = merge([update, {**update, "loss": 3.0, "importance_max": 7.0, "is_skipped": True}])
    assert (merged["loss"], merged["importance_max"], merged["is_skipped"]) == (2.0, 7.0, True)


def documented() -> set[str]:
    """Names in the first column of the page's tables."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def keys_of(path: Path) -> set[str]:
    return {key for line in path.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}


@pytest.mark.usefixtures("first_token")
@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_every_key_of_a_row_is_documented_and_no_other(job: Job, kind: str) -> None:
    shared: dict[str, object] = {"task": "first_token", "steps": 2, "eval_every": 1, "eval_problems": 2}
    if kind == "grpo":
        config = GRPOConfig(**shared, prompts_per_step=2, group_size=4, max_tokens=2)  # type: ignore[arg-type]
        grpo.train(config, job, optimizer=Optimizer(job.model))
    else:
        sft.train(SFTConfig(**shared, max_tokens=2), job, optimizer=Optimizer(job.model))  # type: ignore[arg-type]
    found = keys_of(job.run.folder / "metrics.jsonl")
    assert found - documented() == set()
    if kind == "grpo":
        assert documented() - found <= CONDITIONAL


OF_EXPERTS = {"expert_load_cv", "expert_load_cv_worst", "expert_max_violation", "unused_experts"}


@pytest.mark.usefixtures("first_token")
def test_every_key_of_a_sparse_models_row_is_documented(v3_job: Job) -> None:
    shared: dict[str, object] = {"task": "first_token", "steps": 1, "eval_problems": 0, "max_tokens": 2}
    sft.train(SFTConfig(**shared), v3_job, optimizer=Optimizer(v3_job.model))  # type: ignore[arg-type]
    path = v3_job.run.folder / "metrics.jsonl"
    assert {*OF_EXPERTS, "mtp_loss", "balance_loss"} <= keys_of(path) <= documented()
    path.unlink()
    config = GRPOConfig(**shared, prompts_per_step=4, group_size=16)  # type: ignore[arg-type]
    grpo.train(config, v3_job, optimizer=Optimizer(v3_job.model))
    assert keys_of(path) >= OF_EXPERTS
    assert keys_of(path) <= documented()
    assert not {"mtp_loss", "balance_loss"} & keys_of(path)


@pytest.mark.usefixtures("first_token")
@pytest.mark.parametrize("updates_per_step", [1, 3])
def test_numbers_of_a_step_are_possible(job: Job, updates_per_step: int) -> None:
    config = GRPOConfig(
        task="first_token", steps=3, prompts_per_step=4, group_size=8, max_tokens=2, learning_rate=1e-3, eval_problems=0
    )
    grpo.train(replace(config, updates_per_step=updates_per_step), job, optimizer=Optimizer(job.model))
    rows = [json.loads(line) for line in (job.run.folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        shares: Sequence[str] = [key for key in row if key.endswith("_fraction")]
        assert all(0.0 <= row[key] <= 1.0 for key in shares)
        assert row["shortest_tokens"] <= row["mean_tokens"] <= row["longest_tokens"]
        assert 0.0 < row["mfu"] < 1.0
        assert row["peak_memory_bytes"] > 50e6
        assert row["rollout_tokens_per_second"] * row["rollout_seconds"] == pytest.approx(row["completion_tokens"])
        assert row["train_tokens_per_second"] * row["train_seconds"] == pytest.approx(row["trained_tokens"])
        assert row["other_seconds"] >= 0.0
        assert row["staleness"] == pytest.approx((updates_per_step - 1) / 2)
