"""What training a model costs, from first principles: operations, the time they take, GPU hours, dollars, energy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any, Literal, NamedTuple

from aha.cost.prices import MachinePrice, custom_machine_price
from aha.errors import ConfigError
from aha.estimate.flops import TokenFlops, causal_keys, token_flops
from aha.estimate.hardware import GIB, GPU
from aha.estimate.training.assumptions import PUBLIC_SPAN, Assumptions, describe_assumptions
from aha.estimate.training.layout import Layout, check_layout
from aha.estimate.training.layout_search import memory_of, search_layout
from aha.estimate.training.memory import TrainingMemory
from aha.estimate.training.terms import Setting, Term, step_terms
from aha.models.config import ModelConfig

__all__ = ["UNPRICED", "Term", "TrainingBill", "TrainingRun", "bill_training", "likely_hours", "usual_batch_tokens"]

UNPRICED = replace(
    custom_machine_price(0, on=date(2024, 1, 1), source="no price of this GPU is in the price book"), name="unpriced"
)
"""In the place of a price that is not known: hours are billed, dollars are not."""

SEQUENCES_PER_GPU = 8
"""Of a step, where no batch is given: DeepSeek-V3 has 7.5 (15,360 sequences on 2,048 GPUs)."""
MIN_BATCH_TOKENS = 2**19
MAX_BATCH_TOKENS = 2**24
"""16M tokens: Llama 3.1 405B's largest batch (arXiv:2407.21783 §3.4.1). Sparse models are given four times as many: V3
has 62.9M (arXiv:2412.19437 §4.2)."""


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
    batch_tokens: float = 0
    """Of a step; 0: as many as is usual for that many GPUs (usual_batch_tokens)."""
    layout: Layout | Literal["fastest"] = "fastest"
    """"fastest": of those that fit."""
    assumptions: Assumptions = field(default_factory=Assumptions)

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ConfigError(f"a run needs at least 1 GPU, got {self.num_gpus}")
        if not 0 < self.tokens < float("inf"):
            raise ConfigError(f"tokens must be above 0 and finite, got {self.tokens}")
        if self.sequence_tokens < 1:
            raise ConfigError(f"sequence_tokens must be at least 1, got {self.sequence_tokens}")
        if not 0 <= self.batch_tokens < float("inf"):
            raise ConfigError(f"batch_tokens must be at least 0 and finite, got {self.batch_tokens}")
        if self.assumptions.overlap_multiprocessors >= self.gpu.multiprocessors:
            raise ConfigError(
                f"overlap_multiprocessors must be below the {self.gpu.multiprocessors} of the {self.gpu.title}, got "
                f"{self.assumptions.overlap_multiprocessors}"
            )
        self.gpu.flops_per_second(self.precision)


@dataclass(frozen=True, kw_only=True)
class TrainingBill:
    """What a run takes. Every total is the sum of its terms."""

    config: ModelConfig
    run: TrainingRun
    price: MachinePrice
    """Of one GPU for an hour."""
    overhead: float = 1.0
    """What is paid over the GPUs' own price: storage, network, hosts, people."""
    flops: TokenFlops
    layout: Layout
    batch_tokens: float
    memory: TrainingMemory
    """Of the fullest GPU."""
    terms: tuple[Term, ...]

    @property
    def flops_per_token(self) -> float:
        """Forward and backward, nothing recomputed: what MFU counts."""
        return self.flops.training

    @property
    def gpu_seconds_per_token(self) -> float:
        """Lost time included."""
        return sum(term.seconds_per_token for term in self.terms)

    @cached_property
    def step_gpu_seconds_per_token(self) -> float:
        """Of a step that nothing interrupts."""
        return sum(term.seconds_per_token for term in self.terms if term.kind != "lost")

    @property
    def step_seconds(self) -> float:
        return self.step_gpu_seconds_per_token * self.batch_tokens / self.run.num_gpus

    @property
    def num_steps(self) -> float:
        return self.run.tokens / self.batch_tokens

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """While nothing interrupts."""
        return 1 / self.step_gpu_seconds_per_token

    @property
    def gpu_hours(self) -> float:
        return self.run.tokens * self.gpu_seconds_per_token / 3600

    @property
    def wall_hours(self) -> float:
        return self.gpu_hours / self.run.num_gpus

    @property
    def is_priced(self) -> bool:
        return self.price is not UNPRICED

    @property
    def cost_usd(self) -> float:
        """0 where no price is known: ask `is_priced`."""
        return self.gpu_hours * self.price.usd_per_hour * self.overhead

    @property
    def energy_kwh(self) -> float:
        """Of GPUs, their hosts and the building."""
        assumptions = self.run.assumptions
        watts = self.run.gpu.watts * assumptions.power_share * (1 + assumptions.host_watts_share)
        return self.gpu_hours * watts * assumptions.pue / 1000

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation of the bfloat16 peak in an uninterrupted step, whatever the precision (PaLM,
        arXiv:2204.02311 appendix B)."""
        return self.flops_per_token * self.tokens_per_second_per_gpu / self.run.gpu.flops_per_second("bfloat16")

    @property
    def fits(self) -> bool:
        return self.memory.fits(self.run.gpu)

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/estimates.md and stay."""
        return {
            "gpu_hours": self.gpu_hours,
            "likely_gpu_hours": likely_hours(self)._asdict(),
            "wall_hours": self.wall_hours,
            "cost_usd": self.cost_usd if self.is_priced else None,
            "flops_per_token": self.flops_per_token,
            "mfu": self.mfu,
            "price_id": self.price.price_id,
            "overhead": self.overhead,
            "tokens": self.run.tokens,
            "gpu": self.run.gpu.name,
            "num_gpus": self.run.num_gpus,
            "precision": self.run.precision,
            "sequence_tokens": self.run.sequence_tokens,
            "batch_tokens": self.batch_tokens,
            "num_steps": self.num_steps,
            "step_seconds": self.step_seconds,
            "tokens_per_second_per_gpu": self.tokens_per_second_per_gpu,
            "energy_kwh": self.energy_kwh,
            "layout": vars(self.layout),
            "fits": self.fits,
            "memory_gib": {name: value / GIB for name, value in self.memory._asdict().items()}
            | {"total": self.memory.total / GIB, "available": self.run.gpu.memory_gib},
            "terms": [term._asdict() for term in self.terms],
            "assumptions": describe_assumptions(self.run.assumptions),
        }


