"""The price book: what a machine hour and a token cost, at which moment, says who."""

from __future__ import annotations

import os
import stat
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from aha.cost.currency import (
    MAX_INT64,
    MAX_USD,
    NANO_PER_USD,
    PICO_PER_NANO,
    ExchangeRate,
    check_usd,
    moment_words,
    scale_half_up,
)
from aha.cost.prices.at import holding, ids, pick, span, to_utc, when
from aha.cost.prices.file import Book, read_book
from aha.cost.prices.row import MS_PER_HOUR, Alias, Confidence, MachinePrice, TokenPrice
from aha.errors import ConfigError, unknown_name

__all__ = [
    "LETTER_DATE",
    "MAX_INT64",
    "MAX_USD",
    "MS_PER_HOUR",
    "NANO_PER_USD",
    "PICO_PER_NANO",
    "Alias",
    "Confidence",
    "ExchangeRate",
    "MachinePrice",
    "TokenPrice",
    "custom_machine_price",
    "custom_token_price",
    "exchange_rates",
    "machine_history",
    "machine_names",
    "machine_price",
    "machine_prices_on",
    "moment_words",
    "price_history",
    "prices_on",
    "token_names",
    "token_price",
    "token_prices",
    "user_prices_path",
]

LETTER_DATE = date(2025, 1, 31)
"""The month in which R1 and o1 were compared: the day on which bills look up the two APIs."""

MAX_USER_FILE_BYTES = 1_000_000
MAX_USER_LINE_CHARS = 1000
"""The standard library takes quadratic time over one key of many dots: a minute for 100 kB of them in a line."""


def machine_price(name: str, *, on: date | datetime) -> MachinePrice:
    """The price of a machine hour in effect at a time.

    Args:
        name: e.g. "cpu-2core-hour"; a price id such as "h800-hour@2024-12-27", whatever the time; or a price of your
            own in dollars, such as "0.12".
        on: a moment with a time zone, or a day in UTC.

    Raises:
        ConfigError: no such machine, none of its prices was in effect then, or its price changed on that day.
    """
    if name.replace(".", "", 1).isdecimal():
        return custom_machine_price(name, on=on)
    book = _book()
    by_id = {price.price_id: price for price in book.machines}
    if name in by_id:
        return by_id[name]
    named = [price for price in book.machines if price.name == name]
    if not named:
        raise ConfigError(unknown_name("machine price", name, {price.name for price in book.machines}))
    return pick(named, to_utc(on), what=f"machine price {name!r}")


def token_price(
    name: str, *, on: date | datetime, tier: str = "standard", prompt_tokens: int | None = None
) -> TokenPrice:
    """The price of an API's tokens in effect at a time.

    Args:
        name: of the book, e.g. "openai-o1"; without its provider, "o1"; an alias such as "deepseek-chat", as it was
            at that time; or a price id, whatever the time, tier and prompt.
        on: a moment with a time zone, or a day in UTC.
        tier: of service: "standard", "batch", …
        prompt_tokens: length of one request's prompt, where the price depends on it. None: the price of short prompts,
            up to the row's `prompt_tokens_up_to`.

    Raises:
        ConfigError: no such name or tier, no price for that time or that prompt, or a day on which the price changed
            or depends on the hour. The message lists the choices. There is no default.
    """
    by_id = _tokens_by_id()
    if name in by_id:
        return by_id[name]
    asked = _ask(name, to_utc(on), tier=tier, prompt_tokens=prompt_tokens)
    return pick(asked.rows, to_utc(on), what=asked.words)


def token_prices(
    name: str, *, on: date | datetime, tier: str = "standard", prompt_tokens: int | None = None
) -> tuple[TokenPrice, ...]:
    """Every price of a name in effect at some moment of a day, where `token_price` must refuse one that has hours.

    Raises:
        ConfigError: as `token_price`, but not for a day on which the price changed or depends on the hour.
    """
    by_id = _tokens_by_id()
    if name in by_id:
        return (by_id[name],)
    asked = _ask(name, to_utc(on), tier=tier, prompt_tokens=prompt_tokens)
    return tuple(holding(asked.rows, to_utc(on))) or (pick(asked.rows, to_utc(on), what=asked.words),)


