"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "transformers", "trl", "accelerate", "gguf")
# What decides which matrix kernels run.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16")
QUIET_LOAD = 0.3
"""Load average a machine may have before the run and still count as quiet."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Memory that could be had now; 0 when the system does not say."""
    found = re.search(r"MemAvailable:\s*(\d+)", _read("/proc/meminfo"))
    return int(found[1]) * 1024 if found else 0


def versions() -> dict[str, str]:
    """Installed versions of what is measured; absent packages left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_machine() -> dict[str, Any]:
    """Processor, memory, system, versions and how busy it is: plain JSON values."""
    cpuinfo = _read("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", cpuinfo)
    total = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    load = os.getloadavg()[0]
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "instructions": [flag for flag in FLAGS if flags and flag in flags[1].split()],
        "cores": num_cores(),
        "memory_gib": round(int(total[1]) / 2**20, 1) if total else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "load_average": round(load, 2),
        "is_quiet": load < QUIET_LOAD,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
