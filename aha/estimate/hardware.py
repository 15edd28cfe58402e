"""Accelerators as their makers describe them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from aha.errors import ConfigError, unknown_name

GIB = 1 << 30
Format = Literal["bfloat16", "float8", "float32"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GPU:
    """One accelerator; figures are dense and in one direction. Compared by identity: there is one object a name."""

    name: str
    title: str
    generation: Literal["ampere", "ada", "hopper", "blackwell", "cdna3"]
    teraflops: dict[str, float]
    """10**12 operations a second of dense matrix products, by format."""
    multiprocessors: int
    """Streaming multiprocessors, some of which communication can be given."""
    memory_gib: int
    """What the driver leaves of the memory."""
    memory_gb_per_second: float
    gpus_per_node: int
    link_gb_per_second: float
    """To the other GPUs of its node."""
    network_gb_per_second: float
    """To other nodes."""
    watts: float
    price: str
    """Name in the price book of one of them for an hour; empty where none is known."""
    source: str
    shares: dict[str, float]
    """Of `teraflops`, what the best shapes of a matrix product reach, by format."""
    shares_source: str

    @property
    def memory_bytes(self) -> int:
        return self.memory_gib * GIB

    def flops_per_second(self, format: Format) -> float:
        """Peak of dense matrix products.

        Raises:
            ConfigError: it does not multiply this format in hardware.
        """
        if format not in self.teraflops:
            raise ConfigError(f"the {self.title} has no {format} products; choose from: {', '.join(self.teraflops)}")
        return self.teraflops[format] * 1e12

    def reached_flops_per_second(self, format: Format) -> float:
        """What matrix products of good shapes reach; raises as `flops_per_second`."""
        return self.flops_per_second(format) * self.shares[format]


def find_gpu(name: str) -> GPU:
    """A GPU by its name in hardware.toml, in any case. Raises ConfigError naming the choices."""
    if name.lower() not in gpus():
        raise ConfigError(unknown_name("GPU", name, gpus()))
    return gpus()[name.lower()]


@cache
def gpus() -> dict[str, GPU]:
    """All that are known, by name."""
    text = resources.files("aha.estimate").joinpath("hardware.toml").read_text(encoding="utf-8")
    tables: dict[str, Any] = tomllib.loads(text)
    return {name: GPU(name=name, **table) for name, table in tables.items()}
