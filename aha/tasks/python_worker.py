"""Runs the `score` of a user's Python file in a child process, which is stopped when it hangs, replaced when it dies.

The file is trusted, its mistakes are not: a regular expression that never ends holds the whole interpreter, whatever
the thread, and an out-of-memory kill ends a run that took hours. Both sides are in this file: the class for the
parent, `serve` for the child. They speak one JSON line a question; what the user's code prints is not shown.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from enum import Enum
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from aha.errors import AhaError
from aha.types import Completion, Outcome, Problem, Score

if TYPE_CHECKING:
    from aha.tasks.python_file import PythonTask

START_SECONDS = 120.0
"""Wall time for a new child to start and import the file: some seconds where it needs a large library."""
OVERTIME_SECONDS = 0.5
"""After its alarm: code that catches everything is then ended by the kernel."""
GRACE_SECONDS = 5.0
"""What a child may take beyond the limit, which it keeps itself, before it is killed."""
MAX_MEMORY_BYTES = 8 << 30
MAX_REPLY_BYTES = 1 << 20
_PROGRAM = "from aha.tasks.python_worker import serve; serve()"

Made = TypeVar("Made")


class TooSlow(BaseException):
    """Raised in the child by its alarm."""


def score_in_child(spec: str, problem: Problem, completion: Completion, *, stamp: int, seconds: float) -> Score:
    """The score that the Python file of `spec` gives, decided in this process's child.

    Args:
        stamp: tells versions of the file apart.
        seconds: wall time that the file's `score` may take.
    """
    return _worker_of(os.getpid()).score(spec, problem, completion, stamp=stamp, seconds=seconds)


# One child a process: a run asks for its task many times, and each is a new object. The process id is the key because
# a fork shares its parent's pipes and would read its answers.
@functools.lru_cache(maxsize=1)
def _worker_of(process_id: int) -> ScoringProcess:
    worker = ScoringProcess()
    atexit.register(worker.close)
    return worker


class ScoringProcess:
    """The parent's side: one question at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._num_asked = 0
        self._known: set[str] = set()
        """Specs that the child has loaded: the first question on one takes as long as its imports."""

    def score(self, spec: str, problem: Problem, completion: Completion, *, stamp: int, seconds: float) -> Score:
        question = {
            # The path of the file may be relative, and its code may open others: to where this process is now.
            "folder": os.getcwd(),
            "spec": spec,
            "stamp": stamp,
            "problem": problem,
            "completion": completion,
            "seconds": seconds,
        }
        with self._lock:
            self._num_asked += 1
            question["number"] = self._num_asked
            line = json.dumps(question, default=_fields_of).encode("ascii") + b"\n"
            for _ in range(2):  # twice: the first question after a child was killed from outside finds it dead
                child = self._child or self._start()
                wait = seconds + GRACE_SECONDS + (0.0 if spec in self._known else START_SECONDS)
                reply = _ask(child, line, seconds=wait)
                return_code = 0 if reply else self.close()
                if reply is None or -return_code == signal.SIGALRM:
                    return Score(0.0, False, f"score took over {seconds:g} s", Outcome.TIMEOUT)
                if reply:
                    self._known.add(spec)
                    return self._read(reply)
        return Score(0.0, False, "score ended its process (out of memory, or a crash of a library)", Outcome.ERROR)

    def _read(self, reply: bytes) -> Score:
        """The score in a reply to the last question. Any other line was written by the file's code or a fork of it."""
        try:
            number, fields = json.loads(reply)
            score: Score = _revive(Score, fields)
            if number == self._num_asked:
                return score
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
        self.close()
        return Score(0.0, False, "score wrote to the pipe that its result goes through", Outcome.ERROR)

    def close(self) -> int:
        """Kill the child, if there is one; how it ended."""
        child, self._child = self._child, None
        self._known.clear()
        if child is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what its code has started too
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()  # not read to its end: a process that has left the group may hold it
        return child.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        # The parent's own search path: the child must find the same aha and the same libraries.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._child = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        return self._child


def _ask(child: subprocess.Popen[bytes], line: bytes, *, seconds: float) -> bytes | None:
    """The child's line; empty when it has died, None when it has not answered in time."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for start in range(0, len(line), 1 << 16):  # an unbuffered pipe may take a part only
            _write_all(child.stdin.fileno(), line[start : start + (1 << 16)])
    except BrokenPipeError:
        return b""
    reply = b""
    while not reply.endswith(b"\n"):
        is_ready, _, _ = select.select([child.stdout], [], [], seconds)
        if not is_ready:
            return None
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece or len(reply) > MAX_REPLY_BYTES:
            return b""
        reply += piece
    return reply


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def serve() -> None:
    """The child's loop: a question a line, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    answers = os.dup(1)
    os.dup2(2, 1)  # the user's code may print; that is no answer
    process_id = os.getpid()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        score = _answer(question)
        if os.getpid() != process_id:  # the user's code has forked, and this is not the one that was asked
            os._exit(0)
        score = dataclasses.replace(score, note=score.note[:500])
        text = json.dumps([question["number"], score], default=_fields_of)
        _write_all(answers, text.encode("ascii") + b"\n")


def _answer(question: dict[str, Any]) -> Score:
    try:
        os.chdir(question["folder"])
        task = _task_of(question["folder"], question["spec"], question["stamp"])
    except (AhaError, OSError) as error:  # the file has changed since the parent read it
        return Score(0.0, False, str(error), Outcome.ERROR)
    problem, completion = (_revive(kind, question[name]) for name, kind in _NOUNS.items())
    try:
        return within_seconds(lambda: task.score_here(problem, completion), seconds=question["seconds"])
    except TooSlow:
        return Score(0.0, False, f"{task.path}: score took over {question['seconds']:g} s", Outcome.TIMEOUT)


# Cached: a class may read a large file when it is made.
@functools.lru_cache(maxsize=8)
def _task_of(folder: str, spec: str, stamp: int) -> PythonTask:
    from aha.tasks import get_task

    task = get_task(spec)
    return cast("PythonTask", task)


_NOUNS: dict[str, Any] = {"problem": Problem, "completion": Completion}


def within_seconds(work: Callable[[], Made], *, seconds: float) -> Made:
    """The result of `work` in the main thread; `re` and pure Python look for signals while they run.

    Raises:
        TooSlow: the time is over.
    """
    before = signal.signal(signal.SIGALRM, _raise_too_slow)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, OVERTIME_SECONDS)
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _raise_too_slow(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    raise TooSlow


def _fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object, one level at a time."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _revive(kind: Any, value: Any) -> Any:
    """A value of a type as JSON has brought it: nouns of aha.types, their tuples and enums, and plain values."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{name: _revive(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is tuple and isinstance(value, list):
        (item, *_) = get_args(kind)
        return tuple(value) if item in (int, float, bool, str) else tuple(_revive(item, entry) for entry in value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    of_union = [part for part in get_args(kind) if dataclasses.is_dataclass(part)]
    return _revive(of_union[0], value) if of_union and isinstance(value, dict) else value
