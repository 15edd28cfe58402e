"""Memory of a GPU in training: weights, gradients, optimiser, activations."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from aha.estimate.hardware import GIB, GPU, Format
from aha.estimate.training.assumptions import Assumptions
from aha.estimate.training.compute import BF16_BYTES, activated_width, carried_width
from aha.estimate.training.layout import Layout
from aha.models.config import ModelConfig
from aha.models.counts import count_parameters, feed_forward_matrices

MASTER_BYTES = 4
"""Of a parameter's float32 copy that the optimiser changes."""


class OwnParameters(NamedTuple):
    """Of the fullest GPU."""

    dense: float
    """Of its layers, embedding and head, routed experts aside."""
    experts: float
    """Of routed experts."""

    @property
    def total(self) -> float:
        return self.dense + self.experts


class TrainingMemory(NamedTuple):
    """Bytes of the fullest GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    runtime: float

    @property
    def total(self) -> float:
        return sum(self)

    def fits(self, gpu: GPU) -> bool:
        return self.total <= gpu.memory_bytes


@cache
def count_sparse_layers(config: ModelConfig) -> int:
    """Layers with routed experts, modules of multi-token prediction aside."""
    return sum(config.is_sparse(index) for index in range(config.num_layers))


@cache
def routed_parameters(config: ModelConfig) -> int:
    """Of all layers and modules of multi-token prediction."""
    layers = range(config.num_layers + config.num_mtp_layers)
    return sum(
        matrix.num_parameters
        for index in layers
        if config.is_sparse(index)
        for matrix in feed_forward_matrices(config, index=index)
        if matrix.is_routed
    )


def own_parameters(config: ModelConfig, *, layout: Layout) -> OwnParameters:
    """What the fullest GPU computes with: its share of layers, rounded up to whole ones, and embedding or head.

    DualPipe keeps two stages on every GPU (arXiv:2412.19437 table 2), so twice the layers; the first and the last stage
    share a GPU, which has embedding and head, and fewer layers for it.
    """
    counts = count_parameters(config)
    routed = routed_parameters(config)
    outside = counts.embedding + counts.head
    layers = counts.held - outside - routed
    num_layers = config.num_layers + config.num_mtp_layers
    chunks = layout.pipeline * layout.virtual
    share = min(1.0, -(-num_layers // chunks) * layout.virtual / num_layers)
    if layout.schedule == "dualpipe":
        share, outside_here = min(1.0, 2 * share), outside if layout.pipeline == 2 else 0
    else:
        outside_here = outside if layout.pipeline == 1 else max(counts.embedding, counts.head)
    return OwnParameters(
        dense=(share * layers + outside_here) / layout.tensor,
        experts=share * routed / layout.expert,
    )


def training_memory(
    config: ModelConfig,
    *,
    layout: Layout,
    sequence_tokens: int,
    num_micro_batches: int,
    precision: Format,
    assumptions: Assumptions,
) -> TrainingMemory:
    """Bytes of the fullest GPU, by item.

    Weights are held in bfloat16 whatever the precision of the products, gradients in float32; the optimiser's master
    copy and moments are spread over the copies (ZeRO-1), with ZeRO-3 weights and gradients too.
    """
    own = own_parameters(config, layout=layout)
    copies = layout.data * layout.context
    spread = own.dense / copies + own.experts / layout.expert_copies
    held = spread if layout.zero == 3 else own.total
    graded = own.total if layout.zero == 1 else spread
    # ZeRO-3 gathers a layer at a time, the next one ahead of its turn.
    gathered = 2 * own.total / (config.num_layers + config.num_mtp_layers) if layout.zero == 3 else 0.0
    tokens = layout.micro_batch * sequence_tokens / (layout.tensor * layout.context)
    num_layers = config.num_layers + config.num_mtp_layers
    num_sparse = count_sparse_layers(config) + (config.num_mtp_layers if config.experts else 0)
    dense, sparse = (
        activation_bytes(config, is_sparse=kind, precision=precision, recomputation=layout.recomputation)
        for kind in (False, True)
    )
    per_layer = dense + (sparse - dense) * num_sparse / num_layers
    working = 0.0
    if layout.recomputation == "full":
        working = tokens * activation_bytes(
            config, is_sparse=config.experts is not None, precision=precision, recomputation="none"
        )
    in_flight = layers_in_flight(layout, num_layers=num_layers, num_micro_batches=num_micro_batches)
    return TrainingMemory(
        weights=BF16_BYTES * (held + gathered),
        gradients=assumptions.gradient_bytes * graded,
        optimizer=(MASTER_BYTES + 2 * assumptions.moment_bytes) * spread,
        activations=tokens * per_layer * in_flight + working,
        # Logits and their gradient, in bfloat16 each.
        logits=2 * BF16_BYTES * tokens * config.vocab_size,
        runtime=assumptions.runtime_gib * GIB,
    )


def layers_in_flight(layout: Layout, *, num_layers: int, num_micro_batches: int) -> float:
    """Activations that the fullest stage keeps, in those of one layer and micro-batch.

    1F1B: the first stage has as many micro-batches in flight as there are stages, the next one fewer; where layers
    leave a chunk free, the embedding has it (arXiv:2407.21783 §3.3.2). Chunks add (p - 1) / (p v) (arXiv:2205.05198
    §4.2.3). DualPipe has p + 1, of which each is in one of the two stages that a GPU has (arXiv:2412.19437 table 2).
    """
    stages, chunks = layout.pipeline, layout.pipeline * layout.virtual
    if stages == 1:
        return float(num_layers)
    most = -(-num_layers // chunks)
    if layout.schedule == "dualpipe":
        return float(min(num_micro_batches, stages + 1) * most)
    first = layout.virtual * most - (1 if most * chunks > num_layers else 0)
    kept = max(first * min(num_micro_batches, stages), layout.virtual * most * min(num_micro_batches, stages - 1))
    return kept * (1 + (stages - 1) / chunks if layout.virtual > 1 else 1.0)


@cache
def activation_bytes(config: ModelConfig, *, is_sparse: bool, precision: Format, recomputation: str) -> float:
    """Bytes that a layer keeps of a token for its backward pass; attention keeps no scores (arXiv:2205.14135).

    The residual stream twice; inputs of products once, in the precision of the products; queries, keys and values, or
    with selective recomputation the latents they come from; both halves of a gated activation.
    """
    width, mla = config.hidden_size, config.mla
    if recomputation == "full":
        return BF16_BYTES * float(width)
    each = 1 if precision == "float8" else BF16_BYTES
    hidden, carried = activated_width(config, is_sparse=is_sparse), carried_width(config, is_sparse=is_sparse)
    if mla is None:
        qkv, latents = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim, 0
    else:
        head = 2 * (mla.qk_nope_head_dim + mla.qk_rope_head_dim) + mla.v_head_dim
        qkv, latents = config.num_heads * head, (mla.q_lora_rank or width) + mla.cached_width
    residual = BF16_BYTES * 2 * width
    attended = BF16_BYTES * config.attended_width
    gated = each * 2 * hidden
    if recomputation == "selective":
        kept = BF16_BYTES * (latents or qkv)
        return float(residual + kept + attended + gated + each * carried)
    normed = each * 2 * width
    return float(residual + normed + BF16_BYTES * (qkv + latents) + attended + gated + each * (hidden + carried))
