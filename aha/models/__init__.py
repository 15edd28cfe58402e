"""Architectures, loading and saving, in pure torch. Knows nothing of training or serving."""

from aha.models.attention import PackedAttention
from aha.models.checkpoint import (
    DType,
    build_model,
    choose_device,
    choose_dtype,
    has_fast_bfloat16,
    load_model,
    save_model,
)
from aha.models.config import Llama3Rope, ModelConfig, dump_config, parse_config, read_config
from aha.models.transformer import Attention, Linear, Transformer

ARCHITECTURES: dict[str, type[Transformer]] = {"llama": Transformer, "qwen2": Transformer, "qwen3": Transformer}
"""model_type of config.json -> the module that computes it."""

__all__ = [
    "ARCHITECTURES",
    "Attention",
    "DType",
    "Linear",
    "Llama3Rope",
    "ModelConfig",
    "PackedAttention",
    "Transformer",
    "build_model",
    "choose_device",
    "choose_dtype",
    "dump_config",
    "has_fast_bfloat16",
    "load_model",
    "parse_config",
    "read_config",
    "save_model",
]
