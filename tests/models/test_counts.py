"""Parameters and cache of published models, from their configurations alone."""

from __future__ import annotations

from typing import Any

import pytest

from aha.models import ModelConfig, Transformer, build_model, parse_config
from aha.models.counts import (
    cache_bytes_per_token,
    count_parameters,
    num_selection_biases,
    shared_matrices,
    weight_bytes,
)
from aha.models.experts import MixtureOfExperts
from aha.models.projection import Projection

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


def test_counts_are_those_of_the_modules_of_every_kind() -> None:
    """The formulas against modules on the meta device: each family, biases, ties, odd sizes, several MTP modules."""
    small = {"vocab_size": 77, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    latent = V3 | small | heads | {
        "moe_intermediate_size": 9, "kv_lora_rank": 13, "q_lora_rank": 11, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6,
        "v_head_dim": 7, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "num_nextn_predict_layers": 2, "n_shared_experts": 3, "num_key_value_heads": 4,
    }  # fmt: skip
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 9, "head_dim": 10}
    vision = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12,
              "image_size": [16, 16], "patch_size": [4, 4]}  # fmt: skip
    text = {"model_type": "qwen2", **small, **heads}
    raws: list[dict[str, Any]] = [
        {"model_type": "llama", **small, **heads, "attention_bias": True, "mlp_bias": True, "head_dim": 10},
        {"model_type": "llama", **small, **heads, "tie_word_embeddings": True},
        {"model_type": "qwen2", **small, **heads},
        {"model_type": "qwen3", **small, **heads, "attention_bias": True},
        {"model_type": "qwen3_moe", **small, **heads, **experts, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        latent,
        latent | {"attention_bias": True, "n_shared_experts": 0, "num_nextn_predict_layers": 0},
        latent | {"q_lora_rank": None, "attention_bias": True},
        {"model_type": "internvl", "image_token_id": 5, "text_config": text, "vision_config": vision},
        {"model_type": "internvl", "image_token_id": 5, "text_config": text, "vision_config": vision | {
            "attention_bias": True, "use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False,
            "use_mask_token": True, "use_absolute_position_embeddings": False}},
    ]  # fmt: skip
    for raw in raws:
        config = config_of(raw)
        counts = count_parameters(config)
        model = build_model(config, device="meta")
        assert counts.held == model.num_parameters(), raw
        assert counts.mtp == sum(p.numel() for p in model.mtp.parameters()), raw
        experts_of = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
        routed = sum(m.gate_up_proj.numel() + m.down_proj.numel() for m in experts_of)
        shape = config.experts
        idle = 0 if shape is None else routed // shape.num_experts * (shape.num_experts - shape.num_experts_per_token)
        assert counts.held - counts.active - counts.mtp_active == idle, raw
        projections = [m for m in model.layers.modules() if isinstance(m, Projection)]
        assert shared_matrices(config) == sum(m.weight.numel() for m in projections), raw
        biases = [b.numel() for name, b in model.named_buffers() if name.endswith("selection_bias")]
        assert num_selection_biases(config) == sum(biases), raw
        assert weight_bytes(config) == 2 * counts.held + 4 * sum(biases)


def test_large_configurations_are_counted_as_their_modules_are() -> None:
    for raw in (V3, KIMI_K2, MOONLIGHT, QWEN3_MOE):
        config = config_of(raw)
        assert count_parameters(config).held == build_model(config, device="meta").num_parameters()
