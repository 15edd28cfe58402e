"""Scaled rotary positions in GGUF files.

llama.cpp writes Llama 3's scaling as the tensor rope_freqs.weight: by how much each pair's frequency is divided. The
four numbers that the factors were made from are not in the file, so they are found again, and checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aha.errors import ModelError, unknown_name
from aha.models.config import Llama3Rope, RopeScaling, YarnRope

SCALINGS = ("none", "linear", "yarn")
"""llama.cpp's names of the kinds that are read, besides Llama 3's, which has none."""
_TOLERANCE = 1e-5
"""Relative: the factors are stored in float32, which holds them within 6e-8, and made from float32 frequencies."""


def llama3_factors(scaling: Llama3Rope, *, theta: float, head_dim: int) -> NDArray[np.float32]:
    """What each pair's frequency is divided by, (C/2,).

    Source: llama.cpp's conversion/llama.py, generate_extra_tensors; the scaling itself as published with Llama 3.1.
    """
    frequencies = _frequencies(theta, head_dim)
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = 1.0 / ((1.0 - keep) / scaling.factor + keep)
    is_short, is_long = turns > scaling.high_freq_factor, turns < scaling.low_freq_factor
    return np.where(is_short, 1.0, np.where(is_long, scaling.factor, blended)).astype(np.float32)


def read_scaling(
    fields: Mapping[str, Any], *, factors: NDArray[np.float32] | None, theta: float, head_dim: int
) -> RopeScaling:
    """The scaling that a file's metadata and its rope_freqs.weight ask for.

    Args:
        fields: metadata without the architecture's prefix.
        factors: the tensor's values, or None if there is no such tensor.

    Raises:
        ModelError: a kind that is not supported, by its name.
    """
    # llama.cpp's defaults: without a type, a factor means linear; 0 and 1 mean none.
    kind = fields.get("rope.scaling.type", "linear")
    factor = float(fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0.0)))
    if kind not in SCALINGS:
        raise ModelError(unknown_name("rotary scaling", str(kind), SCALINGS))
    if not 0.0 <= factor < math.inf:
        raise ModelError(f"the factor of rotary scaling must be above 0, got {factor}")
    scaling = None if kind == "none" or factor in (0.0, 1.0) else _scaling_of(fields, kind=kind, factor=factor)
    if factors is None or np.array_equal(factors, np.ones_like(factors)):
        return scaling
    if scaling is not None or not 0.0 < theta < math.inf or factors.shape != (head_dim // 2,):
        raise ModelError(f"tensor 'rope_freqs.weight' of shape {factors.shape} does not fit the rest of the file")
    for candidate in _candidates(factors, theta=theta, head_dim=head_dim):
        if np.allclose(llama3_factors(candidate, theta=theta, head_dim=head_dim), factors, rtol=_TOLERANCE, atol=0):
            return candidate
    raise ModelError("tensor 'rope_freqs.weight' is not Llama 3's scaling, the only one supported")


def _scaling_of(fields: Mapping[str, Any], *, kind: str, factor: float) -> YarnRope | float:
    if kind == "linear":
        return factor
    window = fields.get("rope.scaling.original_context_length", fields["context_length"])
    return YarnRope(
        factor=factor,
        original_max_position_embeddings=int(window),
        beta_fast=float(fields.get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(fields.get("rope.scaling.yarn_beta_slow", 1.0)),
    )


def _candidates(factors: NDArray[np.float32], *, theta: float, head_dim: int) -> Iterator[Llama3Rope]:
    """Scalings that may have made these factors: the published ones, then a fit to those in between.

    Between "kept" and "stretched", the share that is kept grows linearly with the turns within the original window.
    Only the ratios of low, high and window count, so low is 1.
    """
    factor = float(factors.max())
    if not 1.0 < factor < math.inf or not factors.min() > 0.0:
        return
    yield _scaling(factor, high=4.0, window=8192)
    between = (factors > 1.0) & (factors < factor)
    if between.sum() < 2:
        return
    kept = (1.0 / factors[between].astype(np.float64) - 1.0 / factor) / (1.0 - 1.0 / factor)
    slope, start = np.polyfit(_frequencies(theta, head_dim)[between] / (2 * math.pi), kept, deg=1)
    if slope > 0.0 > start:  # kept = (turns - 1) / (high - 1)
        high = 1.0 - 1.0 / start
        yield _scaling(factor, high=round(high), window=round(-slope / start))
        yield _scaling(factor, high=high, window=round(-slope / start))


def _scaling(factor: float, *, high: float, window: int) -> Llama3Rope:
    return Llama3Rope(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=max(high, 1.0 + 1e-6),
        original_max_position_embeddings=max(window, 1),
    )


def _frequencies(theta: float, head_dim: int) -> NDArray[np.float64]:
    """Radians per position of each pair, as aha.models.rope.rope_frequencies."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float64)
