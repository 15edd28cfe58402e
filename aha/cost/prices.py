"""The price book: what a machine hour and a token cost, on which day, says who."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from typing import Any, Literal, Protocol, TypeVar

from aha.errors import ConfigError, unknown_name

NANO_PER_USD = 10**9
PICO_PER_NANO = 1000
MS_PER_HOUR = 3_600_000
MAX_USD = 1_000_000  # an hour of 100,000 GPUs costs less; keeps every amount inside 64 bits

Confidence = Literal["primary", "third-party", "assumption", "user"]

LETTER_DATE = date(2025, 1, 31)
"""The month in which R1 and o1 were compared: the day on which bills look up the two APIs."""


@dataclass(frozen=True, kw_only=True)
class MachinePrice:
    """Price of one machine for one hour."""

    name: str
    nano_usd_per_hour: int
    effective_from: date
    effective_to: date | None = None
    """First day the price no longer holds; None when it is not known to have ended."""
    source: str
    source_date: date
    confidence: Confidence

    @property
    def price_id(self) -> str:
        """What a ledger row carries: the same id is the same price for ever."""
        return f"{self.name}@{self.effective_from.isoformat()}"

    @property
    def usd_per_hour(self) -> float:
        return self.nano_usd_per_hour / NANO_PER_USD

    def cost_nano_usd(self, wall_ms: int) -> int:
        """Nano-dollars for `wall_ms` milliseconds, rounded half up."""
        return _divide_half_up(wall_ms * self.nano_usd_per_hour, MS_PER_HOUR)


@dataclass(frozen=True, kw_only=True)
class TokenPrice:
    """Price of a model's tokens behind an API, in pico-dollars a token ($1 a million is 1,000,000)."""

    name: str
    pico_usd_per_input_token: int
    pico_usd_per_cached_token: int
    pico_usd_per_output_token: int
    """Reasoning tokens are billed as output."""
    is_open_weight: bool
    effective_from: date
    effective_to: date | None = None
    source: str
    source_date: date
    confidence: Confidence

    @property
    def price_id(self) -> str:
        return f"{self.name}@{self.effective_from.isoformat()}"

    def cost_nano_usd(self, prompt_tokens: int, *, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Nano-dollars for a request or a sum of them, rounded half up once.

        Args:
            cached_tokens: the part of `prompt_tokens` that the API served from its cache.
        """
        assert 0 <= cached_tokens <= prompt_tokens, "cached tokens are part of the prompt"
        pico_usd = (
            (prompt_tokens - cached_tokens) * self.pico_usd_per_input_token
            + cached_tokens * self.pico_usd_per_cached_token
            + completion_tokens * self.pico_usd_per_output_token
        )
        return _divide_half_up(pico_usd, PICO_PER_NANO)


def machine_price(name: str, *, on: date) -> MachinePrice:
    """The price of a machine hour in effect on a day.

    Args:
        name: e.g. "cpu-2core-hour"; a price id such as "h800-hour@2024-12-27", whatever the day; or a price of your
            own in dollars, such as "0.12".

    Raises:
        ConfigError: no such machine, or none of its prices was in effect on that day.
    """
    if name.replace(".", "", 1).isdecimal():
        return custom_machine_price(name, on=on)
    return _find("machine price", name, on, _book().machines)


def token_price(name: str, *, on: date) -> TokenPrice:
    """The price of an API's tokens in effect on a day; arguments and errors as in `machine_price`."""
    return _find("token price", name, on, _book().tokens)


def prices_on(day: date) -> tuple[TokenPrice, ...]:
    """Every token price of the book that holds at some moment of a day, by name."""
    return tuple(sorted((p for p in _book().tokens if _holds(p, day)), key=lambda price: price.price_id))


def price_history(name: str) -> tuple[TokenPrice, ...]:
    """Every token price the book has of a name, oldest first. Raises ConfigError for a name that it does not have."""
    found = [price for price in _book().tokens if price.name == name]
    if not found:
        raise ConfigError(unknown_name("token price", name, token_names()))
    return tuple(sorted(found, key=lambda price: price.effective_from))


def custom_machine_price(usd_per_hour: float | str, *, on: date, source: str = "set by the user") -> MachinePrice:
    """Your own price of a machine hour. Its id contains the amount, so that it too always means the same price.

    Raises:
        ConfigError: not a number from 0 to 1,000,000 dollars.
    """
    nano_usd = _scale(_check_usd(usd_per_hour, field="usd_per_hour"), NANO_PER_USD)
    shown = (Decimal(nano_usd) / NANO_PER_USD).normalize()
    return MachinePrice(
        name=f"custom-{shown:f}-usd-hour",
        nano_usd_per_hour=nano_usd,
        effective_from=on,
        source=source,
        source_date=on,
        confidence="user",
    )


def custom_token_price(
    usd_per_million_input: float | str,
    *,
    usd_per_million_output: float | str,
    usd_per_million_cached: float | str | None = None,
    on: date,
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
        "input": _check_usd(usd_per_million_input, field="usd_per_million_input"),
        "cached": _check_usd(
            usd_per_million_input if usd_per_million_cached is None else usd_per_million_cached,
            field="usd_per_million_cached",
        ),
        "output": _check_usd(usd_per_million_output, field="usd_per_million_output"),
    }
    # $1 a million tokens is 1,000,000 pico-dollars a token.
    pico_usd = {kind: _scale(amount, 10**6) for kind, amount in amounts.items()}
    shown = "-".join(f"{(Decimal(amount) / 10**6).normalize():f}" for amount in pico_usd.values())
    return TokenPrice(
        name=f"custom-{shown}-usd-per-million",
        pico_usd_per_input_token=pico_usd["input"],
        pico_usd_per_cached_token=pico_usd["cached"],
        pico_usd_per_output_token=pico_usd["output"],
        is_open_weight=is_open_weight,
        effective_from=on,
        source=source,
        source_date=on,
        confidence="user",
    )


def machine_names() -> list[str]:
    """Names that `machine_price` knows."""
    return sorted({price.name for price in _book().machines})


def token_names(*, on: date | None = None) -> list[str]:
    """Names that `token_price` knows, on any day or on one."""
    return sorted({price.name for price in _book().tokens if on is None or _holds(price, on)})


@dataclass(frozen=True)
class _Book:
    machines: tuple[MachinePrice, ...]
    tokens: tuple[TokenPrice, ...]


@cache
def _book() -> _Book:
    text = resources.files("aha.cost").joinpath("prices.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return _Book(
        machines=tuple(_read_machine(table) for table in tables["machine"]),
        tokens=tuple(_read_token(table) for table in tables["token"]),
    )


def _read_machine(table: dict[str, Any]) -> MachinePrice:
    return MachinePrice(nano_usd_per_hour=_scale(Decimal(table.pop("usd_per_hour")), NANO_PER_USD), **table)


def _read_token(table: dict[str, Any]) -> TokenPrice:
    # $1 a million tokens is 1e-6 dollars a token, which is 1e6 pico-dollars: the factor is the same.
    return TokenPrice(
        pico_usd_per_input_token=_scale(Decimal(table.pop("usd_per_million_input")), 10**6),
        pico_usd_per_cached_token=_scale(Decimal(table.pop("usd_per_million_cached")), 10**6),
        pico_usd_per_output_token=_scale(Decimal(table.pop("usd_per_million_output")), 10**6),
        **table,
    )


class _Dated(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def price_id(self) -> str: ...
    @property
    def effective_from(self) -> date: ...
    @property
    def effective_to(self) -> date | None: ...


DatedPrice = TypeVar("DatedPrice", bound=_Dated)


def _find(kind: str, name: str, on: date, prices: Sequence[DatedPrice]) -> DatedPrice:
    by_id = {price.price_id: price for price in prices}
    if name in by_id:
        return by_id[name]
    named = [price for price in prices if price.name == name]
    if not named:
        raise ConfigError(unknown_name(kind, name, {price.name for price in prices}))
    for price in sorted(named, key=lambda price: price.effective_from, reverse=True):
        if _holds(price, on):
            return price
    raise ConfigError(f"{kind} {name!r} is not known for {on}; choose a price by id: {', '.join(sorted(by_id))}")


def _holds(price: _Dated, on: date) -> bool:
    return price.effective_from <= on and (price.effective_to is None or on < price.effective_to)


def _check_usd(usd: float | str, *, field: str) -> Decimal:
    try:
        amount = Decimal(str(usd))
        is_valid = amount.is_finite() and 0 <= amount <= MAX_USD
    except ArithmeticError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"{field} must be a number from 0 to {MAX_USD:,}, got {usd!r}")
    return amount


def _scale(amount: Decimal, factor: int) -> int:
    return int((amount * factor).to_integral_value(rounding=ROUND_HALF_UP))


def _divide_half_up(amount: int, divisor: int) -> int:
    return (2 * amount + divisor) // (2 * divisor)
