"""Log-probabilities of chosen tokens without ever holding [N, V] logits."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from aha.models import PackedAttention, Routing, Transformer
from aha.models.fp8_product import training_products
from aha.train.batches import PackedBatch

CHUNK_ELEMENTS = 1 << 24
"""Logits held at a time: 2**24 floats are 67 MB. With fewer, adding up the head's gradients takes longer than them."""

_ROWS_ADDED = 1024
_LOWEST = -1e30
"""Stands for -inf where a product with 0 must be 0."""


class TokenLogprobs(NamedTuple):
    """Per trained token: its log-probability (differentiable) and the entropy of its distribution (not)."""

    logprobs_M: Tensor
    entropy_M: Tensor


def token_logprobs(
    model: Transformer, batch: PackedBatch, *, temperature: float = 1.0, routings: list[Routing] | None = None
) -> TokenLogprobs:
    """Log-probability of every completion token of a packed batch, under the model now.

    Args:
        temperature: what the logits are divided by: the one the tokens were sampled with.
        routings: where to append what the gates of sparse layers decided.
    """
    hidden_ND = packed_states(model, batch, routings=routings)
    hidden_MD = hidden_ND.index_select(0, batch.predictor_rows_M)
    return logprobs_of(model, hidden_MD, targets_M=batch.targets_M, temperature=temperature)


def packed_states(model: Transformer, batch: PackedBatch, *, routings: list[Routing] | None = None) -> Tensor:
    """Hidden states (N, D) of a packed batch, after the final norm."""
    return model.hidden_states(
        batch.token_ids_N,
        positions_N=batch.positions_N,
        attention=PackedAttention(batch.lengths, rows=batch.rows),
        linear=training_products(model),
        routings=routings,
    )


def logprobs_of(model: Transformer, hidden_MD: Tensor, *, targets_M: Tensor, temperature: float = 1.0) -> TokenLogprobs:
    """Log-probability of one token for each hidden state."""
    arguments = (hidden_MD, model.output_weight, targets_M, 1.0 / temperature)
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
        entropy_M = torch.empty_like(logprobs_M)
        chunks = _Chunks(hidden_MD, weight_VD, scale=scale)
        for rows in chunks.slices:
            logits = chunks.logits(rows)
            logprobs = torch.log_softmax(logits, dim=-1, out=chunks.scratch(rows))
            logprobs_M[rows] = logprobs.gather(1, targets_M[rows, None]).squeeze(1)
            log_normaliser = logits.gather(1, targets_M[rows, None]).squeeze(1) - logprobs_M[rows]
            # Entropy is the normaliser minus the expected logit: a product of a row and a column, for which no
            # third matrix is written. Clamped, since a token of probability 0 may have a logit of -inf.
            expected = torch.bmm(logprobs.exp_()[:, None, :], logits.clamp_(min=_LOWEST)[:, :, None])
            entropy_M[rows] = log_normaliser - expected.view(-1)
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropy_M)
        return logprobs_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_MD, weight_VD, targets_M = ctx.saved_tensors
        grad_M = grad_outputs[0] * ctx.scale
        grad_hidden_MD = torch.empty_like(hidden_MD)
        # A frozen head, as under LoRA, costs neither the gradient's memory nor a third of the products.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        chunks = _Chunks(hidden_MD, weight_VD, scale=ctx.scale)
        for rows in chunks.slices:
            # d logprob / d logit = one_hot - softmax.
            softmax = torch.softmax(chunks.logits(rows), dim=-1, out=chunks.scratch(rows))
            grad_logits = softmax.mul_(-grad_M[rows, None])
            grad_logits.scatter_add_(1, targets_M[rows, None], grad_M[rows, None])
            grad_logits = grad_logits.to(hidden_MD.dtype)
            grad_hidden_MD[rows] = grad_logits @ weight_VD
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_logits.T, hidden_MD[rows])
        return grad_hidden_MD, None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype), None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total is float32 whatever the others are."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
        return
    product = left @ right
    # In pieces, which stay in the processor's cache: adding all at once would write a float32 copy of it to memory.
    for part, added in zip(total.split(_ROWS_ADDED), product.split(_ROWS_ADDED), strict=True):
        part += added


class _Chunks:
    """Logits of some rows at a time, in memory that is taken once: fresh memory costs as much as a pass over it."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, *, scale: float) -> None:
        self._hidden_MD = hidden_MD
        self._weight_VD = weight_VD
        self._scale = scale
        num_rows, vocab_size = len(hidden_MD), len(weight_VD)
        self._size = max(1, min(num_rows, CHUNK_ELEMENTS // vocab_size))
        self._logits = torch.empty(self._size, vocab_size, dtype=torch.float32, device=hidden_MD.device)
        self._scratch = torch.empty_like(self._logits)
        self.slices = [slice(start, min(start + self._size, num_rows)) for start in range(0, num_rows, self._size)]

    def logits(self, rows: slice) -> Tensor:
        """Scaled, until the next call. float32: a bf16 log-softmax is off by 1e-2, which biases the ratio."""
        logits = self._logits[: rows.stop - rows.start].copy_(self._hidden_MD[rows] @ self._weight_VD.T)
        return logits if self._scale == 1.0 else logits.mul_(self._scale)

    def scratch(self, rows: slice) -> Tensor:
        """Room for as many numbers, until the next call."""
        return self._scratch[: rows.stop - rows.start]
