"""Prices as text for a terminal: aligned columns of at most 100 characters, and what their marks mean."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from aha.cost.currency import moment_words
from aha.cost.prices.compare import FRESH_DAYS, Ratio, Spread, is_vouched_for
from aha.cost.prices.row import PICO_USD_PER_USD_PER_MILLION, MachinePrice, TokenPrice

WIDTH = 100
_SOURCE_WIDTH = 21
SourceForm = Literal["short", "full"]
_MARKS = {"primary": "", "third-party": "*", "assumption": "~", "user": "u"}
_MARK_WORDS = {
    "*": "* third-party record of the price",
    "~": "~ a round figure of ours",
    "u": "u your own row",
    "?": f"? source more than {FRESH_DAYS} days older than the day asked for: the price may have ended unseen",
}
_AMOUNTS = f"{'cached':>9}{'input':>9}{'output':>9}   "


def token_table(prices: Sequence[TokenPrice], *, on: date | datetime, sources: SourceForm = "short") -> str:
    """One line for each price, open weights first; below it what hours and marks mean."""
    lines = []
    for is_open, title in ((True, "open weights"), (False, "closed")):
        rows = [price for price in prices if price.is_open_weight == is_open]
        if rows:
            lines += [f"{title:<37}{_AMOUNTS}{'from':<11}source"]
            lines += [line for row in rows for line in _token_lines(row, on=on, sources=sources, until="hidden")]
            lines.append("")
    return "\n".join([*lines, *_legend(prices, on=on)])


def history_table(prices: Sequence[TokenPrice], *, on: date | datetime, sources: SourceForm = "short") -> str:
    """Every price of a name, oldest first, with its end."""
    lines = [f"{'':<37}{_AMOUNTS}{'from (UTC)':<17}to"]
    lines += [line for row in prices for line in _token_lines(row, on=on, sources=sources, until="shown")]
    return "\n".join([*lines, "", *_legend(prices, on=on)])


def machine_table(prices: Sequence[MachinePrice], *, on: date | datetime, sources: SourceForm = "short") -> str:
    """Prices of an hour of one machine or GPU."""
    lines = [f"{'machine':<32}{'$/hour':>8}   {'from':<17}{'to':<17}source"]
    for row in prices:
        amount = f"{row.usd_per_hour:>8.2f}{_mark(row, on=on):<3}"
        dates = f"{_minute(row.effective_from):<17}{_end(row):<17}"
        lines.append(f"  {row.name:<30}{amount}{dates}{_short(row.source)}")
        lines += _full_source(row) if sources == "full" else []
    return "\n".join([*lines, "", *_legend(prices, on=on)])


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """Multiples of one price over another, a line for each pair."""
    lines = [f"{'':<58}{'input':>9}{'cached':>9}{'output':>9}{'blended 3:1':>13}"]
    for ratio in ratios:
        pair = f"{_label(ratio.price)} / {_label(ratio.over)}"
        figures = (
            f"{_times(ratio.input):>9}{_times(ratio.cached):>9}{_times(ratio.output):>9}{_times(ratio.blended):>13}"
        )
        lines += [f"  {pair:<56}{figures}"] if len(pair) <= 56 else [f"  {pair}", f"{'':<58}{figures}"]
    return "\n".join(lines)


def spread_words(spread: Spread) -> str:
    """Where open and closed models stand, in two sentences."""
    closed, opened = spread.cheapest_closed, spread.cheapest_open
    times = spread.cheapest_closed_over_cheapest_open
    verdict = "" if times is None else f", {times:.2f}x: the closed one is {'cheaper' if times < 1 else 'not cheaper'}"
    return (
        f"a million output tokens of an open model cost {_price_of(opened)} to {_price_of(spread.dearest_open)}, of a "
        f"closed one {_price_of(closed)} to {_price_of(spread.dearest_closed)}. Cheapest closed over cheapest open"
        f"{verdict}."
    )


def wrap(text: str) -> str:
    """A paragraph of at most 100 columns."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def dollars(pico_usd_per_token: int) -> str:
    """Dollars a million tokens, exact, with two decimals or more."""
    amount = (Decimal(pico_usd_per_token) / PICO_USD_PER_USD_PER_MILLION).normalize()
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)
    return f"{amount:.2f}" if exponent >= -2 else f"{amount:f}"


