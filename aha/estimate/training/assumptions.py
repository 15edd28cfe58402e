"""What a training bill assumes beside data sheets: every constant once, with where it comes from. All can be set."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from aha.errors import ConfigError, unknown_name


class Origin(NamedTuple):
    """Why a constant has its value."""

    words: str
    confidence: str
    """"measured": someone's published measurement · "calibrated": on the runs it names · "assumption": ours."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """The constants of a training bill; ORIGINS says where each comes from."""

    sustained_share: float = 0.845
    """Of a kernel's benchmarked speed, what weeks of training hold: power, clocks, gaps between kernels, stragglers."""
    output_bandwidth_share: float = 0.59
    """Of memory bandwidth, with which a product writes its results while it multiplies nothing."""
    elementwise_bandwidth_share: float = 0.75
    """Of memory bandwidth, in norms, activations, casts, permutations."""
    attention_share_ampere: float = 0.53
    """Of the bfloat16 peak, in causal attention forward and backward."""
    attention_share_hopper: float = 0.45
    attention_share_other: float = 0.45
    link_share: float = 0.80
    """Of a link's bandwidth inside a node, in collectives."""
    network_share: float = 0.85
    """Of the network's bandwidth."""
    exposed_tensor_share: float = 0.5
    """Of tensor parallelism's communication, not hidden behind products."""
    exposed_data_share: float = 0.5
    """Of the gradients' and parameters' exchange of a step, not hidden."""
    exposed_pipeline_share: float = 0.25
    """Of activations sent between stages, not hidden."""
    exposed_context_share: float = 0.3
    """Of keys and values sent between parts of a sequence, not hidden."""
    overlap_multiprocessors: int = 20
    """Taken from products while all-to-all runs beside them (schedule "dualpipe")."""
    expert_imbalance: float = 1.1
    """Busiest expert GPU's tokens over the mean's, where experts are spread over GPUs."""
    goodput: float = 0.95
    """Of the hours paid for, those that make progress: the rest is restarts, checkpoints, evaluation."""
    gradient_bytes: int = 4
    """Of a parameter's gradient, held and reduced in float32."""
    moment_bytes: int = 4
    """Of each of AdamW's two moments; DeepSeek-V3 has 2."""
    runtime_gib: float = 2.0
    """Of GPU memory for CUDA, NCCL's buffers and what the allocator cannot use."""
    pue: float = 1.1
    """Energy of the building over that of the machines."""
    host_watts_share: float = 0.3
    """Of the GPUs' power, what their hosts and network draw beside them."""
    power_share: float = 0.85
    """Of board power, what a GPU draws on average while it trains."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{field.name} must be at least 0 and finite, got {value}")
        for name in ("sustained_share", "output_bandwidth_share", "elementwise_bandwidth_share", "link_share",
                     "network_share", "attention_share_ampere", "attention_share_hopper", "attention_share_other",
                     "goodput", "power_share"):  # fmt: skip
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, above 0 and up to 1, got {getattr(self, name)}")
        for name in ("exposed_tensor_share", "exposed_data_share", "exposed_pipeline_share", "exposed_context_share"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} is a share, from 0 to 1, got {getattr(self, name)}")
        if min(self.expert_imbalance, self.pue) < 1:
            raise ConfigError("expert_imbalance and pue are at least 1")

    def attention_share(self, generation: str) -> float:
        """Of the bfloat16 peak, in attention on GPUs of a generation."""
        return {"ampere": self.attention_share_ampere, "hopper": self.attention_share_hopper}.get(
            generation, self.attention_share_other
        )


PUBLIC_SPAN = (0.94, 1.53)
"""What eight of ten public runs since July 2023 that nothing was set on took, over the estimate (`aha cost train
--check`; a test holds these to the table). The estimate is that of a well-tuned stack: most take longer."""

ORIGINS: dict[str, Origin] = {
    "sustained_share": Origin(
        "median of four runs of four stacks (role calibration in public_runs.toml), which imply 0.75 to 0.96",
        "calibrated",
    ),
    "output_bandwidth_share": Origin(
        "DeepGEMM's table of February 2025 on an H800, M = 4096: seconds grow by 1.0 ps for each output written",
        "measured",
    ),
    "elementwise_bandwidth_share": Origin("fused kernels at large sizes; streams reach about 0.9", "assumption"),
    "attention_share_ampere": Origin(
        "FlashAttention-2 reaches 0.50 to 0.73 on A100 (arXiv:2307.08691 abstract); causal and backward at the low end",
        "assumption",
    ),
    "attention_share_hopper": Origin(
        "between FlashAttention-2 (0.35) and FlashAttention-3 (up to 0.75 forward; arXiv:2407.08608)", "assumption"
    ),
    "attention_share_other": Origin("as on Hopper", "assumption"),
    "link_share": Origin("DeepSeek-V3 report §3.2.2: 160 of the H800's 200 GB/s", "measured"),
    "network_share": Origin("README of DeepEP: 43 of 50 GB/s over RDMA with 16 to 64 GPUs", "measured"),
    "exposed_tensor_share": Origin("half of it overlaps with the products it feeds", "assumption"),
    "exposed_data_share": Origin(
        "half of it overlaps with the last backward and the next forward passes", "assumption"
    ),
    "exposed_pipeline_share": Origin("sent while the next micro-batch computes", "assumption"),
    "exposed_context_share": Origin("gathered once a layer, before attention", "assumption"),
    "overlap_multiprocessors": Origin("DeepSeek-V3 report §3.5.1: 20 of 132", "measured"),
    "expert_imbalance": Origin("balanced by a bias, but only over a batch", "assumption"),
    "goodput": Origin("Llama 3 report: above 0.90 on 16,384 GPUs; smaller clusters report 0.97", "assumption"),
    "gradient_bytes": Origin("DeepSeek-V3 report §3.3.3 and Megatron: accumulated in float32", "measured"),
    "moment_bytes": Origin("AdamW in float32; DeepSeek-V3 has bfloat16 (2)", "assumption"),
    "runtime_gib": Origin("CUDA, NCCL, the allocator", "assumption"),
    "pue": Origin("large operators publish 1.08 to 1.2; LLaMA (arXiv:2302.13971 §6) takes 1.1", "measured"),
    "host_watts_share": Origin("a DGX H100 is rated at 10.2 kW for 5.6 kW of GPUs; on average less", "assumption"),
    "power_share": Origin("training holds GPUs near their limit, waiting does not", "assumption"),
}
"""Of every field of Assumptions."""


def describe_assumptions(assumptions: Assumptions) -> list[dict[str, float | str]]:
    """Every constant with its value, where it comes from, and how sure that is."""
    return [
        {
            "name": field.name,
            "value": getattr(assumptions, field.name),
            "source": origin.words,
            "confidence": origin.confidence,
        }
        for field in fields(assumptions)
        for origin in (ORIGINS[field.name],)
    ]


def with_settings(assumptions: Assumptions, settings: list[str]) -> Assumptions:
    """Assumptions with some replaced, each as "NAME=NUMBER". Raises ConfigError for an unknown name or no number."""
    changes: dict[str, float] = {}
    known = {field.name: type(getattr(assumptions, field.name)) for field in fields(assumptions)}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise ConfigError(unknown_name("assumption", name, known))
        try:
            changes[name] = known[name](text)
        except ValueError:
            raise ConfigError(f"--set {name} needs a number, got {text!r}") from None
    return replace(assumptions, **changes)  # type: ignore[arg-type]
