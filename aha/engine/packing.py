"""Matrix products with copies of the weights in the order the processor's kernels read them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Quantize = Literal["none", "int8"]

MIN_PRODUCT_SIZE = 1 << 19
"""Multiply-adds from which a packed float32 product beats `F.linear`: a call costs 20 us (docs/LOG.md)."""


class PackedWeights:
    """`F.linear` over packed copies, each made when first used and dropped by `clear` when the weights change.

    The copies cost the memory of the matrices once more; the trainer never sees them. On a GPU, and where a kernel is
    missing, a product is a plain `F.linear`.

    Args:
        quantize: "int8" is for talking to one model alone: where a product has a single row, weights and the row are
            rounded to 8 bits, which halves the bytes that bound its speed. Probabilities move by 0.03 in the mean
            (SmolLM2-135M, docs/LOG.md), so it is not for training on what was sampled. Products of several rows stay
            exact: they have one scale for all rows, under which large values would drown the small.
        min_product_size: multiply-adds below which a float32 product stays plain.
    """

    def __init__(self, *, quantize: Quantize = "none", min_product_size: int = MIN_PRODUCT_SIZE) -> None:
        self._quantize = quantize
        self._min_product_size = min_product_size
        # Keyed by id: the model keeps its parameters for life, and `clear` follows every change of their values.
        self._packed: dict[tuple[int, Callable[[Tensor], Any]], Any] = {}

    def clear(self) -> None:
        """Forget all copies: the weights changed."""
        self._packed.clear()

    def __call__(self, x_ND: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._quantize == "int8" and x_ND.shape[0] == 1 and can_pack_int8(weight.device.type):
            packed = self._pack(weight, _pack_int8)
            product: Tensor = torch.ops.quantized.linear_dynamic(x_ND.float(), packed, not _has_vnni()).to(x_ND.dtype)
            return product if bias is None else product + bias
        # F.linear reorders bfloat16 weights at every call, so that no product is too small to gain.
        is_small = weight.dtype == torch.float32 and x_ND.shape[0] * weight.numel() < self._min_product_size
        if is_small or not can_pack(weight.dtype, weight.device.type):
            return F.linear(x_ND, weight, bias)
        packed = self._pack(weight, torch.ops.mkldnn._reorder_linear_weight)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_ND, packed, bias, "none", [], ""))

    def _pack(self, weight: Tensor, pack: Callable[[Tensor], Any]) -> Any:
        packed = self._packed.get((id(weight), pack))
        if packed is None:
            packed = self._packed[id(weight), pack] = pack(weight.detach())
        return packed


def _pack_int8(weight: Tensor) -> Any:
    """One scale for each output channel, symmetric around 0."""
    scales = weight.float().abs().amax(dim=1).clamp(min=1e-12).double() / 127
    with warnings.catch_warnings():
        # FBGEMM's packing takes nothing else; torch warns that these tensors will go, and then can_pack_int8 says no.
        warnings.simplefilter("ignore", UserWarning)
        rounded = torch.quantize_per_channel(weight.float(), scales, torch.zeros_like(scales).long(), 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(rounded, None)


@functools.cache
def _has_vnni() -> bool:
    """Without VNNI the kernels add pairs of products in 16 bits, for which the row is rounded to 7 bits."""
    return bool(torch.cpu._is_vnni_supported())


@functools.cache
def can_pack(dtype: torch.dtype, device_type: str) -> bool:
    """Whether oneDNN's packed products work here, found out by trying one."""
    if device_type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    ones = torch.ones(16, 16, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(ones)
        product = torch.ops.mkldnn._linear_pointwise(ones, packed, None, "none", [], "")
    except (RuntimeError, AttributeError):  # bfloat16 on a CPU without AVX512; a build without the operator
        return False
    return bool((product == 16).all())


@functools.cache
def can_pack_int8(device_type: str) -> bool:
    """Whether FBGEMM's products of 8-bit integers work here, found out by trying one."""
    if device_type != "cpu":
        return False
    ones = torch.ones(16, 16)
    try:
        product = torch.ops.quantized.linear_dynamic(ones[:1], _pack_int8(ones), not _has_vnni())
    except (RuntimeError, AttributeError):  # a processor or a build without FBGEMM, a torch without these tensors
        return False
    return bool((product - 16).abs().max() < 0.5)
