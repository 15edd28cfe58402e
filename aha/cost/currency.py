"""Money as integers: exact decimals read from text, rounding once, and rates of exchange with a date and a source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal

from aha.errors import ConfigError

NANO_PER_USD = 10**9
PICO_PER_NANO = 1000
MAX_INT64 = 2**63 - 1
"""$9.2 billion in nano-dollars; in pico-dollars $9.2 million, less than two trainings of DeepSeek-V3, which is why
amounts are nano-dollars and only prices of one token are pico-dollars."""
MAX_USD = 1_000_000  # an hour of 100,000 GPUs costs less; keeps every price inside 64 bits

# No sign, no exponent: "1e999999999" would be an integer of a billion digits.
_AMOUNT = re.compile(r"\d{1,15}(?:\.\d{1,12})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """Units of a currency that one US dollar bought on a day."""

    currency: str
    """ISO 4217, e.g. "CNY"."""
    units_per_usd: Decimal
    on: date
    source: str
    source_date: date
    confidence: str

    @property
    def rate_id(self) -> str:
        """What a price in that currency names: the same id is the same rate for ever."""
        return f"{self.currency}@{self.on.isoformat()}"


def read_amount(text: str) -> Decimal:
    """An amount of money written as plain digits, exact.

    Raises:
        ConfigError: a sign, an exponent, a word such as "nan", or more digits than any price has.
    """
    if not _AMOUNT.fullmatch(text):
        raise ConfigError(f"must be an amount in plain digits such as '0.55', got {text[:40]!r}")
    return Decimal(text)


def to_integer(amount: Decimal, *, factor: int, rate: ExchangeRate | None = None) -> int:
    """`amount` in dollars, or in the currency of `rate`, times `factor`, rounded half up once.

    Raises:
        ConfigError: above a signed 64-bit integer, or dollars with more digits than the unit can hold: a price in
            dollars is exact or refused.
    """
    scaled = amount * factor if rate is None else amount * factor / rate.units_per_usd
    whole = int(scaled.to_integral_value(rounding=ROUND_HALF_UP))
    if whole > MAX_INT64:
        raise ConfigError(f"{amount} is more than 64 bits can hold")
    if rate is None and whole != scaled:
        raise ConfigError(f"{amount} has more digits than can be kept; the smallest step is {Decimal(1) / factor:f}")
    return whole


def check_usd(usd: float | str, *, field: str) -> Decimal:
    """A user's own amount in dollars, from 0 to a million. Raises ConfigError naming `field`."""
    try:
        amount = Decimal(str(usd))
        is_valid = amount.is_finite() and 0 <= amount <= MAX_USD
    except ArithmeticError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"{field} must be a number from 0 to {MAX_USD:,}, got {usd!r}")
    return amount


def scale_half_up(amount: Decimal, factor: int) -> int:
    """`amount` times `factor`, rounded half up."""
    return int((amount * factor).to_integral_value(rounding=ROUND_HALF_UP))


def divide_half_up(amount: int, divisor: int) -> int:
    """`amount` / `divisor`, rounded half up."""
    return (2 * amount + divisor) // (2 * divisor)


def moment_words(moment: datetime) -> str:
    """A UTC moment as the price book writes it: the day alone at midnight, else 2025-02-08T16:00Z."""
    if (moment.hour, moment.minute, moment.second) == (0, 0, 0):
        return moment.date().isoformat()
    return moment.strftime("%Y-%m-%dT%H:%MZ" if moment.second == 0 else "%Y-%m-%dT%H:%M:%SZ")
