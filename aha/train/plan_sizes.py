"""What one token costs in a model of a given shape: products, weights that are read, activations that are kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from aha.models import ModelConfig
from aha.models.attention import MAX_PADDED_RATIO, MAX_PLAIN_LENGTH
from aha.models.counts import (
    Matrix,
    attention_matrices,
    count_parameters,
    feed_forward_matrices,
    layer_matrices,
    shared_matrices,
)
from aha.train.run_shape import RunShape

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of parameters, by what is done with them."""

    held: int
    """All that lie in memory, multi-token prediction included."""
    matrices: int
    """Of the layers' matrices, routed experts included."""
    shared: int
    """Of those, the ones that every token is multiplied with; on a CPU the engine packs copies of them."""
    active: int
    """Numbers that one token is multiplied with in the layers: shared matrices, its experts, the gates."""
    head: int
    """Of the output head, which may be the embedding."""
    mtp_active: int
    """As `active`, in the modules of multi-token prediction."""

    @property
    def routed(self) -> int:
        return self.matrices - self.shared


@functools.cache
def sizes_of(config: ModelConfig) -> Sizes:
    """The parameters of a configuration, counted without making them."""
    layers = range(config.num_layers)
    matrices = [matrix for index in layers for matrix in layer_matrices(config, index=index)]
    depths = range(config.num_layers, config.num_layers + config.num_mtp_layers)
    eh_proj = 2 * config.hidden_size**2
    return Sizes(
        held=count_parameters(config).held,
        matrices=sum(matrix.num_parameters for matrix in matrices),
        shared=shared_matrices(config),
        active=sum(_active(config, index) for index in layers),
        head=config.vocab_size * config.hidden_size,
        mtp_active=sum(_active(config, index) + eh_proj for index in depths),
    )


def _active(config: ModelConfig, index: int) -> int:
    gate = config.experts.num_experts * config.hidden_size if config.experts and config.is_sparse(index) else 0
    return gate + sum(matrix.num_active_parameters for matrix in layer_matrices(config, index=index))


def read_parameters(config: ModelConfig, *, num_rows: float) -> float:
    """Parameters of the layers that a decoding step of so many rows reads.

    Of the routed experts those that any row has chosen: E (1 - (1 - k/E)^rows) of E, if all are chosen equally often.
    """
    sizes = sizes_of(config)
    if config.experts is None:
        return sizes.shared
    share = config.experts.num_experts_per_token / config.experts.num_experts
    chosen: float = 1 - (1 - share) ** num_rows
    return sizes.shared + sizes.routed * chosen


def adapted_matrices(config: ModelConfig, *, run: RunShape) -> Iterator[Matrix]:
    """Matrices of all layers that LoRA puts adapters beside; routed experts have none (aha.models.lora)."""
    for index in range(config.num_layers):
        if run.lora_targets in ("attention", "all_linear"):
            yield from attention_matrices(config)
        if run.lora_targets in ("mlp", "all_linear"):
            yield from (matrix for matrix in feed_forward_matrices(config, index=index) if not matrix.is_routed)


def activation_bytes(config: ModelConfig, *, run: RunShape, is_cpu: bool) -> int:
    """What autograd keeps of one micro-batch, in the order in which the layer computes it."""
    layers = [_layer_activations(config, index, run=run, is_cpu=is_cpu) for index in range(config.num_layers)]
    # Recomputed, each layer keeps its input, and one layer at a time the rest.
    per_layers = config.num_layers * config.hidden_size + max(layers) if run.recomputes else sum(layers)
    per_token = per_layers + 3 * config.hidden_size + 2 * config.rope_dim
    if run.mtp_weight > 0:
        # Inputs of the three norms, both normed halves side by side, and what the head reads.
        depths = range(config.num_layers, config.num_layers + config.num_mtp_layers)
        block = [_layer_activations(config, index, run=run, is_cpu=is_cpu) for index in depths]
        per_token += sum(block) + len(block) * (7 * config.hidden_size + 2 * config.rope_dim)
    # A sequence longer than the micro-batch is computed alone and whole.
    num_tokens = max(run.micro_batch_tokens, run.longest_sequence)
    return int(num_tokens * per_token) * BYTES[run.dtype]


def _layer_activations(config: ModelConfig, index: int, *, run: RunShape, is_cpu: bool) -> float:
    """Numbers of the compute dtype that a layer keeps for a token."""
    # Inputs of the two norms, and of the products that follow them.
    kept = 4 * config.hidden_size + _attention_activations(config, run=run, is_cpu=is_cpu)
    kept += _feed_forward_activations(config, index, num_bytes=BYTES[run.dtype])
    if run.lora_rank:
        matrices = [*attention_matrices(config), *feed_forward_matrices(config, index=index)]
        kept += run.lora_rank * sum(m.copies for m in matrices if not m.is_routed)  # x A beside each
    return kept


def _attention_activations(config: ModelConfig, *, run: RunShape, is_cpu: bool) -> float:
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = (heads + 2 * kv_heads) * head_dim
    attended = heads * head_dim
    # Attention sees every sequence whole: padded, and its prompt too, which is computed once for a group.
    group = run.group_size if run.stage == "grpo" else 1
    seen = max(MAX_PADDED_RATIO, group * run.longest_sequence / (run.prompt_tokens + group * run.max_tokens))
    # Short sequences on a CPU keep their weights, others what attention gives before its padding is cut.
    weights = heads * min(seen * run.longest_sequence, MAX_PLAIN_LENGTH) if is_cpu else 0
    # q, k, v; the weights or the result; and the output projection's input.
    kept = seen * qkv + max(weights, seen * attended) + config.attended_width
    if config.mla is not None:
        # The latents before and after their norms: keys and values are made from the latter.
        kept += 2 * (config.mla.q_lora_rank or 0) + 2 * config.mla.cached_width
    if config.has_qk_norm:
        kept += qkv + attended + kv_heads * head_dim  # q and k before their norms, and contiguous copies of them
    return kept


def _feed_forward_activations(config: ModelConfig, index: int, *, num_bytes: int) -> float:
    experts = config.experts
    if experts is None or not config.is_sparse(index):
        return 4 * config.intermediate_size  # gate and up, silu(gate), their product
    k, hidden, width = experts.num_experts_per_token, experts.intermediate_size, config.hidden_size
    kept = 2.0 * k * hidden  # gate and up of each chosen expert: the rest is computed again for the backward pass
    # The gate computes in float32: its input, its scores, and its choice as 64-bit numbers, sorted and back.
    kept += (4 * width + 4 * experts.num_experts + 6 * 8 * k) / num_bytes
    return kept + 4 * experts.num_shared_experts * hidden


def widest_forward(config: ModelConfig) -> float:
    """Numbers that a forward pass that keeps nothing holds of a token at its widest point."""
    attention = 2 * (config.num_heads + 2 * config.num_kv_heads) * config.head_dim if config.mla else 0
    feed_forward = 4 * config.intermediate_size
    if config.experts is not None:
        experts = config.experts
        per_expert = 2 * config.hidden_size + 4 * experts.intermediate_size
        sparse = experts.num_experts_per_token * per_expert
        dense_layers = [index for index in range(config.num_layers) if not config.is_sparse(index)]
        feed_forward = max(sparse, feed_forward if dense_layers else 0)
    return 3 * config.hidden_size + max(attention, feed_forward)
