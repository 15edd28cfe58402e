"""Confined processes for what must not be trusted: code under judgement, documents to parse, templates to render.

`require()` gives a `Sandbox` that has been tried on this machine, or raises SandboxError. Each run is a new process in
new namespaces, as nobody, without network, environment or capabilities, on a file system that holds the Python runtime
and an empty working directory in memory, under limits of time, memory, processes, files and output. docs/sandbox.md
says what that promises and what it does not. `python -m aha.sandbox` checks this machine.
"""

from __future__ import annotations

from aha.errors import SandboxError
from aha.sandbox.backends import BACKENDS
from aha.sandbox.confine import Sandbox, probe, require
from aha.sandbox.limits import Limits, Result, StoppedBy
from aha.sandbox.stage import CHANNEL_FD

__all__ = ["BACKENDS", "CHANNEL_FD", "Limits", "Result", "Sandbox", "SandboxError", "StoppedBy", "probe", "require"]
