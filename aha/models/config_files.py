"""config.json in and out, in the dialects of transformers 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from aha.errors import ModelError, unknown_name
from aha.models.config import ExpertsShape, LatentAttentionShape, ModelConfig, ModelType
from aha.models.config_keys import refuse_unknown_keys
from aha.models.config_rope import dump_rope, read_rope
from aha.models.config_values import flag, number, token_id, whole_number
from aha.models.fp8_config import Fp8Format, parse_fp8
from aha.models.vision_config import VisionShape, dump_vision, read_vision

# Class defaults of the transformers configurations: what a missing key means.
_MAX_POSITIONS_DEFAULT = {
    "llama": 2048,
    "qwen2": 32_768,
    "qwen3": 32_768,
    "qwen3_moe": 32_768,
    "deepseek_v3": 4096,
    "kimi_k2": 4096,
}
_KV_HEADS_DEFAULT: dict[str, int | None] = {"llama": None, "qwen2": 32, "qwen3": 32, "qwen3_moe": 4}
_ARCHITECTURE_NAMES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
}
LATENT_TYPES = ("deepseek_v3", "kimi_k2")
"""Families with multi-head latent attention; kimi_k2 is DeepSeek-V3's architecture with values of its own."""


def read_config(folder: Path | str) -> ModelConfig:
    """Read config.json of a Hugging Face folder, in the dialect of transformers 4 or 5.

    Raises:
        ModelError: no such file, an unknown architecture, or a setting that this version would compute wrongly.
    """
    return parse_config(_read_json(folder), source=str(Path(folder) / "config.json"))


def read_fp8_format(folder: Path | str) -> Fp8Format | None:
    """How a Hugging Face folder's weights are stored in FP8; None where they are plain.

    Raises:
        ModelError: as `read_config`.
    """
    raw = _read_json(folder)
    try:
        # Beside the parts of a model that sees, or in the part that writes.
        return parse_fp8(raw) or parse_fp8(raw.get("text_config") or {})
    except ModelError as error:
        raise ModelError(f"{Path(folder) / 'config.json'}: {error}") from None


def _read_json(folder: Path | str) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return raw


