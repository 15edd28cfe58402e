"""Parameters and cache of published models, from their configurations alone."""

from __future__ import annotations

from typing import Any

import pytest

from aha.models import ModelConfig, Transformer, parse_config
from aha.models.counts import cache_bytes_per_token, count_parameters

from .hub_configs import KIMI_K2, MOONLIGHT, QWEN3_MOE, V3


def config_of(raw: dict[str, Any]) -> ModelConfig:
    return parse_config(raw, source="config.json")


@pytest.mark.parametrize(
    ("raw", "total", "active_billions", "cache_bytes"),
    [
        # 671B and 37B; 1.04T and 32B, in words that round up and down; 16B and 3B (2.24B without the two embeddings);
        # 30,532,122,624 and 3.3B.
        (V3, 671_026_404_352, 37.55, 70_272),
        (KIMI_K2, 1_026_408_209_408, 32.86, 70_272),
        (MOONLIGHT, 15_960_108_544, 2.91, 31_104),
        (QWEN3_MOE, 30_532_122_624, 3.35, 98_304),
    ],
    ids=["V3", "Kimi-K2", "Moonlight", "Qwen3-30B-A3B"],
)
def test_published_sparse_models_have_their_counts(
    raw: dict[str, Any], total: int, active_billions: float, cache_bytes: int
) -> None:
    counts = count_parameters(config_of(raw))
    assert counts.total == total
    assert round(counts.active / 1e9, 2) == active_billions
    assert cache_bytes_per_token(config_of(raw)) == cache_bytes


def test_multi_token_prediction_of_v3_is_what_its_card_says() -> None:
    counts = count_parameters(config_of(V3))
    eh_proj = 2 * 7168**2
    # README_WEIGHTS.md: 11.5B without embedding and head, 2.4B active with them; both come out without eh_proj.
    assert round((counts.mtp - eh_proj) / 1e9, 1) == 11.5
    assert round((counts.mtp_active - eh_proj + counts.embedding + counts.head) / 1e9, 1) == 2.4
    # The files hold embedding and head twice: 685B on the Hub, 671B + 14B in words.
    in_files = counts.total + counts.mtp + counts.embedding + counts.head
    assert round((in_files - counts.total) / 1e9, 1) == 13.5
    assert 684.4e9 < in_files < 684.6e9


def test_every_parameter_of_a_dense_model_is_active() -> None:
    raw = {
        "model_type": "llama", "vocab_size": 99, "hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1,
    }  # fmt: skip
    config = config_of(raw | {"tie_word_embeddings": True})
    counts = count_parameters(config)
    assert counts.total == counts.active == Transformer(config).num_parameters()
    assert (counts.embedding, counts.head, counts.mtp, counts.mtp_active) == (99 * 48, 0, 0, 0)
    assert count_parameters(config_of(raw)).head == 99 * 48
    assert cache_bytes_per_token(config, bytes_per_value=4) == 2 * 2 * 16 * 4
