"""Joules, where the machine counts them: RAPL for processors, NVML for NVIDIA's GPUs. What cannot be read is unknown.

The counters are of the whole machine: what else ran meanwhile is in them. Unknown is None and never 0.
Sources: the kernel's Documentation/power/powercap/powercap.rst (energy_uj, microjoules, wraps at max_energy_range_uj);
NVIDIA's NVML API reference, nvmlDeviceGetTotalEnergyConsumption (millijoules since the driver was loaded; Volta on).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")
"""A processor as a whole; its parts (intel-rapl:0:1) are in it. AMD's are under the same name."""
UJ_PER_MJ = 1000


@dataclass(frozen=True)
class Counter:
    """A count of energy that only rises, but for its wrap."""

    read_uj: Callable[[], int | None]
    """Microjoules; None when it cannot be read now."""
    wrap_uj: int = 0
    """Where it begins again at 0; 0 for never."""


class EnergyMeter:
    """What was used between two moments, shared out by seconds.

    Phases overlap a counter's readings (two are charged when a step has ended), so each gets the mean power of the
    time that is not shared out yet. With any counter that fails, the energy since the last reading is not known.
    """

    def __init__(
        self, counters: Sequence[Counter] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counters = find_counters() if counters is None else list(counters)
        self._clock = clock
        self._before = self._read()
        self._pool_uj: float | None = 0.0
        self._pool_seconds = 0.0
        self._read_at = clock()

    @property
    def is_readable(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._counters)

    def take_mj(self, seconds: float) -> int | None:
        """Millijoules of so many of the seconds since the last calls; None when they are not known."""
        if not self._counters:
            return None
        self._collect()
        if self._pool_uj is None or self._pool_seconds <= 0:
            self._pool_uj, self._pool_seconds = 0.0, 0.0
            return None
        share = min(1.0, max(0.0, seconds) / self._pool_seconds)
        taken = self._pool_uj * share
        self._pool_uj -= taken
        self._pool_seconds -= self._pool_seconds * share
        return round(taken / UJ_PER_MJ)

    def _collect(self) -> None:
        now, moment = self._read(), self._clock()
        for counter, before, after in zip(self._counters, self._before, now, strict=True):
            if before is None or after is None:
                self._pool_uj = None
            elif self._pool_uj is not None:
                self._pool_uj += _risen(before, after, wrap_uj=counter.wrap_uj)
        self._before = now
        self._pool_seconds += moment - self._read_at
        self._read_at = moment

    def _read(self) -> list[int | None]:
        return [counter.read_uj() for counter in self._counters]


def find_counters(*, powercap: Path = POWERCAP) -> list[Counter]:
    """Every counter that this process may read."""
    return [*_rapl(powercap), *_nvml()]


def _risen(before: int, after: int, *, wrap_uj: int) -> int:
    if after >= before:
        return after - before
    return after + wrap_uj - before if wrap_uj else 0


def _rapl(powercap: Path) -> list[Counter]:
    counters = []
    zones = sorted(powercap.iterdir()) if powercap.is_dir() else []
    for zone in zones:
        if _PACKAGE.fullmatch(zone.name) and _read_number(zone / "energy_uj") is not None:
            wrap = _read_number(zone / "max_energy_range_uj") or 0
            counters.append(Counter(lambda path=zone / "energy_uj": _read_number(path), wrap))  # type: ignore[misc]
    return counters


def _read_number(path: Path) -> int | None:
    """None where it is not there or, as on most systems for all but root, may not be read."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _nvml() -> list[Counter]:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    return nvml_counters(library)


def nvml_counters(library: ctypes.CDLL) -> list[Counter]:
    """A counter for each GPU that has one."""
    count = ctypes.c_uint()
    with contextlib.suppress(AttributeError):  # a library too old to have the call
        if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            found = [_gpu(library, index) for index in range(count.value)]
            return [counter for counter in found if counter is not None and counter.read_uj() is not None]
    return []


def _gpu(library: ctypes.CDLL, index: int) -> Counter | None:
    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return None

    def read_uj() -> int | None:
        energy_mj = ctypes.c_ulonglong()
        code = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy_mj))
        return int(energy_mj.value) * UJ_PER_MJ if code == 0 else None

    return Counter(read_uj)
