"""One row of the price book: what a machine hour or a model's tokens cost, from when to when, says who."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from aha.cost.currency import NANO_PER_USD, PICO_PER_NANO, divide_half_up, moment_words
from aha.cost.prices.hours import Hours

MS_PER_HOUR = 3_600_000
PICO_USD_PER_USD_PER_MILLION = 10**6
"""$1 a million tokens is 1e-6 dollars a token, which is 1e6 pico-dollars."""

Confidence = Literal["primary", "third-party", "assumption", "user"]


@dataclass(frozen=True, kw_only=True)
class MachinePrice:
    """Price of one machine for one hour."""

    name: str
    nano_usd_per_hour: int
    effective_from: datetime
    """UTC."""
    effective_to: datetime | None = None
    """UTC; the first moment the price no longer holds; None when it is not known to have ended."""
    source: str
    source_date: date
    """When the source was read, or the day it speaks of."""
    confidence: Confidence
    note: str = ""
    fixed_id: str = ""

    @property
    def price_id(self) -> str:
        """What a ledger row carries: the same id is the same price for ever."""
        return self.fixed_id or f"{self.name}@{moment_words(self.effective_from)}"

    def to_dict(self) -> dict[str, Any]:
        """The row for scripts; its keys are described in docs/prices.md and stay."""
        return {
            "price_id": self.price_id,
            "name": self.name,
            "usd_per_hour": self.usd_per_hour,
            **_dates(self),
        }

    @property
    def usd_per_hour(self) -> float:
        return self.nano_usd_per_hour / NANO_PER_USD

    def cost_nano_usd(self, wall_ms: int) -> int:
        """Nano-dollars for `wall_ms` milliseconds, rounded half up."""
        return divide_half_up(wall_ms * self.nano_usd_per_hour, MS_PER_HOUR)


@dataclass(frozen=True, kw_only=True)
class TokenPrice:
    """Price of a model's tokens behind an API, in pico-dollars a token ($1 a million is 1,000,000)."""

    name: str
    provider: str
    model: str
    """What the vendor itself calls the model at that time: an alias such as deepseek-chat moves silently."""
    is_open_weight: bool
    pico_usd_per_input_token: int
    pico_usd_per_cached_token: int
    """Of prompt tokens read from the vendor's cache; the input price where the vendor takes nothing off."""
    pico_usd_per_output_token: int
    """Reasoning tokens are billed as output, unless they have a price of their own."""
    pico_usd_per_cache_write_token: int | None = None
    """Of prompt tokens written to the cache; None: billed as input."""
    pico_usd_per_reasoning_token: int | None = None
    """None: billed as output."""
    currency: str = "USD"
    """Of the source; `listed_per_million` has its amounts."""
    exchange_id: str = ""
    """The rate of exchange that made dollars of them; "" for dollars."""
    listed_per_million: tuple[tuple[str, str], ...] = ()
    """(kind of token, amount as the source writes it)."""
    tier: str = "standard"
    """Service tier: standard, batch, priority, …"""
    hours: Hours | None = None
    """Hours of the week at which it holds, before the row of the same name without hours; None: all that are left."""
    prompt_tokens_above: int = 0
    """It is the price of requests whose prompt is longer than this …"""
    prompt_tokens_up_to: int | None = None
    """… and not longer than that; None: of any length."""
    effective_from: datetime
    effective_to: datetime | None = None
    source: str
    source_date: date
    confidence: Confidence
    note: str = ""
    fixed_id: str = ""

    @property
    def price_id(self) -> str:
        """NAME@FROM, then what sets the row apart: +TIER, +WINDOW, +above-TOKENS."""
        if self.fixed_id:
            return self.fixed_id
        parts = [f"{self.name}@{moment_words(self.effective_from)}"]
        parts += [] if self.tier == "standard" else [self.tier]
        parts += [self.window] if self.window else []
        parts += [f"above-{self.prompt_tokens_above}"] if self.prompt_tokens_above else []
        return "+".join(parts)

    @property
    def window(self) -> str:
        """Name of its hours; "" when it has none."""
        return "" if self.hours is None else self.hours.label

    @property
    def has_cached_price(self) -> bool:
        """Whether anything is taken off for tokens read from a cache."""
        return self.pico_usd_per_cached_token < self.pico_usd_per_input_token

    @property
    def pico_usd_per_blended_token(self) -> float:
        """Three uncached input tokens to one of output, the mix that comparisons of APIs commonly use."""
        return (3 * self.pico_usd_per_input_token + self.pico_usd_per_output_token) / 4

    def to_dict(self) -> dict[str, Any]:
        """The row for scripts; its keys are described in docs/prices.md and stay."""
        write, reasoning = self.pico_usd_per_cache_write_token, self.pico_usd_per_reasoning_token
        return {
            "price_id": self.price_id,
            "name": self.name,
            "provider": self.provider,
            "model": self.model,
            "is_open_weight": self.is_open_weight,
            "usd_per_million_input_tokens": self.pico_usd_per_input_token / PICO_USD_PER_USD_PER_MILLION,
            "usd_per_million_cached_tokens": self.pico_usd_per_cached_token / PICO_USD_PER_USD_PER_MILLION,
            "usd_per_million_cache_write_tokens": write and write / PICO_USD_PER_USD_PER_MILLION,
            "usd_per_million_output_tokens": self.pico_usd_per_output_token / PICO_USD_PER_USD_PER_MILLION,
            "usd_per_million_reasoning_tokens": reasoning and reasoning / PICO_USD_PER_USD_PER_MILLION,
            "currency": self.currency,
            "exchange_id": self.exchange_id,
            "listed_per_million": dict(self.listed_per_million),
            "tier": self.tier,
            "window": self.window,
            "window_hours_utc": "" if self.hours is None else self.hours.words(),
            "window_except_days": [] if self.hours is None else sorted(map(str, self.hours.except_days)),
            "prompt_tokens_above": self.prompt_tokens_above,
            "prompt_tokens_up_to": self.prompt_tokens_up_to,
            **_dates(self),
        }

    def takes(self, prompt_tokens: int) -> bool:
        """Whether it is the price of a request with a prompt of that length."""
        is_long_enough = self.prompt_tokens_above == 0 or prompt_tokens > self.prompt_tokens_above
        return is_long_enough and (self.prompt_tokens_up_to is None or prompt_tokens <= self.prompt_tokens_up_to)

    def shares(self, other: TokenPrice) -> bool:
        """Whether some length of prompt is priced by both."""
        short, long = sorted((self, other), key=lambda row: row.prompt_tokens_above)
        return short.prompt_tokens_up_to is None or short.prompt_tokens_up_to > long.prompt_tokens_above

    def cost_nano_usd(
        self,
        prompt_tokens: int,
        *,
        completion_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> int:
        """Nano-dollars for a request or a sum of them, rounded half up once.

        Args:
            cached_tokens: the part of `prompt_tokens` that the API served from its cache.
            cache_write_tokens: another part of it, that the API put into its cache.
            reasoning_tokens: the part of `completion_tokens` that was thinking.
        """
        assert min(cached_tokens, cache_write_tokens, reasoning_tokens) >= 0, "tokens are counted from 0"
        assert cached_tokens + cache_write_tokens <= prompt_tokens, "cached tokens are part of the prompt"
        assert reasoning_tokens <= completion_tokens, "reasoning is part of the completion"
        write, reasoning = self.pico_usd_per_cache_write_token, self.pico_usd_per_reasoning_token
        pico_usd = (
            (prompt_tokens - cached_tokens - cache_write_tokens) * self.pico_usd_per_input_token
            + cached_tokens * self.pico_usd_per_cached_token
            + cache_write_tokens * (self.pico_usd_per_input_token if write is None else write)
            + (completion_tokens - reasoning_tokens) * self.pico_usd_per_output_token
            + reasoning_tokens * (self.pico_usd_per_output_token if reasoning is None else reasoning)
        )
        return divide_half_up(pico_usd, PICO_PER_NANO)


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of a price, for ever or for a time: what deepseek-chat was on a day."""

    alias: str
    name: str
    """In the price book."""
    effective_from: datetime
    effective_to: datetime | None
    source: str


def _dates(row: MachinePrice | TokenPrice) -> dict[str, Any]:
    return {
        "effective_from": moment_words(row.effective_from),
        "effective_to": row.effective_to and moment_words(row.effective_to),
        "source": row.source,
        "source_date": row.source_date.isoformat(),
        "confidence": row.confidence,
        "note": row.note,
    }
