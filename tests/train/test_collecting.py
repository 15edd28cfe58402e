"""Rejection sampling: what is kept, what is left out and why, and that nothing held out gets in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aha.errors import ConfigError
from aha.tasks import TASKS, get_task
from aha.tasks.base import Split
from aha.train.collecting import Collector
from aha.train.dataset import read_examples
from aha.train.job import Job
from aha.train.rejection import RejectionConfig
from aha.train.teacher import LocalTeacher
from aha.types import Completion, FinishReason, Outcome, Problem, Rollout, RolloutGroup, Score
from tests.train.conftest import FirstToken

CONFIG = RejectionConfig(task="first_token", steps=2, prompts_per_step=2, num_samples=3, max_tokens=8, eval_problems=0)
PROBLEM = Problem("p", "train 7", "2")
RIGHT, WRONG = Score(1.0, True), Score(0.0, False)


@pytest.fixture
def collector(job: Job, first_token: FirstToken) -> Collector:
    job.stage_name = "rejected"
    return make_collector(CONFIG, job)


def make_collector(config: RejectionConfig, job: Job) -> Collector:
    return Collector.resumed(config, job, teacher=LocalTeacher(job.engine, job.chat, name="policy"), state=None)


def rollout(text: str, *, score: Score = RIGHT, reason: FinishReason = FinishReason.STOP) -> Rollout:
    reasoning, _, answer = text.rpartition("|")
    return Rollout(Completion(tuple(range(len(text))), (), reason, reasoning=reasoning, answer=answer), score)


def kept(collector: Collector, *rollouts: Rollout) -> list[str]:
    return [example.reasoning for example in collector._keep(RolloutGroup(PROBLEM, (1,), rollouts))]


def test_only_the_shortest_right_and_finished_answer_is_kept(collector: Collector) -> None:
    answers = [
        rollout("a long way to it|2"),
        rollout("short|2"),
        rollout("s|3", score=WRONG),
        rollout("s|2", reason=FinishReason.LENGTH),
        rollout("s|2", score=Score(0.0, False, outcome=Outcome.ERROR)),
        rollout("```s```|2"),
    ]
    assert kept(collector, *answers) == ["short"]
    assert collector.dropped == {
        "wrong": 1,
        "cut off": 1,
        "verifier failed": 1,
        "filter: code": 1,
        "prompt has enough answers": 1,
    }


def test_first_answers_are_kept_in_the_order_sampled(job: Job, first_token: FirstToken) -> None:
    collector = make_collector(replace(CONFIG, choose="first", keep_per_prompt=2), job)
    assert kept(collector, rollout("a long one|2"), rollout("b|2"), rollout("c|2")) == ["a long one", "b"]


def test_duplicates_are_dropped_whatever_their_white_space_also_after_a_resume(collector: Collector, job: Job) -> None:
    assert kept(collector, rollout("two  and\ntwo|2")) == ["two  and\ntwo"]
    assert kept(collector, rollout("two and two|2")) == []
    assert collector.dropped["duplicate"] == 1
    example = collector._example(RolloutGroup(PROBLEM, (1,), ()), rollout("x y|2"))
    job.run.append("data/rejected/train.jsonl", [example.to_row()])
    resumed = make_collector(CONFIG, job)
    assert kept(resumed, rollout("x  y|2")) == []


def test_held_out_prompts_are_never_asked(job: Job, first_token: FirstToken) -> None:
    """Problems of the two splits are told apart by their first word here: rename the training ones."""
    job.stage_name = "rejected"
    collector = make_collector(CONFIG, job)
    problems = iter([Problem("t", "test 7", "2"), *(Problem(f"p{i}", f"train {i}", "2") for i in range(9))])
    collector.stream.take = lambda count: [next(problems) for _ in range(count)]  # type: ignore[method-assign]
    assert [p.prompt for p in collector._clean_problems()] == ["train 0", "train 1"]
    assert collector.dropped["prompt is held out"] == 1


def test_task_whose_training_prompts_are_all_held_out_is_refused(job: Job, first_token: FirstToken) -> None:
    job.stage_name = "rejected"
    collector = make_collector(CONFIG, job)
    collector.stream.take = lambda count: [Problem("t", "test 7", "2")] * count  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="raise decontaminate_words"):
        list(collector._clean_problems())


def test_stage_writes_a_dataset_with_its_card_and_logs_each_step(job: Job, first_token: FirstToken) -> None:
    from aha.train import rejection

    job.stage_name = "rejected"
    config = replace(CONFIG, prompts_per_step=40, num_samples=8, max_tokens=2, filters=())
    # The random model hardly ever ends its answer; one token and no more is an end here.
    job.engine._stop_ids = job.engine._stop_ids.new_tensor(range(job.model.config.vocab_size))
    rejection.train(config, job, optimizer=None)
    folder = job.run.folder / "data" / "rejected"
    examples = read_examples(folder)
    assert len(examples) > 3
    assert {e.answer for e in examples} == {"2"}
    assert all(e.prompt.startswith("train") and e.source and e.task == first_token.name for e in examples)
    card = (folder / "README.md").read_text()
    assert f"| examples | {len(examples)} |" in card
    assert "| wrong |" in card
    steps = [json.loads(line) for line in (job.run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    assert steps[-1]["num_examples"] == len(examples)
    assert sum(row["num_kept"] for row in steps) == len(examples)
    assert job.phases["sampling"].completion_tokens == 640


def test_stage_that_keeps_nothing_says_why(job: Job, first_token: FirstToken) -> None:
    from aha.train import rejection

    job.stage_name = "rejected"
    with pytest.raises(ConfigError, match="kept no answer at all"):
        rejection.train(replace(CONFIG, steps=1, max_tokens=1), job, optimizer=None)


def test_unknown_filter_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="code, language, paragraph, repetition"):
        RejectionConfig(task="countdown", filters=("langage",))


def test_countdown_itself_can_be_collected_from(job: Job) -> None:
    """Its prompts are short and alike: decontamination may not take them all."""
    collector = make_collector(RejectionConfig(task="countdown", eval_problems=0), job)
    assert len(list(collector._clean_problems())) == 64
    assert get_task("countdown").name == "countdown"


def test_dataset_path_lies_in_the_run(collector: Collector, job: Job) -> None:
    assert collector.path == Path(job.run.folder / "data" / "rejected" / "train.jsonl")


def test_prompts_held_out_by_another_stage_of_the_run_are_left_out(job: Job, first_token: FirstToken) -> None:
    """The run is measured on the first stage's task, whatever this one collects from."""
    Path("other.jsonl").write_text(
        "".join(json.dumps({"prompt": f"train {n}", "answer": str(n)}) + "\n" for n in range(1000))
    )
    spec = "other.jsonl:verify=exact,test_fraction=0.5"
    held_out = {p.prompt for p in get_task(spec).problems("test", seed=0)}
    job.stage_name, job.evaluated = "rejected", {spec: 500, "first_token": 500}
    collector = make_collector(replace(CONFIG, prompts_per_step=40), job)
    assert not held_out & {p.prompt for p in collector._clean_problems()}
    assert collector.dropped["prompt is held out"] > 5


class NothingHeldOut(FirstToken):
    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        return super().problems(split, seed=seed) if split == "train" else iter(())


def test_task_that_holds_nothing_out_can_be_collected_from(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "first_token", NothingHeldOut)
    collector = make_collector(CONFIG, job)
    assert len(list(collector._clean_problems())) == CONFIG.prompts_per_step


@pytest.mark.parametrize("spec", ["warehouse", "countdown + warehouse"])
def test_tasks_whose_prompts_share_their_wording_can_be_collected_from(job: Job, spec: str) -> None:
    collector = make_collector(RejectionConfig(task=spec, prompts_per_step=8, eval_problems=0), job)
    assert len(list(collector._clean_problems())) == 8
