"""Whole runs in this process: what a run leaves behind, and how it goes on."""

from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from aha import hub
from aha.chat import ChatFormat
from aha.cost.ledger import Ledger
from aha.errors import ConfigError, DataError
from aha.models import load_model
from aha.train import train
from aha.train.job import Interrupted, Job
from aha.train.source import read_run
from aha.types import Message

from .conftest import rows, status, stop_after_one_step, write_stages


@pytest.fixture(autouse=True)
def _tasks(first_token: object) -> None:
    """Every test here may train on "first_token"."""


def test_two_stages_run_through_and_leave_every_file(tmp_path: Path, base_folder: Path) -> None:
    path = write_stages(
        tmp_path / "both.toml",
        {"task": "first_token", "dtype": "float32", "learning_rate": 1e-2, "eval_problems": 20, "max_tokens": 2},
        {"kind": "sft", "model": str(base_folder), "steps": 6, "examples_per_step": 4},
        {"kind": "grpo", "steps": 3, "prompts_per_step": 3, "group_size": 4, "learning_rate": 1e-4},
    )
    folder = train(path, out=tmp_path / "out")
    for name in ("recipe.toml", "metrics.jsonl", "samples.jsonl", "eval/before.json", "eval/before.jsonl", "bill.json",
                 "eval/after.json", "eval/after.jsonl", "report.html", "run.json", "model/config.json",
                 "model/model.safetensors", "model/tokenizer.json", "model/chat_template.jinja", "model/README.md",
                 "checkpoints/step_000009/state.json"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert [row["step"] for row in rows(folder, "step")] == list(range(1, 10))
    assert ["reward_mean" in row for row in rows(folder, "step")] == [False] * 6 + [True] * 3
    before, between, after = rows(folder, "eval")
    assert (before["step"], between["step"], after["step"]) == (0, 6, 9)
    assert between["pass_at_1"] > before["pass_at_1"] + 0.2, "the cold start teaches this task"
    assert after["pass_at_1"] > before["pass_at_1"] + 0.2
    assert status(folder) == "finished"
    model = load_model(folder / "model", dtype="float32", device="cpu")
    newest = load_model(folder / "checkpoints" / "step_000009", dtype="float32", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), newest.parameters(), strict=True))
    bill = json.loads((folder / "bill.json").read_text())
    phases = [phase["name"] for phase in bill["phases"]]
    assert phases == ["evaluation before", "supervised training", "evaluation during training", "sampling",
                      "training", "evaluation after"]  # fmt: skip
    with Ledger.open() as ledger:
        assert ledger.num_entries(run_id=str(folder)) == len(phases)


def test_stopped_run_is_a_model_that_can_be_talked_to(tmp_path: Path, recipe: Path) -> None:
    folder = hub.resolve(stop_after_one_step(recipe, overrides=[], out=tmp_path / "run"))
    assert folder.parent.name == "checkpoints"
    assert load_model(folder).config.vocab_size > 0
    assert ChatFormat.load(folder).render([Message("user", "question")])


def test_resolved_recipe_trains_the_same_model_again(tmp_path: Path, recipe: Path) -> None:
    first = train(recipe, overrides={"seed": 7, "steps": 2}, out=tmp_path / "first")
    again = train(first / "recipe.toml", out=tmp_path / "again")
    assert (first / "recipe.toml").read_text() == (again / "recipe.toml").read_text()
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (first, again)]
    assert weights[0] == weights[1]


def test_resolved_recipe_names_the_dtype_that_auto_meant(tmp_path: Path, recipe: Path) -> None:
    folder = train(recipe, overrides=["dtype=auto", "steps=1", "eval_problems=0"], out=tmp_path / "out")
    assert tomllib.loads((folder / "recipe.toml").read_text())["dtype"] in ("float32", "bfloat16")


