"""A pool of processes for verifiers that are third-party code or can hang, with limits that hold.

A thread cannot be stopped and a signal reaches only the main thread, so a check that may hang runs in a process of its
own. It speaks one JSON line in, one JSON line out; what it may run is the table JOBS and nothing else. Three limits
stop it: CPU time (a busy machine changes no verdict), which the process itself raises as an exception and the kernel
enforces where Python cannot; wall time, for code that sleeps; memory and the length of its reply. A process that
reached a limit is killed and replaced.

`aha.tasks.jobs.serve` is the other side.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aha.types import Outcome

START_SECONDS = 120.0
"""Wall time to start and import: some seconds on a cold disk, more on a machine that is busy with other work."""
GRACE_SECONDS = 10.0
"""What a process may take beyond its wall limit, which it enforces itself, before it is killed from outside."""
MAX_WORKERS = 4
NUM_TRIES = 2
"""Twice: the first question after a process was killed from outside finds it dead."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process runs, and its limits for one question."""

    module: str
    """Has `answer(question) -> JSON value`; raises aha.tasks.verifiers.UnreadableError where a text holds no answer."""
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    """Address space (RLIMIT_AS) of the process."""
    reply_bytes: int = 1 << 16
    max_workers: int = MAX_WORKERS


JOBS: dict[str, Job] = {
    # An honest pattern on an answer of 10,000 characters takes under a millisecond.
    "regex": Job(module="aha.tasks.jobs.patterns", cpu_seconds=0.2, wall_seconds=20.0, memory_bytes=1 << 29),
    "math": Job(module="aha.tasks.jobs.mathematics", cpu_seconds=4.0, wall_seconds=30.0, memory_bytes=2 << 30),
    "reasoning_gym_scores": Job(
        module="aha.tasks.jobs.gym_scores", cpu_seconds=4.0, wall_seconds=30.0, memory_bytes=2 << 30
    ),
    # Apart from the scores: no text of a model reaches the process that makes the problems.
    "reasoning_gym_items": Job(
        module="aha.tasks.jobs.gym_items", cpu_seconds=60.0, wall_seconds=180.0, memory_bytes=4 << 30,
        reply_bytes=1 << 28, max_workers=1,
    ),
}  # fmt: skip
"""Everything that a worker process can be asked to do."""


class Reply(NamedTuple):
    """What became of a question."""

    outcome: Outcome
    value: Any = None
    """The job's answer, a JSON value; None unless the outcome is SCORED."""
    note: str = ""
    """Why there is none."""


def ask(job: str, question: Mapping[str, Any]) -> Reply:
    """Put a question to a process of this job's pool; from any thread, never raises because of what it holds.

    Args:
        job: a name in JOBS.
        question: JSON values; texts may hold anything, half characters and NUL too.
    """
    return _pool_of(os.getpid(), job).ask(question)


