"""Architectures, loading and saving, in pure torch. Knows nothing of training or serving."""

from aha.models.adapter_files import hash_weights, is_adapter_folder, load_adapter_into, save_adapter
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
from aha.models.config import ExpertsShape, LatentAttentionShape, Llama3Rope, ModelConfig, YarnRope
from aha.models.config_files import dump_config, parse_config, read_config
from aha.models.experts import Routing
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
from aha.models.projection import Attention, Linear
from aha.models.transformer import Transformer
from aha.models.vision_config import VisionShape

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

__all__ = [
    "ARCHITECTURES",
    "Attention",
    "BaseWeights",
    "DType",
    "ExpertsShape",
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
