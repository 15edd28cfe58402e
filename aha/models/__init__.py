"""Architectures, loading and saving, in pure torch. Knows nothing of training or serving.

Names are loaded at their first use: a table of models is made of configurations, without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aha.models.adapter_files import hash_weights, is_adapter_folder, load_adapter_into, save_adapter
    from aha.models.architectures import ARCHITECTURES
    from aha.models.attention import PackedAttention
    from aha.models.checkpoint import build_model, load_model, save_model
    from aha.models.config import ExpertsShape, LatentAttentionShape, Llama3Rope, ModelConfig, YarnRope
    from aha.models.config_files import dump_config, parse_config, read_config
    from aha.models.experts import Routing
    from aha.models.fp8_files import Form
    from aha.models.internvl import InternVL
    from aha.models.lora import (
        BaseWeights,
        Lora,
        LoraTargets,
        attach_lora,
        frozen_twin,
        merge,
        num_trainable,
        reset_lora,
        without_adapter,
    )
    from aha.models.placement import DType, choose_device, choose_dtype, has_fast_bfloat16
    from aha.models.projection import Attention, Linear
    from aha.models.transformer import Transformer
    from aha.models.vision_config import VisionShape

_HOMES = {
    "ARCHITECTURES": "architectures",
    "Attention": "projection",
    "BaseWeights": "lora",
    "DType": "placement",
    "ExpertsShape": "config",
    "Form": "fp8_files",
    "InternVL": "internvl",
    "LatentAttentionShape": "config",
    "Linear": "projection",
    "Llama3Rope": "config",
    "Lora": "lora",
    "LoraTargets": "lora",
    "ModelConfig": "config",
    "PackedAttention": "attention",
    "Routing": "experts",
    "Transformer": "transformer",
    "VisionShape": "vision_config",
    "YarnRope": "config",
    "attach_lora": "lora",
    "build_model": "checkpoint",
    "choose_device": "placement",
    "choose_dtype": "placement",
    "dump_config": "config_files",
    "frozen_twin": "lora",
    "has_fast_bfloat16": "placement",
    "hash_weights": "adapter_files",
    "is_adapter_folder": "adapter_files",
    "load_adapter_into": "adapter_files",
    "load_model": "checkpoint",
    "merge": "lora",
    "num_trainable": "lora",
    "parse_config": "config_files",
    "read_config": "config_files",
    "reset_lora": "lora",
    "save_adapter": "adapter_files",
    "save_model": "checkpoint",
    "without_adapter": "lora",
}
"""Public name -> the module of this room that has it."""

__all__ = [
    "ARCHITECTURES",
    "Attention",
    "BaseWeights",
    "DType",
    "ExpertsShape",
    "Form",
    "InternVL",
    "LatentAttentionShape",
    "Linear",
    "Llama3Rope",
    "Lora",
    "LoraTargets",
    "ModelConfig",
    "PackedAttention",
    "Routing",
    "Transformer",
    "VisionShape",
    "YarnRope",
    "attach_lora",
    "build_model",
    "choose_device",
    "choose_dtype",
    "dump_config",
    "frozen_twin",
    "has_fast_bfloat16",
    "hash_weights",
    "is_adapter_folder",
    "load_adapter_into",
    "load_model",
    "merge",
    "num_trainable",
    "parse_config",
    "read_config",
    "reset_lora",
    "save_adapter",
    "save_model",
    "without_adapter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aha.models' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(import_module(f"aha.models.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
