"""The roofline of serving against throughputs that others have published, errors shown."""

from __future__ import annotations

import statistics
import tomllib
from datetime import date
from importlib import resources
from typing import Any, Literal, NamedTuple

from aha.cost.prices import custom_machine_price
from aha.estimate.hardware import find_gpu
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.serving.prediction import ServingPlan, ServingPrediction, predict_serving
from aha.models.config import ModelConfig
from aha.models.config_files import parse_config
from aha.models.known import KNOWN_CONFIGS

Metric = Literal["output", "total", "prompt", "prefill", "decode", "alone"]


class Checked(NamedTuple):
    """One published figure beside the predicted one."""

    name: str
    setup: str
    """GPUs, prompt and output tokens."""
    metric: Metric
    published: float
    """Tokens a second of `per` GPUs."""
    predicted: float
    per: int
    role: Literal["held out", "informed"]
    source: str
    confidence: str

    @property
    def error(self) -> float:
        """Of the prediction: 0.1 is a tenth too fast."""
        return self.predicted / self.published - 1


def check_serving(assumptions: Assumptions | None = None) -> list[Checked]:
    """Every published figure, in the order of the file.

    Args:
        assumptions: None takes those of serving_assumptions.toml, with what a figure's own set-up states.
    """
    text = resources.files("aha.estimate.serving").joinpath("published.toml").read_text(encoding="utf-8")
    return [_check(table, row, assumptions) for table in tomllib.loads(text)["published"] for row in table["rows"]]


def median_error(rows: list[Checked]) -> float:
    """Of the errors' sizes."""
    return statistics.median(abs(row.error) for row in rows)


def _check(table: dict[str, Any], row: list[float], assumptions: Assumptions | None) -> Checked:
    input_tokens, output_tokens, batch, published = row
    plan = ServingPlan(
        gpu=find_gpu(table["gpu"]),
        num_gpus=table["num_gpus"],
        layout=table.get("layout", "auto"),
        precision=table["precision"],
        cache=table["cache"],
        batch=int(batch),
        input_tokens=int(input_tokens),
        output_tokens=int(output_tokens),
        context_tokens=table.get("context", 0),
        cache_hits=table.get("cache_hits", 0.0),
        accepted=table.get("accepted", 0.0),
        assumptions=assumptions or Assumptions.parse(table.get("assume", [])),
    )
    # The price cancels out, except in the choice of a layout, which is the quicker one at any price.
    prediction = predict_serving(_config(table), plan=plan, price=custom_machine_price(1, on=date(2025, 1, 1)))
    return Checked(
        name=table["name"],
        setup=f"{table['num_gpus']} x {table['gpu']}, {input_tokens:g} + {output_tokens:g}",
        metric=table["metric"],
        published=published,
        predicted=_measure(prediction, table["metric"]) * table["per"] / table["num_gpus"],
        per=table["per"],
        role=table["role"],
        source=table["source"],
        confidence=table["confidence"],
    )


def _config(table: dict[str, Any]) -> ModelConfig:
    raw = table["config"] if "config" in table else KNOWN_CONFIGS[table["model"]]
    return parse_config(raw, source=table["name"])


def _measure(prediction: ServingPrediction, metric: Metric) -> float:
    """Tokens a second of the replica."""
    plan, requests = prediction.plan, prediction.requests_per_second
    match metric:
        case "output":
            return requests * plan.output_tokens
        case "total":
            return requests * (plan.input_tokens + plan.output_tokens)
        case "prompt":
            return prediction.prefill_tokens_per_second * plan.input_tokens / plan.new_tokens
        case "prefill":
            return prediction.prefill_tokens_per_second
        case "decode":
            return prediction.decode_tokens_per_second
        case "alone":
            return plan.input_tokens / prediction.first_token_seconds
