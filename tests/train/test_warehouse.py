"""The shipped tool task: its recipe, smaller, raises the score; and the guide's task runs."""

from __future__ import annotations

import json
import re
import runpy
from itertools import islice
from pathlib import Path

import pytest

from aha.evaluate import load_result
from aha.tasks import TASKS, get_task
from aha.tasks.selfcheck import self_check
from aha.train import train
from aha.train.job import Job
from aha.train.rollouts import collect
from aha.types import Completion, FinishReason, Observation, SamplingParams, Turn

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_recipe_raises_the_score_from_nothing(tmp_path: Path) -> None:
    smaller = [
        "task=warehouse", "eval_problems=100", "stage.cold_start.steps=50", "stage.grpo.steps=10",
        "stage.grpo.prompts_per_step=8", "max_tokens=64",
    ]  # fmt: skip
    out = train(ROOT / "recipes" / "warehouse.toml", overrides=smaller, out=tmp_path / "run")
    before, cold, after = (
        load_result(out / "eval" / f"{name}.json") for name in ("before", "after_cold_start", "after")
    )
    assert before.pass_at_1 == 0.0
    assert after.pass_at_1 > max(0.5, cold.pass_at_1 - 0.05)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    right = next(sample for sample in reversed(samples) if sample["is_correct"])
    assert re.fullmatch("<tool>[0-9]+</tool>", right["turns"][0]["answer"])
    assert right["turns"][-1]["observation"] is None


def test_task_of_the_guide_is_held_and_scored(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aha.tasks.TASKS", TASKS.copy())
    guide = (ROOT / "docs" / "turns.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    (tmp_path / "secret.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "secret.py"))
    task = get_task("secret")
    assert self_check(task).passes
    assert self_check(get_task(str(tmp_path / "secret.py"))).passes
    problems = list(islice(task.problems("train", seed=0), 3))
    groups = collect(
        problems,
        task=task,
        chat=job.chat,
        engine=job.engine,
        sampling=SamplingParams(num_samples=2, max_tokens=8),
        seed=0,
    )
    assert all(len(r.completion.turns) == 1 and not r.score.is_correct for g in groups for r in g.rollouts)
    told = (Turn("", "<tool>ask</tool>", Observation(problems[0].answer)), Turn("", problems[0].answer))
    gold = Completion((), (), FinishReason.STOP, answer=problems[0].answer, turns=told)
    assert task.score(problems[0], gold).is_correct
    claimed = Completion((), (), FinishReason.STOP, answer=problems[0].answer, turns=told[1:])
    assert not task.score(problems[0], claimed).is_correct
