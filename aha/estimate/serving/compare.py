"""A replica of one's own beside the list prices of APIs, at the same token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from aha.cost.prices import LETTER_DATE, NANO_PER_USD, TokenPrice, prices_on, token_price
from aha.cost.prices.compare import is_vouched_for
from aha.estimate.serving.rate import ServingRate

LETTER_NAMES = ("openai-o1", "deepseek-r1")
"""Always shown, at their prices of January 2025."""
NEWEST_OF_A_PROVIDER = 2
_SAMPLE = 10**6
"""Requests that an API's mix is priced for: a single one may cost less than the price book's smallest amount."""


@dataclass(frozen=True, kw_only=True)
class TokenMix:
    """Tokens of a request; of many, their sums."""

    new_tokens: int
    """Of the prompt, not cached."""
    cached_tokens: int
    output_tokens: int

    @property
    def total(self) -> int:
        return self.new_tokens + self.cached_tokens + self.output_tokens

    def usd_per_million(self, rate: ServingRate, *, utilisation: float = 1.0) -> float:
        """Blended dollars a million tokens of this mix."""
        return rate.blended_usd_per_million(
            input_tokens=self.new_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            utilisation=utilisation,
        )

    def listed_usd_per_million(self, price: TokenPrice) -> float:
        """The same at an API's list price."""
        nano_usd = price.cost_nano_usd(
            _SAMPLE * (self.new_tokens + self.cached_tokens),
            completion_tokens=_SAMPLE * self.output_tokens,
            cached_tokens=_SAMPLE * self.cached_tokens,
        )
        return nano_usd / NANO_PER_USD / _SAMPLE / self.total * 1e6


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One API."""

    price: TokenPrice
    usd_per_million_blended: float
    own_usd_per_million_blended: float
    """Of the replica, fully busy."""

    @property
    def cheaper_above(self) -> float | None:
        """Share of the hours paid for above which the replica is cheaper than the API; None: not even fully busy."""
        if not self.usd_per_million_blended:
            return None
        share = self.own_usd_per_million_blended / self.usd_per_million_blended
        return share if share <= 1 else None

    def to_dict(self) -> dict[str, Any]:
        price = self.price
        return {
            "name": price.name,
            "price_id": price.price_id,
            "usd_per_million_input": price.pico_usd_per_input_token / 1e6,
            "usd_per_million_cached": price.pico_usd_per_cached_token / 1e6,
            "usd_per_million_output": price.pico_usd_per_output_token / 1e6,
            "usd_per_million_blended": self.usd_per_million_blended,
            "cheaper_above_utilisation": self.cheaper_above,
            "source": price.source,
            "confidence": price.confidence,
        }


def compare(
    rate: ServingRate, *, mix: TokenMix, on: date | datetime, prompt_tokens: int, names: Sequence[str] = ()
) -> list[Compared]:
    """APIs beside a replica, dearest first.

    Args:
        on: the day of the prices, or the moment.
        prompt_tokens: of one request: some prices hold for short prompts only, or for long ones.
        names: of the price book; none takes the two newest models of every provider whose price surely holds, at all
            hours, and o1's and R1's prices of January 2025.

    Raises:
        ConfigError: a name that the price book does not have, or not at that time.
    """
    if names:
        prices = [token_price(name, on=on, prompt_tokens=prompt_tokens) for name in names]
    else:
        prices = [*_newest(on, prompt_tokens=prompt_tokens), *(token_price(n, on=LETTER_DATE) for n in LETTER_NAMES)]
    own = mix.usd_per_million(rate)
    found = [
        Compared(
            price=price,
            usd_per_million_blended=mix.listed_usd_per_million(price),
            own_usd_per_million_blended=own,
        )
        for price in {price.price_id: price for price in prices}.values()
    ]
    return sorted(found, key=lambda row: -row.usd_per_million_blended)


def _newest(on: date | datetime, *, prompt_tokens: int) -> list[TokenPrice]:
    """The prices of the models of each provider whose price is the newest."""
    day = on.date() if isinstance(on, datetime) else on
    prices = [price for price in prices_on(day) if price.takes(prompt_tokens) and is_vouched_for(price, on=day)]
    since: dict[tuple[str, str], datetime] = {}
    for price in prices:
        key = (price.provider, price.name)
        since[key] = max(price.effective_from, since.get(key, price.effective_from))
    newest: set[tuple[str, str]] = set()
    for provider in {provider for provider, _ in since}:
        of_it = sorted((key for key in since if key[0] == provider), key=lambda key: (since[key], key), reverse=True)
        newest.update(of_it[:NEWEST_OF_A_PROVIDER])
    return [price for price in prices if (price.provider, price.name) in newest]
