"""Numbers, times and model text as a reader should see them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN_CONTROLS = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SURROGATES = re.compile(r"[\ud800-\udfff]")
C0_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
C1_CONTROLS = dict.fromkeys(range(0x80, 0xA0), "\ufffd")
NONCHARACTERS = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}


def shorten(text: str, *, max_chars: int) -> str:
    """Text with its middle cut out, and a note in its place, where it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    tail = max_chars // 4
    cut = len(text) - max_chars
    return f"{text[: max_chars - tail]}\n[… {cut:,} characters left out here …]\n{text[-tail:]}"


def visible(page: str) -> str:
    """A page without what cannot be stored or seen: surrogates replaced, control characters shown as symbols.

    Marks that turn the reading direction are spelled out, since they could make a wrong answer look like a right
    one; letters of right-to-left scripts are left as they are.
    """
    text = SURROGATES.sub("\ufffd", page.replace("\r\n", "\n")).translate(C0_CONTROLS | C1_CONTROLS | NONCHARACTERS)
    return HIDDEN_CONTROLS.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def percent(share: float) -> str:
    """0.364 → "36.4 %", not to be broken over lines."""
    return f"{100.0 * share:.1f}\N{NO-BREAK SPACE}%"


def points(share: float) -> str:
    """0.324 → "+32.4"; in percentage points."""
    return f"{100.0 * share:+.1f}".replace("-", "−")


def usd(amount: float) -> str:
    """Dollars with two significant digits under a cent, and cents above."""
    if amount == 0.0 or abs(amount) >= 0.095:
        return f"${amount:,.2f}"
    return f"${amount:.{1 - math.floor(math.log10(abs(amount)))}f}"


def duration(seconds: float) -> str:
    """290 → "4 min 50 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantity(value: float) -> str:
    """Three significant digits, thousands as k and M: 1550 → "1.55k"."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def count(value: float) -> str:
    """1550000 → "1,550,000"."""
    return f"{value:,.0f}"


def listing(row: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A JSON object as (name, value) pairs, nested objects flattened, shares in percent."""
    for key, value in row.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from listing(value, prefix=f"{name}, ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(str(item) for item in value) or "none"
        elif isinstance(value, float):
            is_share = ("pass_at" in key or key.endswith(("_fraction", "_rate"))) and 0.0 <= value <= 1.0
            yield name, percent(value) if is_share else f"{value:.6g}"
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif value not in ("", None):
            yield name, str(value)
