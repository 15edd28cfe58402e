"""What a task is: a source of problems and a verifier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from aha.types import Completion, Observation, Problem, Score, Transcript, Turn

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked example for a cold start: a problem with the thinking and the answer to imitate."""

    problem: Problem
    reasoning: str
    answer: str
    turns: tuple[Turn, ...] = ()
    """Turns before the last one, each with the observation that followed it: context, never imitated."""


@dataclass(frozen=True, slots=True)
class Cheat:
    """A completion that tries to be paid without solving its problem."""

    name: str
    """What is tried, in a few words; the same for every problem."""
    completion: Completion


class Task(Protocol):
    """A verifiable task. Problems of the two splits never overlap, whatever their seeds."""

    @property
    def name(self) -> str:
        """How `get_task` finds it again, options included, e.g. "countdown:max_number=50"."""

    @property
    def system_prompt(self) -> str:
        """Instructions for a general instruct model; a chat template without a system role leaves them out."""

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        """Problems of a split in an order fixed by `seed`; generated tasks never end, files end after one pass."""

    def score(self, problem: Problem, completion: Completion) -> Score:
        """Judge a completion. Never raises, hangs or executes, whatever the completion's text."""


@runtime_checkable
class HasDemonstrations(Protocol):
    """A task that can show how it is done."""

    def demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        """Worked examples on training problems only, endless."""


@runtime_checkable
class HasTurns(Protocol):
    """A task that answers the model: with a tool's results, or as a partner in a conversation."""

    @property
    def max_turns(self) -> int:
        """Most turns of the model in one episode; `respond` is not asked after the last one."""

    def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
        """What the model is shown after its last turn; None ends the episode, and then that turn is its answer.

        A function of its arguments alone, called from several threads. Never raises, hangs or executes, whatever the
        turns say. Only turns that the model ended itself are asked about.
        """


@runtime_checkable
class HasStopStrings(Protocol):
    """A task whose turns may end at a string, such as the closing tag of a call."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a turn; they stay in its text."""


@runtime_checkable
class HasBaselines(Protocol):
    """A task with a baseline that a reasoning model should beat at equal effort."""

    def blind_pass_rate(self, problems: list[Problem], *, num_tries: int, seed: int) -> float:
        """Share of problems that blind random search solves within `num_tries` tries."""

    def count_tries(self, completion: Completion) -> int:
        """How many tries the completion's thinking makes, in the unit of `blind_pass_rate`."""


@runtime_checkable
class HasGold(Protocol):
    """A task whose `Problem.answer` is not what a model would write, such as a pattern or an explanation."""

    def gold(self, problem: Problem) -> Completion | str | None:
        """A right completion, or the text of its answer; None where there is no example."""


@runtime_checkable
class HasCheats(Protocol):
    """A task that knows how its own verifier could be fooled, beyond what `aha.tasks.cheats` tries on every task."""

    def cheats(self, problem: Problem) -> Iterator[Cheat]:
        """Completions that deserve nothing."""


@runtime_checkable
class HasFloor(Protocol):
    """A task where an answer without thought deserves something: partial credit, or a lucky class."""

    @property
    def floor(self) -> float:
        """Mean reward that such an answer deserves, below 1. Without it the self-check works it out."""


@runtime_checkable
class HasVote(Protocol):
    """A task whose answers can be the same in other words, such as "12" and "The answer is 12."."""

    def vote(self, problem: Problem, completion: Completion) -> str:
        """What a readable answer counts for in a majority vote (cons@k): equal texts are the same answer."""
