"""What training a model costs, from first principles: operations, the time they take, GPU hours, dollars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from aha.cost.prices import MachinePrice
from aha.estimate.flops import TokenFlops, causal_keys, token_flops
from aha.estimate.hardware import GPU, Format
from aha.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What is trained, on what."""

    tokens: float
    """In all; a planning figure."""
    gpu: GPU
    num_gpus: int
    sequence_tokens: int = 4096
    precision: Literal["bfloat16", "float8"] = "bfloat16"
    """Of the layers' products; attention and head are computed in bfloat16 always."""


class Term(NamedTuple):
    """One line of the bill: where a step's seconds go."""

    name: str
    seconds_per_token: float
    """Of one GPU."""
    note: str
    """The figures it follows from."""


@dataclass(frozen=True, kw_only=True)
class TrainingBill:
    """What a run takes. Every total is the sum of its terms."""

    config: ModelConfig
    run: TrainingRun
    price: MachinePrice
    """Of one GPU for an hour."""
    flops: TokenFlops
    terms: tuple[Term, ...]

    @property
    def flops_per_token(self) -> float:
        """Forward and backward, nothing recomputed: what MFU counts."""
        return self.flops.training

    @property
    def gpu_seconds_per_token(self) -> float:
        return sum(term.seconds_per_token for term in self.terms)

    @property
    def gpu_hours(self) -> float:
        return self.run.tokens * self.gpu_seconds_per_token / 3600

    @property
    def wall_hours(self) -> float:
        return self.gpu_hours / self.run.num_gpus

    @property
    def cost_usd(self) -> float:
        return self.gpu_hours * self.price.usd_per_hour

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation of the bfloat16 peak, whatever the precision (PaLM, arXiv:2204.02311 appendix B)."""
        return self.flops_per_token / self.gpu_seconds_per_token / self.run.gpu.flops_per_second("bfloat16")

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/estimates.md and stay."""
        return {
            "gpu_hours": self.gpu_hours,
            "wall_hours": self.wall_hours,
            "cost_usd": self.cost_usd,
            "flops_per_token": self.flops_per_token,
            "mfu": self.mfu,
            "price_id": self.price.price_id,
            "terms": [term._asdict() for term in self.terms],
        }


def bill_training(config: ModelConfig, *, run: TrainingRun, price: MachinePrice) -> TrainingBill:
    """The bill of training a model of this shape.

    Args:
        price: of one GPU for an hour.
    """
    flops = token_flops(config, visible_keys=causal_keys(run.sequence_tokens))
    products = flops.projections + flops.feed_forward + flops.experts + flops.gates
    parts: list[tuple[str, float, Format]] = [
        ("products of the layers", products, run.precision),
        ("attention", flops.attention, "bfloat16"),
        ("output head", flops.head, "bfloat16"),
        ("multi-token prediction", flops.mtp, run.precision),
    ]
    terms = tuple(
        Term(name, 3 * forward / run.gpu.flops_per_second(form), f"{3 * forward:.3g} operations a token at the peak")
        for name, forward, form in parts
        if forward
    )
    return TrainingBill(config=config, run=run, price=price, flops=flops, terms=terms)
