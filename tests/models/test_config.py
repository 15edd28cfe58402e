"""config.json: what it means when a key is missing, what is refused, and that reading undoes writing."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.errors import ModelError
from aha.models import Llama3Rope, ModelConfig, build_model, dump_config, parse_config, read_config
from aha.models.known import KNOWN_CONFIGS, known_config

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def parse(**changes: Any) -> ModelConfig:
    return parse_config({**SMALL, **changes}, source="config.json")


def error_of(**changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        parse(**changes)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json: ")
    return message


def test_missing_keys_mean_what_the_family_means_by_them() -> None:
    llama = parse()
    assert (llama.head_dim, llama.num_kv_heads, llama.max_position_embeddings) == (16, 3, 2048)
    assert (llama.rms_norm_eps, llama.rope_theta, llama.tie_word_embeddings) == (1e-6, 10_000.0, False)
    assert llama.eos_token_ids == (2,)
    qwen2 = parse(model_type="qwen2", num_attention_heads=64, hidden_size=1024)
    assert (qwen2.num_kv_heads, qwen2.max_position_embeddings, qwen2.eos_token_ids) == (32, 32_768, ())
    assert parse(model_type="qwen3", num_key_value_heads=1).head_dim == 128
    assert parse(num_key_value_heads=None).num_kv_heads == 3
    assert parse(eos_token_id=None).eos_token_ids == ()


def test_biases_and_norms_follow_the_family() -> None:
    qwen2 = parse(model_type="qwen2", num_key_value_heads=1)
    assert (qwen2.has_qkv_bias, qwen2.has_output_bias, qwen2.has_mlp_bias, qwen2.has_qk_norm) == (
        True, False, False, False,
    )  # fmt: skip
    qwen3 = parse(model_type="qwen3", num_key_value_heads=1)
    assert (qwen3.has_qkv_bias, qwen3.has_output_bias, qwen3.has_qk_norm) == (False, False, True)
    llama = parse(attention_bias=True, mlp_bias=True)
    assert (llama.has_qkv_bias, llama.has_output_bias, llama.has_mlp_bias) == (True, True, True)


def test_llama3_stretching_falls_back_to_the_window_of_the_model() -> None:
    assert parse(rope_scaling=LLAMA3, max_position_embeddings=64).rope_scaling == Llama3Rope(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llma"}, "unknown model_type 'llma'; did you mean 'llama'? Choose from: deepseek_v3, "),
        ({"model_type": None}, "unknown model_type 'None'"),
        ({"model_type": ["llama"]}, "unknown model_type"),
        (
            {"auto_map": {"AutoModel": "modeling_x.X"}},
            "auto_map names code in the model's repository, which aha never runs; llama is built in, so delete",
        ),
        ({"quantization_config": {"bits": 4}}, "unknown quant_method 'None'; choose from: fp8"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number, got 'many'"),
        ({"hidden_size": 48.5}, "hidden_size must be a whole number, got 48.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number, got True"),
        ({"num_hidden_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_attention_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_key_value_heads": 2}, "num_key_value_heads 2 must divide num_attention_heads 3"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be above 0 and finite, got nan"),
        ({"rope_theta": 0}, "rope_theta must be above 0 and finite"),
        ({"rope_theta": "big"}, "a setting has the wrong type"),
        ({"eos_token_id": "</s>"}, "a setting has the wrong type"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "unknown rope_type 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "key 'factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "linear rope scaling must be above 0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "0 < low < high frequency factor"),
        ({"rope_scaling": "linear"}, "a setting has the wrong type"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ],
)
def test_setting_that_would_be_computed_wrongly_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in error_of(**changes)


@pytest.mark.parametrize("key", [key for key in SMALL if key != "model_type"])
def test_missing_size_is_named(key: str) -> None:
    raw = {k: v for k, v in SMALL.items() if k != key}
    with pytest.raises(ModelError, match=f"config.json: key '{key}' is missing"):
        parse_config(raw, source="config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        {"use_sliding_window": True, "max_window_layers": 0},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_sliding_window_in_use_is_refused(changes: dict[str, Any]) -> None:
    assert "sliding-window attention is not supported" in error_of(model_type="qwen2", num_key_value_heads=1, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"layer_types": ["full_attention", "full_attention"], "use_sliding_window": True, "max_window_layers": 0},
    ],
)
def test_sliding_window_that_no_layer_uses_is_accepted(changes: dict[str, Any]) -> None:
    assert parse(model_type="qwen2", num_key_value_heads=1, **changes).num_layers == 2


def test_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model folder: it has no config.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "null", '{"model_type": "llama"', '{"a":' + "[" * 100_000])
def test_config_that_is_not_an_object_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SETTINGS = [
    *SMALL, "head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", "eos_token_id",
    "layer_types", "max_window_layers", "use_sliding_window", "rms_norm_eps", "max_position_embeddings",
]  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(changes=st.dictionaries(st.sampled_from(SETTINGS), json_values, max_size=4))
def test_any_json_is_a_config_or_a_model_error(changes: dict[str, Any]) -> None:
    with suppress(ModelError):
        config = parse(**changes)
        assert config.num_heads % config.num_kv_heads == 0


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "tie_word_embeddings": True},
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}, "eos_token_id": [4, 7], "head_dim": 10},
        {"attention_bias": True, "mlp_bias": True, "eos_token_id": None, "bos_token_id": None, "rms_norm_eps": 1e-5},
    ],
)
def test_reading_undoes_writing(model_type: str, changes: dict[str, Any]) -> None:
    if model_type != "llama":
        changes = {key: value for key, value in changes.items() if key != "mlp_bias"}
    config = parse(model_type=model_type, num_key_value_heads=1, **changes)
    written = json.loads(json.dumps(dump_config(config, dtype="float32")))
    assert parse_config(written, source="written") == config


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
    ],
)
def test_known_model_has_the_published_number_of_parameters(name: str, num_parameters: int) -> None:
    assert build_model(known_config(name), device="meta").num_parameters() == num_parameters


def test_every_known_configuration_can_be_read() -> None:
    for name in KNOWN_CONFIGS:
        assert known_config(name).eos_token_ids


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'Qwen/Qwen2.5-1.5B'"):
        known_config("Qwen/Qwen2.5-1.5")
