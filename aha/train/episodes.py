"""Episodes, token by token: sample a turn, let the task answer, go on from exactly the tokens there are.

A task without turns has episodes of one turn. The rules: tokens that were sampled or shown are never decoded and
encoded again, the list only grows, and what becomes of an episode depends on its seed and its sample index alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from aha.chat import ChatFormat
from aha.engine import Engine
from aha.tasks.base import HasStopStrings, HasTurns, Task
from aha.tasks.turns import with_turns
from aha.template import MAX_CONTENT_CHARS
from aha.train.stage import derive_seed
from aha.types import Completion, FinishReason, Problem, SamplingParams, Turn

NUM_THREADS = 4
"""Verifiers at work at once, and as many answering tools. Most of them wait: for a sandbox, or an endpoint."""

Result = TypeVar("Result")
Key = tuple[int, int]
"""Index of the problem, index of the sample."""
End = Callable[[Key, Callable[[], Completion]], None]
"""Told which episode is over, and how to read what it came to."""


class Episode:
    """One attempt at a problem: its tokens and turns so far.

    Args:
        params: of the whole episode; `max_tokens` bounds the tokens sampled in all its turns together.
    """

    def __init__(
        self, problem: Problem, *, prompt_ids: Sequence[int], params: SamplingParams, sample_index: int
    ) -> None:
        self.problem = problem
        self.prompt_ids = tuple(prompt_ids)
        self.params = params
        self.sample_index = sample_index
        self.finish_reason = FinishReason.STOP
        self.is_over = False
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._is_sampled: list[bool] = []
        self._turns: list[Turn] = []
        self._weight_version = 0

    @property
    def context_ids(self) -> tuple[int, ...]:
        """All tokens so far: what the next turn is sampled after."""
        return (*self.prompt_ids, *self._token_ids)

    @property
    def num_left(self) -> int:
        """Tokens that may still be sampled."""
        return self.params.max_tokens - sum(self._is_sampled)

    @property
    def turn_params(self) -> SamplingParams:
        """How the next turn is drawn: from a stream of its own for each sample and turn."""
        seed = derive_seed(self.params.seed or 0, "turn", self.sample_index, len(self._turns))
        return dataclasses.replace(self.params, num_samples=1, first_sample=0, max_tokens=self.num_left, seed=seed)

    def take_turn(self, drawn: Completion, *, task: HasTurns, chat: ChatFormat, window: int) -> None:
        """Append a sampled turn, and what the task answers to it.

        The episode is over when the task has no answer or allows no further turn, when the turn was cut off, and when
        the answer would leave no room for a further token; it is not shown then.
        """
        # Stop strings stay: the closing tag of a call is part of it.
        parsed = chat.parse(drawn, starts_in_thinking=chat.starts_in_thinking(self.context_ids))
        self._append(drawn.token_ids, drawn.logprobs, is_sampled=True)
        self._turns.append(Turn(parsed.reasoning, parsed.answer, text=parsed.text))
        self._weight_version = drawn.weight_version
        self.finish_reason = drawn.finish_reason
        self.is_over = True
        if drawn.finish_reason is not FinishReason.STOP or len(self._turns) >= task.max_turns:
            return
        observation = task.respond(self.problem, tuple(self._turns))
        if observation is None:
            return
        shown: tuple[int, ...] = ()
        if len(observation.text) <= MAX_CONTENT_CHARS:  # a longer one fits no window, and would take long to tokenise
            shown = tuple(chat.continuation(observation, last_token_id=drawn.token_ids[-1]))
        if not shown or self.num_left < 1 or len(self.context_ids) + len(shown) >= window:
            self.finish_reason = FinishReason.LENGTH
            return
        self._turns[-1] = dataclasses.replace(self._turns[-1], observation=observation)
        self._append(shown, (math.nan,) * len(shown), is_sampled=False)
        self.is_over = False

    def _append(self, token_ids: Sequence[int], logprobs: Sequence[float], *, is_sampled: bool) -> None:
        self._token_ids += token_ids
        self._logprobs += logprobs
        self._is_sampled += [is_sampled] * len(token_ids)

    @property
    def completion(self) -> Completion:
        """The episode as one completion."""
        tokens = Completion(
            tuple(self._token_ids),
            tuple(self._logprobs),
            self.finish_reason,
            weight_version=self._weight_version,
            is_sampled=() if all(self._is_sampled) else tuple(self._is_sampled),
        )
        return with_turns(tokens, tuple(self._turns))


def with_stop_strings(params: Sequence[SamplingParams], *, task: Task) -> list[SamplingParams]:
    """The parameters, with the task's own stop strings added."""
    stop = task.stop_strings if isinstance(task, HasStopStrings) else ()
    return [dataclasses.replace(p, stop=tuple(dict.fromkeys((*p.stop, *stop)))) for p in params] if stop else [*params]


