"""Killed at any moment, a run goes on to the same bits: real processes, real SIGKILLs."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aha.train import train
from aha.train.run import list_checkpoints
from tests.train.conftest import CLOCK

HEAD = """
model = {base}
dtype = "float32"
checkpoint_every = 2
eval_problems = 4
max_tokens = 6
learning_rate = 5e-3
"""
TWO_STAGES = (
    HEAD
    + """
[[stage]]
name = "cold"
kind = "sft"
task = "countdown"
steps = 3
examples_per_step = 3

[[stage]]
name = "rl"
kind = "grpo"
task = {task}
steps = 6
prompts_per_step = 4
group_size = 4
updates_per_step = 2
refill_budget = 0.5
kl_coef = 0.05
eval_every = 3
"""
)
GRPO_ALONE = (
    HEAD
    + """
stage = "grpo"
task = {task}
steps = 9
prompts_per_step = 4
group_size = 4
preflight_prompts = 4
schedule = "linear"
warmup_steps = 2
advantage_scale = "none"
"""
)
R1 = (
    HEAD
    + """
task = {task}

[[stage]]
name = "cold"
kind = "sft"
data = [{cold}]
steps = 8
examples_per_step = 4

[[stage]]
name = "rl"
kind = "grpo"
steps = 3
prompts_per_step = 4
group_size = 4
learning_rate = 1e-4

[[stage]]
name = "rejected"
kind = "rejection"
steps = 4
prompts_per_step = 4
num_samples = 4
keep_per_prompt = 2

[[stage]]
name = "again"
kind = "sft"
start = "base"
data = ["rejected"]
steps = 5
examples_per_step = 3

[[stage]]
name = "rl_all"
kind = "grpo"
steps = 3
prompts_per_step = 4
group_size = 4
learning_rate = 1e-4
kl_coef = 0.01
"""
)
DISTILL = (
    HEAD
    + """
task = {task}
prompts_per_step = 4

[[stage]]
name = "cold"
kind = "sft"
data = [{cold}]
steps = 16
examples_per_step = 4

[[stage]]
name = "taught"
kind = "distill"
teacher = "previous"
start = "base"
collect_steps = 3
steps = 4
examples_per_step = 3

