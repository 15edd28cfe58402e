"""Axes of a drawing: linear, logarithmic, or days; and the ticks that a reader expects on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from aha.report.plot import nice_ticks

Format = Callable[[float], str]
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A place on an axis with its words."""

    value: float
    text: str
    is_major: bool = False
    """Kept where there is no room for all: a year among its months."""


def thinned(ticks: Sequence[Tick], *, fits: Callable[[Sequence[Tick]], bool]) -> Sequence[Tick]:
    """All ticks where they fit, else every second, third, … of them, with as many of the major ones as there can be."""
    for step in range(1, len(ticks) + 1):
        ways = [ticks[first::step] for first in range(step)]
        for kept in sorted(ways, key=lambda way: -sum(tick.is_major for tick in way)):
            if fits(kept):
                return kept
    return ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is shown along one side: from which value to which, and where the ticks stand."""

    kind: Literal["linear", "log"]
    lowest: float
    highest: float
    ticks: tuple[Tick, ...]
    title: str = ""
    """Unit, written once beside the axis; "" for days."""

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the lowest, 1 at the highest. A log axis takes values above 0 only."""
        if self.kind == "linear":
            return (value - self.lowest) / (self.highest - self.lowest)
        return math.log(value / self.lowest) / math.log(self.highest / self.lowest)


def log_axis(values: Sequence[float], *, show: Format, title: str = "", num_ticks: int = 8) -> Axis:
    """A logarithmic axis that encloses the values and begins and ends on a tick.

    Args:
        values: all above 0; a price of 0 has no place on it, and is left out by the caller, who says so.
        num_ticks: most ticks; 1, 2 and 5 of each decade where they fit, else 1 and 3, else decades.
    """
    assert min(values) > 0, "a log axis has no place for 0"
    lowest, highest = min(values), max(values)
    first, last = math.floor(math.log10(lowest) + 1e-9), math.ceil(math.log10(highest) - 1e-9)
    for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        marks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        begin = max(mark for mark in marks if mark <= lowest * (1 + 1e-9))
        ends = [mark for mark in marks if mark >= highest * (1 - 1e-9) and mark > begin] or [10 * begin]
        kept = [mark for mark in marks if begin <= mark <= ends[0]]
        if len(kept) <= num_ticks:
            break
    else:
        # More decades than ticks: every second, third, … of them.
        step = math.ceil(len(kept) / num_ticks)
        kept = [*kept[::step]]
    ticks = tuple(Tick(value=mark, text=show(mark)) for mark in kept)
    return Axis(kind="log", lowest=begin, highest=max(ends[0], begin * 2), ticks=ticks, title=title)


def linear_axis(values: Sequence[float], *, show: Format, title: str = "", num_ticks: int = 6) -> Axis:
    """A linear axis that encloses the values and begins and ends on a tick; give it 0 where lengths are compared."""
    marks = nice_ticks(min(values), max(values), num_ticks=num_ticks)
    ticks = tuple(Tick(value=mark, text=show(mark)) for mark in marks)
    return Axis(kind="linear", lowest=marks[0], highest=marks[-1], ticks=ticks, title=title)


def day_axis(first: date, *, last: date, num_ticks: int, months: Sequence[str] = MONTHS) -> Axis:
    """Days as their ordinals, to the end of the last; ticks on the first of a month, quarter, half year or year."""
    first_day, last_day = first.toordinal(), last.toordinal() + 1
    firsts = [
        (year, month) for year in range(first.year, last.year + 1) for month in range(1, 13)
        if first_day <= date(year, month, 1).toordinal() <= last_day
    ]  # fmt: skip
    kept: list[tuple[int, int]] = []
    for step in (1, 3, 6, 12):
        kept = [(year, month) for year, month in firsts if (month - 1) % step == 0]
        if len(kept) <= num_ticks:
            break
    else:
        kept = kept[:: math.ceil(len(kept) / num_ticks)]
    ticks = tuple(
        Tick(
            value=date(year, month, 1).toordinal(),
            text=str(year) if month == 1 else months[month - 1],
            is_major=month == 1,
        )
        for year, month in kept
    )
    return Axis(kind="linear", lowest=first_day, highest=last_day, ticks=ticks)
