"""How many operations a token takes, from a model's shape alone."""

from __future__ import annotations

from typing import NamedTuple

from aha.models.config import ModelConfig
from aha.models.counts import Matrix, attention_matrices, feed_forward_matrices

BACKWARD = 2
"""A backward pass multiplies by the weights and by the inputs: twice a forward pass (arXiv:2001.08361 §2.1)."""


class TokenFlops(NamedTuple):
    """Operations of one token's forward pass; a multiplication and an addition are two."""

    projections: float
    """Of attention: queries, keys, values or latents, output."""
    attention: float
    """Scores and the values they weigh, over the keys that are visible on average."""
    feed_forward: float
    """Of dense layers and shared experts."""
    experts: float
    """Of the routed experts that the token chooses."""
    gates: float
    head: float
    mtp: float
    """All of multi-token prediction: its layers, eh_proj, and the head once more for each."""

    @property
    def forward(self) -> float:
        return sum(self)

    @property
    def training(self) -> float:
        """Forward and backward, nothing recomputed: the "6 a parameter" of arXiv:2001.08361, and attention."""
        return (1 + BACKWARD) * self.forward


def token_flops(config: ModelConfig, *, visible_keys: float, with_mtp: bool = True) -> TokenFlops:
    """Operations of one token's forward pass. The embedding is looked up and counts nothing.

    Args:
        visible_keys: keys that a query sees, itself included: on average (S + 1) / 2 in a causal sequence of S.
    """
    depths = range(config.num_layers, config.num_layers + (config.num_mtp_layers if with_mtp else 0))
    layers = [_layer(config, index, visible_keys=visible_keys) for index in range(config.num_layers)]
    head = 2.0 * config.vocab_size * config.hidden_size
    eh_proj = 2.0 * 2 * config.hidden_size**2
    mtp = sum(sum(_layer(config, index, visible_keys=visible_keys)) + eh_proj + head for index in depths)
    projections, attention, feed_forward, experts, gates = (sum(column) for column in zip(*layers, strict=True))
    return TokenFlops(projections, attention, feed_forward, experts, gates, head, mtp)


def causal_keys(sequence_tokens: int) -> float:
    """Keys that a query sees on average in a causal sequence."""
    return (sequence_tokens + 1) / 2


def _layer(config: ModelConfig, index: int, *, visible_keys: float) -> tuple[float, float, float, float, float]:
    """projections, attention, feed_forward, experts, gates."""
    wide = list(feed_forward_matrices(config, index=index))
    gate = 2.0 * config.experts.num_experts * config.hidden_size if config.experts and config.is_sparse(index) else 0.0
    return (
        _products(list(attention_matrices(config))),
        attention_flops(config, visible_keys=visible_keys),
        _products([matrix for matrix in wide if not matrix.is_routed]),
        _products([matrix for matrix in wide if matrix.is_routed]),
        gate,
    )


def attention_flops(config: ModelConfig, *, visible_keys: float) -> float:
    """Of one layer and token: query times keys, and weights times values, over all heads."""
    qk_width = config.head_dim if config.mla is None else config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim
    return 2.0 * visible_keys * (config.num_heads * qk_width + config.attended_width)


def _products(matrices: list[Matrix]) -> float:
    return 2.0 * sum(matrix.num_active_parameters for matrix in matrices)
