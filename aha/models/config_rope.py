"""What stretches positions, in and out of a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aha.errors import ModelError, unknown_name
from aha.models.config import Llama3Rope, RopeScaling, YarnRope
from aha.models.config_keys import ROPE_KINDS, refuse_unknown_rope_keys
from aha.models.config_values import flag, number, whole_number


def read_rope(raw: Mapping[str, Any], *, max_positions: int) -> tuple[float, RopeScaling]:
    """Base and scaling from `rope_parameters` (v5) or `rope_theta` and `rope_scaling` (v4)."""
    parameters = raw.get("rope_parameters") or {}
    scaling = parameters or raw.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise TypeError(f"rope_scaling must be an object or null, got {scaling!r}")
    theta = number(scaling if "rope_theta" in scaling else raw, "rope_theta", default=10_000.0)
    partial = number(scaling if "partial_rotary_factor" in scaling else raw, "partial_rotary_factor", default=1.0)
    if partial != 1.0:
        raise ModelError(f"partial_rotary_factor {partial} is not supported; only 1.0 is")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise ModelError(unknown_name("rope_type", str(kind), ROPE_KINDS))
    refuse_unknown_rope_keys(scaling, kind=kind)
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, number(scaling, "factor")
    if kind == "yarn":
        return theta, _read_yarn(scaling, max_positions)
    original = whole_number(scaling, "original_max_position_embeddings", default=max_positions)
    return theta, Llama3Rope(
        factor=number(scaling, "factor"),
        low_freq_factor=number(scaling, "low_freq_factor"),
        high_freq_factor=number(scaling, "high_freq_factor"),
        original_max_position_embeddings=whole_number(raw, "original_max_position_embeddings", default=original),
    )


def _read_yarn(scaling: Mapping[str, Any], max_positions: int) -> YarnRope:
    given = {key: value for key, value in scaling.items() if value is not None}
    original = whole_number(given, "original_max_position_embeddings", default=max_positions)

    def optional(key: str) -> float | None:
        return number(given, key) if key in given else None

    return YarnRope(
        factor=number(given, "factor", default=max_positions / original if original > 0 else 1.0),
        original_max_position_embeddings=original,
        beta_fast=optional("beta_fast") or 32.0,
        beta_slow=optional("beta_slow") or 1.0,
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        attention_factor=optional("attention_factor"),
        truncate=flag(given, "truncate", default=True),
    )


def dump_rope(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, float):
        return {"rope_type": "linear", "factor": scaling}
    kind = "llama3" if isinstance(scaling, Llama3Rope) else "yarn"
    # Both spellings of the kind: older readers know "type" alone.
    both = {"type": kind} if kind == "yarn" else {}
    return {"rope_type": kind, **both, **{k: v for k, v in vars(scaling).items() if v is not None}}