def test_bfloat16_run_trains_and_resumes_to_the_same_bits(tmp_path: Path, recipe: Path) -> None:
    overrides = ["dtype=bfloat16", "steps=4", "eval_problems=0"]
    whole = train(recipe, overrides=overrides, out=tmp_path / "whole")
    resumed = stop_after_one_step(recipe, overrides=overrides, out=tmp_path / "stopped")
    train(resumed, resume=True)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]


def test_runs_get_names_of_their_own(tmp_path: Path, recipe: Path) -> None:
    overrides = ["steps=1", "eval_problems=0", "preflight_prompts=0"]
    assert train(recipe, overrides=overrides) == Path("runs/quick")
    assert train(recipe, overrides=overrides) == Path("runs/quick-2")
    with pytest.raises(DataError, match="no unfinished run of 'quick' in runs"):
        train(recipe, resume=True)


def test_resume_takes_more_steps(tmp_path: Path, recipe: Path) -> None:
    folder = stop_after_one_step(recipe, overrides=[], out=tmp_path / "out")
    train(folder, overrides=["steps=5", "learning_rate=0.005"], resume=True)
    assert [row["step"] for row in rows(folder, "step")] == [1, 2, 3, 4, 5]
    assert {row["learning_rate"] for row in rows(folder, "step")} == {0.01, 0.005}
    assert len(rows(folder, "eval")) == 2


def test_resume_with_other_threads_says_that_bits_may_differ(tmp_path: Path, recipe: Path) -> None:
    folder = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "out")
    assert read_run(folder, overrides=()).note == ""
    torch.set_num_threads(3)
    note = read_run(folder, overrides=()).note
    assert note.startswith(f"began with 1 threads and torch {torch.__version__}, goes on with 3")


def test_resume_by_name_finds_the_newest_unfinished_run(recipe: Path) -> None:
    overrides = ["steps=2", "eval_problems=0", "preflight_prompts=0"]
    train(recipe, overrides=overrides)
    folder = stop_after_one_step(recipe, overrides=overrides, out=Path("runs/quick-2"))
    assert train(recipe, resume=True) == folder
    assert status(folder) == "finished"


def test_resume_does_not_look_before_training_again(tmp_path: Path, recipe: Path) -> None:
    folder = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "out")
    (folder / "preflight.json").unlink()
    train(folder, resume=True)
    assert not (folder / "preflight.json").exists()


def test_stop_during_the_evaluation_before_training_starts_over(tmp_path: Path, recipe: Path) -> None:
    """And one during the evaluation after it loses no step."""
    with pytest.MonkeyPatch.context() as patch:
        evaluate = Job.evaluate

        def stopped(job: Job, config: Any, name: str) -> Any:
            job.is_interrupted = name == stop_in
            return evaluate(job, config, name)

        patch.setattr(Job, "evaluate", stopped)
        stop_in = "before"
        with pytest.raises(Interrupted):
            train(recipe, out=tmp_path / "out")
        assert status(tmp_path / "out") == "interrupted"
        stop_in = "after"
        with pytest.raises(Interrupted):
            train(tmp_path / "out", resume=True)
        assert len(rows(tmp_path / "out", "step")) == 3
    train(tmp_path / "out", resume=True)
    assert len(rows(tmp_path / "out", "eval")) == 2
    assert status(tmp_path / "out") == "finished"


def test_model_that_emits_junk_trains_and_scores_nothing(tmp_path: Path, recipe: Path) -> None:
    overrides = ["task=countdown", "preflight_prompts=0", "max_tokens=40", "steps=1"]
    folder = train(recipe, overrides=overrides, out=tmp_path / "out")
    (step,) = rows(folder, "step")
    assert step["pass_at_1"] == step["trained_tokens"] == 0
    assert step["note"]


def test_port_that_is_taken_leaves_no_folder_behind(recipe: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            train(recipe, out=tmp_path / "out", watch_port=port)
    assert not (tmp_path / "out").exists()
