"""What `python -m bench.why` has kept: read for showing, never trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aha.errors import DataError

FORMAT = 1
MAX_BYTES = 1 << 20
MAX_ROWS = 200
MAX_TEXT = 60
_WORDS = ("choice", "what", "side", "unit")
_NUMBERS = ("median", "ratio")


def read_measured(path: str) -> dict[str, Any]:
    """The file's figures: its date, whether the machine was quiet, and rows of choice, what, side, unit, median, ratio.

    Whatever else the file has is left out.

    Raises:
        DataError: not such a file.
    """
    file = Path(path)
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            raise DataError(f"{path!r} is not a file of python -m bench.why; give bench/results/why.json")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path!r} cannot be read as a file of python -m bench.why: {error}") from None
    if not isinstance(found, dict) or found.get("kind") != "why" or found.get("format") != FORMAT:
        raise DataError(f"{path!r} was not written by python -m bench.why of this version; give bench/results/why.json")
    rows, machine = found.get("rows"), found.get("machine")
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ROWS or not isinstance(machine, dict):
        raise DataError(f"{path!r} has no rows; run python -m bench.why again")
    return {
        "date": _word(found.get("date"), path),
        "is_quick": found.get("is_quick") is True,
        "is_quiet": machine.get("is_quiet") is True,
        "processor": _word(machine.get("processor"), path),
        "rows": [_row(row, path) for row in rows],
    }


def measured_table(found: Mapping[str, Any]) -> str:
    """What was measured, each side beside the one that the model has chosen."""
    state = "alone on its machine" if found["is_quiet"] else "on a machine that others used: rough"
    quick = "; --quick, a trial only" if found["is_quick"] else ""
    lines = [
        f"  {found['date']}, {found['processor']}, {state}{quick}",
        f"  {'what':<22} {'side':<26} {'median':>10} {'unit':<20} {'ratio':>7}",
    ]
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    for row in rows:
        lines.append(
            f"  {row['what']:<22.22} {row['side']:<26.26} {_figure(row['median']):>10} {row['unit']:<20.20} "
            f"{row['ratio']:>6.2f}x"
        )
    return "\n".join(lines)


def _row(row: object, path: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{path!r} has a row that is none; run python -m bench.why again")
    for name in _NUMBERS:
        number = row.get(name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise DataError(f"{path!r} has a row without a finite {name}; run python -m bench.why again")
    return {**{name: _word(row.get(name), path) for name in _WORDS}, **{name: float(row[name]) for name in _NUMBERS}}


def _word(value: object, path: str) -> str:
    """A short printable text: what a file says is shown on a terminal."""
    if not isinstance(value, str) or not value or len(value) > MAX_TEXT or not value.isprintable():
        raise DataError(f"{path!r} has a name that is no short printable text; run python -m bench.why again")
    return value


def _figure(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
