"""Tiny random models of all families, with peaked distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aha.models import ExpertsShape, LatentAttentionShape, ModelConfig, Transformer, build_model

MakeModel = Callable[..., Transformer]

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_kv_heads": 6,
    "head_dim": 14,
    "rope_interleaved": True,
    "mla": LatentAttentionShape(
        q_lora_rank=11, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=10
    ),
    "experts": ExpertsShape(
        num_experts=8, num_experts_per_token=3, intermediate_size=10, num_shared_experts=1, scoring="sigmoid",
        has_selection_bias=True, num_groups=2, num_groups_per_token=1, scaling_factor=2.5, first_layer=1,
    ),
}  # fmt: skip
"""Latent attention and a sparse layer behind a dense one, all at odd sizes."""
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "has_qk_norm": True,
    "num_kv_heads": 3,
    "experts": ExpertsShape(
        num_experts=6, num_experts_per_token=2, intermediate_size=10, scoring="softmax", has_selection_bias=False
    ),
}


@pytest.fixture
def make_model() -> MakeModel:
    """A factory: keyword arguments replace fields of a small Llama with grouped queries and odd sizes."""

    def make(*, seed: int = 0, dtype: str = "float32", **fields: object) -> Transformer:
        defaults: dict[str, object] = {
            "model_type": "llama",
            "vocab_size": 97,
            "hidden_size": 36,
            "intermediate_size": 52,
            "num_layers": 2,
            "num_heads": 6,
            "num_kv_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 64,
            "eos_token_ids": (5, 6),
            "initializer_range": 0.4,
        }
        model = build_model(ModelConfig(**{**defaults, **fields}), dtype=dtype, device="cpu")  # type: ignore[arg-type]
        model.initialise(seed=seed)
        return model

    return make


@pytest.fixture
def make_drafting_model(make_model: MakeModel) -> MakeModel:
    """A factory of models whose modules are right about as often as wrong.

    Their next token depends on the last one most of all, and so do the modules' drafts: these read the embedding they
    are given as the model reads its own, through layers of other weights.
    """

    def make(*, num_mtp_layers: int = 1, seed: int = 0, **fields: object) -> Transformer:
        model = make_model(num_mtp_layers=num_mtp_layers, seed=seed, **fields)
        width = model.config.hidden_size
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "o_proj" in name or "down_proj" in name:
                    parameter.mul_(0.06)
                elif "eh_proj" in name:
                    parameter.mul_(0.1)[:, :width] += torch.eye(width)
                elif name == "embed_tokens":
                    parameter.mul_(2.5)
        return model

    return make
