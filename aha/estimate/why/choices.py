"""The choices that a model and its run have made, and each undone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

from aha.estimate.hardware import GPU
from aha.estimate.why.variants import dense, with_heads, without_prediction
from aha.models.config import ModelConfig
from aha.models.counts import count_parameters

Precision = Literal["bfloat16", "float8"]
Bill = Literal["training", "output", "fast output", "rl", "student"]
"""Pre-training; a million output tokens; those for readers who want them `FAST` times as fast; reinforcement learning
as long as R1's; a small model that is to reason."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A model with some of its choices made."""

    config: ModelConfig
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One that a model or its run has made, and how to undo it."""

    key: str
    """Stable, for scripts."""
    title: str
    instead_of: str
    undo: Callable[[Side], Side]
    in_return: str
    """What it costs."""
    source: str
    bills: tuple[Bill, ...] = ("training", "output")
    in_chain: bool = True
    """Whether the way from the naive model leads through it; the others are second comparisons of the same choice."""


def choices_of(side: Side, *, gpu: GPU) -> list[Choice]:
    """The choices that a model and its GPU allow to undo, in the order in which the naive way takes them up."""
    found = [*_experts(side), *_attention(side)]
    if "float8" in gpu.teraflops:
        found.append(
            Choice(
                key="float8",
                title="FP8 products",
                instead_of="bf16",
                undo=lambda side: replace(side, precision="bfloat16"),
                in_return="scales for blocks, sums in float32; loss within 0.25 % of bf16's",
                source="DeepSeek-V3 report (arXiv:2412.19437) §3.3",
            )
        )
    if side.config.num_mtp_layers:
        found.append(
            Choice(
                key="multi_token_prediction",
                title="multi-token prediction",
                instead_of="one token",
                undo=lambda side: replace(side, config=without_prediction(side.config)),
                in_return="a layer and the head once more, which make stages uneven; better on most of V3's benchmarks",
                source="DeepSeek-V3 report (arXiv:2412.19437) §2.2, §4.5.1, §5.4.3",
                bills=("training", "output", "fast output"),
            )
        )
    return found


def _experts(side: Side) -> list[Choice]:
    if side.config.experts is None:
        return []
    counts = count_parameters(side.config)
    source = "DeepSeekMoE (arXiv:2401.06066) table 6"
    return [
        Choice(
            key="experts_against_total", title="sparse experts", instead_of=f"dense {count_text(counts.total)}",
            undo=lambda side: replace(side, config=dense(side.config, num_parameters=counts.total)),
            in_return="a dense model of all parameters is better: 145B sparse was like 67B dense", source=source,
        ),
        Choice(
            key="experts_against_active", title="sparse experts", instead_of=f"dense {count_text(counts.active)}",
            undo=lambda side: replace(side, config=dense(side.config, num_parameters=counts.active)),
            in_return="memory and exchange for all experts; a dense model of the active ones is worse", source=source,
            in_chain=False,
        ),
    ]  # fmt: skip


def _attention(side: Side) -> list[Choice]:
    config = side.config
    if config.mla is None and config.num_kv_heads == config.num_heads:
        return []
    title = "latent attention" if config.mla else f"GQA of {config.num_kv_heads} groups"
    full = Choice(
        key="attention_against_full_heads", title=title, instead_of=f"{config.num_heads} full heads",
        undo=lambda side: replace(side, config=with_heads(side.config, num_kv_heads=side.config.num_heads)),
        in_return="none found: latents were the better" if config.mla else "worse than full heads: MMLU 41.2, not 45.2",
        source="DeepSeek-V2 report (arXiv:2405.04434), appendix: MHA, GQA, MQA; MLA against MHA",
    )  # fmt: skip
    if config.mla is None or config.num_heads % 8:
        return [full]
    grouped = replace(
        full, key="attention_against_gqa8", instead_of="GQA of 8 groups", in_chain=False,
        undo=lambda side: replace(side, config=with_heads(side.config, num_kv_heads=8)),
        in_return="more operations over the cache; groups of heads are worse than full heads",
    )  # fmt: skip
    return [full, grouped]


def undo_all(side: Side, choices: Sequence[Choice]) -> Side:
    """A model without any of these choices. The last is undone first, so that a dense model gets its count at last."""
    return reduce(lambda side, choice: choice.undo(side), reversed(choices), side)


def count_text(count: float) -> str:
    """14.8T, 671B, 37.6B, 1.2M: parameters or tokens."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size * 0.9995:
            return f"{count / size:,.3g}{unit}" if count < 1000 * size else f"{count / size:,.0f}{unit}"
    return f"{count:.3g}"
