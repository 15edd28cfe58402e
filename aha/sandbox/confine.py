"""`Sandbox` runs programs confined; `require` gives one that has proved it, or says why there is none."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aha.errors import SandboxError, unknown_name
from aha.sandbox import probe_program
from aha.sandbox.backends import BACKENDS, view_rows
from aha.sandbox.filter import seccomp_filter
from aha.sandbox.limits import Limits, Result
from aha.sandbox.runner import Run, encode_job
from aha.sandbox.runtime import python_view
from aha.sandbox.stage import PROGRAM_FILE

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PAGE_BYTES = 4096
_FIX = "install bubblewrap (apt-get install bubblewrap), or allow user namespaces on Linux 5.13 or newer with Landlock"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Starts confined processes; safe to use from several threads at once. Get one from `require`."""

    backend: str
    """A name in backends.COMMANDS."""
    readable: tuple[str, ...] = ()
    """Paths of the host that programs may read besides the Python runtime."""

    def run_python(
        self,
        program: str,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Result:
        """Run a program text as `__main__` of a fresh Python without site-packages.

        Args:
            program: the text; it never touches the host's disk.
            stdin: its standard input.
            files: name → content, put into its working directory, which is also on its import path.
        """
        text = program.encode("utf-8", "replace")  # a lone surrogate is no Python: the program fails, not we
        return self._run((), stdin=stdin, files={**(files or {}), PROGRAM_FILE: text}, limits=limits or Limits())

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Result:
        """Run an executable file that is visible inside, by its absolute path, with arguments and no environment."""
        if not argv or not os.path.isabs(argv[0]) or any("\0" in word for word in argv):
            raise SandboxError(
                f"sandbox: argv must start with an absolute path and hold no NUL, got {list(argv)!r:.80}"
            )
        return self._run(argv, stdin=stdin, files=files or {}, limits=limits or Limits())

    def _run(self, argv: Sequence[str], *, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> Result:
        for name in files:
            if not _FILE_NAME.fullmatch(name):
                raise SandboxError(
                    f"sandbox: a file's name must be letters, digits, '_', '-' and '.', got {name!r:.80}"
                )
        # What we put there does not count against the program's share.
        disk_bytes = limits.disk_bytes + sum(len(content) + 2 * _PAGE_BYTES for content in files.values())
        view = python_view(readable=self.readable)
        numbers = (limits.cpu_seconds, limits.memory_bytes, limits.num_processes, disk_bytes, limits.num_open_files)
        job = {
            "backend": self.backend.encode(),
            "limits": " ".join(map(str, numbers)).encode(),
            "view": "\n".join(view_rows(view)).encode(),
            "filter": seccomp_filter() if self.backend in BACKENDS else b"",
            "argv": os.fsencode("\0".join(argv)),
            **{f"file {name}": content for name, content in files.items()},
        }
        run = Run(self.backend, limits=limits)
        try:
            if self.backend in BACKENDS:
                return run.run(view, job=encode_job(job), stdin=stdin)
            with tempfile.TemporaryDirectory(prefix="aha-unconfined-") as folder:
                job["folder"] = os.fsencode(folder)
                return run.run(view, job=encode_job(job), stdin=stdin)
        except OSError as error:  # of this process: no file descriptor left, no memory to start another
            raise SandboxError(f"{self.backend}: could not be run: {error}") from None


def require(
    *,
    backends: Sequence[str] = BACKENDS,
    readable: Sequence[str] = (),
    confinement: Literal["required", "unsafe_none"] = "required",
) -> Sandbox:
    """The first backend that holds when it is tried: a program inside attempts to read, to write, to connect, to trace.

    Args:
        backends: names in BACKENDS, in order of preference.
        readable: paths of the host that programs may read besides the Python runtime.
        confinement: "unsafe_none" asks for no confinement at all, only limits: for code you would run yourself.

    Raises:
        SandboxError: when none of the backends can confine here; says what each lacks, and the fix.
    """
    for backend in backends:
        if backend not in BACKENDS:
            raise SandboxError(unknown_name("sandbox backend", backend, BACKENDS))
    if confinement == "unsafe_none":
        return Sandbox(backend="unconfined", readable=tuple(readable))
    return _proven(tuple(backends), tuple(readable))


@functools.lru_cache(maxsize=32)
def _proven(backends: tuple[str, ...], readable: tuple[str, ...]) -> Sandbox:
    if sys.platform != "linux":
        raise SandboxError(f"code cannot be confined on {sys.platform}; use Linux, or a Linux container or machine")
    reasons = []
    for backend in backends:
        sandbox = Sandbox(backend=backend, readable=readable)
        try:
            leaks = probe(sandbox)
        except SandboxError as error:
            reasons.append(str(error))
            continue
        if not leaks:
            return sandbox
        reasons.append(f"{backend}: a confined program {', '.join(leaks)}")
    raise SandboxError(f"code cannot be confined here: {'; '.join(reasons) or 'no backend was named'}. Fix: {_FIX}")


def probe(sandbox: Sandbox) -> list[str]:
    """What a program in this sandbox could do and must not; empty when it holds.

    Raises:
        SandboxError: when nothing could be started.
    """
    program = Path(probe_program.__file__).read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile(prefix="aha-probe-") as host_file:
        host_file.write(b"secret")
        os.chmod(host_file.name, 0o644)
        targets = f"{host_file.name}\n{os.getpid()}\n".encode()
        result = sandbox.run_python(program, files={"targets": targets})
    lines = result.channel.decode("utf-8", "replace").splitlines()
    leaks = [line for line in lines if line != "done"]
    if not leaks and (lines != ["done"] or not result.is_ok):
        errors = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise SandboxError(f"{sandbox.backend}: the probe did not end: {errors[-1] if errors else result.stopped_by}")
    return leaks
