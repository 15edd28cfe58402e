"""A task around a task: everything is passed on, and a subclass changes what it is for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from aha.tasks.base import Split, Task
from aha.types import Completion, Problem, Score

_PLAIN = ("floor", "max_turns", "stop_strings")
"""Optional parts of a task that are no methods."""


class TaskWrapper:
    """Passes a task on, its optional methods included, whichever it has."""

    def __init__(self, inner: Task) -> None:
        self.inner = inner
        # Set on the instance, not left to __getattr__ alone: from Python 3.12 on, isinstance() with a protocol such as
        # HasDemonstrations looks for attributes without calling it.
        for name in dir(inner):
            is_optional = name in _PLAIN or callable(inspect.getattr_static(inner, name))
            if is_optional and not name.startswith("_") and not hasattr(self.__class__, name) and name != "inner":
                setattr(self, name, getattr(inner, name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner":  # "inner": a copy that is not built yet must not ask itself
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def system_prompt(self) -> str:
        return self.inner.system_prompt

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        return self.inner.problems(split, seed=seed)

    def score(self, problem: Problem, completion: Completion) -> Score:
        return self.inner.score(problem, completion)
