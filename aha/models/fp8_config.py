"""What a config.json says of weights in FP8. Without torch: tables of models are made of configurations alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from aha.errors import ModelError, unknown_name

ScaleFormat = Literal["float", "ue8m0"]
"""How a block's scale is rounded: "float" keeps float32's 24 bits, "ue8m0" takes the next power of two, as
DeepSeek-V3.1 does ("scale_fmt" in its config.json)."""

BLOCK_SIZE = 128
WEIGHT_BLOCK = (BLOCK_SIZE, BLOCK_SIZE)
_IGNORED_KEYS = {"dequantize", "weight_per_tensor", "act_per_tensor"}
"""Keys that say nothing of the weights in the file."""


@dataclass(frozen=True, kw_only=True)
class Fp8Format:
    """How the matrices of a folder are stored in FP8."""

    block: tuple[int, int] = WEIGHT_BLOCK
    """Rows and columns that share a scale."""
    scale_fmt: ScaleFormat = "float"
    not_converted: tuple[str, ...] = ()
    """Modules whose weights are not in FP8."""

    def to_json(self) -> dict[str, Any]:
        """The `quantization_config` that transformers, vLLM and SGLang read."""
        raw: dict[str, Any] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.block),
            "modules_to_not_convert": list(self.not_converted),
        }
        return raw | ({"scale_fmt": "ue8m0"} if self.scale_fmt == "ue8m0" else {})


def parse_fp8(raw: Mapping[str, Any]) -> Fp8Format | None:
    """What a config.json says of quantised weights; None where they are plain.

    Raises:
        ModelError: another quantisation than FP8 in blocks, or a setting that would be read wrongly, by its name.
    """
    settings = raw.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        raise ModelError(f"quantization_config must be an object, got {settings!r}")
    method = settings.get("quant_method")
    if method != "fp8":
        raise ModelError(f"quantization_config: {unknown_name('quant_method', str(method), ('fp8',))}")
    # A key that only another tool writes is left out by all the others: what is missing has the one value we read.
    for key, allowed in _ALLOWED.items():
        if key in settings and settings[key] not in allowed:
            choices = ", ".join(repr(value) for value in allowed)
            raise ModelError(f"quantization_config.{key} {settings[key]!r} is not supported; choose from: {choices}")
    known = {*_ALLOWED, "quant_method", "weight_block_size", *_LISTS, *_IGNORED_KEYS}
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ModelError(f"quantization_config.{unknown[0]} is not known here; known are: {', '.join(sorted(known))}")
    return Fp8Format(
        block=_block(settings.get("weight_block_size")),
        scale_fmt="ue8m0" if settings.get("scale_fmt") == "ue8m0" else "float",
        not_converted=tuple(name for key in _LISTS for name in _names(settings.get(key), key=key)),
    )


_ALLOWED: dict[str, tuple[object, ...]] = {
    "fmt": ("e4m3",),
    "activation_scheme": ("dynamic",),
    "scale_fmt": ("float", "ue8m0", None),
    "expert_dtype": ("fp8", None),
    "modules_to_convert": (None, []),
}
_LISTS = ("modules_to_not_convert", "ignored_layers")


def _block(value: object) -> tuple[int, int]:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not is_pair or not all(type(side) is int and side > 0 for side in cast(list[object], value)):
        fix = "it must be two whole numbers, [128, 128]"
        raise ModelError(f"quantization_config.weight_block_size {value!r} is not supported; {fix}")
    rows, columns = cast(list[int], value)
    return rows, columns


def _names(value: object, *, key: str) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ModelError(f"quantization_config.{key} {value!r} is not supported; it must be a list of module names")
    return value