def parse_config(raw: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Turn a Hugging Face configuration into a ModelConfig; `source` names it in errors."""
    try:
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in (*_MAX_POSITIONS_DEFAULT, "internvl"):
            raise ModelError(unknown_name("model_type", str(model_type), (*_MAX_POSITIONS_DEFAULT, "internvl")))
        refuse_unknown_keys(raw, model_type=model_type)
        parse_fp8(raw)
        if model_type == "internvl":
            return _build_internvl(raw)
        if raw.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ModelError(f"hidden_act {raw['hidden_act']!r} is not supported; only 'silu' is")
        _refuse_sliding_window(raw, model_type=model_type)
        return _build(raw, cast(ModelType, model_type))
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None
    except KeyError as error:
        raise ModelError(f"{source}: key {error} is missing") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{source}: a setting has the wrong type: {error}") from None


def _build(raw: Mapping[str, Any], model_type: ModelType) -> ModelConfig:
    is_latent = model_type in LATENT_TYPES
    num_heads = whole_number(raw, "num_attention_heads")
    hidden_size = whole_number(raw, "hidden_size")
    mla = _read_latent_attention(raw) if is_latent else None
    if mla is None:
        head_dim, num_kv_heads = _read_heads(raw, model_type)
    else:
        head_dim, num_kv_heads = mla.qk_nope_head_dim + mla.qk_rope_head_dim, num_heads
        _check_latent_heads(raw, mla, num_heads=num_heads)
    max_positions = whole_number(raw, "max_position_embeddings", default=_MAX_POSITIONS_DEFAULT[model_type])
    attention_bias = flag(raw, "attention_bias", default=False)
    rope_theta, rope_scaling = read_rope(raw, max_positions=max_positions)
    bos, eos = raw.get("bos_token_id"), raw.get("eos_token_id", {"llama": 2, "deepseek_v3": 1}.get(model_type))
    eos_list = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ModelConfig(
        model_type=model_type,
        vocab_size=whole_number(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=whole_number(raw, "intermediate_size"),
        num_layers=whole_number(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rms_norm_eps=number(raw, "rms_norm_eps", default=1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=flag(raw, "tie_word_embeddings", default=False),
        has_qkv_bias=True if model_type == "qwen2" else attention_bias,
        has_output_bias=False if model_type == "qwen2" else attention_bias,
        has_mlp_bias=model_type == "llama" and flag(raw, "mlp_bias", default=False),
        has_qk_norm=model_type in ("qwen3", "qwen3_moe"),
        rope_interleaved=is_latent and flag(raw, "rope_interleave", default=True),
        mla=mla,
        experts=_read_experts(raw, model_type),
        num_mtp_layers=_read_mtp(raw) if is_latent else 0,
        bos_token_id=None if bos is None else token_id(bos, "bos_token_id"),
        eos_token_ids=tuple(token_id(i, "eos_token_id") for i in eos_list),
        initializer_range=number(raw, "initializer_range", default=0.02),
    )


def _build_internvl(raw: Mapping[str, Any]) -> ModelConfig:
    """The language model's configuration with an eye: the file has `text_config` and `vision_config` side by side."""
    text = raw.get("text_config") or {}
    if not isinstance(text, dict) or text.get("model_type") == "internvl":
        raise ModelError("text_config must be the configuration of a language model")
    config = parse_config({"model_type": "qwen2", **text}, source="text_config")
    # Version 5 goes by the outer key, which it always writes; version 4 by the inner one, and leaves the outer one out.
    is_tied = flag(raw, "tie_word_embeddings", default=config.tie_word_embeddings)
    return replace(config, vision=read_vision(raw), tie_word_embeddings=is_tied)


def _read_heads(raw: Mapping[str, Any], model_type: ModelType) -> tuple[int, int]:
    """Channels of a head and number of key heads, of grouped-query attention."""
    num_heads = whole_number(raw, "num_attention_heads")
    if raw.get("head_dim") is None:
        # Qwen3-MoE's class computes it, Qwen3's has a default.
        head_dim = 128 if model_type == "qwen3" else whole_number(raw, "hidden_size") // max(1, num_heads)
    else:
        head_dim = whole_number(raw, "head_dim")
    default = _KV_HEADS_DEFAULT[model_type]
    if raw.get("num_key_value_heads", default) is None:
        return head_dim, num_heads
    return head_dim, whole_number(raw, "num_key_value_heads", default=default)


def _read_latent_attention(raw: Mapping[str, Any]) -> LatentAttentionShape:
    # Missing keys mean the values of DeepseekV3Config; null means that queries have no latent.
    return LatentAttentionShape(
        q_lora_rank=None if raw.get("q_lora_rank", 1536) is None else whole_number(raw, "q_lora_rank", default=1536),
        kv_lora_rank=whole_number(raw, "kv_lora_rank", default=512),
        qk_nope_head_dim=whole_number(raw, "qk_nope_head_dim", default=128),
        qk_rope_head_dim=whole_number(raw, "qk_rope_head_dim", default=64),
        v_head_dim=whole_number(raw, "v_head_dim", default=128),
    )


def _check_latent_heads(raw: Mapping[str, Any], mla: LatentAttentionShape, *, num_heads: int) -> None:
    """What a file says twice about the heads of latent attention must agree; its head_dim means different widths."""
    both = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    for key, expected in (("num_key_value_heads", num_heads), ("qk_head_dim", both)):
        if raw.get(key) is not None and raw[key] != expected:
            raise ModelError(f"{key} {raw[key]!r} is not supported with latent attention here; only {expected} is")


def _read_experts(raw: Mapping[str, Any], model_type: ModelType) -> ExpertsShape | None:
    if model_type == "qwen3_moe":
        num_experts = raw.get("num_experts", raw.get("num_local_experts", 128))
        return ExpertsShape(
            num_experts=whole_number({"num_experts": num_experts}, "num_experts"),
            num_experts_per_token=whole_number(raw, "num_experts_per_tok", default=8),
            intermediate_size=whole_number(raw, "moe_intermediate_size", default=768),
            scoring="softmax",
            has_selection_bias=False,
            renormalises=flag(raw, "norm_topk_prob", default=False),
            layer_step=whole_number(raw, "decoder_sparse_step", default=1),
            dense_layers=_read_dense_layers(raw),
        )
    if model_type not in LATENT_TYPES:
        return None
    for key, only in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
        if raw.get(key, only) != only:
            raise ModelError(f"{key} {raw[key]!r} is not supported for {model_type}; only {only!r} is")
    num_experts = raw.get("n_routed_experts", raw.get("num_local_experts", 256))
    # Null is none, of groups and of shared experts alike.
    is_ungrouped, has_no_shared = raw.get("n_group", 8) is None, raw.get("n_shared_experts", 1) is None
    return ExpertsShape(
        num_experts=whole_number({"n_routed_experts": num_experts}, "n_routed_experts"),
        num_experts_per_token=whole_number(raw, "num_experts_per_tok", default=8),
        intermediate_size=whole_number(raw, "moe_intermediate_size", default=2048),
        num_shared_experts=0 if has_no_shared else whole_number(raw, "n_shared_experts", default=1),
        scoring="sigmoid",
        has_selection_bias=True,
        num_groups=1 if is_ungrouped else whole_number(raw, "n_group", default=8),
        num_groups_per_token=1 if is_ungrouped else whole_number(raw, "topk_group", default=4),
        renormalises=flag(raw, "norm_topk_prob", default=True),
        scaling_factor=number(raw, "routed_scaling_factor", default=2.5),
        first_layer=whole_number(raw, "first_k_dense_replace", default=3),
    )


def _read_dense_layers(raw: Mapping[str, Any]) -> tuple[int, ...]:
    layers = raw.get("mlp_only_layers") or []
    if not isinstance(layers, list):
        raise TypeError(f"mlp_only_layers must be a list of whole numbers, got {layers!r}")
    return tuple(whole_number({"mlp_only_layers": layer}, "mlp_only_layers") for layer in layers)


def _read_mtp(raw: Mapping[str, Any]) -> int:
    """0 when the file is silent: the class's default of 1 stands in files that have no such tensors."""
    count = raw.get("num_nextn_predict_layers", raw.get("num_mtp_layers", 0))
    return whole_number({"num_nextn_predict_layers": count or 0}, "num_nextn_predict_layers")


def _refuse_sliding_window(raw: Mapping[str, Any], *, model_type: str) -> None:
    layer_types = raw.get("layer_types") or []
    # A missing sliding_window means 4,096 positions there, null means none.
    uses_window = flag(raw, "use_sliding_window", default=False) and raw.get("sliding_window", 4096) is not None
    # v4: layers from max_window_layers on slide; a file that sets the switch but no such layer is plain. Qwen3-MoE's
    # class gives every layer the window.
    first = 0 if model_type == "qwen3_moe" else whole_number(raw, "max_window_layers", default=28)
    slides = any(kind != "full_attention" for kind in layer_types) or (
        uses_window and not layer_types and first < whole_number(raw, "num_hidden_layers")
    )
    # Families without the switch: a window is in use where one is given (Mistral's way).
    if "use_sliding_window" not in raw and model_type not in ("qwen2", "qwen3", "qwen3_moe"):
        slides = slides or raw.get("sliding_window") is not None
    if slides:
        raise ModelError("sliding-window attention is not supported; set use_sliding_window to false")


def dump_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The configuration in the transformers 4 dialect, which version 5, vLLM and SGLang read too."""
    eos: int | list[int] | None = None
    if config.eos_token_ids:
        eos = config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids)
    raw: dict[str, Any] = {
        "architectures": [_ARCHITECTURE_NAMES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": dump_rope(config.rope_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.has_output_bias if config.model_type != "qwen2" else True,
        "mlp_bias": config.has_mlp_bias,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "use_cache": True,
        "torch_dtype": dtype,
    }
    if config.experts is not None:
        raw |= _dump_experts(config.experts)
    if config.mla is not None:
        raw |= vars(config.mla) | {
            "rope_interleave": config.rope_interleaved,
            "num_nextn_predict_layers": config.num_mtp_layers,
        }
        # Of an MLA model it would be read as the rotated part; each reader adds the two parts up.
        del raw["head_dim"]
    return raw if config.vision is None else _dump_internvl(raw, config.vision)


def _dump_internvl(text: dict[str, Any], vision: VisionShape) -> dict[str, Any]:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": text,
        **dump_vision(vision),
        "tie_word_embeddings": text["tie_word_embeddings"],
        "torch_dtype": text["torch_dtype"],
    }


def _dump_experts(experts: ExpertsShape) -> dict[str, Any]:
    common = {
        "num_experts_per_tok": experts.num_experts_per_token,
        "moe_intermediate_size": experts.intermediate_size,
        "norm_topk_prob": experts.renormalises,
    }
    if experts.scoring == "softmax":
        return common | {
            "num_experts": experts.num_experts,
            "decoder_sparse_step": experts.layer_step,
            "mlp_only_layers": list(experts.dense_layers),
            "router_aux_loss_coef": 0.001,
        }
    return common | {
        "n_routed_experts": experts.num_experts,
        "n_shared_experts": experts.num_shared_experts,
        "n_group": experts.num_groups,
        "topk_group": experts.num_groups_per_token,
        "routed_scaling_factor": experts.scaling_factor,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "first_k_dense_replace": experts.first_layer,
        "moe_layer_freq": 1,
    }
