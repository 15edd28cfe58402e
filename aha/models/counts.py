"""How many parameters a configuration comes to, how many of them a token uses, and what it leaves in the cache.

Counted on the meta device, so that a model of any size costs no memory.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import nn

from aha.models.checkpoint import build_model
from aha.models.config import ModelConfig
from aha.models.experts import MixtureOfExperts


class ParameterCounts(NamedTuple):
    """Numbers of parameters. Gates' selection biases, which are buffers, are not among them."""

    total: int
    """Of the model itself: embedding, layers and head, without multi-token prediction."""
    active: int
    """Of `total`, those that one token uses: of each sparse layer k of its E routed experts, and all the rest."""
    embedding: int
    """Of `total`, the input embedding: looked up, never multiplied."""
    head: int
    """Of `total`, the output head; 0 where it is the embedding itself."""
    mtp: int
    """In the modules of multi-token prediction, beside `total`; they share embedding and head."""
    mtp_active: int
    """Of `mtp`, those that one token uses."""


@functools.cache
def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Parameters of a model of this shape; nothing is allocated.

    DeepSeek-V3 (arXiv:2412.19437, and README_WEIGHTS.md beside its weights) publishes 671B in total: `total`. Its 37B
    active lie between `active` without the embedding, which is looked up only (36.63B), and with it (37.55B). Its 11.5B
    of multi-token prediction leave eh_proj out (`mtp` is 11.61B); the 14B that its files have beyond 671B are
    `mtp + embedding + head`, since they hold the shared two again.
    """
    model = build_model(config, device="meta")
    mtp = _size(model.mtp)
    total = model.num_parameters() - mtp
    num_chosen = config.experts.num_experts_per_token if config.experts is not None else 0
    shared = config.vocab_size * config.hidden_size
    return ParameterCounts(
        total=total,
        active=total - _idle(model.layers, num_chosen=num_chosen),
        embedding=shared,
        head=0 if config.tie_word_embeddings else shared,
        mtp=mtp,
        mtp_active=mtp - _idle(model.mtp, num_chosen=num_chosen),
    )


def cache_bytes_per_token(config: ModelConfig, *, bytes_per_value: int = 2) -> int:
    """Bytes that one token leaves in the cache of all layers, those of multi-token prediction aside.

    Args:
        bytes_per_value: 2 in bfloat16, 4 in float32.
    """
    return config.num_layers * config.cached_width * bytes_per_value


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _idle(module: nn.Module, *, num_chosen: int) -> int:
    """Parameters of the routed experts that a token does not go to."""
    idle = 0
    for experts in module.modules():
        if isinstance(experts, MixtureOfExperts):
            num_experts = len(experts.down_proj)
            routed = experts.gate_up_proj.numel() + experts.down_proj.numel()
            idle += routed // num_experts * (num_experts - num_chosen)
    return idle
