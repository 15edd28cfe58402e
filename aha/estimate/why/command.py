"""From the words of a command to what it prints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import Literal

from aha.cost.prices import machine_price
from aha.errors import ConfigError
from aha.estimate.hardware import find_gpu
from aha.estimate.shape import find_shape
from aha.estimate.why.comparison import Setting
from aha.estimate.why.measured import read_measured
from aha.estimate.why.result import explain, render

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
MAX_TOKENS = 1e18
MAX_NODES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `aha cost why`, as they were typed."""

    model: str
    gpu: str
    tokens: str
    nodes: int
    price: str
    """A name of the price book or dollars; "" takes the GPU's own."""
    on: str
    acceptance: float
    context_tokens: int
    tokens_per_second: float
    trainer_share: float
    flat_share: float
    measured: str
    """A file, or "" for none."""


def run_why(asked: Asked, *, form: Literal["text", "json"]) -> str:
    """What the command prints.

    Raises:
        AhaError: an option, a model or a file that cannot be used.
    """
    gpu = find_gpu(asked.gpu)
    if not 1 <= asked.nodes <= MAX_NODES:
        raise ConfigError(f"--nodes must be from 1 to {MAX_NODES:,}, got {asked.nodes}")
    setting = Setting(
        gpu=gpu,
        price=machine_price(asked.price or gpu.price, on=_day(asked.on)),
        tokens=read_count(asked.tokens, option="--tokens"),
        num_gpus=asked.nodes * gpu.gpus_per_node,
        acceptance=asked.acceptance,
        context_tokens=asked.context_tokens,
        tokens_per_second=asked.tokens_per_second,
        trainer_share=asked.trainer_share,
        flat_share=asked.flat_share,
    )
    measured = read_measured(asked.measured) if asked.measured else None
    return render(explain(find_shape(asked.model), setting=setting, measured=measured), form=form)


def read_count(text: str, *, option: str) -> float:
    """14.8T, 200B, 3e12.

    Raises:
        ConfigError: anything else, or nothing above 0.
    """
    unit = text[-1:].upper() if text[-1:].upper() in UNITS and text[-1:] else ""
    try:
        count = float(text[: len(text) - len(unit)]) * UNITS[unit]
    except ValueError:
        count = math.nan
    if not 1 <= count <= MAX_TOKENS:
        raise ConfigError(f"{option} must be a number from 1 to 1,000,000T, such as 14.8T, 200B or 3e12, got {text!r}")
    return count


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--on must be a day such as 2025-01-31, got {text!r}") from None
