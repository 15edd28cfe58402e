"""Configurations of well-known open models, so that a dry run needs no download.

Source: the config.json of each repository on Hugging Face; the parameter counts that follow are those published.
"""

from __future__ import annotations

from typing import Any

from aha.errors import ModelError, unknown_name
from aha.models.config import ModelConfig
from aha.models.config_files import parse_config


def _smollm2(hidden_size: int, *, layers: int, intermediate: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 130_000.0 if hidden_size == 2048 else 100_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _qwen(
    model_type: str, hidden_size: int, *, layers: int, intermediate: int, heads: int, kv_heads: int
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": 151_936,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32_768 if model_type == "qwen2" else 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
    }


_SMOLLM2 = {
    "135M": _smollm2(576, layers=30, intermediate=1536, heads=9, kv_heads=3),
    "360M": _smollm2(960, layers=32, intermediate=2560, heads=15, kv_heads=5),
    "1.7B": _smollm2(2048, layers=24, intermediate=8192, heads=32, kv_heads=32),
}
_QWEN25 = {
    "0.5B": _qwen("qwen2", 896, layers=24, intermediate=4864, heads=14, kv_heads=2),
    "1.5B": _qwen("qwen2", 1536, layers=28, intermediate=8960, heads=12, kv_heads=2),
    "3B": _qwen("qwen2", 2048, layers=36, intermediate=11_008, heads=16, kv_heads=2),
    "7B": _qwen("qwen2", 3584, layers=28, intermediate=18_944, heads=28, kv_heads=4)
    | {"vocab_size": 152_064, "tie_word_embeddings": False},
}
_QWEN3 = {
    "0.6B": _qwen("qwen3", 1024, layers=28, intermediate=3072, heads=16, kv_heads=8) | {"head_dim": 128},
    "1.7B": _qwen("qwen3", 2048, layers=28, intermediate=6144, heads=16, kv_heads=8) | {"head_dim": 128},
}
_R1_DISTILL = {
    # Distilled from Qwen2.5-Math, whose RoPE base is 10,000; the head is its own.
    "rope_theta": 10_000.0,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
    "bos_token_id": 151_646,
    "eos_token_id": 151_643,
}

KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    # Base models end with <|endoftext|>; the chat models with <|im_end|>.
    **{f"HuggingFaceTB/SmolLM2-{size}": raw | {"bos_token_id": 0, "eos_token_id": 0} for size, raw in _SMOLLM2.items()},
    **{f"HuggingFaceTB/SmolLM2-{size}-Instruct": raw for size, raw in _SMOLLM2.items()},
    **{f"Qwen/Qwen2.5-{size}": raw | {"eos_token_id": 151_643} for size, raw in _QWEN25.items()},
    **{f"Qwen/Qwen2.5-{size}-Instruct": raw for size, raw in _QWEN25.items()},
    **{f"Qwen/Qwen3-{size}": raw for size, raw in _QWEN3.items()},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _QWEN25["1.5B"] | _R1_DISTILL,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _QWEN25["7B"] | _R1_DISTILL,
}
"""Hugging Face id -> its configuration, in the dialect of config.json."""


def known_config(name: str) -> ModelConfig:
    """The configuration of a model of KNOWN_CONFIGS, by its Hugging Face id.

    Raises:
        ModelError: for an id that is not listed, with the nearest ones.
    """
    if name not in KNOWN_CONFIGS:
        raise ModelError(unknown_name("model", name, KNOWN_CONFIGS))
    return parse_config(KNOWN_CONFIGS[name], source=name)
