"""What a million tokens costs on machines of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TokenClass = Literal["input", "cached", "output"]


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