# One pool a process, not one a task: tasks are frozen values that are copied and compared freely. The process id is the
# key because a fork shares its parent's pipes and would read its answers.
@functools.cache
def _pool_of(process_id: int, job: str) -> Pool:
    pool = Pool(JOBS[job])
    atexit.register(pool.close)
    return pool


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Processes of one job, started when first needed; as many questions at a time as there are processes."""

    def __init__(self, job: Job, *, num_workers: int = 0) -> None:
        num_workers = num_workers or min(num_cpus(), job.max_workers)
        self._process_id = os.getpid()
        self._workers = tuple(Worker(job) for _ in range(num_workers))
        # Last in, first out: a caller that asks one question at a time starts one process.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def ask(self, question: Mapping[str, Any]) -> Reply:
        worker = self._idle.get()
        try:
            return worker.ask(question)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        if os.getpid() == self._process_id:  # after a fork they are the parent's
            for worker in self._workers:
                worker.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that were started and not closed."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]


class _DiedError(Exception):
    """The process ended before it answered."""


class _BrokenError(Exception):
    """The process cannot import what it should run."""

    outcome = Outcome.ERROR


class _ExceededError(Exception):
    """The process was silent for too long, or said too much."""

    outcome = Outcome.TIMEOUT


class Worker:
    """The parent's side of one process: one question at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Mapping[str, Any]) -> Reply:
        line = json.dumps(question).encode("ascii") + b"\n"
        note = ""
        for _ in range(NUM_TRIES):
            try:
                process = self.process or self._start()
                reply = _exchange(process, line, max_bytes=self._job.reply_bytes, seconds=self._patience)
            except _DiedError:
                return_code = self._reap()
                if -return_code in (signal.SIGXCPU, signal.SIGALRM):
                    return Reply(Outcome.TIMEOUT, note=self._limit(-return_code))
                note = f"the checking process died (exit status {return_code})"
            except (_BrokenError, _ExceededError) as error:
                self.close()
                return Reply(error.outcome, note=str(error))
            except BaseException:  # an interrupt between question and answer: the answer must not reach the next one
                self.close()
                raise
            else:
                return self._read(reply)
        return Reply(Outcome.ERROR, note=note)

    def close(self) -> None:
        """Kill the process, if there is one, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self._reap()

    @property
    def _patience(self) -> float:
        return self._job.wall_seconds + GRACE_SECONDS

    def _limit(self, signal_number: int) -> str:
        if signal_number == signal.SIGXCPU:
            return f"took more than {self._job.cpu_seconds:g} s of CPU time"
        return f"took more than {self._job.wall_seconds:g} s"

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # -P -s and our own environment are what -I does, but for PYTHONHASHSEED: generators walk over sets.
            [sys.executable, "-P", "-s", "-m", "aha.tasks.jobs.serve", json.dumps(asdict(self._job))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0, env=_environment(),
        )  # fmt: skip
        self.process = process
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        ready = _exchange(process, b"", max_bytes=self._job.reply_bytes, seconds=START_SECONDS)
        if ready.strip():
            raise _BrokenError(json.loads(ready))
        return process

    def _reap(self) -> int:
        process, self.process = self.process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            process.kill()
            return process.wait()

    def _read(self, line: bytes) -> Reply:
        outcome, value, note, is_spent = json.loads(line)
        if is_spent:
            self.close()
        return Reply(Outcome(outcome), value, note)


def _environment() -> dict[str, str]:
    """Of a worker: no variable of ours that third-party code has no business to see (keys, tokens, Python's own)."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if key in os.environ}
    return {
        **kept,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        "PYTHONHASHSEED": "0",
        # One question, one core; also, each thread of a BLAS reserves address space, which is limited.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _exchange(process: subprocess.Popen[bytes], question: bytes, *, max_bytes: int, seconds: float) -> bytes:
    """Write a line and read one, whichever the other side is ready for.

    Raises:
        _DiedError: when the process ended.
        _ExceededError: when it said nothing in time, or more than it may.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    writes, reads = process.stdin.fileno(), process.stdout.fileno()
    poll = select.poll()
    poll.register(reads, select.POLLIN)
    if question:
        poll.register(writes, select.POLLOUT)
    deadline = time.monotonic() + seconds
    unsent, received = memoryview(question), bytearray()
    while not received.endswith(b"\n"):
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not ready:
            raise _ExceededError(f"gave no answer for {seconds:g} s")
        if writes in ready:
            unsent = _write(writes, unsent)
            if not unsent:
                poll.unregister(writes)
        if reads in ready:
            received += _read_some(reads)
        if len(received) > max_bytes:
            raise _ExceededError(f"answered with more than {max_bytes:,} bytes")
    return bytes(received)


def _write(descriptor: int, unsent: memoryview) -> memoryview:
    try:
        return unsent[os.write(descriptor, unsent) :]
    except BlockingIOError:
        return unsent
    except OSError:
        raise _DiedError from None


def _read_some(descriptor: int) -> bytes:
    chunk = os.read(descriptor, 1 << 16)
    if not chunk:
        raise _DiedError
    return chunk
