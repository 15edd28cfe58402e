"""Joules from counters that wrap, fail, or are not there: then they are unknown and never 0."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from aha.cost.energy import Counter, EnergyMeter, find_counters, nvml_counters


class Bench:
    """Counters and a clock that a test turns by hand."""

    def __init__(self, *, wrap_uj: int = 0, count: int = 1) -> None:
        self.seconds = 0.0
        self.energy_uj: list[int | None] = [0] * count
        counters = [Counter(lambda i=i: self.energy_uj[i], wrap_uj) for i in range(count)]  # type: ignore[misc]
        self.meter = EnergyMeter(counters, clock=lambda: self.seconds)

    def run(self, seconds: float, *, watts: float) -> None:
        self.seconds += seconds
        self.energy_uj = [None if e is None else e + round(seconds * watts * 1e6) for e in self.energy_uj]


def test_each_phase_gets_the_mean_power_of_the_time_that_is_shared_out() -> None:
    bench = Bench()
    bench.run(15, watts=10)
    assert bench.meter.take_mj(10) == 100_000
    assert bench.meter.take_mj(5) == 50_000
    assert bench.meter.take_mj(5) is None, "more seconds than have passed"
    bench.run(4, watts=2.5)
    assert bench.meter.take_mj(4) == 10_000


def test_all_counters_are_added_and_one_that_fails_leaves_the_sum_unknown() -> None:
    bench = Bench(count=2)
    bench.run(2, watts=5)
    assert bench.meter.take_mj(2) == 20_000
    bench.energy_uj[1] = None
    bench.run(2, watts=5)
    assert bench.meter.take_mj(2) is None
    bench.energy_uj[1] = 40
    bench.run(2, watts=5)
    assert bench.meter.take_mj(2) is None, "what it counted while it could not be read is not known"
    bench.run(2, watts=5)
    assert bench.meter.take_mj(2) == 20_000


def test_counter_that_wraps_goes_on() -> None:
    bench = Bench(wrap_uj=1_000_000)
    bench.energy_uj = [900_000]
    bench.run(0.2, watts=0)
    assert bench.meter.take_mj(0.2) == 900
    bench.energy_uj = [100_000]
    bench.run(0.2, watts=0)
    assert bench.meter.take_mj(0.2) == 200


def test_machine_without_counters_knows_nothing() -> None:
    meter = EnergyMeter([])
    assert not meter.is_readable
    assert meter.take_mj(1) is None


def test_processors_are_found_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    for name, energy in (("intel-rapl:0", "7000"), ("intel-rapl:0:0", "3000"), ("intel-rapl:1", "x"), ("dtpm", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("65536\n")
    (tmp_path / "intel-rapl").mkdir()
    found = [(counter.read_uj(), counter.wrap_uj) for counter in find_counters(powercap=tmp_path) if counter.wrap_uj]
    assert found == [(7000, 65536)]
    assert [c for c in find_counters(powercap=tmp_path / "nothing") if c.wrap_uj] == []


class FakeNvml:
    """Three GPUs, of which the second is too old to count energy. Real ctypes pointers, as the library gets them."""

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, energy: Any) -> int:  # noqa: N802
        energy._obj.value = 1000 * (handle.value or 0)
        return 3 if handle.value == 2 else 0  # 3: NVML_ERROR_NOT_SUPPORTED


def test_gpus_that_count_energy_are_found() -> None:
    assert [counter.read_uj() for counter in nvml_counters(FakeNvml())] == [1_000_000, 3_000_000]  # type: ignore[arg-type]
    assert nvml_counters(object()) == []  # type: ignore[arg-type]
