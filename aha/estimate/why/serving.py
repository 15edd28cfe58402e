"""What a written token costs on as many GPUs as make it cheapest: `predict_serving`, asked once for each number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from aha.cost.prices import MachinePrice
from aha.errors import ConfigError
from aha.estimate.hardware import GPU
from aha.estimate.serving import ServingPlan, ServingPrediction, predict_serving
from aha.models.config import ModelConfig

Precision = Literal["bfloat16", "float8"]
NODES = (1, 2, 4, 8, 12, 18, 24, 32, 40)
"""Sizes of a replica that are tried, in nodes. V3 decodes on 40 (arXiv:2412.19437 §3.4.2), and on 18 on the day that
DeepSeek described."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """How written tokens are asked for."""

    gpu: GPU
    price: MachinePrice
    """Of one GPU for an hour; nothing is put on top of it, as on DeepSeek's inference day."""
    context_tokens: int
    """Cached tokens of a sequence, on average."""
    tokens_per_second: float
    """Least speed that a reader is given; 0 for any."""

    def plan(self, precision: Precision, *, num_gpus: int, accepted: float = 0.0) -> ServingPlan:
        return ServingPlan(
            gpu=self.gpu, num_gpus=num_gpus, precision=precision, user_tokens_per_second=self.tokens_per_second,
            context_tokens=self.context_tokens, accepted=accepted,
        )  # fmt: skip

    def predict(self, config: ModelConfig, *, plan: ServingPlan) -> ServingPrediction:
        return predict_serving(config, plan=plan, price=self.price, overhead=1.0)


def cheapest(
    config: ModelConfig, *, precision: Precision, service: Service, accepted: float = 0.0
) -> ServingPrediction:
    """Writing on the number of GPUs that makes it cheapest: 1, 2, 4, or whole nodes.

    Raises:
        ConfigError: it fits nowhere, or is nowhere as fast as asked for.
    """
    found: list[ServingPrediction] = []
    for num_gpus in (1, 2, 4, *(service.gpu.gpus_per_node * count for count in NODES)):
        try:
            plan = service.plan(precision, num_gpus=num_gpus, accepted=accepted)
            found.append(service.predict(config, plan=plan))
        except ConfigError:
            continue  # too few for its weights, too many for its heads, or too slow
    if not found:
        raise ConfigError(
            f"no replica of 1 to {num_gpus} {service.gpu.title} writes {service.tokens_per_second:g} tokens a second "
            f"to each reader behind {service.context_tokens:,} cached ones; ask for less with --speed or --context"
        )
    return min(found, key=output_usd)


def output_usd(prediction: ServingPrediction) -> float:
    """Dollars for a million output tokens while the replica does nothing else."""
    return prediction.rate.usd_per_million("output")


def drafts_speedup(config: ModelConfig, *, precision: Precision, service: Service, accepted: float) -> float:
    """A reader's tokens a second with drafts over those without, on the same GPUs with the same batch: those of the
    cheapest replica with drafts at the service's speed."""
    drafted = cheapest(config, precision=precision, service=service, accepted=accepted)
    alone = replace(service, tokens_per_second=0.0)
    plan = replace(alone.plan(precision, num_gpus=drafted.replica.num_gpus), batch=drafted.batch)
    plan = replace(plan, layout=drafted.replica.layout)
    return drafted.user_tokens_per_second / alone.predict(config, plan=plan).user_tokens_per_second
