"""Rotary position embeddings: how fast each pair of channels turns, and the turning."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aha.models.config import Llama3Rope, ModelConfig, YarnRope


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of channels: float32, (C/2,).

    Source: RoFormer (arXiv:2104.09864) §3.2.2; the llama3 stretching as published with Llama 3.1; YaRN
    (arXiv:2309.00071) §3.2, applied at every length as transformers and vLLM do.
    """
    exponents = torch.arange(0, config.rope_dim, 2, dtype=torch.float32) / config.rope_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, Llama3Rope):
        return _llama3(frequencies, scaling)
    if isinstance(scaling, YarnRope):
        return _yarn(frequencies, scaling, theta=config.rope_theta)
    return frequencies / scaling


def _llama3(frequencies: Tensor, scaling: Llama3Rope) -> Tensor:
    original = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    # Long wavelengths are stretched by `factor`, short ones kept, those between blended.
    blend = (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    is_long = wavelengths > original / scaling.low_freq_factor
    is_short = wavelengths < original / scaling.high_freq_factor
    return torch.where(is_long, frequencies / scaling.factor, torch.where(is_short, frequencies, blended))


def _yarn(frequencies: Tensor, scaling: YarnRope, *, theta: float) -> Tensor:
    dim = 2 * len(frequencies)

    def channel(num_rotations: float) -> float:
        """The channel that turns so often within the original window."""
        window = scaling.original_max_position_embeddings
        return dim * math.log(window / (num_rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as every implementation does; Kimi-K2's beta_fast = beta_slow = 1 comes near it
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def rotate(x_NHC: Tensor, cos_N1C: Tensor, sin_N1C: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout; `sin` carries the sign of its first half."""
    half = x_NHC.shape[-1] // 2
    return x_NHC * cos_N1C + torch.cat((x_NHC[..., half:], x_NHC[..., :half]), dim=-1) * sin_N1C


def split_pairs(x_NHC: Tensor) -> Tensor:
    """Channels (2i, 2i + 1) put to (i, i + C/2): DeepSeek's layout as `rotate` wants it.

    Queries and keys are permuted alike, so that their products stay the same.
    """
    *shape, width = x_NHC.shape
    return x_NHC.reshape(*shape, width // 2, 2).transpose(-1, -2).reshape(x_NHC.shape)


class RopeTables:
    """cos and signed sin by position, made when first needed and again when a longer sequence comes."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, positions_N: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and signed sin (N, 1, C) of the positions."""
        key = (positions_N.device, dtype)
        needed = int(positions_N.max()) + 1 if positions_N.numel() else 1
        if key not in self._tables or len(self._tables[key][0]) < needed:
            self._tables[key] = self._build(max(256, 1 << (needed - 1).bit_length()), device=key[0], dtype=dtype)
        cos_table, sin_table = self._tables[key]
        return cos_table[positions_N], sin_table[positions_N]

    def _build(self, length: int, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # fp32, then cast: bf16 angles are off by whole radians at position 1,000.
        angles = torch.outer(torch.arange(length, dtype=torch.float32), rope_frequencies(self._config))
        scaling = self._config.rope_scaling
        scale = scaling.rotation_scale if isinstance(scaling, YarnRope) else 1.0
        cos, sin = angles.cos() * scale, angles.sin() * scale
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        return cos.unsqueeze(1).to(device, dtype), sin.unsqueeze(1).to(device, dtype)
