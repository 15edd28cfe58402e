"""Episodes of several turns, as text: what a completion says of them, and how they are held with an endpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from aha.tasks.base import HasTurns, Task
from aha.types import Completion, FinishReason, Message, Observation, Problem, SamplingParams, Transcript, Turn

Ask = Callable[[list[list[Message]], SamplingParams], list[list[Completion]]]
"""Conversations in; for each, `num_samples` completions with text, reasoning and answer filled in."""


@runtime_checkable
class RunsEpisodes(Protocol):
    """What answers conversations and can also hold whole episodes, token by token: an engine in this process."""

    def episodes(
        self, task: Task, problems: Sequence[Problem], samplings: Sequence[SamplingParams]
    ) -> list[list[Completion]]:
        """For each problem `num_samples` finished episodes, drawn by its own parameters."""


def with_turns(completion: Completion, turns: Transcript) -> Completion:
    """A completion that says what these turns said: their text and thinking joined by line, and the last answer."""
    return replace(
        completion,
        text="\n".join(turn.text for turn in turns),
        reasoning="\n".join(turn.reasoning for turn in turns if turn.reasoning),
        answer=turns[-1].answer,
        turns=turns,
    )


def answer_problems(
    task: Task, problems: Sequence[Problem], conversations: Sequence[list[Message]], ask: Ask, sampling: SamplingParams
) -> list[list[Completion]]:
    """The completions of each problem: episodes where the task has turns, else one answer to its conversation."""
    if not isinstance(task, HasTurns):
        return ask(list(conversations), sampling)
    if isinstance(ask, RunsEpisodes):
        return ask.episodes(task, problems, [sampling] * len(problems))
    return converse(task, problems, conversations, ask, sampling)


def converse(
    task: HasTurns,
    problems: Sequence[Problem],
    conversations: Sequence[list[Message]],
    ask: Ask,
    sampling: SamplingParams,
) -> list[list[Completion]]:
    """Hold episodes by messages, with a model that is only reached through a conversation's text.

    Observations are sent as the user's, since an API takes the role "tool" only after a call in its own format; of
    earlier turns the answers are sent, not the thinking. `max_tokens` bounds what the model writes in an episode: those
    asked together get the largest budget left among them, and an answer beyond its own budget does not count.

    Returns:
        For each problem `num_samples` episodes. Their tokens are counted, not known: a conversation's text does not
        say how it was tokenised.
    """
    first = ask(list(conversations), sampling)
    episodes = [
        [_Conversation(problem, list(messages), completion) for completion in completions]
        for problem, messages, completions in zip(problems, conversations, first, strict=True)
    ]
    for sample_index in range(sampling.num_samples):
        live = [of_problem[sample_index] for of_problem in episodes]
        for number in range(1, max(1, task.max_turns) + 1):
            live = [episode for episode in live if episode.goes_on(task, max_tokens=sampling.max_tokens)]
            if not live:
                break
            budget = max(sampling.max_tokens - episode.num_tokens for episode in live)
            index = sampling.first_sample + sample_index
            seed = _turn_seed(sampling.seed, sample_index=index, number=number)
            params = replace(sampling, num_samples=1, first_sample=0, max_tokens=budget, seed=seed)
            answers = ask([episode.messages for episode in live], params)
            for episode, (completion,) in zip(live, answers, strict=True):
                episode.add(completion)
    return [[episode.completion for episode in of_problem] for of_problem in episodes]


@dataclass
class _Conversation:
    """One episode as messages. `last` is the turn that has not been answered yet."""

    problem: Problem
    messages: list[Message]
    last: Completion
    turns: list[Turn] = field(default_factory=list)
    num_tokens: int = 0
    cost_nano_usd: int = 0
    finish_reason: FinishReason = FinishReason.STOP

    def __post_init__(self) -> None:
        self.add(self.last)

    def add(self, completion: Completion) -> None:
        self.last = completion
        self.turns.append(Turn(completion.reasoning, completion.answer, text=completion.text))
        self.num_tokens += completion.num_tokens
        self.cost_nano_usd += completion.cost_nano_usd
        self.finish_reason = completion.finish_reason

    def goes_on(self, task: HasTurns, *, max_tokens: int) -> bool:
        """Show the model the task's observation, if there is one and the budget leaves room for a further turn."""
        if self.num_tokens > max_tokens:
            self.finish_reason = FinishReason.LENGTH
            self.turns[-1] = replace(self.turns[-1], answer="")
        if self.finish_reason is not FinishReason.STOP or len(self.turns) >= task.max_turns:
            return False
        observation = task.respond(self.problem, tuple(self.turns))
        if observation is None:
            return False
        if self.num_tokens == max_tokens:
            self.finish_reason = FinishReason.LENGTH
            return False
        self._show(observation)
        return True

    def _show(self, observation: Observation) -> None:
        turn = self.turns[-1]
        self.turns[-1] = replace(turn, observation=observation)
        self.messages += [Message("assistant", turn.answer), Message("user", observation.text)]

    @property
    def completion(self) -> Completion:
        counted = replace(
            self.last,
            token_ids=(),
            logprobs=(),
            finish_reason=self.finish_reason,
            reported_tokens=self.num_tokens,
            cost_nano_usd=self.cost_nano_usd,
        )
        return with_turns(counted, tuple(self.turns))


def _turn_seed(seed: int | None, *, sample_index: int, number: int) -> int | None:
    """A seed of its own for each sample and turn: two samples that began alike need not go on alike."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}/{sample_index}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # 31 bits: what every API takes
