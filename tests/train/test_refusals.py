"""Every way to ask for a run wrongly: one line, exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from aha.config import load_recipe
from aha.errors import AhaError, ConfigError, DataError
from aha.train import run as run_module
from aha.train import train
from aha.train.job import Job
from aha.train.source import KINDS, check, find_resumable, read_source

from .conftest import SETTINGS, Aha, assert_refused, status, stop_after_one_step, write_recipe, write_stages


@pytest.fixture(autouse=True)
def _tasks(first_token: object) -> None:
    """Every test here may train on "first_token"."""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["group_sise=8"], ["unknown key 'group_sise'; did you mean 'group_size'?"]),
        (["steps=many"], ["steps must be a whole number, got 'many'"]),
        (["steps"], ["'steps' is not an override; write key=value"]),
        (["stage.sft.steps=3"], ["unknown stage 'sft'", "grpo"]),
        (["task=countdwn"], ["unknown task 'countdwn'; did you mean 'countdown'?"]),
        (["task=nothing.jsonl"], ["nothing.jsonl"]),
        (["model=tinny"], ["unknown model 'tinny'", "tiny"]),
        (["model=scratch"], ["needs architecture"]),
        (["price=dollar"], ["unknown", "dollar", "cpu-2core-hour"]),
        (["device=tpu"], ["unknown device 'tpu'"]),
        (["group_size=1"], ["group_size must be at least 2"]),
        (["eval_top_p=0"], ["eval_top_p must be above 0"]),
    ],
)
def test_wrong_setting_is_one_line_and_leaves_no_run(
    aha: Aha, recipe: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    out = tmp_path / "new" / "run"
    assert_refused(aha(recipe, *arguments, "--out", out), *parts)
    assert not out.exists()
    assert_refused(aha(recipe, *arguments), *parts)
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("stage = 'grpo'\ntask = 3\n", "task must be text, got 3"),
        ("stage = 'grpo'\ntask = 'countdown'\nsteps = 'ten'\n", "steps must be a whole number, got 'ten'"),
        ("stage = 'grppo'\n", "unknown stage 'grppo'; did you mean 'grpo'?"),
        ("stage = 'grpo'\n", "needs task"),
        ("task = 'countdown'\n", 'needs stage = "KIND"'),
        ("stage = \n", "is not a TOML file"),
    ],
)
def test_wrong_recipe_is_one_line_that_names_the_file(aha: Aha, tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert_refused(aha(path), "wrong.toml", part)
    assert_refused(aha(tmp_path / "missing.toml"), "cannot read", "missing.toml")


def test_data_file_without_answers_is_refused_with_its_line(aha: Aha, tmp_path: Path, base_folder: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n')
    assert_refused(aha(path, f"model={base_folder}"), "data.jsonl", "2", "answer")
    assert not Path("runs").exists()


def test_prompt_longer_than_the_window_is_refused_before_there_is_a_run(
    aha: Aha, tmp_path: Path, base_folder: Path
) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"short {n}", "answer": "1"} for n in range(30)] + [{"prompt": "long " * 2000, "answer": "1"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_refused(aha(path, f"model={base_folder}", "max_tokens=2"), "'long long", "tokens, the model's window is")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "part"), [("steps=1", "steps=1 is too few"), ("kl_coef=0.1", "kept no reference model")]
)
def test_override_that_the_steps_taken_do_not_fit_is_refused_and_not_kept(
    aha: Aha, tmp_path: Path, base_folder: Path, override: str, part: str
) -> None:
    settings = {"stage": "grpo", "model": str(base_folder), **SETTINGS, "steps": 4}
    recipe = write_recipe(tmp_path / "quick.toml", settings)
    out = tmp_path / "out"
    stop_after_one_step(recipe, overrides=[], out=out)
    if override == "steps=1":
        rename_checkpoint(out, steps=2)
    assert_refused(aha(out, override, "--resume"), part)
    assert "kl_coef = 0.0" in (out / "recipe.toml").read_text()


def rename_checkpoint(out: Path, *, steps: int) -> None:
    """Let the run have taken this many steps."""
    (old,) = (out / "checkpoints").glob("step_*")
    state = json.loads((old / "state.json").read_text())
    state["step"] = state["state"]["stage_step"] = steps
    (old / "state.json").write_text(json.dumps(state))
    old.rename(old.with_name(f"step_{steps:06d}"))


def test_resume_with_other_held_out_problems_is_refused_at_once(aha: Aha, tmp_path: Path, base_folder: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"question {n}", "answer": "(?s)[01].*"} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"{data}:verify=regex,test_fraction=0.5"
    recipe = write_recipe(
        tmp_path / "quick.toml", {"stage": "grpo", "model": str(base_folder), **SETTINGS, "task": task}
    )
    out = stop_after_one_step(recipe, overrides=["preflight_prompts=0"], out=tmp_path / "out")
    data.write_text("".join(json.dumps(row | {"answer": "[2]"}) + "\n" for row in rows))
    assert_refused(aha(out, "--resume"), "held-out problems", "have changed")


def test_folder_of_a_start_that_was_killed_can_be_started_again(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (".lock", "recipe.toml", ".run.json.123"):
        (out / name).write_text("")
    assert status(train(recipe, out=out)) == "finished"


def test_stage_cannot_change_what_the_first_one_decided(tmp_path: Path, base_folder: Path) -> None:
    shared: dict[str, object] = {"task": "first_token", "steps": 1}
    stages = ({"kind": "sft", "model": str(base_folder)}, {"kind": "grpo", "model": "tiny"})
    path = write_stages(tmp_path / "both.toml", shared, *stages)
    with pytest.raises(ConfigError, match="stage 'grpo': model is decided by the first stage"):
        read_source(str(path), overrides=())
    path = write_stages(tmp_path / "both.toml", shared, stages[0], {"kind": "grpo"})
    assert [config.model for config in read_source(str(path), overrides=()).configs] == [str(base_folder)] * 2


def test_preflight_that_finds_nothing_to_learn_stops_the_run_before_training(
    aha: Aha, recipe: Path, tmp_path: Path
) -> None:
    ran = aha(recipe, "task=countdown", "--out", tmp_path / "out")
    assert_refused(ran, "It cannot learn", "preflight_prompts=0 trains all the same")
    assert status(tmp_path / "out") == "interrupted"
    assert json.loads((tmp_path / "out" / "preflight.json").read_text())["can_learn"] is False


def test_out_folder_that_is_not_empty_or_no_folder_is_refused(aha: Aha, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert_refused(aha(recipe, "--out", tmp_path / "full"), "full is not empty; choose another --out")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert_refused(aha(recipe, "--out", tmp_path / "full" / "thesis.txt"), "thesis.txt is a file")
    assert_refused(aha(recipe, "--out", tmp_path / "full" / "thesis.txt" / "run"), "cannot make the run folder")


def test_out_folder_without_permission_is_refused(aha: Aha, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):  # root may write everywhere: a folder of the kernel stands in
        assert_refused(aha(recipe, "--out", Path("/proc/aha")), "cannot make the run folder /proc/aha")
    else:
        assert_refused(aha(recipe, "--out", tmp_path / "locked" / "run"), "Permission denied")


def test_resume_of_something_that_is_no_run_is_refused(aha: Aha, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for arguments in ([tmp_path / "photos"], [recipe, "--out", tmp_path / "photos"]):
        assert_refused(aha(*arguments, "--resume"), "photos is not a run folder (it has no run.json)")
    assert_refused(aha(recipe, "--out", tmp_path / "nowhere", "--resume"), "nowhere is not a run folder")
    assert_refused(aha("nothing", "--resume"), "no unfinished run of 'nothing' in runs")
    assert list((tmp_path / "photos").iterdir()) == []


def test_resume_of_a_half_written_run_or_another_version_is_refused(aha: Aha, recipe: Path, tmp_path: Path) -> None:
    folder = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "out")
    described = json.loads((folder / "run.json").read_text())

    (folder / "run.json").write_text(json.dumps({**described, "format": 99}))
    assert_refused(aha(folder, "--resume"), "has format 99, this version of aha resumes 1")
    for text in ('{"format": 1', "[]", '"run"'):
        (folder / "run.json").write_text(text)
        assert_refused(aha(folder, "--resume"), "run.json", "start anew with another --out")
    (folder / "run.json").write_text(json.dumps(described))
    os.rename(folder / "recipe.toml", folder / "kept.toml")
    assert_refused(aha(folder, "--resume"), "cannot read", "recipe.toml")
    os.rename(folder / "kept.toml", folder / "recipe.toml")
    weights = folder / "checkpoints" / "step_000001" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    assert_refused(aha(folder, "--resume"), "step_000001 cannot be read", "delete it")
    weights.write_bytes(content)
    assert aha(folder, "--resume").code == 0


def test_resume_of_a_finished_run_is_refused_with_what_to_do_instead(aha: Aha, recipe: Path, tmp_path: Path) -> None:
    folder = train(recipe, overrides=["steps=1", "eval_problems=0"], out=tmp_path / "out")
    written = (folder / "bill.json").read_bytes()
    assert_refused(aha(folder, "--resume"), f"{folder} is finished", f"start a run with model={folder}")
    assert (folder / "bill.json").read_bytes() == written
    assert aha(recipe, f"model={folder}", "steps=1", "--out", tmp_path / "further").code == 0


@pytest.mark.parametrize("override", ["task=countdown", "eval_problems=3", "seed=1", "max_tokens=5", "dtype=bfloat16"])
def test_resume_refuses_to_change_what_the_run_began_with(recipe: Path, tmp_path: Path, override: str) -> None:
    folder = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "out")
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"began with {key}=.*, which a resumed run cannot change to"):
        train(folder, overrides=[override], resume=True)
    assert status(folder) == "interrupted"


def test_resume_refuses_to_change_the_steps_of_a_finished_stage(tmp_path: Path, base_folder: Path) -> None:
    path = write_stages(
        tmp_path / "both.toml",
        {"task": "first_token", "dtype": "float32", "eval_problems": 0, "model": str(base_folder), "max_tokens": 2},
        {"kind": "sft", "steps": 1, "examples_per_step": 1},
        {"kind": "grpo", "steps": 3, "prompts_per_step": 2, "group_size": 2, "checkpoint_every": 1},
    )
    with pytest.MonkeyPatch.context() as patch:
        save = Job.save

        def save_and_stop(job: Job, *arguments: Any, **named: Any) -> None:
            save(job, *arguments, **named)
            if job.stage_index == 1:
                raise KeyboardInterrupt

        patch.setattr(Job, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(path, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="the stages before 'grpo' are finished; their steps cannot change"):
        train(tmp_path / "out", overrides=["stage.sft.steps=9"], resume=True)
    train(tmp_path / "out", overrides=["stage.grpo.steps=2"], resume=True)
    assert status(tmp_path / "out") == "finished"


@pytest.mark.parametrize("failing_write", [1, 5, 9, 13])  # recipe, log, within a checkpoint, after its rename
def test_full_disk_at_any_write_is_one_line_and_the_run_resumes(
    aha: Aha, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    """The N-th write that is forced to disk finds it full; with space again, the run goes on to the same weights."""
    whole = train(recipe, overrides=["eval_problems=0"], out=tmp_path / "whole")
    count = 0
    fsync = os.fsync

    def full_once(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(run_module.os, "fsync", full_once)
    out = tmp_path / "out"
    ran = aha(recipe, "eval_problems=0", "--out", out)
    assert_refused(ran, "No space left on device", "--resume")
    if (out / "run.json").exists():
        assert status(out) != "finished"
        assert aha(out, "--resume").code == 0
    else:  # full before there was a run: the command as it was begins one
        assert aha(recipe, "eval_problems=0", "--out", out).code == 0
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, out)]
    assert weights[0] == weights[1]


def test_spec_of_a_run_is_found_beside_its_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no unfinished run"):
        find_resumable("countdown", out=None, parent=tmp_path)
    for name, state in (("countdown", "finished"), ("countdown-2", "running"), ("countdown-old", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"format": 1, "status": state}))
    assert find_resumable("countdown:max_number=9", out=None, parent=tmp_path) == tmp_path / "countdown-2"


def test_mistake_in_the_last_stage_is_found_before_the_first_one_runs(tmp_path: Path) -> None:
    shared: dict[str, object] = {"task": "first_token"}
    path = write_stages(tmp_path / "both.toml", shared, {"kind": "sft"}, {"kind": "grpo", "task": "coutndown"})
    with pytest.raises(AhaError, match="unknown task 'coutndown'"):
        check(load_recipe(path, kinds=KINDS))


def test_unknown_teacher_of_a_later_stage_is_refused_before_the_first(aha: Aha, tmp_path: Path) -> None:
    recipe = write_stages(
        tmp_path / "recipe.toml",
        SETTINGS,
        {"kind": "grpo", "name": "teacher"},
        {"kind": "distill", "name": "student", "start": "base", "teacher": "previos"},
    )
    out = tmp_path / "run"
    assert_refused(aha(recipe, "--out", out), "teacher='previos'", "unknown model 'previos'", '"previous"')
    assert not out.exists()
