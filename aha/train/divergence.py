"""Divergence of a student's token distributions from a teacher's, without ever holding [N, V] logits."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from aha.models import Routing, Transformer
from aha.train.batches import PackedBatch
from aha.train.logprobs import CHUNK_ELEMENTS, packed_states

Divergence = Literal["reverse_kl", "forward_kl"]
_LOWEST = -1e30
"""Stands for -inf where a product with 0 must be 0."""


def token_divergences(
    student: Transformer,
    teacher: Transformer,
    batch: PackedBatch,
    *,
    divergence: Divergence,
    temperature: float = 1.0,
    routings: list[Routing] | None = None,
) -> Tensor:
    """Divergence at every trained position of a packed batch, over the whole vocabulary.

    Source: on-policy distillation, GKD (arXiv:2306.13649) §3: reverse KL(student || teacher) seeks the teacher's modes,
    forward KL(teacher || student) covers them. The tokens are data here: no gradient flows through their sampling.

    Args:
        temperature: what both models' logits are divided by: the one the tokens were sampled with.
        routings: where to append what the gates of the student's sparse layers decided.

    Returns:
        Nats (M,), float32, differentiable in the student's parameters only.
    """
    hidden_MD = packed_states(student, batch, routings=routings).index_select(0, batch.predictor_rows_M)
    with torch.no_grad():
        teacher_MD = packed_states(teacher, batch).index_select(0, batch.predictor_rows_M)
    arguments = (hidden_MD, student.output_weight, teacher_MD, teacher.output_weight.detach())
    result = _ChunkedDivergence.apply(*arguments, divergence, 1.0 / temperature)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _ChunkedDivergence(torch.autograd.Function):
    """A divergence in chunks of rows; the gradient of each is taken in the forward pass, where its logits are."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        teacher_MD: Tensor,
        teacher_weight_VD: Tensor,
        divergence: Divergence,
        scale: float,
    ) -> Tensor:
        num_rows, vocab_size = len(hidden_MD), len(weight_VD)
        size = max(1, CHUNK_ELEMENTS // vocab_size)
        values_M = torch.empty(num_rows, dtype=torch.float32, device=hidden_MD.device)
        for start in range(0, num_rows, size):
            rows = slice(start, start + size)
            student = _log_softmax(hidden_MD[rows], weight_VD, scale=scale)
            teacher = _log_softmax(teacher_MD[rows], teacher_weight_VD, scale=scale)
            values_M[rows] = _values(student, teacher, divergence)
        ctx.save_for_backward(hidden_MD, weight_VD, teacher_MD, teacher_weight_VD)
        ctx.divergence, ctx.scale, ctx.size = divergence, scale, size
        return values_M

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_MD, weight_VD, teacher_MD, teacher_weight_VD = ctx.saved_tensors
        grad_M = grad_outputs[0] * ctx.scale
        grad_hidden_MD = torch.empty_like(hidden_MD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(hidden_MD), ctx.size):
            rows = slice(start, start + ctx.size)
            student = _log_softmax(hidden_MD[rows], weight_VD, scale=ctx.scale)
            teacher = _log_softmax(teacher_MD[rows], teacher_weight_VD, scale=ctx.scale)
            grad_logits = _gradient(student, teacher, ctx.divergence).mul_(grad_M[rows, None])
            grad_logits = grad_logits.to(hidden_MD.dtype)
            grad_hidden_MD[rows] = grad_logits @ weight_VD
            grad_weight_VD += (grad_logits.T @ hidden_MD[rows]).float()
        return grad_hidden_MD, grad_weight_VD.to(weight_VD.dtype), None, None, None, None


def _log_softmax(hidden: Tensor, weight_VD: Tensor, *, scale: float) -> Tensor:
    """float32: a bf16 log-softmax is off by 1e-2."""
    logits = (hidden @ weight_VD.T).float() * scale
    # A token of probability 0 may have a logit of -inf, and 0 * -inf is no number.
    return torch.log_softmax(logits, dim=-1).clamp_(min=_LOWEST)


def _values(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    if divergence == "reverse_kl":
        return (student.exp() * (student - teacher)).sum(dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def _gradient(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """Of the divergence in the student's logits: p (log p/q - KL) for the reverse one, p - q for the forward one."""
    probabilities = student.exp()
    if divergence == "forward_kl":
        return probabilities - teacher.exp()
    gaps = student - teacher
    return probabilities * (gaps - (probabilities * gaps).sum(dim=-1, keepdim=True))
