"""Log-probabilities of chosen tokens without ever holding [N, V] logits."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from aha.models import PackedAttention, Transformer
from aha.train.batches import PackedBatch

CHUNK_ELEMENTS = 1 << 23
"""Logits held at a time: 2**23 floats are 32 MB, which stays within reach of a CPU's last-level cache."""


class TokenLogprobs(NamedTuple):
    """Per trained token: its log-probability (differentiable) and the entropy of its distribution (not)."""

    logprobs_M: Tensor
    entropy_M: Tensor


def token_logprobs(model: Transformer, batch: PackedBatch, *, temperature: float = 1.0) -> TokenLogprobs:
    """Log-probability of every completion token of a packed batch, under the model now.

    Args:
        temperature: what the logits are divided by: the one the tokens were sampled with.
    """
    hidden_ND = model.hidden_states(
        batch.token_ids_N, positions_N=batch.positions_N, attention=PackedAttention(batch.lengths, rows=batch.rows)
    )
    hidden_MD = hidden_ND.index_select(0, batch.predictor_rows_M)
    arguments = (hidden_MD, model.output_weight, batch.targets_M, 1.0 / temperature)
    result = _ChunkedLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*cast(tuple[Tensor, Tensor], result))


class _ChunkedLogprobs(torch.autograd.Function):
    """Selected log-softmax in chunks of rows; the backward pass computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        num_rows = len(hidden_MD)
        logprobs_M = torch.empty(num_rows, dtype=torch.float32, device=hidden_MD.device)
        entropy_M, log_normaliser_M = torch.empty_like(logprobs_M), torch.empty_like(logprobs_M)
        for rows in _row_chunks(num_rows, vocab_size=len(weight_VD)):
            # fp32: a bf16 log-softmax is off by 1e-2, which biases the ratio of new to old policy.
            logits = (hidden_MD[rows] @ weight_VD.T).float().mul_(scale)
            log_normaliser = logits.logsumexp(dim=-1)
            logprobs_M[rows] = logits.gather(1, targets_M[rows, None]).squeeze(1) - log_normaliser
            probabilities = (logits - log_normaliser[:, None]).exp_()
            entropy_M[rows] = log_normaliser - (probabilities * logits).sum(dim=-1)
            log_normaliser_M[rows] = log_normaliser
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M, log_normaliser_M)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropy_M)
        return logprobs_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_M = grad_outputs[0]
        hidden_MD, weight_VD, targets_M, log_normaliser_M = ctx.saved_tensors
        grad_hidden_MD = torch.empty_like(hidden_MD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for rows in _row_chunks(len(hidden_MD), vocab_size=len(weight_VD)):
            logits = (hidden_MD[rows] @ weight_VD.T).float().mul_(ctx.scale)
            # d logprob / d logit = one_hot - softmax, times the scale.
            grad_logits = logits.sub_(log_normaliser_M[rows, None]).exp_().neg_()
            grad_logits.scatter_add_(1, targets_M[rows, None], torch.ones_like(grad_logits[:, :1]))
            grad_logits.mul_(grad_M[rows, None] * ctx.scale)
            grad_logits = grad_logits.to(hidden_MD.dtype)
            grad_hidden_MD[rows] = grad_logits @ weight_VD
            grad_weight_VD += grad_logits.T @ hidden_MD[rows]
        return grad_hidden_MD, grad_weight_VD.to(weight_VD.dtype), None, None


def _row_chunks(num_rows: int, *, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
