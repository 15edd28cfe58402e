"""Settings of published files pass; those that would change what is computed are refused by their names."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.errors import ModelError
from aha.models import ModelConfig, build_model, dump_config, parse_config
from aha.models.config import YarnRope

from .hub_configs import HUB_CONFIGS, KIMI_K2, MOONLIGHT, QWEN3_MOE, V3

SMALL_V3 = V3 | {
    "vocab_size": 99, "hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 3, "n_routed_experts": 16, "moe_intermediate_size": 8, "q_lora_rank": 12,
    "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
}  # fmt: skip


def parse(raw: dict[str, Any], **changes: Any) -> ModelConfig:
    return parse_config({**raw, **changes}, source="config.json")


def error_of(raw: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        parse(raw, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json: ")
    return message


@pytest.mark.parametrize("name", HUB_CONFIGS)
def test_published_file_is_read_and_reading_undoes_writing(name: str) -> None:
    config = parse(HUB_CONFIGS[name])
    assert config.model_type == HUB_CONFIGS[name]["model_type"]
    written = json.loads(json.dumps(dump_config(config, dtype="bfloat16")))
    assert parse_config(written, source="written") == config


def test_published_values_reach_the_shape() -> None:
    v3 = parse(V3)
    assert round(v3.softmax_scale, 10) == 0.1352337789
    assert isinstance(v3.rope_scaling, YarnRope)
    assert v3.rope_scaling.rotation_scale == 1.0
    assert round(v3.rope_scaling.softmax_scale, 10) == 1.8738542071
    kimi = parse(KIMI_K2)
    assert isinstance(kimi.rope_scaling, YarnRope)
    assert round(kimi.rope_scaling.softmax_scale, 5) == 1.81326
    assert (kimi.model_type, kimi.num_heads, kimi.rope_theta, kimi.bos_token_id) == ("kimi_k2", 64, 5e4, 163584)
    assert kimi.experts is not None
    assert (kimi.experts.scaling_factor, kimi.experts.num_groups, kimi.experts.num_experts) == (2.827, 1, 384)
    moonlight = parse(MOONLIGHT)
    assert moonlight.mla is not None
    assert (moonlight.mla.q_lora_rank, moonlight.rms_norm_eps, moonlight.rope_scaling) == (None, 1e-5, None)


@pytest.mark.parametrize("name", HUB_CONFIGS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", 12),
        ("query_pre_attn_scalar", 256),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("index_topk", 2048),
        ("use_qk_norm", True),
        ("rope_interleaved", True),
        ("use_mrope", True),
        ("is_decoder", "x" * 10_000),
    ],
)
def test_setting_of_another_architecture_is_refused_by_name(name: str, key: str, value: object) -> None:
    message = error_of(HUB_CONFIGS[name], **{key: value})
    assert f"unknown setting {key!r} = " in message
    assert "delete it from the file if it changes nothing" in message
    assert len(message) < 300
    for off in (None, False, 0, 0.0, "", [], {}):
        assert parse(HUB_CONFIGS[name], **{key: off}) == parse(HUB_CONFIGS[name])


@pytest.mark.parametrize("name", HUB_CONFIGS)
def test_repositorys_code_is_never_run(name: str) -> None:
    message = error_of(HUB_CONFIGS[name], auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"})
    assert "auto_map names code in the model's repository, which aha never runs" in message
    assert "delete auto_map" in message


@pytest.mark.parametrize(
    ("raw", "changes", "words"),
    [
        (V3, {"moe_layer_freq": 2}, "moe_layer_freq 2 is not supported"),
        (V3, {"moe_layer_freq": [0, 1]}, "moe_layer_freq [0, 1] is not supported"),
        (V3, {"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported"),
        (V3, {"topk_method": "group_limited_greedy"}, "topk_method 'group_limited_greedy' is not supported"),
        (V3, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        (V3, {"num_key_value_heads": 64}, "num_key_value_heads 64 is not supported with latent attention"),
        (V3, {"qk_head_dim": 128}, "qk_head_dim 128 is not supported"),
        (V3, {"n_group": 7}, "n_group 7 must divide 256 experts"),
        (V3, {"n_group": 256, "topk_group": 8}, "groups need two experts at least"),
        (V3, {"topk_group": 9}, "at least topk_group 9"),
        (V3, {"num_experts_per_tok": 300}, "num_experts_per_tok 300 exceeds 256"),
        (V3, {"num_experts_per_tok": "8"}, "num_experts_per_tok must be a whole number, got '8'"),
        (V3, {"n_shared_experts": -1}, "must be at least 0"),
        (V3, {"first_k_dense_replace": None}, "first_k_dense_replace must be a whole number, got None"),
        (V3, {"norm_topk_prob": "false"}, "norm_topk_prob must be true or false, got 'false'"),
        (V3, {"routed_scaling_factor": float("nan")}, "routed_scaling_factor must be above 0 and finite"),
        (V3, {"routed_scaling_factor": None}, "routed_scaling_factor must be a number, got None"),
        (V3, {"q_lora_rank": 0}, "q_lora_rank must be null or at least 1"),
        (V3, {"q_lora_rank": "none"}, "q_lora_rank must be a whole number"),
        (V3, {"qk_rope_head_dim": 63}, "qk_rope_head_dim must be even"),
        (V3, {"rope_interleave": 1}, "rope_interleave must be true or false, got 1"),
        (V3, {"num_nextn_predict_layers": True}, "num_nextn_predict_layers must be a whole number"),
        (V3, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers must be at least 0"),
        (V3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (V3, {"rope_theta": 1.0}, "needs a rope_theta above 1"),
        (V3, {"rope_scaling": {**V3["rope_scaling"], "mscale": float("inf")}}, "mscale of yarn rope scaling"),
        (V3, {"rope_scaling": {**V3["rope_scaling"], "factor": "40"}}, "factor must be a number, got '40'"),
        (V3, {"rope_scaling": {**V3["rope_scaling"], "beta_slow": 33}}, "beta_slow <= beta_fast"),
        (V3, {"rope_scaling": {**V3["rope_scaling"], "long_factor": [1.0]}}, "unknown setting 'long_factor'"),
        (V3, {"rope_scaling": {**V3["rope_scaling"], "original_max_position_embeddings": 0}}, "of at least 1"),
        (V3, {"sliding_window": 4096}, "sliding-window attention is not supported"),
        (V3, {"num_hidden_layers": 10**9}, "at most 10000 layers"),
        (V3, {"n_routed_experts": 10**9}, "at most 10000 experts"),
        (V3, {"rms_norm_eps": 10**400}, "wrong type"),
        (V3, {"eos_token_id": [1, -1]}, "eos_token_id must be a token's number, got -1"),
        (V3, {"bos_token_id": 10**30}, "bos_token_id must be a token's number"),
        (V3, {"initializer_range": float("nan")}, "initializer_range must be at least 0 and finite"),
        (QWEN3_MOE, {"use_sliding_window": True, "sliding_window": 64}, "sliding-window attention is not supported"),
        (QWEN3_MOE, {"mlp_only_layers": 3}, "mlp_only_layers must be a list of whole numbers, got 3"),
        (QWEN3_MOE, {"mlp_only_layers": ["0"]}, "mlp_only_layers must be a whole number, got '0'"),
        (QWEN3_MOE, {"decoder_sparse_step": 0}, "layer_step must be at least 1"),
        (QWEN3_MOE, {"num_experts": None}, "num_experts must be a whole number, got None"),
        (QWEN3_MOE, {"mlp_bias": True}, "unknown setting 'mlp_bias' = True"),
        (QWEN3_MOE, {"n_shared_experts": 1}, "unknown setting 'n_shared_experts' = 1"),
        (QWEN3_MOE, {"attention_bias": "no"}, "attention_bias must be true or false, got 'no'"),
        (QWEN3_MOE, {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        (QWEN3_MOE, {"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number, got '1e-6'"),
    ],
)
def test_value_that_would_be_computed_wrongly_is_refused(raw: dict[str, Any], changes: Any, words: str) -> None:
    assert words in error_of(raw, **changes)


def test_null_means_none_of_groups_and_of_shared_experts() -> None:
    experts = parse(V3, n_group=None, topk_group=None, n_shared_experts=None).experts
    assert experts is not None
    assert (experts.num_groups, experts.num_groups_per_token, experts.num_shared_experts) == (1, 1, 0)


def test_both_spellings_of_the_number_of_experts_are_read() -> None:
    raw = {key: value for key, value in QWEN3_MOE.items() if key != "num_experts"}
    assert parse(raw, num_local_experts=128) == parse(QWEN3_MOE)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "moe_intermediate_size", "kv_lora_rank"])
@pytest.mark.parametrize("value", [10**18, 10**30])
def test_impossible_size_is_refused_at_once(key: str, value: int) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match="impossible"):
        build_model(parse(SMALL_V3, **{key: value}), device="meta")
    assert time.monotonic() - began < 5


def test_more_experts_than_a_machine_can_name_are_refused_at_once() -> None:
    with pytest.raises(ModelError, match="at most 200000 experts in all its layers"):
        parse(SMALL_V3, num_hidden_layers=9_000, n_routed_experts=10_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**30, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
rope_values = st.dictionaries(st.sampled_from([*V3["rope_scaling"], "rope_type", "truncate"]), json_values, max_size=9)


@settings(deadline=None, max_examples=300)
@given(
    raw=st.sampled_from([SMALL_V3, QWEN3_MOE]),
    changes=st.dictionaries(st.sampled_from(sorted(V3 | QWEN3_MOE)), json_values, max_size=4),
    rope=st.none() | rope_values.map(lambda given: {**V3["rope_scaling"], **given}),
)
def test_any_json_is_a_config_or_a_model_error(raw: dict[str, Any], changes: dict[str, Any], rope: Any) -> None:
    with suppress(ModelError):
        config = parse(raw, **{**changes, **({} if rope is None else {"rope_scaling": rope})})
        json.dumps(dump_config(config, dtype="float32"))
        assert config.softmax_scale > 0
