"""Reading a price book: TOML tables to rows, each checked, and all of them against one another."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from typing import Any, TypeVar

from aha.cost.currency import NANO_PER_USD, ExchangeRate, moment_words, to_integer
from aha.cost.prices.hours import Hours, read_hours
from aha.cost.prices.row import PICO_USD_PER_USD_PER_MILLION, Alias, Confidence, MachinePrice, TokenPrice
from aha.cost.prices.toml import Table
from aha.errors import ConfigError, unknown_name

_KINDS = ("input", "cached", "cache_write", "output", "reasoning")
_DATED = {"name", "currency", "effective_from", "effective_to", "source", "source_date", "confidence", "note", "id"}
_KEYS = {
    "exchange": {"currency", "units_per_usd", "on", "source", "source_date", "confidence"},
    "machine": _DATED | {"per_hour", "exchange"},
    "token": _DATED
    | {"provider", "model", "is_open_weight", "exchange", "tier", "window", "hours", "weekdays", "except_days"}
    | {"prompt_tokens_above", "prompt_tokens_up_to"}
    | {f"{kind}_per_million" for kind in _KINDS},
    "alias": {"alias", "name", "effective_from", "effective_to", "source"},
}


@dataclass(frozen=True, kw_only=True)
class Book:
    """Every row of one or more files, checked."""

    machines: tuple[MachinePrice, ...] = ()
    tokens: tuple[TokenPrice, ...] = ()
    aliases: tuple[Alias, ...] = ()
    rates: tuple[ExchangeRate, ...] = ()


def read_book(text: str, *, file: str, after: Book | None = None, confidence: Confidence | None = None) -> Book:
    """The rows of a price book in TOML, appended to those of `after`.

    A row without an end ends where the next of the same name, tier and hours begins.

    Args:
        file: how errors name it.
        confidence: what every row of the file has; None: each row says its own.

    Raises:
        ConfigError: what is wrong, with the file and the row.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {' '.join(str(error).split())[:200]}") from None
    before = after or Book()
    reader = _Reader(file=file, confidence=confidence, tables=tables)
    rates = _merged(before.rates, reader.rows("exchange", _read_rate), key=lambda rate: rate.rate_id, file=file)
    by_id = {rate.rate_id: rate for rate in rates}
    machines = reader.rows("machine", lambda table: _read_machine(table, by_id))
    tokens = reader.rows("token", lambda table: _read_token(table, by_id))
    return _checked(
        Book(
            rates=rates,
            machines=_merged(before.machines, machines, key=lambda row: row.price_id, file=file),
            tokens=_merged(before.tokens, tokens, key=lambda row: row.price_id, file=file),
            aliases=(*before.aliases, *reader.rows("alias", _read_alias)),
        ),
        file=file,
    )


Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Tables of one file, read one by one, so that an error can say which."""

    file: str
    confidence: Confidence | None
    tables: Mapping[str, Any]

    def rows(self, kind: str, read: Callable[[Table], Row]) -> tuple[Row, ...]:
        """Every [[kind]] of the file. Raises ConfigError naming the file and the row."""
        unknown = sorted(set(self.tables) - set(_KEYS))
        if unknown:
            raise ConfigError(f"{self.file}: {unknown_name('table', unknown[0][:40], _KEYS)}")
        tables = self.tables.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigError(f"{self.file}: write each row as [[{kind}]]")
        return tuple(self._row(kind, index, table, read) for index, table in enumerate(tables, start=1))

    def _row(self, kind: str, index: int, table: dict[str, Any], read: Callable[[Table], Row]) -> Row:
        name = table.get("name") or table.get("currency") or table.get("alias")
        shown = f" ({name[:60]!r})" if isinstance(name, str) else ""
        try:
            unknown = sorted(set(table) - _KEYS[kind])
            if unknown:
                raise ConfigError(unknown_name("key", unknown[0][:40], _KEYS[kind]))
            return read(Table(table, confidence=self.confidence))
        except ConfigError as error:
            raise ConfigError(f"{self.file}: [[{kind}]] number {index}{shown}: {error}") from None


def _read_rate(table: Table) -> ExchangeRate:
    rate = ExchangeRate(
        currency=table.text("currency"),
        units_per_usd=table.needed_amount("units_per_usd"),
        on=table.day("on"),
        source=table.text("source"),
        source_date=table.day("source_date"),
        confidence=table.confidence(),
    )
    if rate.units_per_usd == 0:
        raise ConfigError("units_per_usd must be above 0")
    return rate


def _read_machine(table: Table, rates: Mapping[str, ExchangeRate]) -> MachinePrice:
    nano_usd = to_integer(table.needed_amount("per_hour"), factor=NANO_PER_USD, rate=table.rate(rates))
    return MachinePrice(nano_usd_per_hour=nano_usd, **table.dated())


def _read_token(table: Table, rates: Mapping[str, ExchangeRate]) -> TokenPrice:
    rate = table.rate(rates)
    listed = {kind: table.amount(f"{kind}_per_million") for kind in _KINDS}
    pico_usd = {
        kind: to_integer(amount, factor=PICO_USD_PER_USD_PER_MILLION, rate=rate)
        for kind, amount in listed.items()
        if amount is not None
    }
    for kind in ("input", "output"):
        if kind not in pico_usd:
            raise ConfigError(f"{kind}_per_million is missing")
    cached = pico_usd.get("cached", pico_usd["input"])
    if cached > pico_usd["input"]:
        raise ConfigError(f"cached_per_million {listed['cached']} is above input_per_million {listed['input']}")
    above, up_to = table.count("prompt_tokens_above") or 0, table.count("prompt_tokens_up_to")
    if up_to is not None and up_to <= above:
        raise ConfigError(f"prompt_tokens_up_to {up_to} is not above prompt_tokens_above {above}")
    return TokenPrice(
        provider=table.name("provider"),
        model=table.text("model"),
        is_open_weight=table.flag("is_open_weight"),
        pico_usd_per_input_token=pico_usd["input"],
        pico_usd_per_cached_token=cached,
        pico_usd_per_output_token=pico_usd["output"],
        pico_usd_per_cache_write_token=pico_usd.get("cache_write"),
        pico_usd_per_reasoning_token=pico_usd.get("reasoning"),
        currency="USD" if rate is None else rate.currency,
        exchange_id="" if rate is None else rate.rate_id,
        listed_per_million=tuple((kind, f"{amount:f}") for kind, amount in listed.items() if amount is not None),
        tier=table.name("tier", default="standard"),
        hours=_read_hours(table),
        prompt_tokens_above=above,
        prompt_tokens_up_to=up_to,
        **table.dated(),
    )


def _read_hours(table: Table) -> Hours | None:
    label, spans = table.name("window", default=""), table.texts("hours")
    weekdays, except_days = table.texts("weekdays"), table.days("except_days")
    if not (label or spans or weekdays or except_days):
        return None
    return read_hours(spans, label=label, weekdays=weekdays, except_days=except_days)


def _read_alias(table: Table) -> Alias:
    return Alias(
        alias=table.name("alias"),
        name=table.name("name"),
        effective_from=table.needed_moment("effective_from"),
        effective_to=table.moment("effective_to"),
        source=table.text("source"),
    )


def _merged(before: Iterable[Row], rows: Iterable[Row], *, key: Callable[[Row], str], file: str) -> tuple[Row, ...]:
    """Both, an id once. The same row again is no harm: a file of your own may hold what the package learnt later."""
    merged = {key(row): row for row in before}
    seen: set[str] = set()
    for row in rows:
        if key(row) in seen:
            raise ConfigError(f"{file}: {key(row)!r} is there twice")
        seen.add(key(row))
        known = merged.setdefault(key(row), row)
        if _amounts(known) != _amounts(row):
            raise ConfigError(
                f"{file}: {key(row)!r} is already in the book with other amounts; an id means one price for ever, so "
                "give the changed price its own effective_from"
            )
    return tuple(merged.values())


def _amounts(row: object) -> tuple[object, ...]:
    """What an id stands for."""
    if isinstance(row, ExchangeRate):
        return (row.units_per_usd,)
    if isinstance(row, MachinePrice):
        return (row.nano_usd_per_hour,)
    assert isinstance(row, TokenPrice)
    return (
        row.pico_usd_per_input_token,
        row.pico_usd_per_cached_token,
        row.pico_usd_per_output_token,
        row.pico_usd_per_cache_write_token,
        row.pico_usd_per_reasoning_token,
    )


def _checked(book: Book, *, file: str) -> Book:
    """The book with open ends closed. Raises ConfigError for rows that say different things of one moment."""
    tokens = tuple(
        row
        for _, rows in groupby(sorted(book.tokens, key=_token_key), key=_token_key)
        for row in _closed(list(rows), file=file)
    )
    for _, group in groupby(tokens, key=lambda row: row.name):
        for first, second in _together(list(group)):
            if _contradict(first, second):
                raise ConfigError(
                    f"{file}: token prices {first.price_id!r} and {second.price_id!r} overlap: one name, tier and "
                    "prompt length has one price at a time; end the older one, or give them hours that do not meet"
                )
    machines = tuple(
        row
        for _, rows in groupby(sorted(book.machines, key=lambda row: row.name), key=lambda row: row.name)
        for row in _closed(list(rows), file=file)
    )
    names = {row.name for row in tokens}
    for alias in book.aliases:
        if alias.name not in names or alias.alias in names:
            raise ConfigError(f"{file}: alias {alias.alias!r} for {alias.name!r} must be a new name for a known one")
    return replace(book, tokens=tokens, machines=machines)


def _token_key(row: TokenPrice) -> tuple[object, ...]:
    return row.name, row.tier, row.window, row.prompt_tokens_above


Dated = TypeVar("Dated", MachinePrice, TokenPrice)


def _closed(rows: list[Dated], *, file: str) -> list[Dated]:
    """Rows of one key in order of time, each open end closed by the next beginning."""
    rows.sort(key=lambda row: row.effective_from)
    for index, (row, following) in enumerate(pairwise(rows)):
        end = row.effective_to
        if row.effective_from == following.effective_from or (end is not None and end > following.effective_from):
            raise ConfigError(
                f"{file}: prices {row.price_id!r} and {following.price_id!r} overlap; the first must end by "
                f"{moment_words(following.effective_from)}"
            )
        rows[index] = replace(row, effective_to=end or following.effective_from)
    return rows


def _together(rows: list[TokenPrice]) -> Iterator[tuple[TokenPrice, TokenPrice]]:
    """Every two rows that hold at one moment. Without the others, a history of thousands of prices is read at once."""
    rows.sort(key=lambda row: row.effective_from)
    for index, first in enumerate(rows):
        for second in islice(rows, index + 1, None):
            if first.effective_to is not None and first.effective_to <= second.effective_from:
                break
            yield first, second


def _contradict(first: TokenPrice, second: TokenPrice) -> bool:
    """Whether two that hold at one moment are the price of the same request. Hours go before the rest of the day."""
    if first.tier != second.tier or (first.hours is None) != (second.hours is None):
        return False
    if first.hours is not None and second.hours is not None and not first.hours.overlaps(second.hours):
        return False
    return first.shares(second)
