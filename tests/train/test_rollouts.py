"""Sampling: which problems, which draws, which groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aha.errors import DataError
from aha.tasks import get_task
from aha.train.grpo import advantages_of, missing_prompts, training_sequences
from aha.train.grpo_config import GRPOConfig
from aha.train.job import Job
from aha.train.rollouts import ProblemStream, collect, respond_with
from aha.types import (
    Completion,
    FinishReason,
    Message,
    Outcome,
    Problem,
    Rollout,
    RolloutGroup,
    SamplingParams,
    Score,
)

CONFIG = GRPOConfig(task="countdown", prompts_per_step=4, group_size=2)


def ids(problems: list[Problem]) -> list[str]:
    return [problem.problem_id for problem in problems]


def test_stream_goes_on_where_its_cursor_stood() -> None:
    task = get_task("countdown")
    stream = ProblemStream(task, seed=3)
    stream.take(5)
    resumed = ProblemStream(task, seed=3, cursor=stream.cursor)
    assert ids(resumed.take(4)) == ids(stream.take(4))
    assert resumed.cursor == stream.cursor == 9


def test_stream_of_another_seed_has_another_order() -> None:
    task = get_task("countdown")
    assert ids(ProblemStream(task, seed=1).take(8)) != ids(ProblemStream(task, seed=2).take(8))


def data_file(folder: Path, *, num_rows: int) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "what is {n} + 1?", "answer": "{n + 1}"}}\n' for n in range(num_rows)))
    return path


def test_finite_data_is_shuffled_anew_every_epoch(tmp_path: Path) -> None:
    task = get_task(f"{data_file(tmp_path, num_rows=40)}:verify=number")
    size = len(list(task.problems("train", seed=0)))
    stream = ProblemStream(task, seed=0)
    first, second = ids(stream.take(size)), ids(stream.take(size))
    assert sorted(first) == sorted(second)
    assert len(set(first)) == size
    assert first != second
    in_second_epoch = ProblemStream(task, seed=0, cursor=size + 3)
    assert ids(in_second_epoch.take(2)) == second[3:5]


def test_task_without_training_problems_is_refused() -> None:
    class Empty:
        name = "empty"
        system_prompt = ""

        def problems(self, split: str, *, seed: int) -> list[Problem]:
            return []

        def score(self, problem: Problem, completion: Completion) -> Score:
            raise AssertionError

    with pytest.raises(DataError, match="task 'empty' has no training problems"):
        ProblemStream(Empty(), seed=0).take(1)  # type: ignore[arg-type]


def texts(groups: list[RolloutGroup]) -> list[list[tuple[int, ...]]]:
    return [[r.completion.token_ids for r in group.rollouts] for group in groups]


def test_equal_prompts_of_a_step_get_different_completions(job: Job) -> None:
    task = get_task("countdown")
    problem = ProblemStream(task, seed=0).take(1)[0]
    sampling = SamplingParams(num_samples=3, max_tokens=6)
    groups = collect([problem] * 2, task=task, chat=job.chat, engine=job.engine, sampling=sampling, seed=1)
    first, second = texts(groups)
    assert first != second
    assert len(set(first)) == 3
    again = collect([problem] * 2, task=task, chat=job.chat, engine=job.engine, sampling=sampling, seed=1)
    assert texts(again) == [first, second]
    other = collect([problem] * 2, task=task, chat=job.chat, engine=job.engine, sampling=sampling, seed=2)
    assert texts(other) != [first, second]


def test_group_keeps_its_prompt_its_samples_and_their_scores(job: Job) -> None:
    task = get_task("countdown")
    problem = ProblemStream(task, seed=0).take(1)[0]
    (group,) = collect(
        [problem],
        task=task,
        chat=job.chat,
        engine=job.engine,
        sampling=SamplingParams(num_samples=4, max_tokens=5),
        seed=1,
    )
    assert group.problem == problem
    assert list(group.prompt_ids) == job.chat.render([Message("user", problem.prompt)])
    assert len(group.rollouts) == 4
    for rollout in group.rollouts:
        assert 1 <= rollout.completion.num_tokens == len(rollout.completion.logprobs) <= 5
        assert rollout.score == task.score(problem, rollout.completion)


def test_answers_do_not_depend_on_what_they_are_asked_together_with(job: Job) -> None:
    respond = respond_with(job.engine, job.chat)
    conversations = [[Message("user", text)] for text in ("one", "two", "three")]
    sampling = SamplingParams(max_tokens=6, seed=5, num_samples=2)
    together = respond(conversations, sampling)
    alone = [respond([messages], sampling)[0] for messages in conversations]
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in alone]
    assert together[0][0].text == job.chat.decode(together[0][0].token_ids)


def test_answers_one_by_one_are_those_that_come_together(job: Job) -> None:
    respond = respond_with(job.engine, job.chat)
    conversations = [[Message("user", text)] for text in ("one", "two", "three")]
    sampling = SamplingParams(max_tokens=6, seed=5, num_samples=3)
    together = respond(conversations, sampling)
    came: dict[tuple[int, int], Completion] = {}
    later = replace(sampling, num_samples=1, first_sample=2)
    respond.respond_each(
        conversations, [sampling, later, later], on_completion=lambda row, index, c: came.update({(row, index): c})
    )
    assert came.keys() == {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)}
    assert [came[0, index] for index in range(3)] == together[0]
    assert [came[1, 0].text, came[2, 0].text] == [together[1][2].text, together[2][2].text]


def group(*scores: Score, truncated: tuple[int, ...] = ()) -> RolloutGroup:
    rollouts = []
    for index, score in enumerate(scores):
        reason = FinishReason.LENGTH if index in truncated else FinishReason.STOP
        rollouts.append(Rollout(Completion((index + 1, 4), (-1.0, -1.0), reason), score))
    return RolloutGroup(Problem("p", prompt="p", answer="a"), (1, 2), tuple(rollouts))


RIGHT, WRONG = Score(1.0, True), Score(0.0, False)
BROKEN = Score(0.0, False, "verifier failed", Outcome.ERROR)


def test_flat_groups_leave_no_sequences_to_train() -> None:
    flat = [group(RIGHT, RIGHT), group(WRONG, WRONG), group(BROKEN, RIGHT), group(BROKEN, BROKEN)]
    assert training_sequences(flat, CONFIG) == []


def test_mixed_group_becomes_sequences_with_their_advantages() -> None:
    sequences = training_sequences([group(WRONG, WRONG), group(RIGHT, WRONG, BROKEN)], CONFIG)
    assert [s.completion_ids for s in sequences] == [(1, 4), (2, 4)]
    assert [s.advantage for s in sequences] == pytest.approx([1.0, -1.0], abs=1e-4)
    assert all(s.prompt_ids == (1, 2) and s.sampled_logprobs == (-1.0, -1.0) for s in sequences)


def test_masked_truncation_leaves_loss_and_baseline() -> None:
    mixed = group(RIGHT, WRONG, WRONG, truncated=(2,))
    masking = GRPOConfig(task="countdown", truncated="mask")
    assert advantages_of(mixed, masking) == pytest.approx([1.0, -1.0, 0.0], abs=1e-4)
    assert len(training_sequences([mixed], masking)) == 2
    assert len(training_sequences([mixed], CONFIG)) == 3
    only_by_truncation = group(RIGHT, RIGHT, WRONG, truncated=(2,))
    assert training_sequences([only_by_truncation], masking) == []


@pytest.mark.parametrize(
    ("budget", "num_teaching", "num_flat", "missing"),
    [
        (0.0, 0, 0, 4),
        (0.0, 1, 3, 0),  # no budget: what is flat stays flat
        (1.0, 0, 0, 4),
        (1.0, 1, 3, 3),
        (1.0, 2, 5, 1),  # two are missing, but 7 of at most 8 prompts are spent
        (1.0, 4, 3, 0),
        (1.0, 0, 8, 0),
        (0.5, 0, 4, 2),
    ],
)
def test_refill_replaces_flat_groups_within_its_budget(
    budget: float, num_teaching: int, num_flat: int, missing: int
) -> None:
    config = GRPOConfig(task="countdown", prompts_per_step=4, group_size=2, refill_budget=budget)
    groups = [group(RIGHT, WRONG)] * num_teaching + [group(WRONG, WRONG)] * num_flat
    assert missing_prompts(groups, config) == missing


def test_refill_takes_a_group_that_masking_makes_flat_for_flat() -> None:
    config = GRPOConfig(task="countdown", prompts_per_step=1, refill_budget=1.0, truncated="mask")
    assert missing_prompts([group(RIGHT, RIGHT, WRONG, truncated=(2,))], config) == 1
