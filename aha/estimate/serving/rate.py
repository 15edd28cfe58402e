"""Seconds a token keeps a replica busy, and what it costs for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

TokenClass = Literal["input", "cached", "output"]

UTILISATIONS = (0.05, 0.2, 0.5, 0.8, 1.0)
"""Shares of the hours paid for at which costs are shown."""


@dataclass(frozen=True, kw_only=True)
class ServingRate:
    """A replica that serves one model: what it costs, and how long each token keeps it busy. Measured or predicted."""

    usd_per_hour: float
    """Of the whole replica: all its GPUs, overhead included."""
    seconds_per_input_token: float
    """Of the replica's time, at the batch that it is run with."""
    seconds_per_cached_token: float
    """Of a prompt token whose keys and values lay in the cache; 0 where it takes no time that can be told."""
    seconds_per_output_token: float
    basis: str
    """How it is known, in words: "measured: 812 requests of the ledger …", "predicted: roofline of …"."""

    def usd_per_million(self, kind: TokenClass, *, utilisation: float = 1.0) -> float:
        """Dollars for a million tokens of a class.

        Args:
            utilisation: share of the hours paid for in which the replica is busy, above 0 and up to 1.
        """
        assert 0 < utilisation <= 1, "a share of the hours paid for"
        seconds = {
            "input": self.seconds_per_input_token,
            "cached": self.seconds_per_cached_token,
            "output": self.seconds_per_output_token,
        }[kind]
        return self.usd_per_hour / 3600 * seconds * 1e6 / utilisation

    def blended_usd_per_million(
        self, *, input_tokens: float, cached_tokens: float, output_tokens: float, utilisation: float = 1.0
    ) -> float:
        """Dollars for a million tokens of a mix of the three classes.

        Args:
            input_tokens: prompt tokens that are not cached.
        """
        counts: dict[TokenClass, float] = {"input": input_tokens, "cached": cached_tokens, "output": output_tokens}
        total = sum(counts.values())
        assert total > 0, "a mix has tokens"
        return sum(n * self.usd_per_million(kind, utilisation=utilisation) for kind, n in counts.items()) / total


def rate_dict(rate: ServingRate) -> dict[str, Any]:
    """The seconds of a rate, and how they are known."""
    return {
        "seconds_per_input_token": rate.seconds_per_input_token,
        "seconds_per_cached_token": rate.seconds_per_cached_token,
        "seconds_per_output_token": rate.seconds_per_output_token,
        "basis": rate.basis,
    }


def cost_rows(rate: ServingRate) -> list[dict[str, float]]:
    """Dollars a million tokens at each of UTILISATIONS."""
    return [
        {
            "utilisation": share,
            "usd_per_million_input": rate.usd_per_million("input", utilisation=share),
            "usd_per_million_cached": rate.usd_per_million("cached", utilisation=share),
            "usd_per_million_output": rate.usd_per_million("output", utilisation=share),
        }
        for share in UTILISATIONS
    ]
