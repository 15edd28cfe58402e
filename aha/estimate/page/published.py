"""Scores and GPU hours as others published them, each with its source: published.toml, read."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any, Literal

BENCHMARKS = {"aime_2024": "AIME 2024", "math_500": "MATH-500", "gpqa_diamond": "GPQA Diamond"}


BASE_MODEL = "DeepSeek-V3"
"""Of the phases: what R1 was trained from."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a figure was published."""

    title: str
    date: date
    confidence: Literal["primary", "third-party"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model scored, pass@1 out of 100."""

    model: str
    price: str
    """Name in the price book; "" for what was not sold by the token."""
    is_open_weight: bool
    source: Source
    scores: dict[str, float]
    """By key of BENCHMARKS."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """GPU hours of one phase of a training."""

    key: str
    model: str
    gpu_hours: float
    source: Source


def scores() -> tuple[Score, ...]:
    """Every published score."""
    tables = _tables()
    return tuple(
        Score(
            model=row["model"],
            price=row["price"],
            is_open_weight=row["is_open_weight"],
            source=_source(row["source"]),
            scores={key: float(row[key]) for key in BENCHMARKS if key in row},
        )
        for row in tables["score"]
    )


def phases() -> tuple[Phase, ...]:
    """The phases of DeepSeek-V3 and R1, in their order."""
    return tuple(
        Phase(key=row["key"], model=row["model"], gpu_hours=float(row["gpu_hours"]), source=_source(row["source"]))
        for row in _tables()["phase"]
    )


def _source(key: str) -> Source:
    return Source(**_tables()["source"][key])


@cache
def _tables() -> dict[str, Any]:
    text = resources.files("aha.estimate.page").joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
