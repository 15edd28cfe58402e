"""What is said before training, and in a step that taught nothing."""

from __future__ import annotations

import math

import pytest

from aha.tasks.base import Task
from aha.train.job import Job
from aha.train.preflight import judge, run_preflight
from aha.train.watchdog import explain
from aha.types import SamplingParams

HEALTHY = {
    "error_fraction": 0.0, "teaching_fraction": 0.6, "truncated_fraction": 0.1, "parse_failure_fraction": 0.1,
    "all_right_fraction": 0.2, "all_wrong_fraction": 0.2, "entropy": 0.5, "is_skipped": False,
}  # fmt: skip
FLAT = {**HEALTHY, "teaching_fraction": 0.0, "entropy": math.nan}


@pytest.mark.parametrize(
    ("change", "can_learn", "words"),
    [
        ({}, True, "It can learn: 60 % of groups"),
        ({"truncated_fraction": 0.4}, True, "run out of max_tokens=64"),
        ({"error_fraction": 0.6}, False, "the verifier fails on most completions"),
        ({"teaching_fraction": 0.05}, True, "It can hardly learn: hardly any of 8 tries is right"),
        ({"teaching_fraction": 0.0}, False, "It cannot learn: hardly any of 8 tries is right"),
        ({"teaching_fraction": 0.0, "truncated_fraction": 0.9}, False, "cut off at max_tokens=64. Raise max_tokens"),
        ({"teaching_fraction": 0.05, "all_right_fraction": 0.9}, True, "It can hardly learn: the model already solves"),
        ({"teaching_fraction": 0.0, "all_right_fraction": 1.0}, False, "Take a harder task"),
        ({"teaching_fraction": 0.0, "parse_failure_fraction": 0.9}, False, "an sft stage before grpo"),
    ],
)
def test_verdict_says_whether_the_run_can_learn_and_what_to_do(
    change: dict[str, float], can_learn: bool, words: str
) -> None:
    found, verdict = judge({**HEALTHY, **change}, max_tokens=64, group_size=8)
    assert found is can_learn
    assert words in verdict


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (HEALTHY, ""),
        ({**HEALTHY, "error_fraction": 0.6}, "the verifier failed on most completions"),
        ({**FLAT, "all_right_fraction": 1.0, "all_wrong_fraction": 0.0}, "take a harder task"),
        ({**FLAT, "truncated_fraction": 0.95, "all_wrong_fraction": 1.0}, "raise max_tokens"),
        ({**FLAT, "parse_failure_fraction": 0.95, "all_wrong_fraction": 1.0}, "start with an sft stage"),
        ({**FLAT, "all_wrong_fraction": 1.0}, "every completion was wrong"),
        (FLAT, "all completions of each prompt got the same reward"),
        ({**HEALTHY, "is_skipped": True}, "the gradient was not finite"),
        ({**HEALTHY, "truncated_fraction": 0.6}, "60 % of completions ran out of tokens"),
        ({**HEALTHY, "entropy": 0.001}, "entropy is below 0.01"),
        ({**HEALTHY, "entropy": math.nan}, ""),
        ({**HEALTHY, "sampler_gap": 0.03}, "0.030 off the trainer's on average: set importance_cap=2"),
        ({**HEALTHY, "sampler_gap": 0.004}, ""),
    ],
)
def test_watchdog_explains_what_stands_in_the_way(metrics: dict[str, float], words: str) -> None:
    note = explain(metrics)
    assert words in note
    assert bool(note) == bool(words)


def test_preflight_measures_a_task_that_the_model_sometimes_solves(job: Job, first_token: Task) -> None:
    found = run_preflight(
        first_token,
        chat=job.chat,
        engine=job.engine,
        sampling=SamplingParams(num_samples=8, max_tokens=2),
        num_prompts=8,
        seed=0,
    )
    assert found.can_learn
    assert (found.num_prompts, found.group_size) == (8, 8)
    assert 0.05 < found.pass_at_1 < 0.3
    assert found.pass_at_group == found.teaching_fraction > 0.4
    assert found.mean_tokens == pytest.approx(2.0, abs=0.1)
    assert "pass@8" in found.lines()
    assert found.verdict in found.lines()
    assert found.to_dict()["can_learn"] is True
