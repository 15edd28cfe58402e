"""Episodes: tokens in are tokens out, observations never train, and verifiers never hold back sampling."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aha.chat import ChatFormat
from aha.engine import Engine
from aha.evaluate import evaluate
from aha.models.tokenizer import save_tokenizer
from aha.tasks.base import Split
from aha.train import grpo
from aha.train.batches import pack
from aha.train.grpo import training_sequences
from aha.train.grpo_config import GRPOConfig
from aha.train.job import Job
from aha.train.logprobs import token_logprobs
from aha.train.metrics import rollout_metrics, sample_row
from aha.train.optimizer import Optimizer
from aha.train.rollouts import collect, respond_with
from aha.types import Completion, FinishReason, Observation, Problem, RolloutGroup, SamplingParams, Score, Transcript

ENDS_TURN = range(300, 800)
"""Token ids that end a turn here besides the model's own, so that turns of a random model have an end."""


@dataclass(frozen=True)
class Echo:
    """Says how long each turn was. Reward for an even number of characters in the last one."""

    max_turns: int = 3
    num_problems: int = 0

    name = "echo"
    system_prompt = ""

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        for number in itertools.count():
            yield Problem(f"{split}-{seed}-{number}", prompt=f"question {number}", answer="")

    def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
        return Observation(f"{len(transcript)}: {len(transcript[-1].text)} <|end|> letters")

    def score(self, problem: Problem, completion: Completion) -> Score:
        is_even = len(completion.text) % 2 == 0
        return Score(float(is_even), is_even)


PROBLEMS = list(itertools.islice(Echo().problems("train", seed=0), 4))
SAMPLING = SamplingParams(num_samples=3, max_tokens=60)


@pytest.fixture
def turns_job(job: Job) -> Job:
    """A job whose model ends its turns."""
    job.engine = Engine(job.model, decode=job.chat.decode, stop_token_ids=[*job.chat.stop_token_ids, *ENDS_TURN])
    return job


def held(
    job: Job,
    problems: Sequence[Problem] = PROBLEMS,
    *,
    task: Any = None,
    sampling: SamplingParams = SAMPLING,
    seed: int = 1,
) -> list[RolloutGroup]:
    return collect(problems, task=task or Echo(), chat=job.chat, engine=job.engine, sampling=sampling, seed=seed)


def completions(groups: Sequence[RolloutGroup]) -> list[Completion]:
    return [rollout.completion for group in groups for rollout in group.rollouts]


def pieces(completion: Completion) -> list[tuple[bool, list[int]]]:
    """Runs of sampled and of shown tokens."""
    mask = completion.is_sampled or (True,) * len(completion.token_ids)
    pairs = itertools.groupby(zip(mask, completion.token_ids, strict=True), key=lambda pair: pair[0])
    return [(is_sampled, [token for _, token in run]) for is_sampled, run in pairs]


def same_tokens(ours: Completion, theirs: Completion) -> bool:
    return (ours.token_ids, ours.is_sampled, ours.turns, ours.finish_reason) == (
        theirs.token_ids, theirs.is_sampled, theirs.turns, theirs.finish_reason,
    )  # fmt: skip


def test_every_turn_is_sampled_after_exactly_the_tokens_before_it(turns_job: Job) -> None:
    asked: list[list[tuple[int, ...]]] = []
    generate = turns_job.engine.generate

    def remember(prompts: Any, *arguments: Any, **options: Any) -> Any:
        asked.append([tuple(prompt) for prompt in prompts])
        return generate(prompts, *arguments, **options)

    turns_job.engine.generate = remember  # type: ignore[method-assign]
    groups = held(turns_job)
    assert len(asked) == 3
    assert max(len(c.turns) for c in completions(groups)) == 3
    for group in groups:
        for completion in (rollout.completion for rollout in group.rollouts):
            runs = pieces(completion)
            assert [is_sampled for is_sampled, _ in runs] == [n % 2 == 0 for n in range(len(runs))]
            assert len(runs) == 2 * len(completion.turns) - 1
            for number in range(1, len(completion.turns)):
                before = [token for _, run in runs[: 2 * number] for token in run]
                assert (*group.prompt_ids, *before) in asked[number]
                shown = turns_job.chat.continuation(
                    completion.turns[number - 1].observation or Observation(""),
                    last_token_id=runs[2 * number - 2][1][-1],
                )
                assert runs[2 * number - 1][1] == shown


