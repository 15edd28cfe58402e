"""Public training runs (public_runs.toml), and how far the estimate is from each."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

from aha.estimate.hardware import find_gpu
from aha.estimate.training.assumptions import Assumptions
from aha.estimate.training.bill import UNPRICED, TrainingBill, TrainingRun, bill_training
from aha.estimate.training.layout import Layout
from aha.models.config import ModelConfig
from aha.models.config_files import parse_config
from aha.models.known import KNOWN_CONFIGS, known_config

Measure = Literal["gpu_hours", "tokens_per_second_per_gpu", "teraflops"]


@dataclass(frozen=True, kw_only=True)
class PublicRun:
    """One run of public_runs.toml."""

    name: str
    published_in: str
    """Year and month."""
    kind: Literal["step", "run"]
    role: Literal["calibration", "held out"]
    config: ModelConfig
    run: TrainingRun
    measure: Measure
    published: float
    confidence: str
    source: str
    assumed: str
    """What the source leaves open; empty where it is complete."""
    has_layout: bool
    """Whether the layout was published."""

    def bill(self, *, assumptions: Assumptions | None = None) -> TrainingBill:
        """The estimate; `assumptions` in the place of the run's own."""
        run = self.run if assumptions is None else replace(self.run, assumptions=assumptions)
        return bill_training(self.config, run=run, price=UNPRICED)

    def estimated(self, *, assumptions: Assumptions | None = None) -> float:
        """In the unit of `published`."""
        return measured(self.bill(assumptions=assumptions), self.measure)

    @property
    def cost_error(self) -> float:
        """Of the estimated cost (hours, or time of a step) over the published one: above 0 where it is too dear."""
        ratio = self.estimated() / self.published
        return ratio - 1 if self.measure == "gpu_hours" else 1 / ratio - 1


def measured(bill: TrainingBill, measure: Measure) -> float:
    """A bill's figure of a kind."""
    if measure == "gpu_hours":
        return bill.gpu_hours
    if measure == "teraflops":
        return bill.flops_per_token * bill.tokens_per_second_per_gpu / 1e12
    return bill.tokens_per_second_per_gpu


@cache
def public_runs() -> tuple[PublicRun, ...]:
    """All of them, in the file's order."""
    text = resources.files("aha.estimate.training").joinpath("public_runs.toml").read_text(encoding="utf-8")
    return tuple(_read(table) for table in tomllib.loads(text)["run"])


def _read(table: Mapping[str, Any]) -> PublicRun:
    ((measure, published),) = table["published"].items()
    return PublicRun(
        name=table["name"],
        published_in=table["published_in"],
        kind=table["kind"],
        role=table["role"],
        config=_config(table),
        run=TrainingRun(
            tokens=table.get("tokens", 1e12),
            gpu=find_gpu(table["gpu"]),
            num_gpus=table["num_gpus"],
            sequence_tokens=table["sequence_tokens"],
            batch_tokens=table["batch_tokens"],
            precision=table["precision"],
            layout=Layout(**table["layout"]) if "layout" in table else "fastest",
            assumptions=Assumptions(**table.get("assumptions", {})),
        ),
        measure=measure,
        published=published,
        confidence=table["confidence"],
        source=table["source"],
        assumed=table.get("assumed", ""),
        has_layout="layout" in table,
    )


def _config(table: Mapping[str, Any]) -> ModelConfig:
    if "config" in table:
        return parse_config(table["config"], source=f"public_runs.toml: {table['name']}")
    (model_id,) = (id for id in KNOWN_CONFIGS if id.partition("/")[2] == table["model"])
    return known_config(model_id)


Era = Literal["modern", "older", "all"]
MODERN_SINCE = "2023-07"
"""FlashAttention-2 and Llama 2: kernels since then are those that the estimate assumes."""


def held_out(*, era: Era = "all") -> list[PublicRun]:
    """Those that no constant was set on: since MODERN_SINCE, before, or all."""
    return [
        run
        for run in public_runs()
        if run.role == "held out" and (era == "all" or (run.published_in >= MODERN_SINCE) == (era == "modern"))
    ]
