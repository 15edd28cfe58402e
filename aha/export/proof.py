"""The proof that a written model is the function that it was written from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from aha.models.parity import Parity


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured between a written model and its source, and how much was allowed."""

    dtype: str
    """Of the written weights."""
    bound: float
    """Most that `parity.mean_probability_difference` may be."""
    parity: Parity
    """Source and written model."""
    adapter_effect: Parity | None
    """Source and its base without the adapter, for scale; None where there is no adapter."""
    sha256: str
    """Of the written weights."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Proof:
        """What `to_json` wrote."""
        raw = json.loads(text)
        for name in ("parity", "adapter_effect"):
            raw[name] = None if raw[name] is None else Parity(**raw[name])
        return cls(**raw)

    def describe(self) -> str:
        """One or two sentences for people."""
        if self.adapter_effect is None:
            words = f"written in {self.dtype}, read back and compared with its source: {self.parity.describe()}"
            return f"{words} (allowed: {self.bound:g})" if self.bound else words
        effect = self.adapter_effect
        return (
            f"adapter merged in float32, rounded to {self.dtype}, read back and compared with base and adapter: "
            f"{self.parity.describe()} (allowed: {self.bound:g}). The adapter itself moved that probability by "
            f"{effect.mean_probability_difference:.2g} and left {100 * effect.same_argmax_fraction:.1f} % of the "
            "likeliest tokens as they were"
        )
