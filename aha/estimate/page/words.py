"""What the page says, in English and Japanese, and how it writes numbers."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Literal

from aha.estimate.charts.axes import MONTHS as SHORT_MONTHS

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


@dataclass(frozen=True)
class Words:
    """The sentences of one language."""

    language: Language

    def __call__(self, key: str, **values: str) -> str:
        """A sentence of words.toml with its gaps filled. Values are data: nothing in them is read as a gap."""
        return _sentences()[self.language][key].format(**values)

    def day(self, day: date) -> str:
        """25 November 2026, 2026年11月25日."""
        if self.language == "ja":
            return f"{day.year}年{day.month}月{day.day}日"
        return f"{day.day} {MONTHS[day.month - 1]} {day.year}"

    def times(self, ratio: float) -> str:
        """27.4×, 27.4倍."""
        return times(ratio).replace("×", "倍") if self.language == "ja" else times(ratio)

    @property
    def months(self) -> tuple[str, ...]:
        """The months of an axis."""
        return tuple(f"{month}月" for month in range(1, 13)) if self.language == "ja" else SHORT_MONTHS


@cache
def _sentences() -> dict[str, dict[str, str]]:
    text = resources.files("aha.estimate.page").joinpath("words.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def price_text(usd_per_million: float) -> str:
    """Of a million tokens: cents, and as many digits more as it has: 2.19 → "$2.19", 0.003625 → "$0.003625"."""
    if usd_per_million >= 100:
        return f"${usd_per_million:,.0f}"
    text = f"{usd_per_million:.6f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents:0<2}"


def dollars(usd: float) -> str:
    """A planning figure with three significant digits: "$5.58 M", "$294 K", "$0.0042"."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(usd) >= factor * 0.9995:
            return f"${digits(usd / factor)}\N{NO-BREAK SPACE}{letter}"
    return f"${digits(usd)}"


def tick_dollars(usd: float) -> str:
    """A round figure of an axis: "$0.02", "$5", "$20 K"."""
    for factor, letter in ((1e9, " B"), (1e6, " M"), (1e3, " K"), (1.0, "")):
        if abs(usd) >= factor:
            return f"${usd / factor:g}{letter}"
    return f"${usd:.10f}".rstrip("0").rstrip(".")


def digits(value: float) -> str:
    """Three significant digits without an exponent: 5.576 → "5.58", 0.0042 → "0.0042"."""
    if value == 0:
        return "0"
    # Rounded first: 999.7 is 1,000, which has no places after the point.
    places = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}"))) + 1e-9))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places > 2 else text


def times(ratio: float) -> str:
    """27.397 → "27.4×", 0.833 → "0.83×"."""
    return f"{ratio:.1f}×" if ratio >= 9.95 else f"{ratio:.2f}×"


def hours(value: float) -> str:
    """2664000 → "2,664 K"."""
    return f"{value / 1e3:,.0f}\N{NO-BREAK SPACE}K" if value >= 1e3 else f"{value:.0f}"


def percent(share: float) -> str:
    """0.5 → "50 %"."""
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def points(score: float) -> str:
    """A benchmark's score out of 100: "79.8"."""
    return f"{score:.1f}"
