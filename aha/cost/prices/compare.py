"""How many times dearer one API is than another on a day, and where the market stands on another: spreads move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from aha.cost.prices.lookup import price_history, prices_on, token_prices
from aha.cost.prices.row import MachinePrice, TokenPrice
from aha.errors import ConfigError

FRESH_DAYS = 183
"""A price without an end whose source is older than this on the day asked for may have ended unseen: tables mark it,
spreads leave it out. Half a year: models on sale changed their price about twice a year from 2024 to 2026."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One price as a multiple of another."""

    price: TokenPrice
    over: TokenPrice

    @property
    def input(self) -> float | None:
        return _over(self, lambda price: price.pico_usd_per_input_token)

    @property
    def cached(self) -> float | None:
        """None where either vendor takes nothing off for cached tokens."""
        if not (self.price.has_cached_price and self.over.has_cached_price):
            return None
        return _over(self, lambda price: price.pico_usd_per_cached_token)

    @property
    def output(self) -> float | None:
        return _over(self, lambda price: price.pico_usd_per_output_token)

    @property
    def blended(self) -> float | None:
        """Of three uncached input tokens and one of output."""
        return _over(self, lambda price: price.pico_usd_per_blended_token)

    def to_dict(self) -> dict[str, Any]:
        """For scripts; its keys are described in docs/prices.md and stay."""
        return {
            "price_id": self.price.price_id,
            "over_price_id": self.over.price_id,
            "input_ratio": self.input,
            "cached_ratio": self.cached,
            "output_ratio": self.output,
            "blended_3_to_1_ratio": self.blended,
        }


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The range of output prices of open and closed models at a time.

    Of the standard tier, for short prompts, listed in dollars, and from fresh sources.
    """

    on: date | datetime
    cheapest_open: TokenPrice
    dearest_open: TokenPrice
    cheapest_closed: TokenPrice
    dearest_closed: TokenPrice

    @property
    def dearest_closed_over_cheapest_open(self) -> float | None:
        return Ratio(price=self.dearest_closed, over=self.cheapest_open).output

    @property
    def cheapest_closed_over_cheapest_open(self) -> float | None:
        """Below 1: the cheapest closed model costs less than the cheapest open one."""
        return Ratio(price=self.cheapest_closed, over=self.cheapest_open).output

    def to_dict(self) -> dict[str, Any]:
        """For scripts; its keys are described in docs/prices.md and stay."""
        return {
            "on": self.on.isoformat(),
            "cheapest_open_price_id": self.cheapest_open.price_id,
            "dearest_open_price_id": self.dearest_open.price_id,
            "cheapest_closed_price_id": self.cheapest_closed.price_id,
            "dearest_closed_price_id": self.dearest_closed.price_id,
            "dearest_closed_over_cheapest_open_output_ratio": self.dearest_closed_over_cheapest_open,
            "cheapest_closed_over_cheapest_open_output_ratio": self.cheapest_closed_over_cheapest_open,
        }


def compare(
    names: Sequence[str], *, on: date | datetime, tier: str = "standard", prompt_tokens: int | None = None
) -> tuple[Ratio, ...]:
    """The first name over each of the others, for each price that either has at some moment of a day.

    Raises:
        ConfigError: fewer than two names, or one without a price at that time.
    """
    if len(names) < 2:
        raise ConfigError(f"--compare needs two names or more, got {len(names)}; e.g. --compare o1 deepseek-r1")
    first, *others = (token_prices(name, on=on, tier=tier, prompt_tokens=prompt_tokens) for name in names)
    return tuple(Ratio(price=price, over=over) for rows in others for over in rows for price in first)


def spread_on(on: date | datetime) -> Spread | None:
    """The spread of a day; None where the book has no fresh price of either kind."""
    listed = (row for row in prices_on(on) if row.currency == "USD" and not row.prompt_tokens_above)
    rows = [row for row in listed if is_vouched_for(row, on=on)]
    by_kind = {is_open: [row for row in rows if row.is_open_weight == is_open] for is_open in (True, False)}
    if not (by_kind[True] and by_kind[False]):
        return None
    return Spread(
        on=on,
        cheapest_open=min(by_kind[True], key=_by_output),
        dearest_open=max(by_kind[True], key=_by_output),
        cheapest_closed=min(by_kind[False], key=_by_output),
        dearest_closed=max(by_kind[False], key=_by_output),
    )


def is_vouched_for(row: TokenPrice | MachinePrice, *, on: date | datetime) -> bool:
    """Whether a price is known to hold on a day: its end is known, or its source is recent enough."""
    day = on.date() if isinstance(on, datetime) else on
    return row.effective_to is not None or row.source_date >= day - timedelta(days=FRESH_DAYS)


def last_day_together(names: Iterable[str], *, until: date, tier: str = "standard") -> date | None:
    """The last whole day up to `until` on which every name had a price; None when there is none."""
    histories = [price_history(name, tier=tier) for name in names]
    ends = {until, *(_last_day(row) for rows in histories for row in rows if row.effective_to is not None)}
    for day in sorted((day for day in ends if day <= until), reverse=True):
        on_sale = {row.name for row in prices_on(day, tier=tier)}
        if all(rows and rows[0].name in on_sale for rows in histories):
            return day
    return None


def _last_day(row: TokenPrice) -> date:
    assert row.effective_to is not None
    return row.effective_to.date() - timedelta(days=1)


def _over(ratio: Ratio, amount: Callable[[TokenPrice], float]) -> float | None:
    below = amount(ratio.over)
    return amount(ratio.price) / below if below else None


def _by_output(price: TokenPrice) -> tuple[int, int, str]:
    return price.pico_usd_per_output_token, price.pico_usd_per_input_token, price.price_id
