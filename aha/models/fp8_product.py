"""Matrix products in FP8, for training and for running: forward, and both gradients.

Source: DeepSeek-V3 report (arXiv:2412.19437) §3.3.1 and Fig. 6: the three products of a linear layer take E4M3 on both
sides and give bfloat16 or float32; embedding, head, gate, norms and the attention operator stay as they are. §3.3.2:
tiles of 1 x 128 for what flows through the layer, blocks of 128 x 128 for its weight, and sums taken over to float32
after every 128 of the contracted axis. §3.5.2: what the forward pass keeps for the weight's gradient is its FP8 copy,
which the backward pass cuts anew into tiles of 128 tokens.

Where we go another way: the report keeps the attention's output (the input of o_proj) in a format of its own, E5M6, and
gives only those activations scales that are powers of two; here every kept activation is E4M3 with such scales.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models.fp8 import (
    ACTIVATION_BLOCK,
    BLOCK_SIZE,
    FP8,
    WEIGHT_BLOCK,
    Quantised,
    dequantise,
    quantise_activations,
    quantise_weight,
)

_ROW_MULTIPLE = 16
"""What cuBLAS wants the rows of the left side to be a multiple of."""
_LEAST_CUDA = (12, 9)
"""The first whose cuBLAS multiplies blocks of 128."""


def fp8_linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """`F.linear` in FP8, differentiable; its gradients are FP8 products too.

    Args:
        x_TK: T tokens, float32 or bfloat16.
        weight_NK: in the model's dtype; it is quantised here, as it is now.

    Returns:
        (T, N) in the dtype of `x_TK`. Where the weight holds NaN or infinity, so does the product.
    """
    product = cast(Tensor, _Fp8Linear.apply(x_TK, weight_NK))  # type: ignore[no-untyped-call]
    return product if bias_N is None else product + bias_N


class _Fp8Linear(torch.autograd.Function):
    """The three products of a linear layer, DeepSeek-V3 report Fig. 6."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor) -> Tensor:
        x8 = keep_activations(x_TK)
        ctx.save_for_backward(*x8, weight_NK)
        ctx.x_dtype = x_TK.dtype
        return multiply(x8, quantise_weight(weight_NK), right_block=WEIGHT_BLOCK, dtype=x_TK.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, scale_inv, weight_NK = ctx.saved_tensors
        grad_TN = grad_outputs[0]
        grad_x_TK = grad_weight_NK = None
        if ctx.needs_input_grad[0]:
            # The same FP8 numbers as in the forward pass: a transposed block of 128 x 128 is one.
            weight8 = quantise_weight(weight_NK)
            transposed = Quantised(weight8.values.T, weight8.scale_inv.T)
            grad8 = quantise_activations(grad_TN)
            grad_x_TK = multiply(grad8, transposed, right_block=WEIGHT_BLOCK, dtype=ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            x_KT = dequantise(Quantised(values, scale_inv), block=ACTIVATION_BLOCK).T
            grad_weight_NK = multiply(
                quantise_activations(grad_TN.T),
                keep_activations(x_KT),
                right_block=ACTIVATION_BLOCK,
                dtype=weight_NK.dtype,
            )
        return grad_x_TK, grad_weight_NK


def keep_activations(x_TK: Tensor) -> Quantised:
    """Activations in FP8 as the forward pass multiplies and keeps them.

    Scales are powers of two, so that cutting them anew along tokens rounds nothing that is not far below the largest
    of its tile (DeepSeek-V3 report §3.3.3).
    """
    return quantise_activations(x_TK, scale_fmt="ue8m0")


def multiply(left: Quantised, right: Quantised, *, right_block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """left @ right.T of FP8 tensors, with sums in float32: by the GPU's own FP8 units where torch offers them.

    Args:
        left: (M, K) with a scale for each row and 128 columns.
        right: (N, K) with scales for blocks of `right_block`.
        dtype: of the result, (M, N).
    """
    product = _multiply_on_hopper if has_fp8_units(left.values.device) else _multiply_emulated
    return product(left, right, right_block=right_block, dtype=dtype)


def has_fp8_units(device: torch.device) -> bool:
    """Whether torch multiplies blocks of 128 in FP8 there: on Hopper (compute capability 9.0) and nowhere else."""
    if device.type != "cuda" or not hasattr(F, "scaled_mm") or torch.version.cuda is None:
        return False
    cuda_version = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    return torch.cuda.get_device_capability(device) == (9, 0) and cuda_version >= _LEAST_CUDA


def _multiply_emulated(
    left: Quantised, right: Quantised, *, right_block: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """What the FP8 units compute, in float32: products of E4M3 numbers are exact there, their sums nearly so.

    Source: DeepSeek-V3, inference/kernel.py, fp8_gemm_kernel.
    """
    left_MK = dequantise(left, block=ACTIVATION_BLOCK)
    right_NK = dequantise(right, block=right_block)
    total_MN = left_MK.new_zeros(len(left_MK), len(right_NK))
    for left_part, right_part in zip(left_MK.split(BLOCK_SIZE, 1), right_NK.split(BLOCK_SIZE, 1), strict=True):
        total_MN.addmm_(left_part, right_part.T)
    return total_MN.to(dtype)


def _multiply_on_hopper(
    left: Quantised, right: Quantised, *, right_block: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The same by cuBLAS. Layouts: aten/src/ATen/native/cuda/ScaledBlas.cpp, _scaled_block1x128_block128x128.

    Sides are filled up with zeros to whole blocks, which cuBLAS wants.
    """
    num_rows, num_columns = len(left.values), len(right.values)
    a_MK = _filled(left.values, rows=_ROW_MULTIPLE)
    b_NK = _filled(right.values, rows=BLOCK_SIZE)
    scale_a = _columns_first(left.scale_inv, num_rows=len(a_MK))
    tiles = F.ScalingType.BlockWise1x128
    if right_block == WEIGHT_BLOCK:
        recipe_b = F.ScalingType.BlockWise128x128
        scale_b = _columns_first(right.scale_inv.T, num_rows=-(-right.scale_inv.shape[1] // 4) * 4)
    else:
        recipe_b = tiles
        scale_b = _columns_first(right.scale_inv, num_rows=len(b_NK))
    product = F.scaled_mm(a_MK, b_NK.T, scale_a, tiles, scale_b, recipe_b, output_dtype=dtype)
    return product[:num_rows, :num_columns]


def _filled(values: Tensor, *, rows: int) -> Tensor:
    """FP8 values with zeros to a multiple of `rows` rows and of 128 columns, rows contiguous."""
    padding = (0, -values.shape[1] % BLOCK_SIZE, 0, -values.shape[0] % rows)
    # As bytes: FP8 knows little more than casts on some devices. Zero is the byte 0.
    return F.pad(values.contiguous().view(torch.uint8), padding).view(FP8)


def _columns_first(scales: Tensor, *, num_rows: int) -> Tensor:
    """Scales with `num_rows` rows, stored column after column; the rows beyond them multiply zeros."""
    stored = scales.new_ones(scales.shape[1], num_rows)
    stored[:, : len(scales)] = scales.T
    return torch.as_strided(stored, (num_rows, scales.shape[1]), (1, num_rows))