def test_turns_say_what_was_written_and_what_was_shown(turns_job: Job) -> None:
    for completion in completions(held(turns_job)):
        written = [turns_job.chat.decode(run) for is_sampled, run in pieces(completion) if is_sampled]
        assert [turn.text for turn in completion.turns] == written
        assert completion.text == "\n".join(written)
        assert completion.answer == completion.turns[-1].answer
        assert [turn.observation is None for turn in completion.turns] == [False] * (len(written) - 1) + [True]
        assert completion.num_tokens == sum(len(run) for is_sampled, run in pieces(completion) if is_sampled)
        assert completion.num_tokens + completion.num_observed_tokens == len(completion.token_ids)
        unknown = [math.isnan(value) for value in completion.logprobs]
        assert unknown == [not is_sampled for is_sampled in completion.is_sampled or (True,) * len(unknown)]


def test_episode_alone_equals_the_same_one_in_a_batch(turns_job: Job) -> None:
    respond = respond_with(turns_job.engine, turns_job.chat)
    sampling = replace(SAMPLING, seed=5)
    together = respond.episodes(Echo(), PROBLEMS, [sampling] * 4)
    for problem, episodes in zip(PROBLEMS, together, strict=True):
        (alone,) = respond.episodes(Echo(), [problem], [sampling])
        assert all(same_tokens(a, b) for a, b in zip(alone, episodes, strict=True))
    assert len({c.token_ids for episodes in together for c in episodes}) == 12


def test_same_seed_gives_the_same_episodes_and_another_seed_others(turns_job: Job) -> None:
    first, again, other = (completions(held(turns_job, seed=seed)) for seed in (1, 1, 2))
    assert all(same_tokens(a, b) for a, b in zip(first, again, strict=True))
    assert not all(same_tokens(a, b) for a, b in zip(first, other, strict=True))


def test_turns_that_begin_alike_are_drawn_apart(turns_job: Job) -> None:
    @dataclass(frozen=True)
    class Silent(Echo):
        def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
            return Observation("go on")

    tokens = [run for c in completions(held(turns_job, task=Silent())) for is_sampled, run in pieces(c) if is_sampled]
    assert len({tuple(run) for run in tokens if len(run) > 2}) == len([run for run in tokens if len(run) > 2])


def test_trainer_agrees_with_the_engine_past_the_observations(turns_job: Job) -> None:
    def gap() -> float:
        groups = held(turns_job, sampling=replace(SAMPLING, temperature=0.9))
        config = GRPOConfig(task="countdown")
        sequences = training_sequences(groups, config)
        assert any(s.is_sampled and not s.is_sampled[i] for s in sequences for i in range(len(s.is_sampled)))
        batch = pack(sequences)
        found = token_logprobs(turns_job.model, batch, temperature=0.9).logprobs_M
        assert not batch.sampled_logprobs_M.isnan().any()
        return float((found.detach() - batch.sampled_logprobs_M).abs().max())

    assert gap() < 1e-4
    optimizer = Optimizer(turns_job.model)
    (
        -token_logprobs(
            turns_job.model, pack(training_sequences(held(turns_job), GRPOConfig(task="countdown")))
        ).logprobs_M.mean()
    ).backward()
    optimizer.step(learning_rate=0.01)
    assert gap() < 1e-4


def test_budget_is_of_sampled_tokens_over_all_turns(turns_job: Job) -> None:
    found = completions(held(turns_job, task=Echo(max_turns=50), sampling=replace(SAMPLING, max_tokens=9)))
    assert all(c.num_tokens == 9 and c.finish_reason is FinishReason.LENGTH for c in found)
    assert any(c.num_observed_tokens > 0 for c in found)
    assert all(not c.is_sampled or c.is_sampled[-1] for c in found)