def usual_batch_tokens(config: ModelConfig, *, run: TrainingRun) -> float:
    """Tokens of a step where none are given: eight sequences a GPU, between half a million and what is published.

    Whole sequences, as many for every GPU where there are enough: about half a million for a few GPUs.
    """
    most = MAX_BATCH_TOKENS * (1 if config.experts is None else 4)
    wanted = max(SEQUENCES_PER_GPU * run.num_gpus * run.sequence_tokens, MIN_BATCH_TOKENS)
    sequences = max(1, int(min(wanted, most) / run.sequence_tokens))
    return float((sequences - sequences % run.num_gpus or sequences) * run.sequence_tokens)


def bill_training(config: ModelConfig, *, run: TrainingRun, price: MachinePrice, overhead: float = 1.0) -> TrainingBill:
    """The bill of training a model of this shape.

    Args:
        price: of one GPU for an hour.
        overhead: what is paid over it, as a factor.

    Raises:
        ConfigError: a layout that is not for this model or these GPUs; with "fastest", none that fits.
    """
    setting = Setting(
        config=config,
        gpu=run.gpu,
        layout=run.layout if isinstance(run.layout, Layout) else Layout(),
        precision=run.precision,
        sequence_tokens=run.sequence_tokens,
        batch_tokens=run.batch_tokens or usual_batch_tokens(config, run=run),
        assumptions=run.assumptions,
    )
    if isinstance(run.layout, Layout):
        _check(setting, num_gpus=run.num_gpus)
    else:
        setting = replace(setting, layout=search_layout(setting, num_gpus=run.num_gpus))
    terms = step_terms(setting)
    terms += _idle(terms, setting=setting, num_gpus=run.num_gpus)
    return TrainingBill(
        config=config,
        run=run,
        price=price,
        overhead=overhead,
        flops=token_flops(config, visible_keys=causal_keys(run.sequence_tokens)),
        layout=setting.layout,
        batch_tokens=setting.batch_tokens,
        memory=memory_of(setting),
        terms=(*terms, _lost(terms, goodput=run.assumptions.goodput)),
    )


def _check(setting: Setting, *, num_gpus: int) -> None:
    layout = setting.layout
    check_layout(layout, config=setting.config, num_gpus=num_gpus)
    if setting.num_micro_batches < 1:
        raise ConfigError(
            f"a batch of {setting.batch_tokens:,.0f} tokens has fewer sequences than the layout's data * micro_batch = "
            f"{layout.data * layout.micro_batch}; use a larger batch, or more tensor, context or pipeline parallelism"
        )


def _idle(terms: list[Term], *, setting: Setting, num_gpus: int) -> list[Term]:
    """What is paid for GPUs that the layout has no place for."""
    spare = num_gpus - setting.layout.num_gpus
    if not spare:
        return []
    busy = sum(term.seconds_per_token for term in terms)
    note = f"{spare:,} of {num_gpus:,}: a layout for {setting.layout.num_gpus:,} is the cheaper one all the same"
    return [Term("idle GPUs", busy * spare / setting.layout.num_gpus, note, "waiting")]


def _lost(terms: list[Term], *, goodput: float) -> Term:
    busy = sum(term.seconds_per_token for term in terms)
    note = f"{goodput:.0%} of the hours make progress: restarts, checkpoints, evaluation take the rest"
    return Term("lost time", busy * (1 / goodput - 1), note, "lost")


class HoursRange(NamedTuple):
    """GPU hours that eight of ten public runs since July 2023 would stay within."""

    low: float
    high: float


def likely_hours(bill: TrainingBill) -> HoursRange:
    """The estimate, as far off as public runs are from theirs."""
    low, high = PUBLIC_SPAN
    return HoursRange(low * bill.gpu_hours, high * bill.gpu_hours)
