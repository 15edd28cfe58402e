"""Asking a model a task's problems: which problems, in which portions, and what each answer was worth."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from aha.errors import DataError, RequestError
from aha.evaluate.record import Record
from aha.evaluate.result import Sample
from aha.tasks.base import HasTurns, HasVote, Split, Task
from aha.tasks.turns import answer_problems
from aha.tasks.verifiers import vote as vote_of_text
from aha.types import Completion, Message, Problem, Rollout, SamplingParams

Respond = Callable[[list[list[Message]], SamplingParams], list[list[Completion]]]
"""Conversations in; for each, `num_samples` completions with text, reasoning and answer filled in. Of a task with turns
each turn is asked so, unless this is aha.tasks.turns.RunsEpisodes too."""

PROBLEMS_PER_CALL = 128
SAMPLES_PER_CALL = 512  # an engine's largest batch
TOKENS_PER_CALL = 2**22
"""What the completions of one call may come to at most; as token ids and log-probabilities some 300 MB."""
DRAWS_PER_PROBLEM = 20  # how far to look for distinct problems in a generator that repeats itself

Portion = list[tuple[Problem, SamplingParams]]
"""What one call asks: problems, each with how many samples from which index on."""


@runtime_checkable
class RespondsOneByOne(Protocol):
    """A respond that also hands over each completion the moment it ends, so that a kill loses none that has ended."""

    def respond_each(
        self,
        conversations: Sequence[Sequence[Message]],
        samplings: Sequence[SamplingParams],
        *,
        on_completion: Callable[[int, int, Completion], None],
    ) -> None:
        """Sample for every conversation by its own parameters.

        Args:
            on_completion: takes the index of the conversation, that of the sample among those asked for now, and the
                completion.
        """


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an evaluation has come."""

    num_done: int
    """Problems with all their samples."""
    num_problems: int
    pass_at_1: float
    """Over the samples done so far; 0 before the first."""
    num_samples_done: int
    num_samples: int
    """Of all problems together."""
    num_samples_before: int
    """Those of `num_samples_done` that an earlier session asked."""


def select_problems(task: Task, *, num_problems: int, seed: int, split: Split = "test") -> list[Problem]:
    """The first `num_problems` distinct problems of a split; fewer when it has no more. Baselines use the same ones.

    Raises:
        RequestError: num_problems below 1.
        DataError: the split is empty.
    """
    if num_problems < 1:
        raise RequestError(f"num_problems must be at least 1, got {num_problems}", param="num_problems")
    chosen: dict[str, Problem] = {}
    for problem in itertools.islice(task.problems(split, seed=seed), DRAWS_PER_PROBLEM * num_problems):
        chosen.setdefault(problem.problem_id, problem)
        if len(chosen) == num_problems:
            break
    if not chosen:
        raise DataError(f"task {task.name!r} has no problems in its {split} split; give it more rows or another split")
    return list(chosen.values())


def conversation(task: Task, *, problem: Problem) -> list[Message]:
    """The messages a problem is asked with."""
    system = problem.system or task.system_prompt
    return [*([Message("system", system)] if system else []), Message("user", problem.prompt)]


