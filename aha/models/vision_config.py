"""The shape of InternVL's eye, read from and written to both Hugging Face dialects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from aha.errors import ModelError, unknown_name
from aha.models.config_keys import refuse_unknown_keys
from aha.models.config_values import flag, number, token_id, whole_number

NormType = Literal["layer_norm", "rms_norm"]
MAX_LAYERS = 1000
MAX_IMAGE_SIZE = 4096
"""Rows of a tile: where positions are not learned, no tensor bears the number out, and pictures are made so large."""


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Shape of a vision tower and of the projector that hands its features to the language model."""

    image_token_id: int
    """The token whose embeddings the features of a picture replace."""
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 448
    """Rows and columns of a tile, in pixels."""
    patch_size: int = 14
    """Rows and columns of a patch, in pixels; what does not fill a patch at the right and lower edge is not seen."""
    num_channels: int = 3
    downsample: int = 2
    """Rows and columns of patches that become one token (1 / `downsample_ratio`)."""
    norm_type: NormType = "layer_norm"
    layer_norm_eps: float = 1e-6
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    """RMS norm over all query and all key channels, heads together."""
    has_position_embeddings: bool = True
    has_final_norm: bool = False
    """A last norm, absent where the tower was trained with mean pooling."""
    has_mask_token: bool = False
    """A token of masked pre-training; it is kept, and nothing reads it."""
    layer_scale: float = 0.1
    """What lambda_1 and lambda_2 begin with."""
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "image_size", "patch_size",
                     "num_channels", "downsample"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ModelError(f"vision_config: {name} must be at least 1, got {getattr(self, name)}")
        for name, most in (("num_layers", MAX_LAYERS), ("image_size", MAX_IMAGE_SIZE)):
            if getattr(self, name) > most:
                raise ModelError(f"vision_config: {name} must be at most {most}")
        if self.image_token_id < 0:
            raise ModelError(f"image_token_id must be 0 or more, got {self.image_token_id}")
        if self.hidden_size % self.num_heads:
            raise ModelError(f"vision_config: {self.num_heads} heads must divide hidden_size {self.hidden_size}")
        if self.norm_type not in get_args(NormType):
            raise ModelError(f"vision_config: {unknown_name('norm_type', self.norm_type, get_args(NormType))}")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ModelError(f"vision_config: layer_norm_eps must be above 0 and finite, got {self.layer_norm_eps}")
        if not (math.isfinite(self.layer_scale) and 0 <= self.initializer_range < math.inf):
            raise ModelError("vision_config: layer_scale_init_value and initializer_range must be finite numbers")
        if self.grid < 1 or self.grid % self.downsample:
            raise ModelError(
                f"vision_config: image_size {self.image_size} in patches of {self.patch_size} makes a grid of "
                f"{self.grid}, which does not divide into squares of {self.downsample} (downsample_ratio)"
            )

    @property
    def grid(self) -> int:
        """Patches in a row, and rows of patches."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Tokens that a tile takes in the prompt: 256 for 448 pixels in patches of 14."""
        return (self.grid // self.downsample) ** 2


def read_vision(raw: Mapping[str, Any]) -> VisionShape:
    """The vision part of an `internvl` configuration; missing keys take the reference's class defaults.

    Raises:
        ModelError: a setting that this version would compute wrongly.
    """
    vision = raw.get("vision_config") or {}
    model_type = vision.get("model_type", "internvl_vision")
    if model_type != "internvl_vision":
        raise ModelError(unknown_name("vision model_type", str(model_type), ("internvl_vision",)))
    refuse_unknown_keys(vision, model_type="internvl_vision")
    _refuse("hidden_act", vision.get("hidden_act", "gelu"), only="gelu")
    _refuse("projector_hidden_act", raw.get("projector_hidden_act", "gelu"), only="gelu")
    _refuse("vision_feature_layer", raw.get("vision_feature_layer", -1), only=-1)
    _refuse("vision_feature_select_strategy", raw.get("vision_feature_select_strategy", "default"), only="default")
    return VisionShape(
        image_token_id=token_id(raw.get("image_token_id", 151_667), "image_token_id"),
        hidden_size=whole_number(vision, "hidden_size", default=1024),
        intermediate_size=whole_number(vision, "intermediate_size", default=4096),
        num_layers=whole_number(vision, "num_hidden_layers", default=24),
        num_heads=whole_number(vision, "num_attention_heads", default=16),
        image_size=_square(vision, "image_size", 448),
        patch_size=_square(vision, "patch_size", 14),
        num_channels=whole_number(vision, "num_channels", default=3),
        downsample=_read_downsample(number(raw, "downsample_ratio", default=0.5)),
        norm_type=vision.get("norm_type", "layer_norm"),
        layer_norm_eps=number(vision, "layer_norm_eps", default=1e-6),
        has_qkv_bias=flag(vision, "attention_bias", default=False),
        has_qk_norm=flag(vision, "use_qk_norm", default=False),
        has_position_embeddings=flag(vision, "use_absolute_position_embeddings", default=True),
        has_final_norm=not flag(vision, "use_mean_pooling", default=True),
        has_mask_token=flag(vision, "use_mask_token", default=False),
        layer_scale=number(vision, "layer_scale_init_value", default=0.1),
        initializer_range=number(vision, "initializer_range", default=0.02),
    )


def dump_vision(shape: VisionShape) -> dict[str, Any]:
    """The keys that a vision part adds to config.json, in the dialect that transformers 4 and 5 both read."""
    return {
        "image_token_id": shape.image_token_id,
        "image_seq_length": shape.tokens_per_tile,
        "downsample_ratio": 1 / shape.downsample,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "image_size": [shape.image_size] * 2,
            "patch_size": [shape.patch_size] * 2,
            "num_channels": shape.num_channels,
            "norm_type": shape.norm_type,
            "layer_norm_eps": shape.layer_norm_eps,
            "attention_bias": shape.has_qkv_bias,
            "use_qk_norm": shape.has_qk_norm,
            "use_absolute_position_embeddings": shape.has_position_embeddings,
            "use_mean_pooling": not shape.has_final_norm,
            "use_mask_token": shape.has_mask_token,
            "layer_scale_init_value": shape.layer_scale,
            "initializer_range": shape.initializer_range,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_dropout": 0.0,
            "projection_dropout": 0.0,
        },
    }


def _refuse(key: str, value: object, *, only: object) -> None:
    if value != only:
        raise ModelError(f"{key} {value!r} is not supported; only {only!r} is")


def _square(vision: Mapping[str, Any], key: str, default: int) -> int:
    """A size in pixels, given as one number or as [rows, columns]."""
    value = vision.get(key, default)
    sides = value if isinstance(value, list) else [value]
    if not sides or len(sides) > 2 or any(not isinstance(side, int) or isinstance(side, bool) for side in sides):
        raise TypeError(f"{key} must be a whole number or two of them, got {value!r}")
    if len(set(sides)) > 1:
        raise ModelError(f"{key} {value} is not square, which pixel shuffle needs")
    return int(sides[0])


def _read_downsample(ratio: float) -> int:
    """2 for the ratio 0.5."""
    if not 0 < ratio <= 1 or 1 / ratio != round(1 / ratio):
        raise ModelError(f"downsample_ratio {ratio} is not supported; it must be 1 over a whole number, e.g. 0.5")
    return round(1 / ratio)
