"""The name of the device that a model lies on."""

from __future__ import annotations

import torch


def device_words(device: torch.device) -> str:
    """What people call it: "cpu", or the name of the GPU, e.g. "NVIDIA H100 80GB HBM3"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
