"""What a confined process may use, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aha.errors import ConfigError

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one confined run may use. Every limit holds whatever the program does; none can be switched off."""

    cpu_seconds: int = 5
    """Processor time of each process; whole seconds, at least 1. This, not `wall_seconds`, ends a busy loop."""
    wall_seconds: float = 15.0
    """Time from the first instruction to the last; generous, since a busy machine must not change a verdict."""
    memory_bytes: int = 512 * MEBIBYTE
    """Address space of each process."""
    num_processes: int = 8
    """Processes and threads alive at once, the first included."""
    disk_bytes: int = 16 * MEBIBYTE
    """Size of the working directory, which lies in memory, and of any one file."""
    num_open_files: int = 64
    output_bytes: int = 64 * 1024
    """Most bytes of standard output, of standard error and of the channel, each."""

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.cpu_seconds <= 86_400, "cpu_seconds", "1 to 86400", self.cpu_seconds),
            (0 < self.wall_seconds <= 86_400, "wall_seconds", "above 0 and at most 86400", self.wall_seconds),
            (self.memory_bytes >= 64 * MEBIBYTE, "memory_bytes", "64 MiB or more", self.memory_bytes),
            (1 <= self.num_processes <= 4096, "num_processes", "1 to 4096", self.num_processes),
            (self.disk_bytes >= 4096, "disk_bytes", "4096 or more", self.disk_bytes),
            (16 <= self.num_open_files <= 4096, "num_open_files", "16 to 4096", self.num_open_files),
            (self.output_bytes >= 1, "output_bytes", "1 or more", self.output_bytes),
        )
        for is_ok, name, rule, value in checks:
            if not is_ok:
                raise ConfigError(f"sandbox: {name} must be {rule}, got {value!r}")


class StoppedBy(StrEnum):
    """The limit that ended a run. Memory, disk and process limits do not: the program meets them as errors."""

    NOTHING = "nothing"
    WALL_TIME = "wall time"
    CPU_TIME = "CPU time"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a confined run. Everything in it was made by the program: data to judge, never to trust."""

    exit_code: int | None
    """What the program returned; None when a signal or a limit ended it."""
    signal: int | None
    """The signal that ended the program, if one did."""
    stopped_by: StoppedBy
    stdout: bytes
    """At most `output_bytes`."""
    stderr: bytes
    channel: bytes
    """What was written to file descriptor CHANNEL_FD: results, apart from anything that is printed."""
    setup_ms: float
    """From the call until the program was confined and began."""
    wall_ms: float
    """From there to its end."""
    cpu_ms: float
    """Processor time of the program and the children it waited for; 0 when it was killed."""

    @property
    def is_ok(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.exit_code == 0 and self.stopped_by is StoppedBy.NOTHING
