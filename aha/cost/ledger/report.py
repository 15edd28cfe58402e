"""`aha cost ledger`: the sums as a table, JSON or CSV, and what the file's own check finds."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from aha.cost.ledger import queries
from aha.cost.ledger.queries import GroupBy
from aha.cost.ledger.repricing import Repriced, RepricedGroup
from aha.cost.ledger.rows import LedgerFilter, LedgerTotals
from aha.cost.ledger.schema import MIGRATIONS, connect_to_read, default_ledger_path
from aha.cost.ledger.store import Ledger
from aha.cost.ledger.verify import verify
from aha.cost.prices import NANO_PER_USD, MachinePrice, TokenPrice, machine_price, token_price
from aha.errors import ConfigError

Form = Literal["text", "json", "csv"]
FORMAT = 1
"""Raised when a key of the JSON changes its meaning."""
MAX_LABEL_CHARS = 44
_UNKNOWN = "?"


@dataclass(frozen=True, kw_only=True)
class LedgerQuestion:
    """What `aha cost ledger` is asked."""

    chosen: LedgerFilter
    by: GroupBy
    at: str = ""
    """A price that the entries are looked at too; "" for none."""
    at_on: str = ""
    """The day or moment of that price; "" is now."""
    books: Literal["nothing", "corrections"] = "nothing"
    """Whether the other price is booked."""
    form: Form = "text"


def answer_ledger(question: LedgerQuestion, *, path: Path | None = None) -> str:
    """The table, or its numbers.

    Raises:
        AhaError: a ledger that cannot be read, or a price that is not known.
    """
    path = path or default_ledger_path()
    if not path.exists():
        return _answer_nothing(question, path=path)
    price = read_price(question.at, on=question.at_on) if question.at else None
    with Ledger.open(path) as ledger:
        if price is not None and question.books == "corrections":
            ledger.correct(question.chosen, price=price)
        groups, total, repriced = ledger.summary(question.chosen, by=question.by, price=price)
    if question.form == "json":
        return json.dumps(_to_json(question, groups, total, repriced=repriced, path=path), indent=1)
    if question.form == "csv":
        return _to_csv(question, groups, repriced=repriced)
    return _to_text(question, groups, total, repriced=repriced, path=path)


def verify_ledger(*, path: Path | None = None) -> tuple[list[str], str]:
    """What is inconsistent, a line each, and one line that says how it stands.

    Raises:
        AhaError: a file that is no ledger, or that cannot be opened.
    """
    path = path or default_ledger_path()
    if not path.exists():
        return [], _nothing_yet(path)
    findings = [f"damaged file: {problem}"] if (problem := _upgrade(path)) else []
    if not findings:
        # Read only: nothing is mended, and nothing recovered, before it has been looked at.
        with closing(connect_to_read(path)) as connection:
            connection.execute("BEGIN")
            findings = verify(connection)
            if not findings:
                total = queries.totals(connection, LedgerFilter())
                said = f"{total.num_entries:,} entries, {show_usd(total.cost_nano_usd)}: consistent"
                return [], f"{path}: {said}"
    said = f"{len(findings)} thing{'s are' if len(findings) > 1 else ' is'} inconsistent"
    return findings, f"{path}: {said}; the file is left as it is, restore a copy or begin a new one"


def _upgrade(path: Path) -> str:
    """Bring the file of an older aha up to date; says what is wrong with one that cannot be read, else ""."""
    try:
        with closing(connect_to_read(path)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        return str(error)
    if version < len(MIGRATIONS):
        Ledger.open(path).close()
    return ""


def read_price(name: str, *, on: str) -> MachinePrice | TokenPrice:
    """A price of the price book by its name or id, or dollars an hour.

    Raises:
        ConfigError: it is not known, or not for that day.
    """
    moment: date | datetime = datetime.now(UTC) if not on else _read_day_or_moment(on, option="--on")
    if name.replace(".", "", 1).isdecimal() or name.partition("@")[0].endswith("-hour"):
        return machine_price(name, on=moment)
    return token_price(name, on=moment)


def read_moment(text: str, *, option: str) -> datetime | None:
    """An option as a moment: a day begins at 0:00 UTC, a time without a zone is UTC's. None for "".

    Raises:
        ConfigError: it is neither.
    """
    if not text:
        return None
    found = _read_day_or_moment(text, option=option)
    return found if isinstance(found, datetime) else datetime(found.year, found.month, found.day, tzinfo=UTC)


def show_usd(nano_usd: int) -> str:
    """Dollars, to the nano-dollar where there is one: $0.000123456, $12.50."""
    text = f"{abs(Decimal(nano_usd)) / NANO_PER_USD:,.9f}".rstrip("0")
    whole, _, part = text.partition(".")
    return f"{'-' if nano_usd < 0 else ''}${whole}.{part.ljust(2, '0')}"


def _read_day_or_moment(text: str, *, option: str) -> date | datetime:
    try:
        if len(text) <= len("2025-01-31"):
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} must be a day such as 2025-01-31, or 2025-01-31T16:30Z, got {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _answer_nothing(question: LedgerQuestion, *, path: Path) -> str:
    """To a script what an empty ledger would say."""
    if question.form == "json":
        return json.dumps(_to_json(question, {}, _EMPTY, repriced=None, path=path), indent=1)
    return _to_csv(question, {}, repriced=None) if question.form == "csv" else _nothing_yet(path)


def _nothing_yet(path: Path) -> str:
    return f"no ledger yet at {path}: the first aha train, eval or serve begins it"


def _numbers(totals: LedgerTotals) -> dict[str, Any]:
    """A group as JSON and CSV have it."""
    return {
        "num_entries": totals.num_entries,
        "wall_seconds": totals.wall_ms / 1000,
        "device_seconds": None if totals.device_ms is None else totals.device_ms / 1000,
        "prompt_tokens": totals.prompt_tokens,
        "cached_tokens": totals.cached_tokens,
        "cache_write_tokens": totals.cache_write_tokens,
        "completion_tokens": totals.completion_tokens,
        "reasoning_tokens": totals.reasoning_tokens,
        "trained_tokens": totals.trained_tokens,
        "energy_joules": None if totals.energy_mj is None else totals.energy_mj / 1000,
        "num_with_energy": totals.num_with_energy,
        "cost_usd": totals.cost_usd,
        "cost_nano_usd": totals.cost_nano_usd,
        "num_unpriced": totals.num_unpriced,
        "first_at": totals.first_at.isoformat(timespec="milliseconds") if totals.first_at else None,
        "last_at": totals.last_at.isoformat(timespec="milliseconds") if totals.last_at else None,
    }


def _at_numbers(group: RepricedGroup) -> dict[str, Any]:
    return {
        "at_num_entries": group.num_entries,
        "at_num_left_out": group.num_left_out,
        "at_booked_nano_usd": group.cost_nano_usd,
        "at_cost_nano_usd": group.repriced_nano_usd,
        "at_cost_usd": group.repriced_usd,
    }


def _to_json(
    question: LedgerQuestion,
    groups: Mapping[str, LedgerTotals],
    total: LedgerTotals,
    *,
    repriced: Repriced | None,
    path: Path,
) -> dict[str, Any]:
    def numbers(totals: LedgerTotals, group: RepricedGroup | None) -> dict[str, Any]:
        return _numbers(totals) | (_at_numbers(group) if group else {})

    at = None if repriced is None else {"price_id": repriced.price.price_id, "source": repriced.price.source}
    return {
        "format": FORMAT,
        "ledger": str(path),
        "by": question.by,
        "filter": {name: _plain(value) for name, value in asdict(question.chosen).items() if value is not None},
        "at": at,
        "groups": [{question.by: name, **numbers(group, _group(repriced, name))} for name, group in groups.items()],
        "total": numbers(total, repriced.total if repriced else None),
    }


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _group(repriced: Repriced | None, name: str) -> RepricedGroup | None:
    return None if repriced is None else repriced.groups.get(name, RepricedGroup())


def _to_csv(question: LedgerQuestion, groups: Mapping[str, LedgerTotals], *, repriced: Repriced | None) -> str:
    """A line a group and none for the total, so that a column can be added up."""
    rows = []
    for name, totals in groups.items():
        group = _group(repriced, name)
        # A label such as =1+1 would be computed by a spreadsheet.
        label = f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
        rows.append({question.by: label, **_numbers(totals), **(_at_numbers(group) if group else {})})
    out = io.StringIO()
    head = [question.by, *_numbers(_EMPTY), *(_at_numbers(RepricedGroup()) if repriced else {})]
    writer = csv.DictWriter(out, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


_EMPTY = LedgerTotals(
    num_entries=0, wall_ms=0, prompt_tokens=0, cached_tokens=0, completion_tokens=0, reasoning_tokens=0,
    trained_tokens=0, cost_nano_usd=0, first_at=None, last_at=None,
)  # fmt: skip
_COLUMNS: dict[str, Callable[[LedgerTotals], str]] = {
    "entries": lambda t: f"{t.num_entries:,}",
    "seconds": lambda t: f"{t.wall_ms / 1000:,.1f}",
    "input": lambda t: f"{t.prompt_tokens:,}",
    "cached": lambda t: f"{t.cached_tokens:,}",
    "output": lambda t: f"{t.completion_tokens:,}",
    "thinking": lambda t: f"{t.reasoning_tokens:,}",
    "trained": lambda t: f"{t.trained_tokens:,}",
    "kJ": lambda t: _UNKNOWN if t.energy_mj is None else f"{t.energy_mj / 1e6:,.1f}",
    "dollars": lambda t: show_usd(t.cost_nano_usd).replace("$", ""),
}


def _to_text(
    question: LedgerQuestion,
    groups: Mapping[str, LedgerTotals],
    total: LedgerTotals,
    *,
    repriced: Repriced | None,
    path: Path,
) -> str:
    if not total.num_entries:
        return f"{path}: no entry is of that kind, run, model and time; without filters all of them are shown"
    lines = [[question.by, *_COLUMNS, *(["booked of these", f"at {repriced.price.price_id}"] if repriced else [])]]
    for name, totals in (*groups.items(), ("total", total)):
        group = repriced.total if repriced and totals is total else _group(repriced, name)
        shown = _printable(name) or "(not known)"
        at = [show_usd(group.cost_nano_usd), show_usd(group.repriced_nano_usd)] if group else []
        lines.append(
            [shown, *(column(totals) for column in _COLUMNS.values()), *(text.replace("$", "") for text in at)]
        )
    columns = list(zip(*lines, strict=True))
    first_money = 1 + list(_COLUMNS).index("dollars")
    columns[first_money:] = [_same_decimals(column) for column in columns[first_money:]]
    lines = [list(line) for line in zip(*columns, strict=True)]
    return "\n".join([*_aligned(lines), "", *_notes(question, total, repriced=repriced, path=path)])


def _same_decimals(column: tuple[str, ...]) -> tuple[str, ...]:
    """Amounts under their heading, with zeros added so that their points lie below each other."""
    heading, *amounts = column
    most = max(len(amount.partition(".")[2]) for amount in amounts)
    return (heading, *(amount + "0" * (most - len(amount.partition(".")[2])) for amount in amounts))


def _notes(question: LedgerQuestion, total: LedgerTotals, *, repriced: Repriced | None, path: Path) -> list[str]:
    """What the numbers mean, and what they leave out."""
    notes = [f"{path}, {total.first_at:%Y-%m-%d %H:%M} to {total.last_at:%Y-%m-%d %H:%M} UTC; tokens by class"]
    notes[0] += ", thinking is part of output and cached of input"
    if total.num_with_energy < total.num_entries:
        known = total.num_with_energy
        notes.append(f"kJ: read for {known:,} of {total.num_entries:,} entries; {_UNKNOWN} is not known, and not 0")
    if total.num_unpriced:
        has, theirs = ("entry has", "its") if total.num_unpriced == 1 else ("entries have", "theirs")
        notes.append(f"{total.num_unpriced:,} {has} no known price: the dollars are without {theirs}")
    if repriced is not None:
        price, whole = repriced.price, repriced.total
        per = "machine time" if isinstance(price, MachinePrice) else "tokens read and written; training is sold by none"
        notes.append(f"at {price.price_id}: {per}; source {price.source} ({price.confidence})")
        if whole.num_left_out:
            has, are = ("entry has", "is") if whole.num_left_out == 1 else ("entries have", "are")
            notes.append(f"{whole.num_left_out:,} {has} nothing that this prices, and {are} left out of both")
        if question.books == "corrections":
            notes.append("booked: every entry that it changed has an amendment that names it")
    return notes


def _printable(text: str) -> str:
    """Names come from files and callers: they can colour no terminal, and break no table."""
    shown = "".join(char if char.isprintable() else "·" for char in text)
    return shown if len(shown) <= MAX_LABEL_CHARS else f"…{shown[-MAX_LABEL_CHARS + 1 :]}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*lines[:-1], "-" * len(lines[0]), lines[-1]]
