"""Which row of the price book is in effect at a moment, or all through a day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import TypeVar

from aha.cost.currency import moment_words
from aha.cost.prices.hours import Hours
from aha.cost.prices.row import Alias, MachinePrice, TokenPrice
from aha.errors import ConfigError

Row = TypeVar("Row", MachinePrice, TokenPrice, Alias)
Priced = TypeVar("Priced", MachinePrice, TokenPrice)


def pick(rows: Sequence[Priced], on: date | datetime, *, what: str) -> Priced:
    """The one row in effect at a moment, or at every moment of a day.

    Raises:
        ConfigError: none, or a day on which it changes; with the ids to choose from.
    """
    found = {at: next(iter(in_effect(rows, at)), None) for at in _moments(rows, on)}
    first, *others = found.values()
    if first is not None and all(row == first for row in others):
        return first
    if not any(found.values()):
        raise ConfigError(f"{what} is not known for {when(on)}; choose a price by id: {ids(rows)}")
    runs = [next(run) for _, run in groupby(found.items(), key=lambda item: item[1])]
    shown = ", ".join(f"from {at:%H:%MZ} {row.price_id if row else 'unknown'}" for at, row in runs)
    raise ConfigError(
        f"{what} depends on the hour of {when(on)}: {shown}; give a moment such as {on}T12:00Z, or a price by its id"
    )


def holding(rows: Iterable[Row], on: date | datetime) -> list[Row]:
    """Rows in effect at a moment, or at some moment of a day."""
    rows = list(rows)
    held = {id(row) for at in _moments(rows, on) for row in in_effect(rows, at)}
    return [row for row in rows if id(row) in held]


def in_effect(rows: Iterable[Row], at: datetime) -> list[Row]:
    """Rows in effect at a UTC moment: where one has hours that it falls into, those without hours give way."""
    current = [row for row in rows if _lasts(row, at)]
    timed = _with_hours(current)
    return [row for row in current if _hours(row) is not None or not any(_gives_way(row, other) for other in timed)]


def to_utc(on: date | datetime) -> date | datetime:
    """The same moment in UTC; a day as it is. Raises ConfigError for a time without a zone."""
    if not isinstance(on, datetime):
        return on
    if on.tzinfo is None:
        raise ConfigError(f"{on.isoformat()} has no time zone; write {on.isoformat()}Z for UTC")
    try:
        return on.astimezone(UTC)
    except OverflowError:
        raise ConfigError(f"{on.isoformat()} is outside the calendar") from None


def when(on: date | datetime) -> str:
    """A moment or a day in words."""
    return f"{on:%Y-%m-%dT%H:%M:%SZ}" if isinstance(on, datetime) else on.isoformat()


def ids(rows: Iterable[Priced]) -> str:
    """Ids to choose from, oldest first, each with the time it held."""
    ordered = sorted(rows, key=lambda row: (row.effective_from, row.price_id))
    return ", ".join(f"{row.price_id} ({span(row)})" for row in ordered)


def span(row: MachinePrice | TokenPrice | Alias) -> str:
    """From when to when, in words."""
    start = moment_words(row.effective_from)
    return f"from {start}" if row.effective_to is None else f"{start} to {moment_words(row.effective_to)}"


def _moments(rows: Iterable[Row], on: date | datetime) -> list[datetime]:
    """The moment itself; of a UTC day those at which the row in effect may change, its midnight first."""
    if isinstance(on, datetime):
        return [on]
    start = datetime.combine(on, time(), tzinfo=UTC)
    moments = {start}
    for row in rows:
        moments |= {row.effective_from, row.effective_to or start}
        hours = _hours(row)
        if hours is not None:
            moments |= {start + timedelta(minutes=minute) for minute in hours.edges()}
    return sorted(moment for moment in moments if moment.date() == on)


def _lasts(row: MachinePrice | TokenPrice | Alias, at: datetime) -> bool:
    hours = _hours(row)
    is_in_time = row.effective_from <= at and (row.effective_to is None or at < row.effective_to)
    return is_in_time and (hours is None or hours.contains(at))


def _hours(row: MachinePrice | TokenPrice | Alias) -> Hours | None:
    return row.hours if isinstance(row, TokenPrice) else None


def _with_hours(rows: Sequence[MachinePrice | TokenPrice | Alias]) -> list[TokenPrice]:
    return [row for row in rows if isinstance(row, TokenPrice) and row.hours is not None]


def _gives_way(row: MachinePrice | TokenPrice | Alias, timed: TokenPrice) -> bool:
    """Whether a row without hours and one with them are the price of the same requests."""
    return isinstance(row, TokenPrice) and (row.name, row.tier) == (timed.name, timed.tier) and row.shares(timed)
