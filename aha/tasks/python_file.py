"""Bring your own task as a Python file: a class, an object, or two functions `problems` and `score`.

The file is the user's own program, named on their command line, and runs with their rights, as `python task.py` would.
What it gets wrong is said in one line with its file and line. Its `score` runs in a child process; one that raises,
hangs, dies or returns something else than a score masks that rollout and never ends a run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from aha.errors import AhaError, ConfigError, DataError
from aha.tasks.base import Split, Task
from aha.tasks.python_worker import score_in_child
from aha.tasks.wrapper import TaskWrapper
from aha.types import Completion, Outcome, Problem, Score

SCORE_SECONDS = 5.0
"""Longest wall time one `score` may take."""
SYSTEM_PROMPT = "Think step by step inside <think> and </think>, then write only the answer."
"""For a task that has no `system_prompt` of its own."""
_HOW = (
    "a class with problems and score, `task = …`, or two functions problems(split, seed) and score(problem, completion)"
)

Item = TypeVar("Item")


class PythonTask(TaskWrapper):
    """A task from a user's file, with its mistakes caught at this one place."""

    def __init__(self, inner: Task, *, path: str, options: Mapping[str, str], stamp: int = 0) -> None:
        super().__init__(inner)
        self.path = path
        self.stamp = stamp
        self.options = dict(options)
        if hasattr(inner, "respond"):
            self.respond = self._respond
        if hasattr(inner, "demonstrations"):
            self.demonstrations = lambda *, seed: self._guard(lambda: inner.demonstrations(seed=seed))

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "task.py:level=3"."""
        options = ",".join(f"{key}={self.options[key]}" for key in sorted(self.options))
        return f"{self.path}:{options}" if options else self.path

    @property
    def system_prompt(self) -> str:
        return str(getattr(self.inner, "system_prompt", SYSTEM_PROMPT))

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        """The file's problems; (prompt, answer) pairs become problems whose id is a hash of both.

        Raises:
            DataError: the file's code raises, or yields something else.
        """
        for item in self._guard(lambda: self.inner.problems(split, seed=seed)):
            yield self._problem(item)

    def score(self, problem: Problem, completion: Completion) -> Score:
        """The file's score, decided in a child process. A number stands for a reward that is right when it is 1."""
        return score_in_child(self.name, problem, completion, stamp=self.stamp, seconds=SCORE_SECONDS)

    def score_here(self, problem: Problem, completion: Completion) -> Score:
        """The same in this process, without a time limit."""
        try:
            found = self.inner.score(problem, completion)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises: it masks this rollout
            return Score(0.0, False, _describe(error, self.path), Outcome.ERROR)
        return self._read_score(found)

    def _respond(self, problem: Problem, transcript: Any) -> Any:
        """What the file answers to a turn. Its mistakes stop the run: masked, they would look like the last turn."""
        inner: Any = self.inner
        try:
            return inner.respond(problem, transcript)
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises is theirs to mend
            raise DataError(_describe(error, self.path)) from None

    def _read_score(self, found: object) -> Score:
        score = found if isinstance(found, Score) else None
        if isinstance(found, bool | int | float):
            score = Score(found, bool(found >= 1), "right" if found >= 1 else "")
        if score is None:
            note = f"{self.path}: score returned {type(found).__name__}, not a Score or a number"
            return Score(0.0, False, note, Outcome.ERROR)
        if wrong := _wrong_field(score):
            return Score(0.0, False, f"{self.path}: score returned {wrong}", Outcome.ERROR)
        return dataclasses.replace(score, reward=float(score.reward), is_correct=bool(score.is_correct))

    def _problem(self, item: object) -> Problem:
        if isinstance(item, Problem):
            return self._plain(item)
        if isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(text, str) for text in item):
            prompt, answer = item
            digest = hashlib.sha256(f"{prompt}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
            return Problem(f"{Path(self.path).stem}-{digest}", prompt, answer)
        raise DataError(
            f"{self.path}: problems must yield Problem objects or (prompt, answer) pairs of text, got {item!r:.60}"
        )

    def _plain(self, problem: Problem) -> Problem:
        """The problem, if a score in another process can have it as it is."""
        try:
            is_plain = not problem.data or json.loads(json.dumps(problem.data)) == problem.data
        except (TypeError, ValueError):
            is_plain = False
        if not is_plain:
            raise DataError(
                f"{self.path}: Problem.data must hold plain JSON values (lists, not tuples; text as keys), got "
                f"{problem.data!r:.80}"
            )
        return problem

    def _guard(self, start: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """The items of the user's iterator; what it raises becomes one line."""
        try:
            yield from start()
        except AhaError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises is theirs to mend
            raise DataError(_describe(error, self.path)) from None


class _Functions:
    """The task of a file that has two functions and no class."""

    def __init__(self, module: ModuleType) -> None:
        self.name = ""
        self.problems = module.problems
        self.score = module.score
        for name in ("demonstrations", "gold", "cheats", "floor", "respond", "max_turns", "stop_strings", "vote"):
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))
        self.system_prompt = getattr(module, "system_prompt", None) or getattr(module, "SYSTEM_PROMPT", SYSTEM_PROMPT)


