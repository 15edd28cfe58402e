"""config.json in and out, in the dialects of transformers 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from aha.errors import ModelError, unknown_name
from aha.models.config import (
    ExpertsShape,
    LatentAttentionShape,
    Llama3Rope,
    ModelConfig,
    ModelType,
    RopeScaling,
    YarnRope,
)
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
_REFUSED = {
    "auto_map": "needs code from the model's repository, which is never executed",
    "quantization_config": "says that the weights are quantised; use the unquantised folder",
}


def read_config(folder: Path | str) -> ModelConfig:
    """Read config.json of a Hugging Face folder, in the dialect of transformers 4 or 5.

    Raises:
        ModelError: no such file, an unknown architecture, or a setting that this version would compute wrongly.
    """
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return parse_config(raw, source=str(path))


def parse_config(raw: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Turn a Hugging Face configuration into a ModelConfig; `source` names it in errors."""
    try:
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in (*_MAX_POSITIONS_DEFAULT, "internvl"):
            raise ModelError(unknown_name("model_type", str(model_type), (*_MAX_POSITIONS_DEFAULT, "internvl")))
        for key, reason in _REFUSED.items():
            if raw.get(key):
                raise ModelError(f"{key} {reason}")
        if model_type == "internvl":
            return _build_internvl(raw)
        if raw.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ModelError(f"hidden_act {raw['hidden_act']!r} is not supported; only 'silu' is")
        _refuse_sliding_window(raw)
        return _build(raw, cast(ModelType, model_type))
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None
    except KeyError as error:
        raise ModelError(f"{source}: key {error} is missing") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{source}: a setting has the wrong type: {error}") from None


