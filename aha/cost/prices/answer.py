"""What `aha cost prices` answers, as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Literal

from aha.cost.prices.at import to_utc, when
from aha.cost.prices.compare import Ratio, Spread, compare, last_day_together, spread_on
from aha.cost.prices.lookup import (
    MachinePrice,
    TokenPrice,
    machine_history,
    machine_price,
    machine_prices_on,
    price_history,
    prices_on,
    token_prices,
)
from aha.cost.prices.table import (
    SourceForm,
    history_table,
    machine_table,
    ratio_table,
    spread_words,
    token_table,
    wrap,
)
from aha.errors import ConfigError

_NOTE = (
    "Reasoning is billed as output. Vendors' tokenizers and thinking lengths differ: the same task takes other numbers "
    "of tokens elsewhere, so a ratio of prices is not yet a ratio of bills."
)


@dataclass(frozen=True, kw_only=True)
class PriceQuestion:
    """What to show of the price book."""

    names: tuple[str, ...] = ()
    """Models or machines; none is all of them."""
    on: str = ""
    """A day, or a moment with a time zone, in ISO 8601; "" is today in UTC."""
    ask: Literal["list", "compare", "history"] = "list"
    of: Literal["tokens", "machines"] = "tokens"
    tier: str = "standard"
    """Of service; "all" shows every one (not with compare)."""
    prompt_tokens: int | None = None
    """Length of the prompts; None shows every length, and compares short ones."""
    form: Literal["text", "json", "csv"] = "text"
    sources: SourceForm = "short"


@dataclass(frozen=True, kw_only=True)
class _Answer:
    on: date | datetime
    rows: Sequence[TokenPrice | MachinePrice]
    ratios: Sequence[Ratio] = ()
    ratios_today: Sequence[Ratio] = ()
    spread: Spread | None = None
    spread_today: Spread | None = None
    gone: tuple[str, ...] = ()
    """Of the names compared, those that have no price today."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "on": self.on.isoformat(),
            "prices": [row.to_dict() for row in self.rows],
            "ratios": [ratio.to_dict() for ratio in self.ratios],
            "ratios_today": [ratio.to_dict() for ratio in self.ratios_today],
            "spread": self.spread and self.spread.to_dict(),
            "spread_today": self.spread_today and self.spread_today.to_dict(),
            "names_without_price_today": list(self.gone),
            "note": self.note,
        }


def answer_prices(question: PriceQuestion, *, now: datetime) -> str:
    """The answer to print.

    Raises:
        ConfigError: a name, a time or a tier that the book does not have, or options that do not go together.
    """
    on = read_when(question.on, now=now)
    answer = _find(question, on=on, today=now.astimezone(UTC).date())
    if question.form == "json":
        return json.dumps(answer.to_dict(), indent=1, ensure_ascii=False)
    if question.form == "csv":
        return _csv([row.to_dict() for row in answer.rows])
    return _text(question, answer)


def read_when(text: str, *, now: datetime) -> date | datetime:
    """A day or a moment; "" is today. Raises ConfigError for what is neither."""
    if not text:
        return now.astimezone(UTC).date()
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--on must be a day such as 2025-01-31 or a moment such as 2025-03-01T17:00Z, got {text!r}"
        ) from None
    return to_utc(moment)


def _find(question: PriceQuestion, *, on: date | datetime, today: date) -> _Answer:
    if question.of == "machines":
        return _find_machines(question, on=on)
    if question.ask == "compare":
        return _compare(question, on=on, today=today)
    if question.ask == "history":
        if not question.names:
            raise ConfigError("--history needs a name, e.g. --history deepseek-r1")
        rows = [row for name in question.names for row in price_history(name, tier=question.tier)]
        return _Answer(on=on, rows=rows)
    if not question.names:
        return _Answer(on=on, rows=_all(question, on=on), spread=spread_on(on))
    return _Answer(on=on, rows=[row for name in question.names for row in _named(name, on=on, question=question)])


def _all(question: PriceQuestion, *, on: date | datetime) -> list[TokenPrice]:
    rows = prices_on(on, tier=question.tier)
    if not rows:
        raise ConfigError(f"the price book has no price of tier {question.tier!r} on {when(on)}")
    length = question.prompt_tokens
    return [row for row in rows if length is None or row.takes(length)]


