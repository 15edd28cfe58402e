"""Matrix products with copies of the weights in the order the processor's kernels read them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Quantize = Literal["none", "float16"]

MIN_PRODUCT_SIZE = 1 << 19
"""Multiply-adds from which a packed product beats `F.linear`: a call costs 20 us (two AVX2 cores, docs/LOG.md)."""


class PackedWeights:
    """`F.linear` over packed copies, each made when first used and dropped by `clear` when the weights change.

    The copies cost the memory of the matrices once more; the trainer never sees them. On a GPU, and where a kernel is
    missing, a product is a plain `F.linear`.

    Args:
        quantize: "float16" halves the bytes read per token, which is what bounds small batches. Exact to 11 bits:
            log-probabilities move by about 1e-3, so it is for serving, not for training on what was sampled.
        min_product_size: multiply-adds below which a product stays plain.
    """

    def __init__(self, *, quantize: Quantize = "none", min_product_size: int = MIN_PRODUCT_SIZE) -> None:
        self._quantize = quantize
        self._min_product_size = min_product_size
        # Keyed by id: the model keeps its parameters for life, and `clear` follows every change of their values.
        self._packed: dict[int, Any] = {}

    def clear(self) -> None:
        """Forget all copies: the weights changed."""
        self._packed.clear()

    def __call__(self, x_ND: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._quantize == "float16" and can_pack_float16(weight.device.type):
            packed = self._pack(weight, _pack_float16)
            product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x_ND.float(), packed).to(x_ND.dtype)
            return product if bias is None else product + bias
        is_small = x_ND.shape[0] * weight.numel() < self._min_product_size
        if is_small or not can_pack(weight.dtype, weight.device.type):
            return F.linear(x_ND, weight, bias)
        packed = self._pack(weight, torch.ops.mkldnn._reorder_linear_weight)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_ND, packed, bias, "none", [], ""))

    def _pack(self, weight: Tensor, pack: Callable[[Tensor], Any]) -> Any:
        packed = self._packed.get(id(weight))
        if packed is None:
            packed = self._packed[id(weight)] = pack(weight.detach())
        return packed


def _pack_float16(weight: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)


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
def can_pack_float16(device_type: str) -> bool:
    """Whether FBGEMM's products with float16 weights work here, found out by trying one."""
    if device_type != "cpu":
        return False
    ones = torch.ones(16, 16)
    try:
        product = torch.ops.quantized.linear_dynamic_fp16(ones, _pack_float16(ones))
    except (RuntimeError, AttributeError):  # not an x86 processor with AVX2; a build without FBGEMM
        return False
    return bool((product == 16).all())
