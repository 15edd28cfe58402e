"""How fast a step was and what it held: rates, utilisation and memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from typing import Literal

import torch

from aha.models import Transformer
from aha.models.lora import adapters
from aha.train.batches import TrainingSequence, count_shared, split_by_tokens
from aha.train.machines import peak_teraflops
from aha.train.plan_sizes import sizes_of


def speed_metrics(
    model: Transformer,
    updates: Sequence[Sequence[TrainingSequence]],
    *,
    micro_batch_tokens: int,
    completion_tokens: int,
    rollout_seconds: float,
    train_seconds: float,
) -> dict[str, float]:
    """Rates of a step's two phases, how much of the device its training used, and the memory.

    Args:
        updates: the sequences that each optimiser step trained.
        completion_tokens: sampled.
    """
    flops = sum(training_flops(model, update, micro_batch_tokens=micro_batch_tokens) for update in updates)
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    return {
        "tokens_per_second": completion_tokens / (rollout_seconds + train_seconds),
        "rollout_tokens_per_second": completion_tokens / rollout_seconds,
        "train_tokens_per_second": sum(s.num_trained for update in updates for s in update) / train_seconds,
        "mfu": flops / train_seconds / (peak_teraflops(model.device, dtype=dtype) * 1e12),
        "peak_memory_bytes": peak_memory_bytes(model.device),
    }


def training_flops(model: Transformer, sequences: Sequence[TrainingSequence], *, micro_batch_tokens: int) -> float:
    """Operations that the forward and backward passes of an update need, as model FLOPs utilisation counts them.

    Source: PaLM (arXiv:2204.02311) appendix B: 6 a parameter and token, 12 a layer, channel and visible key: half of it
    for keys and half for values, whose widths differ with latent attention. Of routed experts a token's own count,
    not all that there are; multi-token prediction is no part of it. What is computed again is left out, so are the
    passes of a reference model and of old log-probabilities. Tokens of a prompt that sequences share count once, and
    the head counts trained tokens only, since no more is computed.

    Args:
        micro_batch_tokens: decides which sequences share a prompt.
    """
    config = model.config
    body = active_body_parameters(model)
    head = config.vocab_size * config.hidden_size
    num_computed = sum(_num_computed(batch) for batch in split_by_tokens(sequences, max_tokens=micro_batch_tokens))
    num_trained = sum(s.num_trained for s in sequences)
    # A token sees half of its sequence on average.
    num_seen = sum(s.num_tokens**2 for s in sequences) / 2
    value_dim = config.head_dim if config.mla is None else config.mla.v_head_dim
    attention = 6 * config.num_layers * config.num_heads * (config.head_dim + value_dim) * num_seen
    return 6 * (body * num_computed + head * num_trained) + attention


def active_body_parameters(model: Transformer) -> int:
    """Parameters of the layers' matrices, and adapters, that one token is multiplied with: of E routed experts k."""
    added = sum(p.numel() for _, low_rank in adapters(model) for p in low_rank.parameters())
    return sizes_of(model.config).active + added


def _num_computed(micro_batch: Sequence[TrainingSequence]) -> int:
    before = [None, *micro_batch]
    return sum(s.num_tokens - count_shared(p, s) for p, s in zip(before, micro_batch, strict=False))


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: of this process on a CPU, of PyTorch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
