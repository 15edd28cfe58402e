"""Large numbers as people write them."""

from __future__ import annotations

import re

from aha.errors import ConfigError

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
# Commas between thousands only: "14,8T", as half of Europe writes 14.8T, must not become 148T.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+"
_AMOUNT = re.compile(rf"({_DIGITS})(e[+-]?[0-9]{{1,3}})?\s*([KMBT]?)", re.IGNORECASE)
MAX_AMOUNT = 1e18


def parse_amount(text: str, *, field: str) -> float:
    """ "14.8T", "671B", "1e12", "3,000" as a number.

    Raises:
        ConfigError: anything else, or not above 0 and below 1e18; names the field.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{field} needs a number such as 14.8T, 300B or 1e9, got {text[:40]!r}")
    digits, exponent, suffix = match.groups()
    amount = float(digits.replace(",", "").replace("_", "") + (exponent or "")) * _SUFFIXES[suffix.upper()]
    if not 0 < amount < MAX_AMOUNT:
        raise ConfigError(f"{field} must be above 0 and below {MAX_AMOUNT:.0e}, got {text[:40]!r}")
    return amount


def show_amount(amount: float) -> str:
    """ "14.8T", three digits at most."""
    for suffix in ("T", "B", "M", "K"):
        if amount >= _SUFFIXES[suffix]:
            return f"{amount / _SUFFIXES[suffix]:.3g}{suffix}"
    return f"{amount:.3g}"