def load_task(path: str, *, options: Mapping[str, str], read_options: Callable[..., dict[str, Any]]) -> PythonTask:
    """The task that a Python file defines.

    Args:
        options: texts that go to the fields of the file's class.
        read_options: turns them into values by the types of the class's fields, `aha.tasks.typed_options`.

    Raises:
        DataError: the file cannot be read, raises, or defines no task or several.
        ConfigError: an option that the class does not have.
    """
    try:
        stamp = os.stat(path).st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    module = _load(path, stamp)
    try:
        inner = _find_task(module, path=path, options=options, read_options=read_options)
    except AhaError:
        raise
    except Exception as error:  # noqa: BLE001 - the constructor is the user's code too
        raise DataError(_describe(error, path)) from None
    return PythonTask(inner, path=path, options=options, stamp=stamp)


# Cached: a run asks for its task many times, and a file is run once. The time stamp lets an edited file be read anew.
@functools.lru_cache(maxsize=16)
def _load(path: str, stamp: int) -> ModuleType:
    """Import the file under a name of its own. Its folder is searched last, so that it shadows nothing."""
    # importlib runs the file. It is the user's program, which they named; data and model files are never run.
    name = f"aha_task_{hashlib.sha256(f'{os.path.abspath(path)} {stamp}'.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module  # dataclasses look their module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises is theirs to mend
        del sys.modules[name]
        raise DataError(_describe(error, path)) from None
    return module


def _find_task(
    module: ModuleType, *, path: str, options: Mapping[str, str], read_options: Callable[..., dict[str, Any]]
) -> Task:
    task: Any = getattr(module, "task", None)
    own = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    classes = [kind for kind in dict.fromkeys(own) if _is_task(kind) and not kind.__name__.startswith("_")]
    if inspect.isclass(task):  # task = Reverse, without the parentheses
        task, classes = None, [task]
    if task is None and len(classes) > 1:
        names = ", ".join(kind.__name__ for kind in classes)
        raise DataError(
            f"{path}: defines several tasks ({names}); choose one by writing task = {classes[0].__name__}()"
        )
    if task is None and classes:
        return _checked(classes[0](**read_options(options, classes[0], owner=path)), path=path)
    if task is None and _is_task(module):
        task = _Functions(module)
    found = _checked(task, path=path)
    if not options:
        return found
    if not dataclasses.is_dataclass(task) or isinstance(task, type):
        raise ConfigError(f"{path}: takes no options, got {', '.join(options)}; write its task as a class with fields")
    return _checked(dataclasses.replace(task, **read_options(options, type(task), owner=path)), path=path)


def _wrong_field(score: Score) -> str:
    """Which field of a user's score is none, and why; "" when all are as their types say."""
    reward: object = score.reward
    if not _is_finite(reward) or abs(score.reward) > 1:
        return f"the reward {reward!r:.40}, not a number from -1 to 1"
    if not isinstance(score.outcome, Outcome):
        return f"the outcome {score.outcome!r:.40}, not an aha.types.Outcome"
    if not isinstance(score.note, str):
        return f"the note {score.note!r:.40}, not a text"
    parts: object = score.parts
    if not isinstance(parts, Mapping) or not all(isinstance(k, str) and _is_finite(v) for k, v in parts.items()):
        return f"the parts {parts!r:.40}, not names with finite numbers"
    return ""


def _is_finite(value: object) -> bool:
    # An int is finite, and one of 400 digits has no float.
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _checked(task: Any, *, path: str) -> Task:
    if not _is_task(task):
        raise DataError(f"{path}: defines no task; it needs {_HOW}")
    found: Task = task
    prompt = getattr(task, "system_prompt", "")
    if not isinstance(prompt, str):
        raise DataError(f"{path}: the system prompt must be a text, got {prompt!r:.60}")
    return found


def _is_task(found: object) -> bool:
    return callable(getattr(found, "problems", None)) and callable(getattr(found, "score", None))


def _describe(error: BaseException, path: str) -> str:
    """One line: the file, the last of its lines that took part, and the error."""
    file = os.path.abspath(path)
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{path} line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f"{path} line {lines[-1]}" if lines else path
    message = " ".join(str(error).split())[:200]
    return f"{place}: {type(error).__name__}{': ' + message if message else ''}"