def _build(raw: Mapping[str, Any], model_type: ModelType) -> ModelConfig:
    is_latent = model_type in LATENT_TYPES
    num_heads = _whole_number(raw, "num_attention_heads")
    hidden_size = _whole_number(raw, "hidden_size")
    mla = _read_latent_attention(raw) if is_latent else None
    if mla is None:
        head_dim, num_kv_heads = _read_heads(raw, model_type)
    else:
        # The file's head_dim is the rotated part alone in version 5's dialect; its key heads are without meaning.
        head_dim, num_kv_heads = mla.qk_nope_head_dim + mla.qk_rope_head_dim, num_heads
    max_positions = _whole_number(raw, "max_position_embeddings", default=_MAX_POSITIONS_DEFAULT[model_type])
    attention_bias = bool(raw.get("attention_bias", False))
    rope_theta, rope_scaling = _read_rope(raw, max_positions)
    eos = raw.get("eos_token_id", {"llama": 2, "deepseek_v3": 1}.get(model_type))
    return ModelConfig(
        model_type=model_type,
        vocab_size=_whole_number(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_whole_number(raw, "intermediate_size"),
        num_layers=_whole_number(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        has_qkv_bias=True if model_type == "qwen2" else attention_bias,
        has_output_bias=False if model_type == "qwen2" else attention_bias,
        has_mlp_bias=bool(raw.get("mlp_bias", False)) and model_type == "llama",
        has_qk_norm=model_type in ("qwen3", "qwen3_moe"),
        rope_interleaved=is_latent and bool(raw.get("rope_interleave", True)),
        mla=mla,
        experts=_read_experts(raw, model_type),
        num_mtp_layers=_read_mtp(raw) if is_latent else 0,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=() if eos is None else tuple(int(i) for i in (eos if isinstance(eos, list) else [eos])),
        initializer_range=float(raw.get("initializer_range", 0.02)),
    )


def _build_internvl(raw: Mapping[str, Any]) -> ModelConfig:
    """The language model's configuration with an eye: the file has `text_config` and `vision_config` side by side."""
    text = raw.get("text_config") or {}
    if not isinstance(text, dict) or text.get("model_type") == "internvl":
        raise ModelError("text_config must be the configuration of a language model")
    config = parse_config({"model_type": "qwen2", **text}, source="text_config")
    # Version 5 goes by the outer key, which it always writes; version 4 by the inner one, and leaves the outer one out.
    is_tied = bool(raw.get("tie_word_embeddings", config.tie_word_embeddings))
    return replace(config, vision=read_vision(raw), tie_word_embeddings=is_tied)


def _read_heads(raw: Mapping[str, Any], model_type: ModelType) -> tuple[int, int]:
    """Channels of a head and number of key heads, of grouped-query attention."""
    num_heads = _whole_number(raw, "num_attention_heads")
    if raw.get("head_dim") is None:
        # Qwen3-MoE's class computes it, Qwen3's has a default.
        head_dim = 128 if model_type == "qwen3" else _whole_number(raw, "hidden_size") // max(1, num_heads)
    else:
        head_dim = _whole_number(raw, "head_dim")
    default = _KV_HEADS_DEFAULT[model_type]
    if raw.get("num_key_value_heads", default) is None:
        return head_dim, num_heads
    return head_dim, _whole_number(raw, "num_key_value_heads", default=default)


def _read_latent_attention(raw: Mapping[str, Any]) -> LatentAttentionShape:
    # Missing keys mean the values of DeepseekV3Config; null means that queries have no latent.
    return LatentAttentionShape(
        q_lora_rank=None if raw.get("q_lora_rank", 1536) is None else _whole_number(raw, "q_lora_rank", default=1536),
        kv_lora_rank=_whole_number(raw, "kv_lora_rank", default=512),
        qk_nope_head_dim=_whole_number(raw, "qk_nope_head_dim", default=128),
        qk_rope_head_dim=_whole_number(raw, "qk_rope_head_dim", default=64),
        v_head_dim=_whole_number(raw, "v_head_dim", default=128),
    )


def _read_experts(raw: Mapping[str, Any], model_type: ModelType) -> ExpertsShape | None:
    if model_type == "qwen3_moe":
        num_experts = raw.get("num_experts", raw.get("num_local_experts", 128))
        return ExpertsShape(
            num_experts=_whole_number({"num_experts": num_experts}, "num_experts"),
            num_experts_per_token=_whole_number(raw, "num_experts_per_tok", default=8),
            intermediate_size=_whole_number(raw, "moe_intermediate_size", default=768),
            scoring="softmax",
            has_selection_bias=False,
            renormalises=bool(raw.get("norm_topk_prob", False)),
            layer_step=_whole_number(raw, "decoder_sparse_step", default=1),
            dense_layers=tuple(raw.get("mlp_only_layers") or ()),
        )
    if model_type not in LATENT_TYPES:
        return None
    for key, only in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
        if raw.get(key, only) != only:
            raise ModelError(f"{key} {raw[key]!r} is not supported for {model_type}; only {only!r} is")
    num_experts = raw.get("n_routed_experts", raw.get("num_local_experts", 256))
    return ExpertsShape(
        num_experts=_whole_number({"n_routed_experts": num_experts}, "n_routed_experts"),
        num_experts_per_token=_whole_number(raw, "num_experts_per_tok", default=8),
        intermediate_size=_whole_number(raw, "moe_intermediate_size", default=2048),
        num_shared_experts=_whole_number(raw, "n_shared_experts", default=1),
        scoring="sigmoid",
        has_selection_bias=True,
        num_groups=_whole_number(raw, "n_group", default=8),
        num_groups_per_token=_whole_number(raw, "topk_group", default=4),
        renormalises=bool(raw.get("norm_topk_prob", True)),
        scaling_factor=float(raw.get("routed_scaling_factor", 2.5)),
        first_layer=_whole_number(raw, "first_k_dense_replace", default=3),
    )


def _read_mtp(raw: Mapping[str, Any]) -> int:
    """0 when the file is silent: the class's default of 1 stands in files that have no such tensors."""
    count = raw.get("num_nextn_predict_layers", raw.get("num_mtp_layers", 0))
    return _whole_number({"num_nextn_predict_layers": count or 0}, "num_nextn_predict_layers")


def _whole_number(raw: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = raw[key] if default is None else raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} must be a whole number, got {value!r}")
    return value


def _refuse_sliding_window(raw: Mapping[str, Any]) -> None:
    layer_types = raw.get("layer_types") or []
    # A missing sliding_window means 4,096 positions there, null means none.
    uses_window = bool(raw.get("use_sliding_window")) and raw.get("sliding_window", 4096) is not None
    # v4: layers from max_window_layers on slide; a file that sets the switch but no such layer is plain.
    slides = any(kind != "full_attention" for kind in layer_types) or (
        uses_window and not layer_types and int(raw.get("max_window_layers", 28)) < int(raw.get("num_hidden_layers", 0))
    )
    if slides:
        raise ModelError("sliding-window attention is not supported; set use_sliding_window to false")


def _read_rope(raw: Mapping[str, Any], max_positions: int) -> tuple[float, RopeScaling]:
    """Base and scaling from `rope_parameters` (v5) or `rope_theta` and `rope_scaling` (v4)."""
    parameters = raw.get("rope_parameters") or {}
    scaling = parameters or raw.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    partial = float(scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)))
    if partial != 1.0:
        raise ModelError(f"partial_rotary_factor {partial} is not supported; only 1.0 is")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, float(scaling["factor"])
    if kind == "llama3":
        original = scaling.get("original_max_position_embeddings", max_positions)
        return theta, Llama3Rope(
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_position_embeddings=int(raw.get("original_max_position_embeddings", original)),
        )
    if kind == "yarn":
        return theta, _read_yarn(scaling, max_positions)
    raise ModelError(unknown_name("rope_type", str(kind), ("default", "linear", "llama3", "yarn")))


def _read_yarn(scaling: Mapping[str, Any], max_positions: int) -> YarnRope:
    original = int(scaling.get("original_max_position_embeddings") or max_positions)
    factor = scaling.get("factor")

    def number(key: str) -> float | None:
        return None if scaling.get(key) is None else float(scaling[key])

    return YarnRope(
        factor=max_positions / original if factor is None else float(factor),
        original_max_position_embeddings=original,
        beta_fast=number("beta_fast") or 32.0,
        beta_slow=number("beta_slow") or 1.0,
        mscale=number("mscale"),
        mscale_all_dim=number("mscale_all_dim"),
        attention_factor=number("attention_factor"),
        truncate=bool(scaling.get("truncate", True)),
    )


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
        "rope_scaling": _dump_rope(config.rope_scaling),
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


def _dump_rope(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, float):
        return {"rope_type": "linear", "factor": scaling}
    kind = "llama3" if isinstance(scaling, Llama3Rope) else "yarn"
    # Both spellings of the kind: older readers know "type" alone.
    both = {"type": kind} if kind == "yarn" else {}
    return {"rope_type": kind, **both, **{k: v for k, v in vars(scaling).items() if v is not None}}


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