def _token_lines(
    row: TokenPrice, *, on: date | datetime, sources: SourceForm, until: Literal["hidden", "shown"]
) -> list[str]:
    cached = _shown(row, row.pico_usd_per_cached_token) if row.has_cached_price else "-"
    uncached, output = _shown(row, row.pico_usd_per_input_token), _shown(row, row.pico_usd_per_output_token)
    dates = f"{_minute(row.effective_from):<17}{_end(row)}"
    tail = dates if until == "shown" else f"{row.effective_from:%Y-%m-%d} {_short(row.source)}"
    label = _label(row)
    first = f"  {label:<35}" if len(label) <= 35 else f"  {label}\n{'':<37}"
    line = f"{first}{cached:>9}{uncached:>9}{output:>9}{_mark(row, on=on):<3}{tail}".rstrip()
    return [line, *(_full_source(row) if sources == "full" else [])]


def _label(row: TokenPrice) -> str:
    """The name, and what sets the row apart from others of that name."""
    apart = [] if row.tier == "standard" else [row.tier]
    apart += [row.window] if row.window else []
    apart += [f">{_thousands(row.prompt_tokens_above)}"] if row.prompt_tokens_above else []
    apart += [f"<={_thousands(row.prompt_tokens_up_to)}"] if row.prompt_tokens_up_to else []
    return f"{row.name} [{', '.join(apart)}]" if apart else row.name


def _shown(row: TokenPrice, pico_usd_per_token: int) -> str:
    """Exact where the source is in dollars; what a rate of exchange made is not known to a millionth."""
    return dollars(pico_usd_per_token) if row.currency == "USD" else f"{pico_usd_per_token / 1e6:.3f}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if len(moment_words(moment)) == 10 else f"{moment:%Y-%m-%d %H:%M}"


def _end(row: MachinePrice | TokenPrice) -> str:
    return _minute(row.effective_to) if row.effective_to is not None else ""


def _thousands(num_tokens: int) -> str:
    return f"{num_tokens // 1000}K" if num_tokens % 1000 == 0 else f"{num_tokens:,}"


def _mark(row: MachinePrice | TokenPrice, *, on: date | datetime) -> str:
    return _MARKS[row.confidence] + ("" if is_vouched_for(row, on=on) else "?")


def _legend(prices: Iterable[MachinePrice | TokenPrice], *, on: date | datetime) -> list[str]:
    rows = list(prices)
    marks = {mark for row in rows for mark in _mark(row, on=on)}
    words = [text for mark, text in _MARK_WORDS.items() if mark in marks]
    tokens = [row for row in rows if isinstance(row, TokenPrice)]
    hours = {f"[{row.window}] {row.hours.words()} UTC" for row in tokens if row.hours is not None}
    rates = {f"{row.currency} at {row.exchange_id}" for row in tokens if row.exchange_id}
    lines = ["; ".join(sorted(hours)) + "; the same name without it holds at all other hours" if hours else ""]
    if any(row.hours is not None and row.hours.except_days for row in tokens):
        lines.append("public holidays of China are off-peak: those of 2026 are in the book, later ones are not")
    if any(row.prompt_tokens_above or row.prompt_tokens_up_to for row in tokens):
        lines.append("[<=272K]: for prompts of up to 272,000 tokens; longer ones have the row [>272K], or are unpriced")
    if any(not row.has_cached_price for row in tokens):
        lines.append("cached -: nothing is taken off for cached tokens, as far as the source says")
    lines += [f"converted from {', '.join(sorted(rates))}; the amounts of the source are in --json"] if rates else []
    return [line for text in ["; ".join(words), *lines] if text for line in wrap(text).split("\n")]


def _short(source: str) -> str:
    """Who says so: the host of an address, with the owner on sites of many owners, else its first words."""
    found = re.search(r"https?://(?:www\.)?([^/\s]+)(?:/([^/\s]+))?", source)
    text = source if found is None else found[1] if found[1] != "github.com" else f"github/{found[2]}"
    return text if len(text) <= _SOURCE_WIDTH else text[: _SOURCE_WIDTH - 1] + "…"


def _full_source(row: MachinePrice | TokenPrice) -> list[str]:
    said = f"{row.price_id}: {row.source} ({row.confidence}, {row.source_date})"
    indent = " " * 6
    return textwrap.wrap(
        f"{said}. {row.note}" if row.note else said,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _price_of(price: TokenPrice) -> str:
    return f"${dollars(price.pico_usd_per_output_token)} ({_label(price)})"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"