[[stage]]
name = "followed"
kind = "distill"
teacher = "previous"
start = "base"
method = "on_policy"
steps = 5
num_samples = 2
"""
)
RECIPES = {"two_stages": TWO_STAGES, "v3": TWO_STAGES, "grpo_alone": GRPO_ALONE, "r1": R1, "distill": DISTILL}
"""All on a dense model but v3, whose selection biases are buffers and not parameters."""


class Runs:
    """A recipe that is trained in processes of its own."""

    def __init__(self, folder: Path, *, recipe: str, base: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        data = folder / "data.jsonl"
        rows = [{"prompt": f"question {n}", "answer": "(?s)[01].*"} for n in range(30)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cold = folder / "cold.jsonl"
        cold.write_text("".join(json.dumps({"prompt": f"question {n}", "answer": str(n % 2)}) + "\n" for n in range(9)))
        self.recipe = folder / "recipe.toml"
        task = json.dumps(f"{data}:verify=regex,test_fraction=0.3")
        self.recipe.write_text(recipe.format(base=json.dumps(str(base)), task=task, cold=json.dumps(str(cold))))

    def whole(self) -> Path:
        """The folder of a run that nobody stops; in this process, which saves the start of another."""
        return train(self.recipe, out=self.folder / "whole")

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "aha", "train", *map(str, arguments), "--quiet"]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True, cwd=self.folder)

    def stop(
        self, process: subprocess.Popen[str], out: Path, *, with_signal: signal.Signals, rows: int, delay: float
    ) -> None:
        """Send a signal once the log has so many rows and a bit of time has passed."""
        metrics = out / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < rows):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(with_signal)

    def finish(self, out: Path) -> None:
        process = self.start(out, "--resume")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.fixture
def make_runs(tmp_path: Path, base_folder: Path, v3_folder: Path, child_environment: dict[str, str]) -> Any:
    def make(name: str) -> Runs:
        base = v3_folder if name == "v3" else base_folder
        return Runs(tmp_path, recipe=RECIPES[name], base=base, environment=child_environment)

    return make


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def assert_same_run(ours: Path, whole: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert logged(ours, name) == logged(whole, name)
    assert (ours / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    newest_ours, newest_whole = list_checkpoints(ours)[-1], list_checkpoints(whole)[-1]
    assert newest_ours.name == newest_whole.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (newest_ours / name).read_bytes() == (newest_whole / name).read_bytes()
    for name in sorted(str(path.relative_to(whole)) for path in whole.glob("data/*/*")):
        assert (ours / name).read_bytes() == (whole / name).read_bytes()
    for name in ("before.jsonl", "after.jsonl"):
        assert (ours / "eval" / name).read_bytes() == (whole / "eval" / name).read_bytes()
    assert json.loads((ours / "run.json").read_text())["status"] == "finished"


def test_killed_run_resumes_to_the_same_bits(make_runs: Any) -> None:
    """SFT, then off-policy GRPO with a KL term and refills, killed in the second stage."""
    runs = make_runs("two_stages")
    whole = runs.whole()
    assert sum(row.get("trained_tokens", 0) for row in logged(whole, "metrics.jsonl")) > 0
    assert any(row.get("kl") for row in logged(whole, "metrics.jsonl"))
    out = runs.folder / "killed"
    process = runs.start(runs.recipe, "--out", out)
    runs.stop(process, out, with_signal=signal.SIGKILL, rows=7, delay=random.uniform(0.0, 0.1))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    runs.finish(out)
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_run_killed_again_and_again_resumes_to_the_same_bits(make_runs: Any, name: str) -> None:
    runs = make_runs(name)
    whole = runs.whole()
    num_rows = len(logged(whole, "metrics.jsonl"))
    out = runs.folder / "killed"
    arguments: tuple[str | Path, ...] = (runs.recipe, "--out", out)
    for _ in range(6):
        process = runs.start(*arguments)
        # Row 0 is before the first evaluation is done, the last one while the report is written.
        runs.stop(
            process, out, with_signal=signal.SIGKILL, rows=random.randrange(num_rows + 1), delay=random.uniform(0, 0.3)
        )
        process.communicate()
        if not (out / "run.json").exists() or json.loads((out / "run.json").read_text())["status"] == "finished":
            break
        arguments = (out, "--resume")
    if not (out / "run.json").exists():
        assert runs.start(runs.recipe, "--out", runs.folder / "anew").wait(timeout=300) == 0
        out = runs.folder / "anew"
    elif json.loads((out / "run.json").read_text())["status"] != "finished":
        runs.finish(out)
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_ctrl_c_saves_the_step_in_hand_exits_with_130_and_resumes_to_the_same_bits(make_runs: Any, name: str) -> None:
    runs = make_runs(name)
    whole = runs.whole()
    out = runs.folder / "stopped"
    process = runs.start(runs.recipe, "--out", out)
    runs.stop(process, out, with_signal=signal.SIGINT, rows=6, delay=0.01)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (130, "")
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert (out / "report.html").exists()
    steps = [row["step"] for row in logged(out, "metrics.jsonl") if row["kind"] == "step"]
    assert list_checkpoints(out)[-1].name == f"step_{steps[-1]:06d}"
    runs.finish(out)
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r1", "distill"])
def test_run_killed_once_in_every_stage_resumes_to_the_same_bits(make_runs: Any, name: str) -> None:
    """Each kill comes while the stage's steps are being written, at another moment in each."""
    runs = make_runs(name)
    whole = runs.whole()
    log = logged(whole, "metrics.jsonl")
    ends = [index for index, row in enumerate(log) if row["kind"] == "stage"]
    out = runs.folder / "killed"
    arguments: tuple[str | Path, ...] = (runs.recipe, "--out", out)
    num_killed = 0
    for end in ends:
        process = runs.start(*arguments)
        # Two rows before the stage's own one: its last steps are still to come.
        runs.stop(process, out, with_signal=signal.SIGKILL, rows=end - 2, delay=random.uniform(0, 0.01))
        process.communicate()
        num_killed += process.returncode == -signal.SIGKILL
        arguments = (out, "--resume")
        if json.loads((out / "run.json").read_text())["status"] == "finished":
            break
    else:
        runs.finish(out)
    assert num_killed == len(ends)
    assert_same_run(out, whole)


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once_and_resumes_to_the_same_bits(make_runs: Any) -> None:
    runs = make_runs("two_stages")
    whole = runs.whole()
    out = runs.folder / "stopped"
    process = runs.start(runs.recipe, "--out", out)
    runs.stop(process, out, with_signal=signal.SIGINT, rows=6, delay=0.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (130, "")
    runs.finish(out)
    assert_same_run(out, whole)


@pytest.mark.slow
def test_second_process_on_a_run_folder_is_refused(make_runs: Any) -> None:
    runs = make_runs("grpo_alone")
    out = runs.folder / "shared"
    first = runs.start(runs.recipe, "--out", out)
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    second = runs.start(out, "--resume")
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 2
    assert errors == f"aha: {out} is being trained by another process; wait for it, or choose another --out\n"
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
