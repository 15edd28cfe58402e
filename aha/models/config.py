"""Configurations of dense decoders, read from and written to both Hugging Face dialects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from aha.errors import ModelError, unknown_name
from aha.models.fp8_files import Fp8Format, parse_fp8

ModelType = Literal["llama", "qwen2", "qwen3"]


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Frequency-dependent stretching of Llama 3.1 and later ("rope_type": "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if not (1 <= self.factor < math.inf and 0 < self.low_freq_factor < self.high_freq_factor < math.inf):
            raise ModelError(f"llama3 rope scaling needs factor >= 1 and 0 < low < high frequency factor, got {self}")
        if self.original_max_position_embeddings < 1:
            raise ModelError("llama3 rope scaling needs original_max_position_embeddings of at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a dense decoder-only transformer."""

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    """D."""
    intermediate_size: int
    """F."""
    num_layers: int
    num_heads: int
    """Query heads, H."""
    num_kv_heads: int
    """Key/value heads, K; divides `num_heads`."""
    head_dim: int
    """C; need not be hidden_size / num_heads."""
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | float | None = None
    """None is plain RoPE; a number divides every position ("linear"); Llama3Rope stretches by frequency."""
    tie_word_embeddings: bool = False
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    """Bias on the attention's output projection (Llama's `attention_bias` sets both)."""
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    """RMS norm over each query and key head before RoPE (Qwen3)."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
                     "head_dim", "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ModelError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if isinstance(self.rope_scaling, float) and not 0 < self.rope_scaling < math.inf:
            raise ModelError(f"the factor of linear rope scaling must be above 0, got {self.rope_scaling}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_key_value_heads {self.num_kv_heads} must divide num_attention_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim must be even for rotary positions, got {self.head_dim}")


# Class defaults of the transformers configurations: what a missing key means.
_MAX_POSITIONS_DEFAULT = {"llama": 2048, "qwen2": 32_768, "qwen3": 32_768}
_KV_HEADS_DEFAULT: dict[str, int | None] = {"llama": None, "qwen2": 32, "qwen3": 32}
_REFUSED = {
    "auto_map": "needs code from the model's repository, which is never executed",
}


def read_config(folder: Path | str) -> ModelConfig:
    """Read config.json of a Hugging Face folder, in the dialect of transformers 4 or 5.

    Raises:
        ModelError: no such file, an unknown architecture, or a setting that this version would compute wrongly.
    """
    raw = _read_json(folder)
    return parse_config(raw, source=str(Path(folder) / "config.json"))


def read_fp8_format(folder: Path | str) -> Fp8Format | None:
    """How the weights of a Hugging Face folder are stored in FP8; None where they are plain.

    Raises:
        ModelError: as `read_config`.
    """
    raw = _read_json(folder)
    try:
        return parse_fp8(raw)
    except ModelError as error:
        raise ModelError(f"{Path(folder) / 'config.json'}: {error}") from None


def _read_json(folder: Path | str) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return raw


def parse_config(raw: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Turn a Hugging Face configuration into a ModelConfig; `source` names it in errors."""
    try:
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in _MAX_POSITIONS_DEFAULT:
            raise ModelError(unknown_name("model_type", str(model_type), _MAX_POSITIONS_DEFAULT))
        for key, reason in _REFUSED.items():
            if raw.get(key):
                raise ModelError(f"{key} {reason}")
        parse_fp8(raw)
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
    num_heads = _whole_number(raw, "num_attention_heads")
    hidden_size = _whole_number(raw, "hidden_size")
    if raw.get("head_dim") is None:
        head_dim = 128 if model_type == "qwen3" else hidden_size // max(1, num_heads)
    else:
        head_dim = _whole_number(raw, "head_dim")
    num_kv_heads = num_heads  # what null means
    kv_default = _KV_HEADS_DEFAULT[model_type]
    if raw.get("num_key_value_heads", kv_default) is not None:
        num_kv_heads = _whole_number(raw, "num_key_value_heads", default=kv_default)
    max_positions = _whole_number(raw, "max_position_embeddings", default=_MAX_POSITIONS_DEFAULT[model_type])
    attention_bias = bool(raw.get("attention_bias", False))
    rope_theta, rope_scaling = _read_rope(raw, max_positions)
    eos = raw.get("eos_token_id", 2 if model_type == "llama" else None)
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
        has_qk_norm=model_type == "qwen3",
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=() if eos is None else tuple(int(i) for i in (eos if isinstance(eos, list) else [eos])),
        initializer_range=float(raw.get("initializer_range", 0.02)),
    )


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


def _read_rope(raw: Mapping[str, Any], max_positions: int) -> tuple[float, Llama3Rope | float | None]:
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
    raise ModelError(unknown_name("rope_type", str(kind), ("default", "linear", "llama3")))


_ARCHITECTURE_NAMES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def dump_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The configuration in the transformers 4 dialect, which version 5, vLLM and SGLang read too."""
    scaling: dict[str, Any] | None = None
    if isinstance(config.rope_scaling, Llama3Rope):
        scaling = {"rope_type": "llama3", **vars(config.rope_scaling)}
    elif config.rope_scaling is not None:
        scaling = {"rope_type": "linear", "factor": config.rope_scaling}
    eos: int | list[int] | None = None
    if config.eos_token_ids:
        eos = config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids)
    return {
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
        "rope_scaling": scaling,
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
