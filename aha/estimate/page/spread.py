"""How far prices lie apart, day by day: the dearest and the cheapest, closed against open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

from aha.cost.prices import TokenPrice, price_history, token_names
from aha.cost.prices.compare import FRESH_DAYS

PICO_PER_USD_PER_MILLION = 10**6
"""$1 a million tokens is 1,000,000 pico-dollars a token."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A price from its first moment to the one on which it ended, or on which the page's day ends."""

    price: TokenPrice
    start: datetime
    end: datetime
    fresh_until: datetime
    """Until then its end is known, or its source recent enough to say that it holds; later it may have ended unseen."""
    is_current: bool
    """Whether the page's day ended, it still held, and its source was still recent."""

    @property
    def series(self) -> str:
        """What its line is called."""
        return series_name(self.price)

    def holds(self, moment: datetime) -> bool:
        """Whether it was a price then, at some hour of the week, by a source that was recent enough."""
        return self.start <= moment < self.fresh_until


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The ends of both kinds for a time, by the price of output; peak and off-peak hours are both in it."""

    start: datetime
    end: datetime
    """When it changed, or the page's day ends."""
    dearest_closed: TokenPrice
    cheapest_closed: TokenPrice
    dearest_open: TokenPrice
    cheapest_open: TokenPrice

    @property
    def ends(self) -> tuple[TokenPrice, TokenPrice, TokenPrice, TokenPrice]:
        """Dearest and cheapest closed, dearest and cheapest open."""
        return self.dearest_closed, self.cheapest_closed, self.dearest_open, self.cheapest_open

    @property
    def dearest_ratio(self) -> float:
        """Dearest closed over dearest open."""
        return self.dearest_closed.pico_usd_per_output_token / self.dearest_open.pico_usd_per_output_token

    @property
    def cheapest_ratio(self) -> float:
        """Cheapest closed over cheapest open; under 1 the closed one is cheaper."""
        return self.cheapest_closed.pico_usd_per_output_token / self.cheapest_open.pico_usd_per_output_token


def series_name(price: TokenPrice) -> str:
    """The model, and the hours where its price depends on them."""
    return f"{price.name}, {price.window}" if price.window else price.name


def end_of(day: date) -> datetime:
    """The last moment of a day in UTC."""
    return datetime.combine(day, time(23, 59, 59), tzinfo=UTC)


def day_number(moment: datetime) -> float:
    """Where a UTC moment lies on an axis of days."""
    return moment.toordinal() + (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400


def history(*, until: date) -> list[Stretch]:
    """Every price of the book that began by a day, by name, then by time: standard tier, short prompts, in dollars."""
    rows = [row for name in token_names() for row in price_history(name)]
    last = end_of(until)
    return [
        _stretch(row, last=last)
        for row in rows
        if row.effective_from <= last
        and row.prompt_tokens_above == 0
        and row.currency == "USD"
        and row.pico_usd_per_output_token > 0
    ]


def _stretch(row: TokenPrice, *, last: datetime) -> Stretch:
    # The book lets no two rows of one place hold at once, so that an end that is not known is the page's.
    end = last if row.effective_to is None else min(row.effective_to, last)
    # As aha.cost.prices.compare.is_vouched_for has it: a known end says that it held until then.
    vouched = end_of(row.source_date + timedelta(days=FRESH_DAYS)) if row.effective_to is None else end
    fresh_until = min(end, max(row.effective_from, vouched))
    return Stretch(
        price=row, start=row.effective_from, end=end, fresh_until=fresh_until, is_current=fresh_until == last
    )


def spread_over_time(*, until: date) -> list[Spread]:
    """The spread from each moment at which any price began or ended to the next, where the book has both kinds."""
    among = history(until=until)
    moments = sorted(
        {end_of(until), *(stretch.start for stretch in among), *(stretch.fresh_until for stretch in among)}
    )
    found = [spread_between(start, end=end, among=among) for start, end in pairwise(moments)]
    return [spread for spread in found if spread is not None]


def spread_between(start: datetime, *, end: datetime, among: Sequence[Stretch]) -> Spread | None:
    """The spread of a time in which no price begins or ends; None when there are not both kinds."""
    held = [stretch.price for stretch in among if stretch.holds(start)]
    closed = _by_output([price for price in held if not price.is_open_weight])
    open_ = _by_output([price for price in held if price.is_open_weight])
    if not closed or not open_:
        return None
    return Spread(
        start=start,
        end=end,
        dearest_closed=closed[-1],
        cheapest_closed=closed[0],
        dearest_open=open_[-1],
        cheapest_open=open_[0],
    )


def usd_per_million(pico_usd_per_token: int) -> float:
    """Dollars for a million tokens."""
    return pico_usd_per_token / PICO_PER_USD_PER_MILLION


def blended_usd_per_million(price: TokenPrice) -> float:
    """Dollars for a million tokens, three read for each one written, none from a cache."""
    return price.pico_usd_per_blended_token / PICO_PER_USD_PER_MILLION


def _by_output(prices: Sequence[TokenPrice]) -> list[TokenPrice]:
    return sorted(prices, key=lambda price: (price.pico_usd_per_output_token, price.price_id))
