"""FP8: tensors of 8-bit floats with a float32 scale for every block of them.

Source: DeepSeek-V3 report (arXiv:2412.19437) §3.3.2, fine-grained quantisation: weights in blocks of 128 x 128,
activations in tiles of one token and 128 channels, both as E4M3 and both scaled by what is largest in the block, found
when it is needed and not from a history. The arithmetic is that of the published inference code
(DeepSeek-V3, inference/kernel.py): s = amax / 448, y = e4m3(x / s), x is about y * s. Where a side is no multiple of
128, the block at the edge is filled up with zeros and cut again (README_WEIGHTS.md of the same repository).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models.fp8_config import BLOCK_SIZE, WEIGHT_BLOCK, ScaleFormat

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest number of E4M3 in the variant without infinities."""
ACTIVATION_BLOCK = (1, BLOCK_SIZE)
AMAX_FLOOR = 1e-12
"""Least value that a block is scaled to. The published code has none and divides a block of zeros by zero; servers take
1e-10 or 1e-4, which would round gradients to zero here."""
_BAND_ELEMENTS = 1 << 24
"""Numbers that are held in float32 at a time: 67 MB."""


class Quantised(NamedTuple):
    """A tensor in FP8."""

    values: Tensor
    """float8_e4m3fn, in the shape of what it stands for."""
    scale_inv: Tensor
    """float32, one for each block, (…, ceil(N / block rows), ceil(K / block columns)): what the block's values are
    multiplied by. Checkpoints call it `weight_scale_inv`."""


def quantise_weight(
    weight_NK: Tensor, *, block: tuple[int, int] = WEIGHT_BLOCK, scale_fmt: ScaleFormat = "float"
) -> Quantised:
    """A matrix in FP8, one scale for each block of it.

    Source: DeepSeek-V3 report §3.3.2 and Fig. 7 (a); inference/kernel.py, weight_quant_kernel.

    Args:
        weight_NK: any float dtype; N and K need not be multiples of the block.
        block: rows and columns that share a scale.

    Returns:
        Values and scales. A block of zeros stays zeros; a block that holds NaN or infinity is NaN.
    """
    values = torch.empty_like(weight_NK, dtype=FP8, memory_format=torch.contiguous_format)
    scales = []
    for rows in _bands(weight_NK, block_rows=block[0]):
        part = quantise(weight_NK[rows], block=block, scale_fmt=scale_fmt)
        values[rows] = part.values
        scales.append(part.scale_inv)
    return Quantised(values, torch.cat(scales))


def dequantise_weight(
    values_NK: Tensor, scale_inv: Tensor, *, out: Tensor, block: tuple[int, int] = WEIGHT_BLOCK
) -> Tensor:
    """Write the matrix that FP8 values and their scales stand for into `out`, (N, K) of any float dtype.

    Source: inference/kernel.py, weight_dequant_kernel: the product in float32, then rounded to the dtype of `out`.

    Raises:
        ValueError: there is not one scale for each block.
    """
    if tuple(scale_inv.shape) != (expected := scale_shape(values_NK.shape, block=block)):
        raise ValueError(f"{tuple(values_NK.shape)} in blocks of {block} has scales {expected}, got {scale_inv.shape}")
    scales = scale_inv.float()
    for rows in _bands(values_NK, block_rows=block[0]):
        blocks = slice(rows.start // block[0], -(-rows.stop // block[0]))
        out[rows] = dequantise(Quantised(values_NK[rows], scales[blocks]), block=block)
    return out


def quantise_activations(x_TK: Tensor, *, scale_fmt: ScaleFormat = "float") -> Quantised:
    """Activations in FP8, one scale for each token and 128 channels, from what is largest among them now.

    Source: DeepSeek-V3 report §3.3.2 and Fig. 7 (a); inference/kernel.py, act_quant_kernel.

    Args:
        x_TK: T tokens of K channels, any float dtype.

    Returns:
        Values (T, K) and scales (T, ceil(K / 128)).
    """
    return quantise(x_TK, block=ACTIVATION_BLOCK, scale_fmt=scale_fmt)


def quantise(x: Tensor, *, block: tuple[int, int], scale_fmt: ScaleFormat) -> Quantised:
    """The last two axes of a tensor in FP8, one scale for each block of them; the axes before those are batches."""
    blocks = _in_blocks(x.float(), block)
    amax = blocks.abs().amax(dim=(-3, -1), keepdim=True)
    scale = amax.clamp_min(AMAX_FLOOR) / FP8_MAX
    if scale_fmt == "ue8m0":
        scale = next_power_of_two(scale)
    # Clamped, since the cast makes NaN of whatever rounds to more than 448, and x / s can be 448.00003.
    values = (blocks / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    return Quantised(_out_of_blocks(values, x.shape), scale.squeeze(-1).squeeze(-2))


def dequantise(quantised: Quantised, *, block: tuple[int, int]) -> Tensor:
    """What `quantise` made, in float32."""
    blocks = _in_blocks(quantised.values.float(), block)
    return _out_of_blocks(blocks.mul_(quantised.scale_inv[..., :, None, :, None]), quantised.values.shape)


def next_power_of_two(scale: Tensor) -> Tensor:
    """2 ** ceil(log2 scale), exactly; NaN and infinity stay what they are.

    By taking the number apart: float32's log2 of a number just above a power of two is that power's.
    """
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2 ** exponent, mantissa in [0.5, 1)
    power = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.where(scale.isfinite(), power, scale)


def scale_shape(shape: torch.Size | tuple[int, ...], *, block: tuple[int, int] = WEIGHT_BLOCK) -> tuple[int, ...]:
    """Shape of the scales of a matrix of this shape."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def _in_blocks(x: Tensor, block: tuple[int, int]) -> Tensor:
    """(…, N, K) as (…, blocks, rows of one, blocks, columns of one), filled up with zeros; a view where nothing is."""
    missing_rows, missing_columns = -x.shape[-2] % block[0], -x.shape[-1] % block[1]
    if missing_rows or missing_columns:
        x = F.pad(x, (0, missing_columns, 0, missing_rows))
    num_rows, num_columns = x.shape[-2:]
    return x.reshape(*x.shape[:-2], num_rows // block[0], block[0], num_columns // block[1], block[1])


def _out_of_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]]


def _bands(x_NK: Tensor, *, block_rows: int) -> Iterator[slice]:
    """Rows at a time, whole blocks of them: what lies in float32 beside the tensor stays small."""
    num_rows, num_columns = x_NK.shape
    height = max(1, _BAND_ELEMENTS // (num_columns * block_rows)) * block_rows
    return (slice(start, min(start + height, num_rows)) for start in range(0, num_rows, height))
