"""Killed on the border between two stages, a run goes on to the same bits: after each method, in every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aha.train import train
from aha.train.job import Job
from tests.train.conftest import CLOCK, FirstToken, write_stages
from tests.train.test_lora import base  # noqa: F401 - a fixture
from tests.train.test_stages import AGAIN, COLD, FOLLOWED, LAST, REJECTED, RL, SHARED, TAUGHT

STAGES = (
    {**COLD, "steps": 24, "examples_per_step": 8},
    RL,
    REJECTED,
    {**AGAIN, "steps": 20},
    {**TAUGHT, "steps": 3},
    {**FOLLOWED, "steps": 2},
    {**LAST, "kl_coef": 0.1, "start": "base"},
)


class Killed(BaseException):
    """As good as SIGKILL: nothing of ours catches it."""


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4, "lora_alpha": 8.0}], ids=["full", "lora"])
def test_run_killed_before_and_after_every_border_resumes_to_the_same_bits(
    tmp_path: Path,
    first_token: FirstToken,
    lora: dict[str, object],
) -> None:
    shared = {**SHARED, **lora, "model": str(tmp_path / "base"), "eval_problems": 4}
    recipe = write_stages(tmp_path / "all.toml", shared, *STAGES)
    whole = train(recipe, out=tmp_path / "whole")
    out = tmp_path / "out"
    num_killed = 0
    for index in range(len(STAGES)):
        for method in ("begin_stage", "log_stage"):
            num_killed += kill_in(method, index, recipe=recipe, out=out, resume=num_killed > 0)
    assert num_killed == 2 * len(STAGES)
    train(recipe, out=out, resume=True)
    compare(out, whole)


def kill_in(method: str, index: int, *, recipe: Path, out: Path, resume: bool) -> bool:
    """Train until a stage calls a method of its job, and kill the run after that call."""
    original = getattr(Job, method)

    def call_and_die(job: Job, *arguments: Any, **options: Any) -> Any:
        result = original(job, *arguments, **options)
        if job.stage_index == index:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, method, call_and_die)
        try:
            train(recipe, out=out, resume=resume)
        except Killed:
            return True
    return False


def compare(ours: Path, whole: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert logged(ours, name) == logged(whole, name)
    files = ["model/model.safetensors", *(str(path.relative_to(whole)) for path in whole.glob("data/*/*"))]
    for name in files:
        assert (ours / name).read_bytes() == (whole / name).read_bytes(), name