def _named(name: str, *, on: date | datetime, question: PriceQuestion) -> list[TokenPrice]:
    length = question.prompt_tokens
    if question.tier != "all" and length is not None:
        return list(token_prices(name, on=on, tier=question.tier, prompt_tokens=length))
    first = token_prices(name, on=on, tier="standard" if question.tier == "all" else question.tier)
    if name == first[0].price_id:
        return list(first)
    rows = [row for row in prices_on(on, tier=question.tier) if row.name == first[0].name]
    return [row for row in rows if length is None or row.takes(length)]


def _find_machines(question: PriceQuestion, *, on: date | datetime) -> _Answer:
    if question.ask == "compare":
        raise ConfigError("--compare sets token prices side by side; --machines lists hours")
    if question.ask == "history":
        if not question.names:
            raise ConfigError("--history needs a name, e.g. --machines --history h100-index-hour")
        return _Answer(on=on, rows=[row for name in question.names for row in machine_history(name)])
    if question.names:
        return _Answer(on=on, rows=[machine_price(name, on=on) for name in question.names])
    return _Answer(on=on, rows=machine_prices_on(on))


def _compare(question: PriceQuestion, *, on: date | datetime, today: date) -> _Answer:
    names, tier = question.names, "standard" if question.tier == "all" else question.tier
    asked = partial(compare, names, tier=tier, prompt_tokens=question.prompt_tokens)
    note = ""
    try:
        ratios = asked(on=on)
    except ConfigError:
        day = last_day_together(names, until=today, tier=tier) if len(names) > 1 and not question.on else None
        if day is None:
            raise
        note = f"Not all of them have a price on {today}: shown for {day}, the last day on which all had one."
        on, ratios = day, asked(on=day)
    rows = list(dict.fromkeys(row for ratio in ratios for row in (ratio.price, ratio.over)))
    is_today = on == today
    gone = [] if is_today else [name for name in names if not _is_sold(name, on=today, tier=tier)]
    return _Answer(
        on=on,
        rows=rows,
        ratios=ratios,
        ratios_today=() if is_today or gone else asked(on=today),
        spread=spread_on(on),
        spread_today=None if is_today else spread_on(today),
        gone=tuple(gone),
        note=note,
    )


def _is_sold(name: str, *, on: date, tier: str) -> bool:
    try:
        return "@" not in name and bool(token_prices(name, on=on, tier=tier))
    except ConfigError:
        return False


def _text(question: PriceQuestion, answer: _Answer) -> str:
    tokens = [row for row in answer.rows if isinstance(row, TokenPrice)]
    machines = [row for row in answer.rows if isinstance(row, MachinePrice)]
    if question.of == "machines":
        title = f"Prices of machines on {when(answer.on)} (UTC)" if question.ask != "history" else "History of prices"
        return f"{title}\n\n{machine_table(machines, on=answer.on, sources=question.sources)}"
    if question.ask == "history":
        table = history_table(tokens, on=answer.on, sources=question.sources)
        return f"History of prices, dollars a million tokens\n\n{table}"
    tier = "" if question.tier in ("standard", "all") else f", tier {question.tier}"
    parts = [
        f"Prices on {when(answer.on)} (UTC), dollars a million tokens{tier}",
        *([wrap(answer.note)] if answer.note else []),
        token_table(tokens, on=answer.on, sources=question.sources),
        *_comparison(answer),
        wrap(_NOTE),
    ]
    return "\n\n".join(parts)


def _comparison(answer: _Answer) -> list[str]:
    """Ratios of the day, that they are a day's, and where the same names and the market stand today."""
    parts = [ratio_table(answer.ratios)] if answer.ratios else []
    if answer.spread is not None:
        parts.append(wrap(f"On {when(answer.on)}, {spread_words(answer.spread)}"))
    if not answer.ratios:
        return parts
    snapshot = f"A spread is the snapshot of a date, here of {when(answer.on)}."
    if answer.gone:
        snapshot += f" Today no price of {', '.join(answer.gone)} is known, so those names cannot be compared."
    parts.append(wrap(f"{snapshot} Ratios of today:" if answer.ratios_today else snapshot))
    if answer.ratios_today:
        parts.append(ratio_table(answer.ratios_today))
    if answer.spread_today is not None:
        parts.append(wrap(f"On {when(answer.spread_today.on)}, {spread_words(answer.spread_today)}"))
    return parts


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table for a spreadsheet: the same keys, lists as JSON."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
        )
    return text.getvalue().rstrip("\n")