def prices_on(on: date | datetime, *, tier: str = "standard") -> tuple[TokenPrice, ...]:
    """Every token price that holds at a moment, or at some moment of a day, by id: all hours, all prompt lengths.

    Args:
        tier: of service; "all" for every one.
    """
    found = (price for price in _book().tokens if tier in ("all", price.tier))
    return tuple(sorted(holding(found, to_utc(on)), key=lambda price: price.price_id))


def machine_prices_on(on: date | datetime) -> tuple[MachinePrice, ...]:
    """Every machine price that holds at a moment, or at some moment of a day, by id."""
    return tuple(sorted(holding(_book().machines, to_utc(on)), key=lambda price: price.price_id))


def price_history(name: str, *, tier: str = "standard") -> tuple[TokenPrice, ...]:
    """Every token price the book has of a name, oldest first. "all" is every tier.

    Raises:
        ConfigError: a name that the book does not have, or an alias that has named several models.
    """
    book = _book()
    full = _resolve(name, None, book=book)
    found = [price for price in book.tokens if price.name == full and tier in ("all", price.tier)]
    return tuple(sorted(found, key=lambda price: (price.effective_from, price.price_id)))


def machine_history(name: str) -> tuple[MachinePrice, ...]:
    """Every machine price the book has of a name, oldest first. Raises ConfigError for one that it does not have."""
    found = [price for price in _book().machines if price.name == name]
    if not found:
        raise ConfigError(unknown_name("machine price", name, machine_names()))
    return tuple(sorted(found, key=lambda price: price.effective_from))


def exchange_rates() -> tuple[ExchangeRate, ...]:
    """Rates of exchange that prices in other currencies name."""
    return _book().rates


def custom_machine_price(
    usd_per_hour: float | str, *, on: date | datetime | datetime, source: str = "set by the user"
) -> MachinePrice:
    """Your own price of a machine hour. Its id contains the amount, so that it too always means the same price.

    Raises:
        ConfigError: not a number from 0 to 1,000,000 dollars.
    """
    nano_usd = scale_half_up(check_usd(usd_per_hour, field="usd_per_hour"), NANO_PER_USD)
    shown = (Decimal(nano_usd) / NANO_PER_USD).normalize()
    day = _day_of(on)
    return MachinePrice(
        name=f"custom-{shown:f}-usd-hour",
        nano_usd_per_hour=nano_usd,
        effective_from=datetime.combine(day, time(), tzinfo=UTC),
        source=source,
        source_date=day,
        confidence="user",
    )


def custom_token_price(
    usd_per_million_input: float | str,
    *,
    usd_per_million_output: float | str,
    usd_per_million_cached: float | str | None = None,
    on: date | datetime | datetime,
    is_open_weight: bool = False,
    source: str = "set by the user",
) -> TokenPrice:
    """Your own price of an API's tokens. Its id contains the amounts, so that it too always means the same price.

    Args:
        usd_per_million_cached: None is the price of input: nothing is taken off for prompts from a cache.

    Raises:
        ConfigError: an amount that is not a number from 0 to 1,000,000 dollars.
    """
    amounts = {
        "input": check_usd(usd_per_million_input, field="usd_per_million_input"),
        "cached": check_usd(
            usd_per_million_input if usd_per_million_cached is None else usd_per_million_cached,
            field="usd_per_million_cached",
        ),
        "output": check_usd(usd_per_million_output, field="usd_per_million_output"),
    }
    # $1 a million tokens is 1,000,000 pico-dollars a token.
    pico_usd = {kind: scale_half_up(amount, 10**6) for kind, amount in amounts.items()}
    shown = "-".join(f"{(Decimal(amount) / 10**6).normalize():f}" for amount in pico_usd.values())
    day = _day_of(on)
    return TokenPrice(
        provider="user",
        model="",
        name=f"custom-{shown}-usd-per-million",
        pico_usd_per_input_token=pico_usd["input"],
        pico_usd_per_cached_token=pico_usd["cached"],
        pico_usd_per_output_token=pico_usd["output"],
        is_open_weight=is_open_weight,
        effective_from=datetime.combine(day, time(), tzinfo=UTC),
        source=source,
        source_date=day,
        confidence="user",
    )


