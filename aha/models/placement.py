"""Where a model lies, and in which dtype."""

from __future__ import annotations

from typing import Literal

import torch

from aha.errors import ModelError

DType = Literal["auto", "float32", "bfloat16"]


def choose_dtype(dtype: DType, *, device: torch.device) -> torch.dtype:
    """What "auto" means: bfloat16 where the processor multiplies it in hardware, else float32.

    Emulated bfloat16 is five times slower than float32 on a CPU without AVX512-BF16 or AMX (docs/LOG.md).
    """
    if dtype == "auto":
        if device.type != "cpu":
            return torch.bfloat16
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(device: str) -> torch.device:
    """What "auto" means: the first GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}; choose from: auto, cpu, cuda, cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} asked for, but this machine or this torch build has no CUDA; use cpu")
    return chosen
