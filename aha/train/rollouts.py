"""From problems to scored groups of completions: render, sample, parse, score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from aha.chat import ChatFormat
from aha.engine import Engine
from aha.errors import DataError
from aha.evaluate import conversation
from aha.tasks.base import Task
from aha.train.episodes import run_episodes
from aha.train.stage import derive_seed
from aha.types import Completion, Message, Problem, Rollout, RolloutGroup, SamplingParams


@dataclasses.dataclass(frozen=True)
class EngineRespond:
    """What `evaluate` asks, from an engine in this process."""

    engine: Engine
    chat: ChatFormat

    def __call__(self, conversations: Sequence[Sequence[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        """For each conversation its parsed completions."""
        prompts = [self.chat.render(messages) for messages in conversations]
        completions = self.engine.generate(prompts, [_seed_for(sampling, prompt) for prompt in prompts])
        return [
            [self._parse(completion, prompt, sampling) for completion in group]
            for prompt, group in zip(prompts, completions, strict=True)
        ]

    def episodes(
        self, task: Task, problems: Sequence[Problem], samplings: Sequence[SamplingParams]
    ) -> list[list[Completion]]:
        """For each problem its finished episodes; what was sampled is never tokenised again."""
        prompts = [self.chat.render(conversation(task, problem=problem)) for problem in problems]
        return run_episodes(
            problems,
            prompts=prompts,
            params=[_seed_for(sampling, prompt) for sampling, prompt in zip(samplings, prompts, strict=True)],
            task=task,
            chat=self.chat,
            engine=self.engine,
            finish=lambda _, completion: completion,
        )

    def respond_each(
        self,
        conversations: Sequence[Sequence[Message]],
        samplings: Sequence[SamplingParams],
        *,
        on_completion: Callable[[int, int, Completion], None],
    ) -> None:
        """The same, each completion handed over the moment it ends; see `aha.evaluate.RespondsOneByOne`."""
        prompts = [self.chat.render(messages) for messages in conversations]

        def hand_over(index: int, sample_index: int, completion: Completion) -> None:
            on_completion(index, sample_index, self._parse(completion, prompts[index], samplings[index]))

        seeded = [_seed_for(sampling, prompt) for sampling, prompt in zip(samplings, prompts, strict=True)]
        self.engine.generate(prompts, seeded, on_completion=hand_over)

    def _parse(self, completion: Completion, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        is_thinking = self.chat.starts_in_thinking(prompt_ids)
        return self.chat.parse(completion, starts_in_thinking=is_thinking, stop=sampling.stop)


def respond_with(engine: Engine, chat: ChatFormat) -> EngineRespond:
    """What `evaluate` asks: conversations in, parsed completions out, from an engine in this process."""
    return EngineRespond(engine, chat)


def _seed_for(sampling: SamplingParams, prompt_ids: Sequence[int]) -> SamplingParams:
    """A stream of random numbers of its own for each prompt, whatever it is asked together with."""
    if sampling.seed is None:
        return sampling
    return dataclasses.replace(sampling, seed=derive_seed(sampling.seed, "prompt", *prompt_ids))


class ProblemStream:
    """Training problems in a fixed order, without end: a task that ends is gone through again in a new order.

    The cursor (problems taken so far) is all that a checkpoint needs.
    """

    def __init__(self, task: Task, *, seed: int, cursor: int = 0) -> None:
        self._task = task
        self._seed = seed
        self._problems = self._without_end()
        self.cursor = 0
        self.take(cursor)

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        self.cursor += count
        return [next(self._problems) for _ in range(count)]

    def _without_end(self) -> Iterator[Problem]:
        epoch = 0
        while True:
            is_empty = True
            for problem in self._task.problems("train", seed=derive_seed(self._seed, "problems", epoch)):
                is_empty = False
                yield problem
            if is_empty:
                raise DataError(f"task {self._task.name!r} has no training problems")
            epoch += 1


def collect(
    problems: Sequence[Problem],
    *,
    task: Task,
    chat: ChatFormat,
    engine: Engine,
    sampling: SamplingParams,
    seed: int,
    on_wait: Callable[[float], None] | None = None,
) -> list[RolloutGroup]:
    """Sample and score one group of completions per problem; completions are scored while others are sampled.

    Args:
        sampling: its `num_samples` is G; its own seed is replaced by one per problem.
        seed: with the index of the problem, fixes every completion.
        on_wait: told the seconds that were spent waiting for verifiers with nothing to sample.
    """
    prompts = [chat.render(conversation(task, problem=problem)) for problem in problems]

    def score(index: int, completion: Completion) -> Rollout:
        return Rollout(completion, task.score(problems[index], completion))

    rollouts = run_episodes(
        problems,
        prompts=prompts,
        params=[
            dataclasses.replace(sampling, seed=derive_seed(seed, "rollout", index)) for index in range(len(problems))
        ],
        task=task,
        chat=chat,
        engine=engine,
        finish=score,
        on_wait=on_wait,
    )
    return [
        RolloutGroup(problem, tuple(prompt_ids), tuple(of_problem))
        for problem, prompt_ids, of_problem in zip(problems, prompts, rollouts, strict=True)
    ]
