"""How much memory is free on this machine, asked without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class FreeMemory:
    """What a model would be loaded into."""

    kind: Literal["RAM", "GPU"]
    name: str
    num_bytes: int


def find_free_memory() -> FreeMemory:
    """The first GPU's free memory where torch can use one, else this machine's."""
    return _gpu() or FreeMemory(kind="RAM", name="this machine's RAM", num_bytes=_free_ram())


def _gpu() -> FreeMemory | None:
    tool = shutil.which("nvidia-smi")
    if tool is None or "+cpu" in metadata.version("torch"):
        return None
    command = [tool, "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        name, _, free_mib = done.stdout.splitlines()[0].rpartition(",")
        return FreeMemory(kind="GPU", name=name.strip(), num_bytes=int(free_mib) << 20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _free_ram() -> int:
    """What the system says is available, or what is left of the container's share."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
