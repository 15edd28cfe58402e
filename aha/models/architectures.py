"""Which module computes which family."""

from __future__ import annotations

from aha.models.internvl import InternVL
from aha.models.transformer import Transformer

ARCHITECTURES: dict[str, type[Transformer]] = {
    "llama": Transformer,
    "qwen2": Transformer,
    "qwen3": Transformer,
    "qwen3_moe": Transformer,
    "deepseek_v3": Transformer,
    "kimi_k2": Transformer,
    "internvl": InternVL,
}
"""model_type of config.json -> the module that computes it."""
