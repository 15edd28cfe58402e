"""Distilling a task of several turns, and what is kept where a stage is stopped or its money ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aha.client import Client, Endpoint
from aha.tasks import TASKS
from aha.train import distill, train
from aha.train.distill import DistillConfig
from aha.train.job import Interrupted, Job
from aha.train.optimizer import Optimizer
from aha.train.teacher import EndpointTeacher
from aha.types import Completion, Observation, Problem, SamplingParams, Score, Turn
from tests.client.conftest import COST, KEY, PRICE, LiveEndpoint, Request, completion, ok
from tests.train.conftest import FirstToken, rows, write_stages
from tests.train.test_stages import COLD, SHARED, TAUGHT


class TwoTurns(FirstToken):
    """Shows the model a word after its first turn; right where the second turn says that word."""

    max_turns = 2

    def respond(self, problem: Problem, transcript: Sequence[Turn]) -> Observation | None:
        return Observation("a long observation") if len(transcript) == 1 else None

    def score(self, problem: Problem, completion: Completion) -> Score:
        is_right = len(completion.turns) == 2 and completion.answer == "long"
        return Score(float(is_right), is_right)


class Alike(FirstToken):
    """Judges the text: an endpoint's tokens are not known."""

    def score(self, problem: Problem, completion: Completion) -> Score:
        return Score(1.0, completion.answer == "2")


def test_student_is_taught_on_what_it_wrote_and_not_on_what_it_was_shown(
    job: Job, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "first_token", TwoTurns)
    # Every token ends a turn: an episode has two sampled tokens, and between them those it was shown.
    job.engine._stop_ids = job.engine._stop_ids.new_tensor(range(job.model.config.vocab_size))
    config = DistillConfig(
        task="first_token", teacher=str(base_folder), method="on_policy", steps=1, prompts_per_step=3, num_samples=2,
        max_tokens=8, dtype="float32",
    )  # fmt: skip
    distill.train(config, job, optimizer=Optimizer(job.model))
    (step,) = rows(job.run.folder, "step")
    assert step["mean_observation_tokens"] > 2
    assert step["trained_tokens"] == 3 * 2 * 2


def test_stage_stopped_right_after_its_last_batch_of_prompts_still_has_its_card(
    tmp_path: Path, base_folder: Path, first_token: FirstToken
) -> None:
    recipe = write_stages(tmp_path / "two.toml", {**SHARED, "model": str(base_folder)}, COLD, TAUGHT)
    out, log_step = tmp_path / "out", Job.log_step

    def log_and_stop(job: Job, step: int, metrics: dict[str, Any]) -> None:
        log_step(job, step, metrics)
        job.is_interrupted = job.stage_name == "taught" and step == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "log_step", log_and_stop)
        with pytest.raises(Interrupted):
            train(recipe, out=out)
    assert not (out / "data" / "taught" / "README.md").exists()
    train(recipe, out=out, resume=True)
    assert "| examples |" in (out / "data" / "taught" / "README.md").read_text()


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveEndpoint]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = LiveEndpoint()
    yield server
    server.stop()


def teacher_of(live: LiveEndpoint, folder: Path, *, budget_usd: float = 1.0) -> Iterator[EndpointTeacher]:
    endpoint = Endpoint(base_url=live.base_url, model="m", api_key=KEY, price=PRICE)
    client = Client(endpoint, budget_usd=budget_usd, journal=folder / "replies.journal", max_concurrency=1)
    with client:
        yield EndpointTeacher(client)


PROBLEMS = [Problem(f"p{n}", f"train {n}", "2") for n in range(3)]


def test_endpoint_holds_the_turns_of_a_task_too(live: LiveEndpoint, tmp_path: Path) -> None:
    def talk(request: Request) -> None:
        said = [message["content"] for message in request.body["messages"]]
        request.say(json.dumps(completion("long" if said[-1] == "a long observation" else "ask")).encode())

    live.default = talk
    for teacher in teacher_of(live, tmp_path):
        groups = teacher.answer(PROBLEMS, task=TwoTurns(), sampling=SamplingParams(num_samples=2, max_tokens=90))
    assert all(rollout.score.is_correct for group in groups for rollout in group.rollouts)


def test_answers_that_were_paid_for_are_kept_where_the_money_ends_within_a_prompt(
    live: LiveEndpoint, tmp_path: Path
) -> None:
    live.default = ok("2")
    worst = (len("train 0") + 256 + 16) * 1_000 + 40 * 10_000
    for teacher in teacher_of(live, tmp_path, budget_usd=(COST + worst) / 1e9):
        groups = teacher.answer(PROBLEMS, task=Alike(), sampling=SamplingParams(num_samples=4, max_tokens=40))
    assert len(live.bodies) == 2
    assert [len(group.rollouts) for group in groups] == [2]
