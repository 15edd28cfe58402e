"""One table of a price book: each method reads a key and refuses what is of the wrong kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, get_args

from aha.cost.currency import ExchangeRate, moment_words, read_amount
from aha.cost.prices.row import Confidence
from aha.errors import ConfigError, unknown_name

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}", re.ASCII)
_MAX_TEXT = 600
_FIRST_YEAR, _LAST_YEAR = 1990, 2200


class Table:
    """A table of a file, read key by key."""

    def __init__(self, table: Mapping[str, Any], *, confidence: Confidence | None) -> None:
        self._table = table
        self._confidence = confidence

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
            raise ConfigError(f"{key} must be one line of text of at most {_MAX_TEXT} characters")
        if default is None and not value.strip():
            raise ConfigError(f"{key} is empty")
        return value

    def name(self, key: str, *, default: str | None = None) -> str:
        value = self.text(key, default=default)
        if value and not _NAME.fullmatch(value):
            raise ConfigError(f"{key} must be of small letters, digits, dots and dashes, got {value[:40]!r}")
        return value

    def flag(self, key: str) -> bool:
        value = self._value(key, None)
        if not isinstance(value, bool):
            raise ConfigError(f"{key} must be true or false, got {_shown(value)}")
        return value

    def count(self, key: str) -> int | None:
        value = self._table.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**12):
            raise ConfigError(f"{key} must be a whole number above 0, got {_shown(value)}")
        return value

    def amount(self, key: str) -> Decimal | None:
        if key not in self._table:
            return None
        value = self._table[key]
        if not isinstance(value, str):
            raise ConfigError(f"{key} must be text, so that it is exact, e.g. '0.55'; got {_shown(value)}")
        try:
            return read_amount(value)
        except ConfigError as error:
            raise ConfigError(f"{key} {error}") from None

    def needed_amount(self, key: str) -> Decimal:
        amount = self.amount(key)
        if amount is None:
            raise ConfigError(f"{key} is missing")
        return amount

    def texts(self, key: str) -> list[str]:
        values = self._table.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{key} must be a list of text")
        return values

    def days(self, key: str) -> list[date]:
        values = self._table.get(key, [])
        if not isinstance(values, list) or not all(_is_day(value) for value in values):
            raise ConfigError(f"{key} must be a list of days, e.g. [2026-10-01]")
        return values

    def day(self, key: str) -> date:
        value = self._value(key, None)
        if not _is_day(value):
            raise ConfigError(f"{key} must be a day, e.g. 2026-10-01 without quotes; got {_shown(value)}")
        assert isinstance(value, date)
        return value

    def moment(self, key: str) -> datetime | None:
        """A day is its midnight in UTC."""
        value = self._table.get(key)
        if value is None:
            return None
        if _is_day(value):
            value = datetime.combine(value, time(), tzinfo=UTC)
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise ConfigError(f"{key} must be a day or a moment with a time zone, e.g. 2025-02-08T16:00:00Z")
        if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
            raise ConfigError(f"{key} must lie between {_FIRST_YEAR} and {_LAST_YEAR}, got {value.isoformat()}")
        return value.astimezone(UTC)

    def needed_moment(self, key: str) -> datetime:
        moment = self.moment(key)
        if moment is None:
            raise ConfigError(f"{key} is missing")
        return moment

    def confidence(self) -> Confidence:
        if self._confidence is not None and self._table.get("confidence", self._confidence) != self._confidence:
            raise ConfigError(f"confidence must be {self._confidence!r} in a file of your own, or left out")
        value = self._confidence or self.text("confidence")
        for choice in get_args(Confidence):
            if value == choice:
                return choice  # type: ignore[no-any-return]
        raise ConfigError(unknown_name("confidence", value[:40], get_args(Confidence)))

    def rate(self, rates: Mapping[str, ExchangeRate]) -> ExchangeRate | None:
        """The rate of exchange that the row names; None for dollars. A rate is named, never looked for."""
        currency, rate_id = self.text("currency"), self.text("exchange", default="")
        if currency == "USD":
            if rate_id:
                raise ConfigError("dollars need no exchange")
            return None
        choices = [rate.rate_id for rate in rates.values() if rate.currency == currency]
        if rate_id not in choices:
            known = ", ".join(sorted(choices)) or f"none; add an [[exchange]] with currency = {currency!r}"
            raise ConfigError(f"unknown rate of exchange {rate_id!r} for {currency}; known: {known}")
        return rates[rate_id]

    def dated(self) -> dict[str, Any]:
        """What every price has."""
        start, end = self.needed_moment("effective_from"), self.moment("effective_to")
        if end is not None and end <= start:
            raise ConfigError(f"effective_to {moment_words(end)} is not after effective_from {moment_words(start)}")
        name, fixed_id = self.name("name"), self.text("id", default="")
        if fixed_id and not fixed_id.startswith(f"{name}@"):
            raise ConfigError(f"id must begin with {name}@, got {fixed_id[:80]!r}")
        return {
            "name": name,
            "effective_from": start,
            "effective_to": end,
            "source": self.text("source"),
            "source_date": self.day("source_date"),
            "confidence": self.confidence(),
            "note": self.text("note", default=""),
            "fixed_id": fixed_id,
        }

    def _value(self, key: str, default: object) -> object:
        if key not in self._table and default is None:
            raise ConfigError(f"{key} is missing")
        return self._table.get(key, default)


def _shown(value: object) -> str:
    """The beginning of a value; a hexadecimal number of thousands of digits has no decimal form to show."""
    try:
        return repr(value)[:40]
    except ValueError:
        return "a number of thousands of digits"


def _is_day(value: object) -> bool:
    return type(value) is date  # a datetime is a date too