def test_turns_are_bounded_by_the_task(turns_job: Job) -> None:
    found = completions(held(turns_job, task=Echo(max_turns=1)))
    assert all(len(c.turns) == 1 and not c.is_sampled for c in found)
    ended = [c for c in completions(held(turns_job, task=Echo(max_turns=2))) if len(c.turns) == 2]
    assert ended
    assert any(c.finish_reason is FinishReason.STOP for c in ended)


@pytest.mark.parametrize("length", [300, 20_000_000])
def test_observation_longer_than_the_window_ends_the_episode(turns_job: Job, length: int) -> None:
    @dataclass(frozen=True)
    class Flood(Echo):
        def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
            return Observation("x" * length)

    found = [c for c in completions(held(turns_job, PROBLEMS[:1], task=Flood())) if len(c.token_ids) < 60]
    assert found
    for completion in found:
        assert completion.finish_reason is FinishReason.LENGTH
        assert [turn.observation for turn in completion.turns] == [None]
        assert not completion.is_sampled


def test_stop_strings_of_the_task_end_turns_and_stay_in_their_text(job: Job) -> None:
    @dataclass(frozen=True)
    class Tagged(Echo):
        stop_strings: tuple[str, ...] = ("0", "1", "2", "3")

    found = completions(held(job, task=Tagged()))
    assert any(len(c.turns) == 3 for c in found)
    for completion in found:
        for turn in completion.turns[:-1]:
            assert any(digit in turn.text for digit in "0123")


def test_end_of_turn_is_added_only_where_the_model_did_not_write_it(tmp_path: Path, turns_job: Job) -> None:
    folder = tmp_path / "thinking"
    save_tokenizer(folder)
    turns_job.chat = ChatFormat.load(folder)
    end = turns_job.chat.stop_token_ids[0]
    runs = [pieces(c) for c in completions(held(turns_job, sampling=replace(SAMPLING, num_samples=8)))]
    joints = [(a[-1], b[0]) for run in runs for (_, a), (is_sampled, b) in itertools.pairwise(run) if not is_sampled]
    assert joints
    assert all((last == end) != (first == end) for last, first in joints)


def test_sampling_and_verifying_overlap(job: Job) -> None:
    """Verifiers wait for the end of sampling, its last completion for a verifier: one after the other would fail."""
    is_scoring, is_sampled = threading.Event(), threading.Event()

    @dataclass(frozen=True)
    class Slow(Echo):
        max_turns: int = 1

        def score(self, problem: Problem, completion: Completion) -> Score:
            is_scoring.set()
            assert is_sampled.wait(20.0), "sampling waits for verifiers"
            return super().score(problem, completion)

    wait_at_the_end(job.engine, num_completions=4 * 20, is_scoring=is_scoring, is_sampled=is_sampled)
    groups = held(job, task=Slow(), sampling=replace(SAMPLING, num_samples=20))
    is_sampled.clear()
    expected = held(job, task=Echo(max_turns=1), sampling=replace(SAMPLING, num_samples=20))
    assert [r.score for g in groups for r in g.rollouts] == [r.score for g in expected for r in g.rollouts]


def wait_at_the_end(
    engine: Engine, *, num_completions: int, is_scoring: threading.Event, is_sampled: threading.Event
) -> None:
    generate = engine.generate
    told = itertools.count(1)

    def watched(prompts: Any, sampling: Any, *, on_completion: Callable[..., None]) -> Any:
        def tell(*completion: Any) -> None:
            number = next(told)
            if number == num_completions:
                assert is_scoring.wait(20.0), "verifiers wait for sampling"
                is_sampled.set()
            on_completion(*completion)

        return generate(prompts, sampling, on_completion=tell)

    engine.generate = watched  # type: ignore[method-assign]