def machine_names() -> list[str]:
    """Names that `machine_price` knows."""
    return sorted({price.name for price in _book().machines})


def token_names(*, on: date | datetime | None = None) -> list[str]:
    """Names that `token_price` knows, at any time or at some moment of one; aliases not among them."""
    return sorted({price.name for price in (_book().tokens if on is None else prices_on(on, tier="all"))})


def user_prices_path() -> Path:
    """Where prices of your own are looked for: $AHA_HOME/prices.toml, or ~/.local/share/aha/prices.toml."""
    home = os.environ.get("AHA_HOME")
    return (Path(home) if home else Path.home() / ".local/share/aha") / "prices.toml"


def _book() -> Book:
    """The package's rows and the user's, read again when the user's file has changed."""
    path = user_prices_path()
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _package_book()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_USER_FILE_BYTES:
        raise ConfigError(f"{path} must be a file of at most {MAX_USER_FILE_BYTES:,} bytes")
    return _user_book(path, (found.st_mtime_ns, found.st_size, found.st_ino))


@lru_cache(maxsize=1)
def _package_book() -> Book:
    text = resources.files("aha.cost").joinpath("prices.toml").read_text(encoding="utf-8")
    return read_book(text, file="aha/cost/prices.toml")


@lru_cache(maxsize=4)
def _user_book(path: Path, stamp: tuple[int, ...]) -> Book:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if any(len(line) > MAX_USER_LINE_CHARS for line in text.split("\n")):
        raise ConfigError(f"{path}: a line may have {MAX_USER_LINE_CHARS:,} characters; write a list on several lines")
    return read_book(text, file=str(path), after=_package_book(), confidence="user")


class _Asked(NamedTuple):
    rows: tuple[TokenPrice, ...]
    """Of one name, one tier and one length of prompt, whenever."""
    words: str


def _ask(name: str, on: date | datetime, *, tier: str, prompt_tokens: int | None) -> _Asked:
    book = _book()
    full = _resolve(name, on, book=book)
    words = f"token price {name!r}" if name == full else f"token price {full!r} (for {name!r})"
    named = [price for price in book.tokens if price.name == full]
    tiers = sorted({price.tier for price in named})
    if tier not in tiers:
        raise ConfigError(f"{words} has no tier {tier!r}; choose from: {', '.join(tiers)}")
    in_tier = [price for price in named if price.tier == tier]
    rows = tuple(price for price in in_tier if price.takes(prompt_tokens or 0))
    if not rows:
        raise ConfigError(f"{words} is not known for a prompt of {prompt_tokens:,} tokens, only for: {ids(in_tier)}")
    return _Asked(rows, words + (f" for a prompt of {prompt_tokens:,} tokens" if prompt_tokens else ""))


def _tokens_by_id() -> dict[str, TokenPrice]:
    return {price.price_id: price for price in _book().tokens}


def _resolve(name: str, on: date | datetime | None, *, book: Book) -> str:
    """The book's own name for a name, an alias at a time, or a name without its provider."""
    names = {price.name for price in book.tokens}
    if name in names:
        return name
    aliases = [alias for alias in book.aliases if alias.alias == name]
    if aliases:
        current = aliases if on is None else holding(aliases, on)
        targets = sorted({alias.name for alias in current})
        if len(targets) == 1:
            return targets[0]
        spans = ", ".join(f"{alias.name} ({span(alias)})" for alias in aliases)
        then = "" if on is None else f" on {when(on)}"
        raise ConfigError(f"{name!r} is no one model{then}; it has been: {spans}")
    short = sorted({price.name for price in book.tokens if price.name == f"{price.provider}-{name}"})
    if len(short) == 1:
        return short[0]
    raise ConfigError(unknown_name("token price", name, short or names | {alias.alias for alias in book.aliases}))


def _day_of(on: date | datetime) -> date:
    on = to_utc(on)
    return on.date() if isinstance(on, datetime) else on
