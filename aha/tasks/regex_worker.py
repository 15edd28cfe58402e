"""Full matches of regular expressions in a child process that is stopped after a fixed share of CPU time.

Python's `re` backtracks without a time limit and holds the interpreter while it does, so neither a thread nor a signal
handler of a server can stop it. In the main thread of a child both work: `re` looks for signals while it matches, and
what does not answer at all is killed. The limit counts the child's own CPU time: a busy machine changes no verdict.

This file is both sides: the class below for the parent, and the child's program, which runs it by its path. It imports
nothing of ours, so that the child starts in a few hundredths of a second.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from enum import StrEnum
from typing import NamedTuple, NoReturn

CPU_SECONDS = 0.2
"""CPU time one match may take. An honest pattern on an answer of 10,000 characters takes under a millisecond."""
KILL_SECONDS = 20.0
"""Wall time after which a silent child is killed: only reached when the timer above did not fire."""


class Verdict(StrEnum):
    MATCHES = "matches"
    DIFFERS = "differs"
    INVALID = "invalid"
    """The pattern is not a regular expression; `detail` says why."""
    TIMEOUT = "timeout"


class Match(NamedTuple):
    verdict: Verdict
    detail: str = ""


def full_match(pattern: str, *, text: str) -> Match:
    """Whether the whole of `text` matches `pattern` (Python syntax), decided in this process's worker."""
    return _worker_of(os.getpid()).full_match(pattern, text=text)


# One worker a process, not one a task: tasks are frozen values that are copied and compared freely. The process id is
# the key because a fork shares its parent's pipes and would read its answers.
@functools.lru_cache(maxsize=1)
def _worker_of(process_id: int) -> RegexWorker:
    worker = RegexWorker()
    atexit.register(worker.close)
    return worker


class RegexWorker:
    """The parent's side: one question at a time, from any thread; the child is started again when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def full_match(self, pattern: str, *, text: str) -> Match:
        question = json.dumps([pattern, text]).encode("ascii") + b"\n"
        with self._lock:
            for _ in range(2):  # twice: the first question after a child was killed from outside finds it dead
                line = self._ask(question)
                if line:
                    verdict, detail = json.loads(line)
                    return Match(Verdict(verdict), detail)
        return Match(Verdict.TIMEOUT, "the matching process died twice")

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, question: bytes) -> bytes:
        """The child's line; nothing when it was found dead."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(question)
            self._child.stdin.flush()
        except BrokenPipeError:
            self.close()
            return b""
        is_ready, _, _ = select.select([self._child.stdout], [], [], KILL_SECONDS)
        if not is_ready:
            self.close()
            return json.dumps(Match(Verdict.TIMEOUT, f"gave no answer for {KILL_SECONDS} s")).encode()
        line = self._child.stdout.readline()
        if not line:
            self.close()
        return line


def _answer(pattern: str, text: str) -> Match:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        is_match = re.fullmatch(pattern, text) is not None
        return Match(Verdict.MATCHES if is_match else Verdict.DIFFERS)
    except TimeoutError:
        return Match(Verdict.TIMEOUT, f"took more than {CPU_SECONDS} s of CPU time")
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return Match(Verdict.INVALID, str(error) or type(error).__name__)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _raise_timeout(signal_number: int, frame: object) -> NoReturn:
    raise TimeoutError


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which closes our input
    signal.signal(signal.SIGPROF, _raise_timeout)
    for line in sys.stdin.buffer:
        pattern, text = json.loads(line)
        sys.stdout.write(json.dumps(_answer(pattern, text)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