def test_verifier_of_a_short_episode_does_not_hold_back_the_turns_of_others(turns_job: Job) -> None:
    is_sampled = threading.Event()

    @dataclass(frozen=True)
    class Uneven(Echo):
        def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
            if len(transcript) == 2:
                is_sampled.set()  # a second turn was sampled
            return None if problem.prompt.endswith("0") else Observation("go on")

        def score(self, problem: Problem, completion: Completion) -> Score:
            assert is_sampled.wait(20.0), "the second turns wait for the verifiers of the first"
            return Score(0.0, False)

    groups = held(turns_job, task=Uneven(), sampling=replace(SAMPLING, num_samples=8))
    assert {len(r.completion.turns) for r in groups[0].rollouts} == {1}
    assert max(len(c.turns) for c in completions(groups)) == 3


@pytest.mark.parametrize("where", ["score", "respond"])
def test_error_in_a_task_is_not_swallowed(turns_job: Job, where: str) -> None:
    class Broken(Echo):
        pass

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    setattr(Broken, where, fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        held(turns_job, task=Broken())
    assert not turns_job.engine.has_work


def test_metrics_and_samples_tell_turns_from_what_was_shown(turns_job: Job) -> None:
    groups = held(turns_job)
    found = rollout_metrics(groups, num_thinking_tokens=())
    each = completions(groups)
    assert any(c.num_observed_tokens for c in each)
    assert found["mean_tokens"] == pytest.approx(sum(c.num_tokens for c in each) / 12)
    assert found["mean_observation_tokens"] == pytest.approx(sum(c.num_observed_tokens for c in each) / 12)
    assert found["mean_turns"] == pytest.approx(sum(len(c.turns) for c in each) / 12)
    assert found["completion_tokens"] == sum(c.num_tokens for c in each)
    assert found["prompt_tokens"] == sum(len(g.prompt_ids) for g in groups) + sum(c.num_observed_tokens for c in each)
    rollout = max(groups[0].rollouts, key=lambda r: len(r.completion.turns))
    row = json.loads(json.dumps(sample_row(groups[0], rollout)))
    assert [turn["text"] for turn in row["turns"]] == [turn.text for turn in rollout.completion.turns]
    assert row["turns"][0]["observation"] == {
        "text": f"1: {len(row['turns'][0]['text'])} <|end|> letters",
        "role": "tool",
    }


def test_evaluation_holds_the_same_episodes_and_writes_their_turns(turns_job: Job, tmp_path: Path) -> None:
    respond = respond_with(turns_job.engine, turns_job.chat)
    sampling = SamplingParams(max_tokens=40, seed=3)
    result = evaluate(Echo(), respond, num_problems=6, num_samples=2, sampling=sampling, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    samples = [sample for row in rows for sample in row["samples"]]
    assert max(len(sample["turns"]) for sample in samples) == 3
    assert result.completion_tokens == sum(sample["num_tokens"] for sample in samples)


def test_training_on_episodes_raises_the_reward(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of two turns: the reward is for what the second one begins with, so that credit crosses an observation."""

    @dataclass(frozen=True)
    class SecondTurn(Echo):
        max_turns: int = 2
        stop_strings: tuple[str, ...] = ("0", "1", "2", "3")

        def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
            return Observation("again")

        def score(self, problem: Problem, completion: Completion) -> Score:
            is_good = len(completion.turns) == 2 and completion.answer.startswith("2")
            return Score(float(is_good), is_good)

    monkeypatch.setattr(grpo, "get_task", lambda spec: SecondTurn())
    config = GRPOConfig(
        task="echo", steps=12, prompts_per_step=4, group_size=8, max_tokens=12, learning_rate=1e-2, eval_problems=0,
        checkpoint_every=100,
    )  # fmt: skip
    grpo.train(config, job, optimizer=Optimizer(job.model))
    rows = [json.loads(line) for line in (job.run.folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward_mean"] for row in rows if row["kind"] == "step"]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3
    assert all(row["scoring_seconds"] >= 0.0 for row in rows)
    assert not torch.isnan(job.model.embed_tokens).any()
