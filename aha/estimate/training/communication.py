"""Seconds that GPUs wait for each other in training: what moves, over which wire, and what of it is hidden.

All are GPU seconds a token, as in training_compute: a GPU that sends for a second costs a second.
"""

from __future__ import annotations

from typing import NamedTuple

from aha.estimate.hardware import GPU, Format
from aha.estimate.training.assumptions import Assumptions
from aha.estimate.training.compute import BF16_BYTES
from aha.estimate.training.layout import Layout
from aha.models.config import ModelConfig

TENSOR_COLLECTIVES = 10
"""Gathers and scatters of a layer: two of each forward, two of each backward, and two gathers for the gradients of
weights, since sequence parallelism keeps only a part of their inputs (arXiv:2205.05198 §4.2.2 and equation 9)."""
TENSOR_FORWARD_COLLECTIVES = 4
FLOAT8_SCALE_BYTES = 4 / 128
"""A float32 scale for each 128 numbers (arXiv:2412.19437 §3.3.2)."""


class Wire(NamedTuple):
    """What a group of GPUs talks over."""

    bytes_per_second: float
    """Of one GPU, in one direction."""
    crosses_nodes: bool


def wire(gpu: GPU, *, size: int, stride: int, assumptions: Assumptions) -> Wire:
    """The slowest wire of a group whose neighbours are `stride` GPUs apart.

    Where more of its members share a node, a ring leaves it over the network cards of all of them.
    """
    members = max(1, min(size, gpu.gpus_per_node // stride))
    link = gpu.link_gb_per_second * 1e9 * assumptions.link_share
    if size <= members:
        return Wire(link, False)
    network = gpu.network_gb_per_second * 1e9 * assumptions.network_share * members
    return Wire(min(link, network), True)


def tensor_seconds(config: ModelConfig, *, layout: Layout, gpu: GPU, assumptions: Assumptions) -> float:
    """Of one collective of one layer: every GPU sends (t - 1) / t of the activations of the group's tokens."""
    if layout.tensor == 1:
        return 0.0
    line = wire(gpu, size=layout.tensor, stride=1, assumptions=assumptions)
    num_bytes = BF16_BYTES * config.hidden_size * (layout.tensor - 1) / layout.tensor
    return layout.tensor * num_bytes / line.bytes_per_second


def context_seconds(config: ModelConfig, *, layout: Layout, gpu: GPU, assumptions: Assumptions) -> float:
    """Of one layer: keys and values of the other parts of a sequence, gathered, and gathered again backward with their
    gradients scattered (arXiv:2407.21783 §3.3.2)."""
    if layout.context == 1:
        return 0.0
    line = wire(gpu, size=layout.context, stride=layout.tensor, assumptions=assumptions)
    # Every GPU receives the keys and values of all other parts: (c - 1) numbers for each of its own.
    width = 2 * config.num_kv_heads * config.head_dim if config.mla is None else config.mla.cached_width
    return 3 * BF16_BYTES * width * (layout.context - 1) / line.bytes_per_second


def distinct(num_places: float, *, draws: int) -> float:
    """How many of the places a token's experts lie in, drawn alike: n (1 - (1 - 1/n)^k)."""
    return num_places * (1 - (1 - 1 / num_places) ** draws)


class AllToAll(NamedTuple):
    """Of one sparse layer, forward and backward."""

    seconds: float
    network_bytes: float
    """That a GPU sends to other nodes for a token."""
    link_bytes: float


def all_to_all(
    config: ModelConfig, *, layout: Layout, gpu: GPU, precision: Format, assumptions: Assumptions
) -> AllToAll:
    """Dispatch of a token to its experts and the combination of their answers, and both again backward.

    A token crosses to each node once and is forwarded inside (arXiv:2412.19437 §3.2.2); a node-limited router bounds
    the nodes. Dispatch is in the precision of the products, combination in bfloat16 (§3.3.3).
    """
    if layout.expert == 1 or config.experts is None:
        return AllToAll(0.0, 0.0, 0.0)
    experts = config.experts
    draws = experts.num_experts_per_token
    dispatch = 1 + FLOAT8_SCALE_BYTES if precision == "float8" else BF16_BYTES
    both_ways = 2 * config.hidden_size * (dispatch + BF16_BYTES)
    gpus = distinct(layout.expert, draws=draws)
    num_nodes = max(1.0, layout.expert / gpu.gpus_per_node)
    nodes = distinct(num_nodes, draws=draws)
    if experts.num_groups > 1:
        nodes = min(nodes, experts.num_groups_per_token)
    network_bytes = both_ways * nodes * (num_nodes - 1) / num_nodes
    in_node = max(1, min(layout.expert, gpu.gpus_per_node))
    link_bytes = both_ways * gpus * (in_node - 1) / in_node
    seconds = max(
        network_bytes / (gpu.network_gb_per_second * 1e9 * assumptions.network_share),
        link_bytes / (gpu.link_gb_per_second * 1e9 * assumptions.link_share),
    )
    return AllToAll(seconds, network_bytes, link_bytes)


def pipeline_seconds(config: ModelConfig, *, layout: Layout, gpu: GPU, assumptions: Assumptions) -> float:
    """Of all stages: activations sent forward and their gradients back, once for each chunk of layers."""
    if layout.pipeline == 1:
        return 0.0
    line = wire(
        gpu, size=layout.pipeline, stride=layout.num_gpus // layout.pipeline, assumptions=assumptions
    )  # stages lie farthest apart
    borders = layout.pipeline * layout.virtual - 1
    return 2 * BF16_BYTES * config.hidden_size * borders / line.bytes_per_second


class Exchange(NamedTuple):
    """Of gradients and weights between copies."""

    step_seconds: float
    """On every GPU, once a step."""
    micro_batch_seconds: float
    """On every GPU, each micro-batch: ZeRO-3 gathers weights twice and scatters gradients."""


def exchange(own_dense: float, own_experts: float, *, layout: Layout, gpu: GPU, assumptions: Assumptions) -> Exchange:
    """ZeRO-1 scatters gradients and gathers weights once a step; ZeRO-3 in every micro-batch (arXiv:1910.02054 §7).

    Args:
        own_dense: parameters of a GPU's layers beside routed experts; with ZeRO-3, before they are spread.
        own_experts: of its routed experts, likewise.
    """
    seconds = []
    stride = layout.tensor
    copies = layout.data * layout.context
    for parameters, size, apart in (
        (own_dense, copies, stride),
        (own_experts, layout.expert_copies, max(stride, layout.expert)),
    ):
        if size == 1 or not parameters:
            continue
        line = wire(gpu, size=size, stride=min(apart, gpu.gpus_per_node), assumptions=assumptions)
        num_bytes = parameters * (size - 1) / size
        moves = assumptions.gradient_bytes + BF16_BYTES * (2 if layout.zero == 3 else 1)
        seconds.append(num_bytes * moves / line.bytes_per_second)
    total = sum(seconds)
    return Exchange(0.0, total) if layout.zero == 3 else Exchange(total, 0.0)
