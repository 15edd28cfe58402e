"""Several tasks as one, problems interleaved by weight: "countdown + arithmetic:max_terms=3", "2*countdown + data.csv".

R1's last stage of reinforcement learning is over everything at once (R1 §2.3.4); this is how it is written down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from aha.errors import ConfigError, DataError
from aha.tasks.base import Cheat, Demonstration, HasCheats, HasDemonstrations, HasGold, Split, Task
from aha.types import Completion, Problem, Score

MAX_WEIGHT = 99
PART = "mixture_part"
"""Key in `Problem.data` of a mixture's problem: the index of its task."""
_WEIGHTED = re.compile(r"([0-9]+)\*(.*)", re.DOTALL)
_EPOCH_SEED = 1_000_003

Item = TypeVar("Item")


def split_mixture(spec: str) -> list[tuple[int, str]]:
    """The weights and specs of "2*countdown + arithmetic"; empty for a spec of one task.

    Raises:
        ConfigError: a part is empty, or its weight is not 1 to MAX_WEIGHT.
    """
    parts = spec.split(" + ")
    if os.path.isfile(spec) or (len(parts) == 1 and not _WEIGHTED.fullmatch(spec)):
        return []
    found = []
    for part in parts:
        match = _WEIGHTED.fullmatch(part.strip())
        weight, name = (int(match[1][:9]), match[2].strip()) if match else (1, part.strip())
        if not name or not 1 <= weight <= MAX_WEIGHT:
            raise ConfigError(
                f"{spec}: {part.strip()!r} is no part of a mixture; write TASK + TASK, or 2*TASK + TASK with whole "
                f"weights from 1 to {MAX_WEIGHT}"
            )
        found.append((weight, name))
    return found


class Mixture:
    """Problems of several tasks in a fixed order, each judged by its own task and asked with its instructions."""

    def __init__(self, parts: tuple[tuple[int, Task], ...]) -> None:
        self.weights = tuple(weight for weight, _ in parts)
        self.parts = tuple(task for _, task in parts)
        names = [task.name for task in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self.name}: {name!r} stands twice; give it a weight instead, as in 2*{name}")
        # Set on the instance: a mixture of tasks that cannot show how they are done cannot either.
        if any(isinstance(task, HasDemonstrations) for task in self.parts):
            self.demonstrations = self._demonstrations
        if any(hasattr(task, "respond") for task in self.parts):
            self.max_turns = max(getattr(task, "max_turns", 1) for task in self.parts)
            self.respond = self._respond
        if stops := {stop: None for task in self.parts for stop in getattr(task, "stop_strings", ())}:
            self.stop_strings = tuple(stops)

    @property
    def name(self) -> str:
        """The spec that makes this mixture again."""
        parts = zip(self.weights, self.parts, strict=True)
        return " + ".join(f"{weight}*{task.name}" if weight > 1 else task.name for weight, task in parts)

    @property
    def system_prompt(self) -> str:
        return ""  # each problem has that of its own task

    @property
    def notices(self) -> tuple[str, ...]:
        """What the parts have to say before training."""
        return tuple(notice for task in self.parts for notice in getattr(task, "notices", ()))

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        """Problems by weight. A part that ends is gone through again, in a new order, until every part has ended once.

        Raises:
            DataError: a part has no problems in the split.
        """
        starts = [lambda epoch, task=task: task.problems(split, seed=seed + _EPOCH_SEED * epoch) for task in self.parts]
        for index, problem in interleave(starts, weights=self.weights):
            yield self._outer(problem, index)

    def score(self, problem: Problem, completion: Completion) -> Score:
        return self.task_of(problem).score(self.unwrap(problem), completion)

    def gold(self, problem: Problem) -> Completion | str | None:
        task = self.task_of(problem)
        return task.gold(self.unwrap(problem)) if isinstance(task, HasGold) else problem.answer

    def cheats(self, problem: Problem) -> Iterator[Cheat]:
        task = self.task_of(problem)
        if isinstance(task, HasCheats):
            yield from task.cheats(self.unwrap(problem))

    def _respond(self, problem: Problem, transcript: Sequence[Any]) -> Any:
        """What the problem's own task answers to a turn; nothing where it has no turns, or no more of them."""
        task: Any = self.task_of(problem)
        is_over = not hasattr(task, "respond") or len(transcript) >= task.max_turns
        return None if is_over else task.respond(self.unwrap(problem), transcript)

    def task_of(self, problem: Problem) -> Task:
        """The task that a problem of this mixture comes from."""
        index: int = problem.data[PART]
        return self.parts[index]

    def unwrap(self, problem: Problem) -> Problem:
        """A problem of this mixture as its own task made it, except that its instructions are written out."""
        data = {key: value for key, value in problem.data.items() if key != PART}
        prefix = f"{self.task_of(problem).name}/"
        return replace(problem, problem_id=problem.problem_id.removeprefix(prefix), data=data)

    def _outer(self, problem: Problem, index: int) -> Problem:
        task = self.parts[index]
        return replace(
            problem,
            problem_id=f"{task.name}/{problem.problem_id}",
            data={**problem.data, PART: index},
            system=problem.system or task.system_prompt,
        )

    def _demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        """Worked examples of the tasks that have them, by weight."""
        able = [index for index, task in enumerate(self.parts) if isinstance(task, HasDemonstrations)]
        starts = [
            partial(_epoch_of, task.demonstrations, seed) for task in self.parts if isinstance(task, HasDemonstrations)
        ]
        for place, shown in interleave(starts, weights=[self.weights[index] for index in able]):
            yield replace(shown, problem=self._outer(shown.problem, able[place]))


def _epoch_of(items: Callable[..., Iterator[Item]], seed: int, epoch: int) -> Iterator[Item]:
    """A source's items in the order of an epoch; the first has the seed's own order."""
    return items(seed=seed + _EPOCH_SEED * epoch)


def interleave(
    starts: Sequence[Callable[[int], Iterator[Item]]], *, weights: Sequence[int]
) -> Iterator[tuple[int, Item]]:
    """Items of several sources in a fixed order, each as often as its weight says, spread evenly.

    Smooth weighted round robin: every source earns its weight each turn, and the richest one pays for the turn. With
    weights 2 and 1 the order is 0 1 0, 0 1 0, ….

    Args:
        starts: epoch → that epoch's items of the source.

    Yields:
        (index of the source, item), until every source has ended at least once.

    Raises:
        DataError: a source has no items at all.
    """
    credit = [0] * len(starts)
    epochs = [0] * len(starts)
    running = [start(0) for start in starts]
    while True:
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        index = max(range(len(starts)), key=lambda i: credit[i])
        credit[index] -= sum(weights)
        item = next(running[index], None)
        if item is None:
            epochs[index] += 1
            if all(epochs):
                return
            running[index] = starts[index](epochs[index])
            item = next(running[index], None)
            if item is None:
                raise DataError("a task of the mixture has no problems; give it some, or leave it out")
        yield index, item
