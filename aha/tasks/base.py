"""What a task is: a source of problems and a verifier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from aha.types import Completion, Problem, Score

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked example for a cold start: a problem with the thinking and the answer to imitate."""

    problem: Problem
    reasoning: str
    answer: str


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
class HasBaselines(Protocol):
    """A task with a baseline that a reasoning model should beat at equal effort."""

    def blind_pass_rate(self, problems: list[Problem], *, num_tries: int, seed: int) -> float:
        """Share of problems that blind random search solves within `num_tries` tries."""

    def count_tries(self, completion: Completion) -> int:
        """How many tries the completion's thinking makes, in the unit of `blind_pass_rate`."""


@runtime_checkable
class HasVote(Protocol):
    """A task whose answers can be the same in other words, such as "12" and "The answer is 12."."""

    def vote(self, problem: Problem, completion: Completion) -> str:
        """What a readable answer counts for in a majority vote (cons@k): equal texts are the same answer."""