def run_episodes(
    problems: Sequence[Problem],
    *,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    task: Task,
    chat: ChatFormat,
    engine: Engine,
    finish: Callable[[int, Completion], Result],
    on_wait: Callable[[float], None] | None = None,
) -> list[list[Result]]:
    """Hold `num_samples` episodes on each problem, and let `finish` work on each as soon as it is over.

    `finish` (parsing, scoring) and the task's answers run in threads while the engine samples on, so that a slow
    verifier costs time only once there is nothing left to sample. Nothing in the results depends on those threads:
    the next turns of all episodes are sampled in one batch, in fixed order, when the turns before are all done. Their
    prompts are computed anew in each turn.

    Args:
        prompts: token ids, one prompt per problem.
        params: one per problem; a task's own stop strings are added.
        finish: told the index of the problem and the finished completion, from one of several threads.
        on_wait: told the seconds that were spent waiting with nothing to sample.

    Returns:
        For each problem what `finish` made of its completions, in the order of their sample index.
    """
    params = with_stop_strings(params, task=task)
    futures: dict[Key, Future[Result]] = {}
    with _threads() as finishers, _threads() as responders:

        def end(key: Key, read: Callable[[], Completion]) -> None:
            futures[key] = finishers.submit(lambda: finish(key[0], read()))

        seconds_waited = 0.0
        if isinstance(task, HasTurns):
            episodes = _begin(problems, prompts=prompts, params=params)
            batch = _Batch([[(i, k) for k in range(p.num_samples)] for i, p in enumerate(params)], prompts, params)
            while batch.keys:
                answer = functools.partial(_answer, episodes, task=task, chat=chat, engine=engine, end=end)
                seconds_waited += _sample_turns(batch, engine=engine, responders=responders, answer=answer)
                live = [key for key, episode in episodes.items() if not episode.is_over]
                batch = _Batch(
                    [[key] for key in live],
                    [episodes[key].context_ids for key in live],
                    [episodes[key].turn_params for key in live],
                )
        else:
            _sample_answers(prompts, params, chat=chat, engine=engine, end=end)
        started = time.perf_counter()
        results = [[futures[index, k].result() for k in range(p.num_samples)] for index, p in enumerate(params)]
        seconds_waited += time.perf_counter() - started
    if on_wait is not None:
        on_wait(seconds_waited)
    return results


class _Batch(NamedTuple):
    """What is sampled in one go."""

    keys: list[list[Key]]
    """Of each prompt's samples: which episode they belong to."""
    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]


def _sample_answers(
    prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], *, chat: ChatFormat, engine: Engine, end: End
) -> None:
    """One answer each: the end of a completion is the end of its episode."""

    def on_completion(index: int, sample_index: int, drawn: Completion) -> None:
        def read() -> Completion:
            is_thinking = chat.starts_in_thinking(prompts[index])
            return chat.parse(drawn, starts_in_thinking=is_thinking, stop=params[index].stop)

        end((index, sample_index), read)

    engine.generate(prompts, params, on_completion=on_completion)


def _begin(
    problems: Sequence[Problem], *, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> dict[Key, Episode]:
    episodes = {}
    for index, (problem, prompt_ids, asked) in enumerate(zip(problems, prompts, params, strict=True)):
        # Without a seed each problem gets a fresh one here, which the draws of its later turns follow from.
        seeded = asked if asked.seed is not None else dataclasses.replace(asked, seed=secrets.randbits(63))
        for sample_index in range(asked.num_samples):
            episodes[index, sample_index] = Episode(
                problem,
                prompt_ids=prompt_ids,
                params=seeded,
                sample_index=seeded.first_sample + sample_index,
            )
    return episodes


def _sample_turns(
    batch: _Batch, *, engine: Engine, responders: ThreadPoolExecutor, answer: Callable[[Key, Completion], None]
) -> float:
    """Sample one turn of each episode, answering each as it ends; returns the seconds waited for the last answers."""
    answers: list[Future[None]] = []

    def on_completion(index: int, sample_index: int, drawn: Completion) -> None:
        answers.append(responders.submit(answer, batch.keys[index][sample_index], drawn))

    engine.generate(batch.prompts, batch.params, on_completion=on_completion)
    started = time.perf_counter()
    for future in answers:
        future.result()
    return time.perf_counter() - started


def _answer(
    episodes: Mapping[Key, Episode],
    key: Key,
    drawn: Completion,
    *,
    task: HasTurns,
    chat: ChatFormat,
    engine: Engine,
    end: End,
) -> None:
    episode = episodes[key]
    episode.take_turn(drawn, task=task, chat=chat, window=engine.model.config.max_position_embeddings)
    if episode.is_over:
        end(key, lambda: episode.completion)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that an error or Ctrl-C does not wait for."""
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
