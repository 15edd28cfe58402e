"""What a plan assumes of the machine it is for: this one's CPU, measured, or a GPU by its data sheet."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from aha.cost.prices import MachinePrice, machine_names, machine_price
from aha.errors import ConfigError, unknown_name
from aha.estimate.hardware import gpus
from aha.models import has_fast_bfloat16

GIB = 1 << 30
CPU_RUNTIME_BYTES = GIB * 3 // 4
GPU_RUNTIME_BYTES = GIB * 3 // 2
PROBE_SECONDS = 0.4
"""Of each of the two measurements, after one warm-up product."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Speed, memory and price; the two efficiencies are assumptions and are printed as such."""

    name: str
    is_cpu: bool
    """Whether the engine keeps packed copies of the weights."""
    memory_bytes: int
    teraflops: float
    """Dense matrix products in the plan's dtype, 10**12 operations a second."""
    memory_gb_per_second: float
    """10**9 bytes a second that weights and caches are read with."""
    training_efficiency: float
    """Share of `teraflops` that forward and backward passes reach."""
    sampling_efficiency: float
    """Share of `teraflops` or of the bandwidth, whichever binds, that decoding reaches."""
    layer_overhead_us: float
    """Microseconds a layer costs in each decoding step however little it computes: kernel launches."""
    runtime_bytes: int
    """Python, libraries and allocator, before any tensor."""
    price: MachinePrice
    source: str
    """Where speed and bandwidth come from."""


@dataclass(frozen=True, kw_only=True)
class _GPU:
    memory_gib: int
    """What the driver leaves of the memory."""
    bfloat16_teraflops: float
    float32_teraflops: float
    memory_gb_per_second: float
    price: str


def _rented() -> dict[str, _GPU]:
    """Every GPU of aha/estimate/hardware.toml that the price book has a price of, on demand and spot."""
    priced, found = set(machine_names()), {}
    for name, gpu in gpus().items():
        spot = gpu.price.replace("-hour", "-spot-hour")
        for kind, price in ((name, gpu.price), (f"{name}-spot", spot)):
            if price in priced:
                found[kind] = _GPU(
                    memory_gib=gpu.memory_gib,
                    bfloat16_teraflops=gpu.teraflops["bfloat16"],
                    float32_teraflops=gpu.teraflops["float32"],
                    memory_gb_per_second=gpu.memory_gb_per_second,
                    price=price,
                )
    return found


GPUS: dict[str, _GPU] = _rented()
"""Name -> one GPU; "cpu" is this machine."""


def choose_plan_dtype(dtype: Literal["auto", "float32", "bfloat16"], *, machine: str) -> Literal["float32", "bfloat16"]:
    """What a recipe's dtype means on a machine: "auto" is bfloat16 wherever hardware multiplies it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if machine != "cpu" or has_fast_bfloat16() else "float32"


def find_machine(name: str, *, dtype: Literal["float32", "bfloat16"], on: date, price: str = "") -> Machine:
    """The machine of a plan.

    Args:
        name: "cpu" measures this machine, in about a second; else a name of GPUS.
        on: day whose prices hold.
        price: id in the price book; "" is the machine's own.

    Raises:
        ConfigError: an unknown machine or price.
    """
    if name == "cpu":
        return measure_cpu(dtype=dtype, price=machine_price(price or "cpu-2core-hour", on=on))
    if name not in GPUS:
        raise ConfigError(unknown_name("machine", name, ["cpu", *GPUS]))
    gpu = GPUS[name]
    return Machine(
        name=name,
        is_cpu=False,
        memory_bytes=gpu.memory_gib * GIB,
        teraflops=gpu.bfloat16_teraflops if dtype == "bfloat16" else gpu.float32_teraflops,
        memory_gb_per_second=gpu.memory_gb_per_second,
        # Assumed: eager PyTorch without compiled or captured graphs.
        training_efficiency=0.30,
        sampling_efficiency=0.40,
        layer_overhead_us=150.0,
        runtime_bytes=GPU_RUNTIME_BYTES,
        price=machine_price(price or gpu.price, on=on),
        source="NVIDIA's data sheet",
    )


def measure_cpu(*, dtype: Literal["float32", "bfloat16"], price: MachinePrice) -> Machine:
    """This machine, by two short measurements with the threads PyTorch has now."""
    return Machine(
        name=f"this machine ({torch.get_num_threads()} threads)",
        is_cpu=True,
        memory_bytes=available_memory_bytes(),
        teraflops=_measure_teraflops(dtype),
        memory_gb_per_second=_measure_bandwidth(),
        # Measured once with SmolLM2-135M on two cores with AVX512-BF16: 0.28-0.45 training, 0.39 at 64 sequences.
        training_efficiency=0.30,
        sampling_efficiency=0.40,
        layer_overhead_us=60.0,
        runtime_bytes=CPU_RUNTIME_BYTES,
        price=price,
        source="measured just now",
    )


def available_memory_bytes() -> int:
    """Physical memory of this machine, or what its container may use of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def peak_teraflops(device: torch.device, *, dtype: Literal["float32", "bfloat16"]) -> float:
    """Dense matrix products of a device, 10**12 operations a second: a CPU's measured in half a second, once a process.

    A GPU's are those of its data sheet; NaN for one that is not in GPUS.
    """
    if device.type == "cpu":
        return _measured_once(dtype, torch.get_num_threads())
    words = torch.cuda.get_device_name(device).lower().split() if device.type == "cuda" else []
    known = [gpu for name, gpu in GPUS.items() if name in words]
    if not known:
        return float("nan")
    return known[0].bfloat16_teraflops if dtype == "bfloat16" else known[0].float32_teraflops


@functools.cache
def _measured_once(dtype: Literal["float32", "bfloat16"], num_threads: int) -> float:
    return _measure_teraflops(dtype)


@torch.inference_mode()
def _measure_teraflops(dtype: Literal["float32", "bfloat16"]) -> float:
    rows, width_in, width_out = 128, 1024, 2048
    x = torch.ones(rows, width_in, dtype=getattr(torch, dtype))
    weight = torch.ones(width_out, width_in, dtype=x.dtype)
    seconds = _shortest_seconds(lambda: F.linear(x, weight))
    return 2 * rows * width_in * width_out / seconds / 1e12


@torch.inference_mode()
def _measure_bandwidth() -> float:
    # 128 MB lie beyond any last-level cache.
    data = torch.ones(1 << 25, dtype=torch.float32)
    return data.nbytes / _shortest_seconds(data.sum) / 1e9


def _shortest_seconds(work: Callable[[], object]) -> float:
    """The least time of repetitions that last PROBE_SECONDS: what the machine can do when nobody disturbs it."""
    work()
    shortest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < PROBE_SECONDS:
        started = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest
