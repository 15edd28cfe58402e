"""What a roofline of serving assumes: each value with its source, every one open to be set by the user."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple, Self

from aha.errors import ConfigError, unknown_name

_SHARES = ("memory", "products", "attention", "links", "free")


class Assumption(NamedTuple):
    """One value, as serving_assumptions.toml states it or as the user set it."""

    name: str
    value: float
    text: str
    source: str
    confidence: Literal["primary", "third-party", "assumption", "user"]


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Values by name; what each means and where it is from stands in serving_assumptions.toml."""

    memory: float
    products: float
    attention: float
    links: float
    exchange_microseconds: float
    layer_microseconds: float
    step_milliseconds: float
    imbalance: float
    free: float
    chunk_tokens: float
    host_gb_per_second: float
    sequences: float
    hidden: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0 or value > 1e9:
                raise ConfigError(f"assumption {field.name} must be a number from 0 to 1e9, got {value}")
        for name in _SHARES:
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"assumption {name} must be a share above 0 and up to 1, got {getattr(self, name)}")
        if min(self.imbalance, self.chunk_tokens, self.sequences) < 1 or self.host_gb_per_second <= 0:
            raise ConfigError("imbalance, chunk_tokens and sequences must be at least 1, host_gb_per_second above 0")
        if self.hidden > 1:
            raise ConfigError(f"assumption hidden must be a share from 0 to 1, got {self.hidden}")

    @classmethod
    def default(cls) -> Self:
        """As the file states them."""
        return cls(**{name: assumption.value for name, assumption in _stated().items()})

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """Those of the file, with some set: "memory=0.9".

        Raises:
            ConfigError: not NAME=NUMBER, an unknown name, or a value that cannot be.
        """
        values = {name: assumption.value for name, assumption in _stated().items()}
        for word in words:
            name, _, text = word.partition("=")
            if name not in values:
                raise ConfigError(unknown_name("assumption", name, values))
            try:
                values[name] = float(text)
            except ValueError:
                raise ConfigError(f"assumption {name} must be a number, got {text!r}; write {name}=0.5") from None
        return cls(**values)

    def listed(self) -> list[Assumption]:
        """All of them with their sources; those that were set say so."""
        return [
            stated if getattr(self, name) == stated.value else _set(stated, getattr(self, name))
            for name, stated in _stated().items()
        ]


def _set(stated: Assumption, value: float) -> Assumption:
    return stated._replace(value=value, source="set by the user", confidence="user")


@cache
def _stated() -> Mapping[str, Assumption]:
    text = resources.files("aha.estimate.serving").joinpath("assumptions.toml").read_text(encoding="utf-8")
    return {name: Assumption(name=name, **table) for name, table in tomllib.loads(text).items()}
