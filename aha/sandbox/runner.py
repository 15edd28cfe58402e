"""Starts one confined process, moves its bytes, and ends it at its deadline, whatever it does with its pipes."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from typing import IO, NamedTuple, cast

from aha.errors import SandboxError
from aha.sandbox.backends import COMMANDS, ENVIRONMENT, Descriptors
from aha.sandbox.limits import Limits, Result, StoppedBy
from aha.sandbox.runtime import FileView

SETUP_SECONDS = 30.0
"""Most time until the program is confined. It takes some hundredths: only a machine that stands still needs more."""
_CHUNK_BYTES = 64 * 1024
_INIT_PID = re.compile(rb'init (\d+)\n|"child-pid": (\d+)')


class _Pipe(NamedTuple):
    reader: FileIO
    writer: FileIO


def encode_job(fields: Mapping[str, bytes]) -> bytes:
    """The fields in the form that `stage.read_job` reads."""
    return b"".join(b"%d %s\n%s" % (len(content), name.encode(), content) for name, content in fields.items())


class Run:
    """One confined process from its start to its end; used once."""

    def __init__(self, backend: str, *, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits
        self._started = time.monotonic()
        self._confined_at = 0.0
        self._stopped_by = StoppedBy.NOTHING
        self._init_pidfd = -1
        self._read = {name: bytearray() for name in ("stdout", "stderr", "channel", "status", "info")}
        self._unwritten: dict[str, memoryview] = {}

    def run(self, view: FileView, *, job: bytes, stdin: bytes) -> Result:
        """Start it, feed it, read from it, end it.

        Raises:
            SandboxError: when it could not be confined; never because of what the program did.
        """
        with ExitStack() as stack:
            pipes = {name: _open_pipe(stack) for name in ("job", "status", "channel", "info")}
            inner = [pipes["job"].reader, *(pipes[name].writer for name in ("status", "channel", "info"))]
            fds = Descriptors(*(end.fileno() for end in inner))
            process = self._spawn(COMMANDS[self._backend](view, fds), fds)
            stack.callback(self._end, process)  # on every way out, that of Ctrl-C too
            for end in inner:
                end.close()
            self._unwritten = {"stdin": memoryview(stdin), "job": memoryview(job)}
            selector = stack.enter_context(selectors.DefaultSelector())
            for name, pipe in (("stdin", process.stdin), ("job", pipes["job"].writer)):
                _register(selector, pipe, selectors.EVENT_WRITE, name)
            for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
                _register(selector, pipe, selectors.EVENT_READ, name)
            for name in ("status", "channel", "info"):
                _register(selector, pipes[name].reader, selectors.EVENT_READ, name)
            self._pump(selector)
        return self._result()

    def _spawn(self, command: list[str], fds: Descriptors) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT, cwd="/",
                pass_fds=(fds.job, fds.status, fds.channel, fds.info), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SandboxError(f"{self._backend}: {command[0]} could not be started: {error.strerror}") from None

    def _pump(self, selector: selectors.BaseSelector) -> None:
        """Move bytes until every output has ended, a limit is reached, or time is up.

        Process 1 and all it started hold the outputs: they end when the last of them is gone.
        """
        num_open = len(self._read)
        while num_open and self._stopped_by is StoppedBy.NOTHING:
            seconds_left = self._deadline() - time.monotonic()
            if seconds_left <= 0:
                self._stopped_by = StoppedBy.WALL_TIME
            for key, _ in selector.select(max(0.0, seconds_left)):
                is_output = key.data in self._read
                if not (self._take if is_output else self._give)(key.fd, name=key.data):
                    num_open -= is_output
                    selector.unregister(key.fileobj)
                    cast(IO[bytes], key.fileobj).close()

    def _deadline(self) -> float:
        if not self._confined_at:
            return self._started + SETUP_SECONDS
        return self._confined_at + self._limits.wall_seconds

    def _give(self, fd: int, *, name: str) -> bool:
        """Write what the pipe takes; False when all is written or nobody reads any more."""
        rest = self._unwritten[name]
        with suppress(BlockingIOError):
            try:
                self._unwritten[name] = rest = rest[os.write(fd, rest[:_CHUNK_BYTES]) :]
            except BrokenPipeError:
                return False
        return len(rest) > 0

    def _take(self, fd: int, *, name: str) -> bool:
        """Read what is there; False at the end."""
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        content = self._read[name]
        content += chunk
        if name in ("status", "info"):
            self._note_progress()
        elif len(content) > self._limits.output_bytes:
            self._stopped_by = StoppedBy.OUTPUT
            del content[self._limits.output_bytes :]
        return len(chunk) > 0

    def _note_progress(self) -> None:
        if not self._confined_at and b"confined\n" in self._read["status"]:
            self._confined_at = time.monotonic()
        found = _INIT_PID.search(bytes(self._read["status"] + self._read["info"]))
        if found and self._init_pidfd < 0:
            with suppress(OSError):  # it may have ended already
                self._init_pidfd = os.pidfd_open(int(found[1] or found[2]))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """See to it that nothing is left: the namespace's process 1, which takes all others with it, and its parent."""
        if self._init_pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_pidfd, signal.SIGKILL)
            os.close(self._init_pidfd)
        else:  # no process 1 (yet); its parent's end will end it, see PR_SET_PDEATHSIG in `stage`
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def _result(self) -> Result:
        status = self._read["status"].decode("utf-8", "replace")
        if not self._confined_at:
            said = re.search("^error (.*)", status, re.MULTILINE)
            printed = self._read["stderr"].decode("utf-8", "replace").strip().splitlines()
            reason = said[1] if said else printed[-1] if printed else "ended before the program was confined"
            if self._stopped_by is StoppedBy.WALL_TIME:
                reason = f"not confined after {SETUP_SECONDS:g} s"
            raise SandboxError(f"{self._backend}: {reason}")
        exited = re.search(r"^exit (\d+) (\d+) (\d+)$", status, re.MULTILINE)
        code, number, cpu = map(int, exited.groups()) if exited else (0, int(signal.SIGKILL), 0)
        stopped_by = self._stopped_by
        # A program may catch the first signal of the CPU limit; the second one is SIGKILL.
        if exited and (number == signal.SIGXCPU or (number and cpu >= self._limits.cpu_seconds * 1_000_000)):
            stopped_by = StoppedBy.CPU_TIME
        is_killed = number > 0 or stopped_by is not StoppedBy.NOTHING
        return Result(
            exit_code=None if is_killed else code,
            signal=number or None,
            stopped_by=stopped_by,
            stdout=bytes(self._read["stdout"]),
            stderr=bytes(self._read["stderr"]),
            channel=bytes(self._read["channel"]),
            setup_ms=(self._confined_at - self._started) * 1e3,
            wall_ms=(time.monotonic() - self._confined_at) * 1e3,
            cpu_ms=cpu / 1e3,
        )


def _open_pipe(stack: ExitStack) -> _Pipe:
    reading, writing = os.pipe()
    return _Pipe(stack.enter_context(FileIO(reading, "rb")), stack.enter_context(FileIO(writing, "wb")))


def _register(selector: selectors.BaseSelector, pipe: IO[bytes] | None, event: int, name: str) -> None:
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    selector.register(pipe, event, name)