class Questions:
    """The problems of one evaluation with the answers there are; `ask` gets those that are missing.

    Args:
        record: keeps the answers; what it already holds is not asked again.
        count_tokens: length of a text in the model's tokens.
        on_progress: told whenever answers have come.
    """

    def __init__(
        self,
        task: Task,
        *,
        problems: Sequence[Problem],
        sampling: SamplingParams,
        record: Record,
        count_tokens: Callable[[str], int] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._task = task
        self._problems = problems
        self._sampling = sampling
        self._record = record
        self._count_tokens = count_tokens
        self._on_progress = on_progress
        self._num_before = len(record.samples)
        self._score = _RunningScore(num_samples=sampling.num_samples)
        for (problem_id, _), sample in record.samples.items():
            self._score.add(problem_id, sample)

    @property
    def samples(self) -> dict[str, list[Sample]]:
        """problem_id → its samples in order; complete after `ask`."""
        num_samples = self._sampling.num_samples
        return {
            problem.problem_id: [self._record.samples[problem.problem_id, index] for index in range(num_samples)]
            for problem in self._problems
        }

    def ask(self, respond: Respond) -> None:
        """Ask everything that is missing, portion by portion, so that memory stays bounded."""
        for portion in self._portions():
            if isinstance(respond, RespondsOneByOne) and not isinstance(self._task, HasTurns):
                self._ask_one_by_one(portion, respond)
            else:
                self._ask_at_once(portion, respond)
            self._record.sync()

    def _portions(self) -> Iterator[Portion]:
        """Cut by the protocol alone and not by what is missing: after a kill the calls are those there would have been.

        A group of samples stays together while it fits, so that an engine computes its prompt once.
        """
        num_samples = self._sampling.num_samples
        most = max(1, min(SAMPLES_PER_CALL, TOKENS_PER_CALL // self._sampling.max_tokens))
        num_problems = max(1, min(PROBLEMS_PER_CALL, most // num_samples))
        for start in range(0, len(self._problems), num_problems):
            for first in range(0, num_samples, most):
                indices = range(first, min(first + most, num_samples))
                chosen = self._problems[start : start + num_problems]
                portion = [(problem, wanted) for problem in chosen for wanted in self._missing(problem, indices)]
                if portion:
                    yield portion

    def _missing(self, problem: Problem, indices: range) -> Iterator[SamplingParams]:
        """The runs of samples that there are no answers for yet."""
        has = self._record.samples
        run: list[int] = []
        for index in [*indices, -1]:
            if index >= 0 and (problem.problem_id, index) not in has:
                run.append(index)
            elif run:
                yield replace(self._sampling, num_samples=len(run), first_sample=run[0])
                run = []

    def _ask_one_by_one(self, portion: Portion, respond: RespondsOneByOne) -> None:
        """Answers are scored in a thread of their own, so that the verifier never holds back the sampling."""
        taken: deque[Future[None]] = deque()

        def take(problem: Problem, index: int, completion: Completion) -> None:
            self._take(problem, index, completion)
            self._report()

        def on_completion(asked: int, index: int, completion: Completion) -> None:
            problem, sampling = portion[asked]
            taken.append(verifier.submit(take, problem, sampling.first_sample + index, completion))
            while taken and taken[0].done():
                taken.popleft().result()  # an interrupt, or a bug, stops the sampling

        conversations = [conversation(self._task, problem=problem) for problem, _ in portion]
        # One thread: answers are recorded in the order in which they ended.
        with ThreadPoolExecutor(max_workers=1) as verifier:
            respond.respond_each(conversations, [sampling for _, sampling in portion], on_completion=on_completion)
            for future in taken:
                future.result()

    def _ask_at_once(self, portion: Portion, respond: Respond) -> None:
        by_sampling: defaultdict[SamplingParams, list[Problem]] = defaultdict(list)
        for problem, sampling in portion:
            by_sampling[sampling].append(problem)
        for sampling, problems in by_sampling.items():
            conversations = [conversation(self._task, problem=problem) for problem in problems]
            completions_PG = answer_problems(self._task, problems, conversations, respond, sampling)
            for problem, completions in zip(problems, completions_PG, strict=True):
                assert len(completions) == sampling.num_samples, "respond must give num_samples completions"
                for index, completion in enumerate(completions, start=sampling.first_sample):
                    self._take(problem, index, completion)
            self._report()

    def _take(self, problem: Problem, index: int, completion: Completion) -> None:
        task = self._task
        rollout = Rollout(completion, task.score(problem, completion))
        vote = task.vote(problem, completion) if isinstance(task, HasVote) else vote_of_text("", completion.answer)
        thinking = self._count_tokens(completion.reasoning) if self._count_tokens else None
        if (
            thinking is not None and completion.token_ids
        ):  # bytes that are no text are encoded longer than they were drawn
            thinking = min(thinking, len(completion.token_ids))
        sample = self._record.add((problem.problem_id, index), rollout, vote=vote, num_thinking_tokens=thinking)
        self._score.add(problem.problem_id, sample)

    def _report(self) -> None:
        if self._on_progress is None:
            return
        progress = Progress(
            num_done=self._score.num_done,
            num_problems=len(self._problems),
            pass_at_1=self._score.pass_at_1,
            num_samples_done=len(self._record.samples),
            num_samples=len(self._problems) * self._sampling.num_samples,
            num_samples_before=self._num_before,
        )
        self._on_progress(progress)


class _RunningScore:
    """pass@1 so far, kept up with each answer rather than computed again."""

    def __init__(self, *, num_samples: int) -> None:
        self._num_samples = num_samples
        self._asked: defaultdict[str, int] = defaultdict(int)
        self._counts: dict[str, tuple[int, int]] = {}
        self._sum_of_shares = 0.0
        self.num_done = 0
        """Problems with all their samples."""

    @property
    def pass_at_1(self) -> float:
        return self._sum_of_shares / len(self._counts) if self._counts else 0.0

    def add(self, problem_id: str, sample: Sample) -> None:
        self._asked[problem_id] += 1
        self.num_done += self._asked[problem_id] == self._num_samples
        if not sample.outcome.is_judged:
            return
        right, of = self._counts.get(problem_id, (0, 0))
        self._sum_of_shares -= right / of if of else 0.0
        self._counts[problem_id] = (right + sample.is_correct, of + 1)
        self._sum_of_shares += (right + sample.is_correct) / (of + 1)
