"""A day of serving that was published with its books: recomputed from its inputs, figure by figure."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from aha.cost.prices import LETTER_DATE, NANO_PER_USD, machine_price, token_price

SECONDS_PER_DAY = 86_400
TOLERANCE = 0.001
"""The relative error within which a figure counts as reproduced."""


class Derived(NamedTuple):
    """A figure that follows from the inputs, and the one that was published, if one was."""

    name: str
    unit: str
    value: float
    published: float | None
    note: str
    """How it follows."""

    @property
    def error(self) -> float | None:
        """Relative to what was published."""
        return None if self.published is None else self.value / self.published - 1


@dataclass(frozen=True, kw_only=True)
class InferenceDay:
    """What was published as input."""

    average_nodes: float
    gpus_per_node: int
    hours: int
    gpu_price: str
    """Id in the price book, of one GPU for an hour."""
    input_tokens: int
    """Cached ones included."""
    cached_tokens: int
    output_tokens: int
    token_price: str
    """Id in the price book, of the API whose prices the revenue is computed with."""
    prefill_tokens_per_second: float
    """Of a node, cached ones included."""
    decode_tokens_per_second: float
    published: dict[str, float]
    source: str
    source_date: date
    confidence: str
    window: str

    @property
    def gpu_hours(self) -> float:
        return self.average_nodes * self.gpus_per_node * self.hours

    @property
    def cost_usd(self) -> float:
        return self.gpu_hours * machine_price(self.gpu_price, on=LETTER_DATE).usd_per_hour

    @property
    def revenue_usd(self) -> float:
        """If every token had been sold at the API's standard price."""
        price = token_price(self.token_price, on=LETTER_DATE)
        nano_usd = price.cost_nano_usd(
            self.input_tokens, completion_tokens=self.output_tokens, cached_tokens=self.cached_tokens
        )
        return nano_usd / NANO_PER_USD

    @property
    def node_days_reading(self) -> float:
        """Nodes that were busy with prompts all day, if each read as fast as the average."""
        return self.input_tokens / self.prefill_tokens_per_second / SECONDS_PER_DAY

    @property
    def node_days_answering(self) -> float:
        return self.output_tokens / self.decode_tokens_per_second / SECONDS_PER_DAY

    def derived(self) -> list[Derived]:
        """Every figure that follows."""
        nodes = self.node_days_reading + self.node_days_answering
        reading = self.cost_usd * self.node_days_reading / nodes
        answering = self.cost_usd - reading
        new_tokens = self.input_tokens - self.cached_tokens
        all_tokens = self.input_tokens + self.output_tokens
        figures = [
            ("cost_usd", "$", self.cost_usd, "nodes x GPUs x hours x $2 a GPU hour"),
            ("revenue_usd", "$", self.revenue_usd, "all tokens at R1's standard prices"),
            ("margin", "of cost", self.revenue_usd / self.cost_usd - 1, "revenue over cost, less one"),
            ("cached_share", "of input", self.cached_tokens / self.input_tokens, "cached over input tokens"),
            ("average_nodes", "nodes", nodes, "tokens over tokens a second and node, both phases"),
            ("gpu_hours", "h", self.gpu_hours, "nodes x GPUs x hours"),
            ("usd_per_million_input", "$/M", _per_million(reading, self.input_tokens), "cached ones among them"),
            ("usd_per_million_new_input", "$/M", _per_million(reading, new_tokens), "if cached ones take no time"),
            ("usd_per_million_output", "$/M", _per_million(answering, self.output_tokens), "cost shared by node days"),
            ("usd_per_million_blended", "$/M", _per_million(self.cost_usd, all_tokens), "over all tokens"),
        ]
        return [Derived(name, unit, value, self.published.get(name), note) for name, unit, value, note in figures]

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/serving_cost.md and stay."""
        return {
            "window": self.window,
            "source": self.source,
            "source_date": self.source_date.isoformat(),
            "confidence": self.confidence,
            "inputs": {
                "average_nodes": self.average_nodes,
                "gpus_per_node": self.gpus_per_node,
                "hours": self.hours,
                "gpu_price_id": self.gpu_price,
                "input_tokens": self.input_tokens,
                "cached_tokens": self.cached_tokens,
                "output_tokens": self.output_tokens,
                "token_price_id": self.token_price,
                "prefill_tokens_per_second": self.prefill_tokens_per_second,
                "decode_tokens_per_second": self.decode_tokens_per_second,
            },
            "figures": [{**figure._asdict(), "error": figure.error} for figure in self.derived()],
        }


@cache
def inference_day() -> InferenceDay:
    """DeepSeek's, as inference_day.toml has it."""
    text = resources.files("aha.estimate.serving").joinpath("inference_day.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    about = {name: tables[name] for name in ("source", "source_date", "confidence", "window")}
    return InferenceDay(**tables["inputs"], published=tables["published"], **about)


def _per_million(usd: float, tokens: float) -> float:
    return usd / tokens * 1e6
