"""Hours of the week at which a price holds, in UTC: DeepSeek's night discount of 2025, its peak hours of 2026."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from itertools import pairwise

from aha.errors import ConfigError

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY = 24 * 60
_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Spans of a day, on some days of the week. UTC throughout: no clock in it is ever put forward or back."""

    label: str
    """What the vendor calls them, e.g. "off-peak"."""
    spans: tuple[tuple[int, int], ...]
    """(start, end) in minutes of the day, the end not included; an end at or before the start is on the next day."""
    weekdays: tuple[int, ...] = tuple(range(7))
    """Days on which a span begins, Monday is 0."""
    except_days: frozenset[date] = frozenset()
    """Days on which no span begins, such as public holidays."""

    def contains(self, moment: datetime) -> bool:
        """Whether a UTC moment lies in one of the spans; a span's first second does, its end does not."""
        today, yesterday = moment.date(), moment.date() - timedelta(days=1)
        minute = moment.hour * 60 + moment.minute
        for start, end in self.spans:
            if end > start:
                if start <= minute < end and self._begins_on(today):
                    return True
            elif (minute >= start and self._begins_on(today)) or (minute < end and self._begins_on(yesterday)):
                return True
        return False

    def edges(self) -> tuple[int, ...]:
        """Minutes of the day at which it may begin or end."""
        return tuple(sorted({minute for span in self.spans for minute in span}))

    def overlaps(self, other: Hours) -> bool:
        """Whether some minute of an ordinary week lies in both; days excepted are not looked at."""
        return bool(self._minutes & other._minutes)

    def words(self) -> str:
        """E.g. "mon-fri 01:00-04:00 06:00-10:00"."""
        spans = " ".join(f"{_clock(start)}-{_clock(end)}" for start, end in self.spans)
        return spans if len(self.weekdays) == 7 else f"{_days(self.weekdays)} {spans}"

    @cached_property
    def _minutes(self) -> int:
        """A bit for each minute of the week: a book may hold a thousand windows, and each is held against each."""
        return sum(((1 << (end - start)) - 1) << start for start, end in self._week_spans())

    def _begins_on(self, day: date) -> bool:
        return day.weekday() in self.weekdays and day not in self.except_days

    def _week_spans(self) -> Iterator[tuple[int, int]]:
        """Spans in minutes of the week; one that runs past Sunday's midnight comes in two parts."""
        week = 7 * MINUTES_PER_DAY
        for weekday in self.weekdays:
            for start, end in self.spans:
                first = weekday * MINUTES_PER_DAY + start
                last = weekday * MINUTES_PER_DAY + end + (0 if end > start else MINUTES_PER_DAY)
                yield first, min(last, week)
                if last > week:
                    yield 0, last - week


def read_hours(
    spans: Sequence[str], *, label: str, weekdays: Sequence[str] = (), except_days: Sequence[date] = ()
) -> Hours:
    """Hours as the price book writes them: ["16:30-00:30"], ["mon", "tue"], [2026-10-01].

    Raises:
        ConfigError: no label, a span or a day of the week that is none, or spans that overlap.
    """
    if not label:
        raise ConfigError("hours need a window, the name of those hours, e.g. window = 'off-peak'")
    if not spans:
        raise ConfigError(f"window {label!r} needs hours, e.g. hours = ['16:30-00:30']")
    unknown = [day for day in weekdays if day not in WEEKDAYS]
    if unknown:
        raise ConfigError(f"unknown weekday {unknown[0][:20]!r}; choose from: {', '.join(WEEKDAYS)}")
    hours = Hours(
        label=label,
        spans=tuple(_read_span(span) for span in spans),
        weekdays=tuple(sorted({WEEKDAYS.index(day) for day in weekdays})) or tuple(range(7)),
        except_days=frozenset(except_days),
    )
    parts = sorted(hours._week_spans())
    if any(end > start for (_, end), (start, _) in pairwise(parts)):
        raise ConfigError(f"the hours {' '.join(spans)} overlap one another")
    return hours


def _read_span(text: str) -> tuple[int, int]:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ConfigError(f"hours are written '16:30-00:30' in UTC, got {text[:40]!r}")
    hour, minute, end_hour, end_minute = map(int, found.groups())
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if start == end:
        raise ConfigError(f"hours {text!r} are empty; a price of all hours has none")
    return start, end


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _days(weekdays: Sequence[int]) -> str:
    names = [WEEKDAYS[day] for day in weekdays]
    is_run = len(names) > 2 and weekdays[-1] - weekdays[0] == len(names) - 1
    return f"{names[0]}-{names[-1]}" if is_run else ",".join(names)
