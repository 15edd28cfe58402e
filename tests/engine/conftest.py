"""Tiny random models of all families, with peaked distributions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aha.models import ModelConfig, Transformer, build_model

MakeModel = Callable[..., Transformer]


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
