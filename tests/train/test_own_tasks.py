"""Whole runs on tasks of the user's own: a Python file, a mixture, rewards of the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aha.train import train
from aha.train.source import read_source

from .conftest import Aha, assert_refused, rows

TASK = """
from aha.types import Problem

def problems(split, seed):
    for n in range(1000):
        yield Problem(f"{split}-{n}", f"{split} {n}", "2")

def score(problem, completion):
    return completion.answer.startswith("2")
"""
QUICK = ["dtype=float32", "steps=2", "prompts_per_step=3", "group_size=4", "max_tokens=4", "eval_problems=4"]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "deuce.py"
    path.write_text(TASK, encoding="utf-8")
    return path


def test_python_file_trains_and_is_paid_by_the_rewards_of_the_recipe(
    aha: Aha, task_file: Path, tmp_path: Path, base_folder: Path
) -> None:
    rewards = 'rewards=["accuracy", "length:weight=0.2,target=2"]'
    ran = aha(task_file, f"model={base_folder}", *QUICK, rewards)
    assert ran.code == 0, ran.error
    folder = tmp_path / "runs" / "deuce"
    assert 'rewards = ["accuracy", "length:weight=0.2,target=2"]' in (folder / "recipe.toml").read_text()
    steps = rows(folder, "step")
    assert all(-0.2 - 1e-9 <= row["reward_length_mean"] < 0 for row in steps)
    assert all(row["reward_accuracy_mean"] == row["pass_at_1"] for row in steps)
    assert all(
        row["reward_mean"] == pytest.approx(row["reward_accuracy_mean"] + row["reward_length_mean"]) for row in steps
    )
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert set(sample["reward_parts"]) == {"accuracy", "length"}


@pytest.mark.slow
def test_mixture_trains_in_a_folder_named_after_its_tasks(task_file: Path, tmp_path: Path, base_folder: Path) -> None:
    other = tmp_path / "twins.py"
    other.write_text(TASK.replace("{split} {n}", "{n} {split}"), encoding="utf-8")
    folder = train(f"2*{task_file} + {other}", overrides=[f"model={base_folder}", *QUICK])
    assert folder.name == "deuce+twins"
    prompts = [json.loads(line)["prompt"] for line in (folder / "eval" / "after.jsonl").read_text().splitlines()]
    assert prompts == ["test 0", "0 test", "test 1", "test 2"]
    again = train(f"2*{task_file} + {other}", overrides=[f"model={base_folder}", *QUICK, "eval_problems=0"])
    assert again.name == "deuce+twins-2"


def test_file_whose_right_answers_score_less_than_one_is_refused_before_the_run(
    aha: Aha, task_file: Path, tmp_path: Path
) -> None:
    task_file.write_text(TASK.replace('startswith("2")', 'startswith("3")'), encoding="utf-8")
    assert_refused(aha(task_file, "model=tiny"), "deuce.py: the right answer '2' to 'train 0' scores 0, not 1")
    task_file.write_text(TASK.replace('completion.answer.startswith("2")', "1 / 0"), encoding="utf-8")
    assert_refused(aha(task_file, "model=tiny"), "not 1", "deuce.py line 9: ZeroDivisionError: division by zero")
    task_file.write_text("x = (\n", encoding="utf-8")
    assert_refused(aha(task_file, "model=tiny"), "deuce.py line 1", "was never closed")
    assert not (tmp_path / "runs").exists()


def test_long_prompt_of_a_file_is_refused_before_the_run(aha: Aha, task_file: Path, base_folder: Path) -> None:
    task_file.write_text(TASK.replace('f"{split} {n}"', 'f"{split} {n} " * 400'), encoding="utf-8")
    assert_refused(aha(task_file, f"model={base_folder}"), "deuce.py: the prompt 'train 0", "the model's window is 256")


def test_wrong_rewards_are_refused_before_the_run(aha: Aha, task_file: Path) -> None:
    assert_refused(aha(task_file, "model=tiny", "rewards=accurcy"), "unknown reward 'accurcy'; did you mean 'accuracy'")
    assert_refused(aha(task_file, "model=tiny", "rewards=format"), "has nothing that says what is right")


def test_file_without_a_model_gets_the_one_that_reads_text_or_is_told_so(task_file: Path) -> None:
    plan = read_source(str(task_file), overrides=["model=tiny"])
    assert plan.recipe.name == "deuce"
    assert plan.configs[0].task == str(task_file)
