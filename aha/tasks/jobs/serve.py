"""The program of a worker process: answers the questions of one job, a JSON line each, within the job's limits."""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys
import warnings
from typing import Any, NoReturn

from aha.tasks.verifiers import UnreadableError
from aha.tasks.worker import Job
from aha.types import Outcome

ORPHAN_SECONDS = 5.0
"""How often an idle process looks whether its parent is still there: a fork of the parent may hold the pipe open."""


class _ExpiredError(BaseException):
    """CPU time is up. Not an Exception, so that fewer checks swallow it."""


class CPUTimer:
    """Raises _ExpiredError in the main thread after `cpu_seconds`, again and again while someone swallows it."""

    def __init__(self, cpu_seconds: float) -> None:
        self._cpu_seconds = cpu_seconds
        self._is_running = False
        self.has_expired = False
        signal.signal(signal.SIGPROF, self._expire)

    def start(self) -> None:
        self.has_expired, self._is_running = False, True
        signal.setitimer(signal.ITIMER_PROF, self._cpu_seconds, 0.05)

    def stop(self) -> None:
        self._is_running = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _expire(self, signal_number: int, frame: object) -> None:
        if self._is_running:
            self.has_expired = True
            raise _ExpiredError


def serve(job: Job) -> None:
    """Answer questions until the other side hangs up."""
    questions, replies = _take_over_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which closes our input
    warnings.simplefilter("ignore")
    try:
        module = importlib.import_module(job.module)
    except Exception as error:  # noqa: BLE001 - a library that is missing or broken: the other side reports it
        _write_all(replies, json.dumps(f"{type(error).__name__}: {error}"[:200]).encode() + b"\n")
        return
    _limit_process(job)
    timer = CPUTimer(job.cpu_seconds)
    parent_id = os.getppid()
    os.write(replies, b"\n")  # ready
    while line := _next_line(questions, parent_id=parent_id):
        reply = _reply_within_limits(module.answer, line, job=job, timer=timer)
        _write_all(replies, json.dumps(reply).encode("ascii") + b"\n")


def _take_over_pipes() -> tuple[Any, int]:
    """The pipes of the protocol; what the job prints or reads goes nowhere."""
    questions, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return questions, replies


def _limit_process(job: Job) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write to a file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the address space cannot be limited
        resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))


def _next_line(questions: Any, *, parent_id: int) -> bytes:
    while not select.select([questions], [], [], ORPHAN_SECONDS)[0]:
        if os.getppid() != parent_id:
            return b""
    line: bytes = questions.readline()
    return line


def _reply_within_limits(answer: Any, line: bytes, *, job: Job, timer: CPUTimer) -> tuple[str, Any, str, bool]:
    """Outcome, value, note, and whether this process should be replaced."""
    # For code that never returns to the interpreter (9**9**9): the kernel kills, by CPU time and by wall time.
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + job.cpu_seconds) + 2, hard))
    signal.setitimer(signal.ITIMER_REAL, job.wall_seconds)
    try:
        reply = _reply(answer, line, timer=timer)
    except _ExpiredError:
        pass
    finally:
        timer.stop()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    if timer.has_expired:  # also when the job swallowed the exception and made a verdict of it
        return Outcome.TIMEOUT, None, f"took more than {job.cpu_seconds:g} s of CPU time", True
    return reply


def _reply(answer: Any, line: bytes, *, timer: CPUTimer) -> tuple[str, Any, str, bool]:
    question = json.loads(line)
    timer.start()
    try:
        return Outcome.SCORED, answer(question), "", False
    except UnreadableError as error:
        return Outcome.PARSE_FAILURE, None, str(error)[:200], False
    except MemoryError:
        return Outcome.ERROR, None, "ran out of memory", True
    except Exception as error:  # noqa: BLE001 - third-party code may raise anything; it is counted, not scored
        return Outcome.ERROR, None, f"{type(error).__name__}: {error}"[:200], False
    finally:
        timer.stop()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _main() -> NoReturn:
    serve(Job(**json.loads(sys.argv[1])))
    os._exit(0)  # no atexit handlers of third-party code


if __name__ == "__main__":
    _main()
