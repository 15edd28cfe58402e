"""Matrix products in FP8, for training and for running: forward, and both gradients.

Source: DeepSeek-V3 report (arXiv:2412.19437) §3.3.1 and Fig. 6: the three products of a linear layer take E4M3 on both
sides and give bfloat16 or float32; embedding, head, gate, norms and the attention operator stay as they are. §3.3.2:
tiles of 1 x 128 for what flows through the layer, blocks of 128 x 128 for its weight, and sums taken over to float32
after every 128 of the contracted axis. §3.5.2: what the forward pass keeps for the weight's gradient is its FP8 copy,
which the backward pass cuts anew into tiles of 128 tokens.

Where we go another way: the attention's output (the input of o_proj) is kept like every other activation, in E4M3 with
a scale of 24 bits; the report has a format of its own for it, E5M6 with powers of two (§3.3.3). With powers of two
everywhere, as DeepSeek-V3.1 was trained, small models learnt measurably worse (docs/fp8.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models.experts import grouped_outer, grouped_product
from aha.models.fp8 import (
    ACTIVATION_BLOCK,
    FP8,
    Quantised,
    dequantise,
    quantise,
    quantise_activations,
    quantise_weight,
)
from aha.models.fp8_config import BLOCK_SIZE, WEIGHT_BLOCK, ScaleFormat
from aha.models.mtp import MultiTokenPrediction
from aha.models.projection import Linear
from aha.models.transformer import Transformer

SCALES: ScaleFormat = "float"
"""Of everything that is multiplied."""
_ROW_MULTIPLE = 16
"""What cuBLAS wants the rows of the left side to be a multiple of."""
_LEAST_CUDA = (12, 9)
"""The first whose cuBLAS multiplies blocks of 128."""


def training_products(model: Transformer) -> Linear:
    """What a training pass over a model multiplies by: `hidden_states(…, linear=training_products(model))`."""
    return F.linear if model.products == "full" else Fp8Products(model)


class Fp8Products:
    """Products of a model's layers in FP8, those of its experts too.

    As in checkpoints, the matrix that joins the two inputs of a multi-token-prediction module is left alone.
    """

    def __init__(self, model: Transformer) -> None:
        modules = cast(Iterable[MultiTokenPrediction], model.mtp)
        self._exact = {id(module.eh_proj.weight) for module in modules}

    def __call__(self, x_ND: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        multiply = F.linear if id(weight) in self._exact else fp8_linear
        return multiply(x_ND, weight, bias)

    def grouped(self, x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
        """Rows sorted by expert, each times its expert's matrix: see `aha.models.experts.grouped_product`."""
        return cast(Tensor, _Fp8Grouped.apply(x_MD, weight_EFD, ends_E))  # type: ignore[no-untyped-call]


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
        x8 = quantise_activations(x_TK, scale_fmt=SCALES)
        ctx.save_for_backward(*x8, weight_NK)
        ctx.x_dtype = x_TK.dtype
        weight8 = quantise_weight(weight_NK, scale_fmt=SCALES)
        return multiply(x8, weight8, right_block=WEIGHT_BLOCK, dtype=x_TK.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, scale_inv, weight_NK = ctx.saved_tensors
        grad_TN = grad_outputs[0]
        grad_x_TK = grad_weight_NK = None
        if ctx.needs_input_grad[0]:
            # The same FP8 numbers as in the forward pass: a transposed block of 128 x 128 is one.
            weight8 = quantise_weight(weight_NK, scale_fmt=SCALES)
            transposed = Quantised(weight8.values.T, weight8.scale_inv.T)
            grad8 = quantise_activations(grad_TN, scale_fmt=SCALES)
            grad_x_TK = multiply(grad8, transposed, right_block=WEIGHT_BLOCK, dtype=ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            x_KT = dequantise(Quantised(values, scale_inv), block=ACTIVATION_BLOCK).T
            sides = (quantise_activations(side, scale_fmt=SCALES) for side in (grad_TN.T, x_KT))
            grad_weight_NK = multiply(*sides, right_block=ACTIVATION_BLOCK, dtype=weight_NK.dtype)
        return grad_x_TK, grad_weight_NK


class _Fp8Grouped(torch.autograd.Function):
    """The same for the matrices of all experts at once, each over the rows that are its own.

    The numbers are FP8's, and are multiplied in float32 on a CPU; on a GPU in the model's dtype, where bfloat16 rounds
    them a 32nd as much as FP8 did. torch's grouped product of FP8 has one scale for a whole row.
    """

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
        x8 = quantise_activations(x_MD, scale_fmt=SCALES)
        ctx.save_for_backward(*x8, weight_EFD, ends_E)
        ctx.x_dtype = x_MD.dtype
        weight8_EFD = _rounded(weight_EFD, block=WEIGHT_BLOCK)
        rows_MD = dequantise(x8, block=ACTIVATION_BLOCK).to(weight8_EFD.dtype)
        return grouped_product(rows_MD, weight8_EFD.transpose(1, 2), ends_E).to(x_MD.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, scale_inv, weight_EFD, ends_E = ctx.saved_tensors
        grad_MF = grad_outputs[0]
        grad_x_MD = grad_weight_EFD = None
        if ctx.needs_input_grad[0]:
            rows_MF = _rounded(grad_MF, block=ACTIVATION_BLOCK)
            weight8_EFD = _rounded(weight_EFD, block=WEIGHT_BLOCK)
            grad_x_MD = grouped_product(rows_MF, weight8_EFD, ends_E).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            x_MD = dequantise(Quantised(values, scale_inv), block=ACTIVATION_BLOCK)
            cells_M = _token_cells(ends_E)
            rows_MF = _rounded_by_tokens(grad_MF, cells_M)
            rows_MD = _rounded_by_tokens(x_MD, cells_M).to(rows_MF.dtype)
            grad_weight_EFD = grouped_outer(rows_MF, rows_MD, ends_E).to(weight_EFD.dtype)
        return grad_x_MD, grad_weight_EFD, None


def _rounded(x: Tensor, *, block: tuple[int, int]) -> Tensor:
    """What FP8 makes of a tensor, in the dtype that it is multiplied in."""
    rounded = dequantise(quantise(x, block=block, scale_fmt=SCALES), block=block)
    return rounded if x.device.type == "cpu" else rounded.to(x.dtype)


def _token_cells(ends_E: Tensor) -> Tensor:
    """Where each of M rows sorted by expert lies when every expert's rows are filled up to whole tiles of 128."""
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1)).long()
    expert_M = torch.arange(len(counts_E), device=ends_E.device).repeat_interleave(counts_E)
    missing_E = -counts_E % BLOCK_SIZE
    added_E = missing_E.cumsum(0) - missing_E
    return torch.arange(len(expert_M), device=ends_E.device) + added_E[expert_M]


def _rounded_by_tokens(x_MD: Tensor, cells_M: Tensor) -> Tensor:
    """What FP8 makes of rows when 128 of one expert share a scale in each column."""
    num_cells = int(cells_M[-1]) + 1 if len(cells_M) else 0
    filled = x_MD.new_zeros(num_cells, x_MD.shape[1]).index_copy_(0, cells_M, x_MD)
    return _rounded(filled, block=(BLOCK_SIZE, 1)).index_select(0, cells_M)


def multiply(left: Quantised, right: Quantised, *, right_block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """left @ right.T of FP8 tensors, with sums in float32: by the GPU's own FP8 units where torch offers them.

    Args:
        left: (M, K) with a scale for each row and 128 columns.
        right: (N, K) with scales for blocks of `right_block`.
        dtype: of the result, (M, N).
    """
    product = multiply_on_hopper if has_fp8_units(left.values.device) else multiply_emulated
    return product(left, right, right_block=right_block, dtype=dtype)


def has_fp8_units(device: torch.device) -> bool:
    """Whether torch multiplies blocks of 128 in FP8 there: on Hopper (compute capability 9.0) and nowhere else."""
    if device.type != "cuda" or not hasattr(F, "scaled_mm") or torch.version.cuda is None:
        return False
    cuda_version = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    return torch.cuda.get_device_capability(device) == (9, 0) and cuda_version >= _LEAST_CUDA


def multiply_emulated(left: Quantised, right: Quantised, *, right_block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """What the FP8 units compute, in float32: products of E4M3 numbers are exact there, their sums nearly so.

    Source: DeepSeek-V3, inference/kernel.py, fp8_gemm_kernel.
    """
    left_MK = dequantise(left, block=ACTIVATION_BLOCK)
    right_NK = dequantise(right, block=right_block)
    total_MN = left_MK.new_zeros(len(left_MK), len(right_NK))
    for left_part, right_part in zip(left_MK.split(BLOCK_SIZE, 1), right_NK.split(BLOCK_SIZE, 1), strict=True):
        total_MN.addmm_(left_part, right_part.T)
    return total_MN.to(dtype)


def multiply_on_hopper(
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
