"""A picture with its numbers: the drawing for eyes, the same rows as a table and as CSV for everyone else."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from markupsafe import Markup

from aha.estimate.charts import DESK, HALF, PHONE, Plane, Size, draw_plane
from aha.estimate.charts.waterfall import Part, draw_waterfall

Cell = str | int | float | date | None
"""None: not known."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


Form = Literal["full", "half", "tall"]
"""Of a drawing on a desk: halves stand side by side, tall ones have room for many names."""
SIZES: dict[Form, tuple[Size, Size]] = {
    "full": (DESK, PHONE),
    "half": (HALF, PHONE),
    "tall": (Size(DESK.width, 520.0), Size(PHONE.width, 520.0)),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the numbers."""

    key: str
    """Header of the CSV, with its unit; stays."""
    title: str
    """Header on the page."""
    show: Callable[[Any], str] = str
    """Writes a number for the page."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One chart, drawn for both widths, with the words under it."""

    caption: str
    desk: Markup
    phone: Markup
    form: Form = "full"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finding, its drawings, its numbers."""

    key: str
    """Name of its CSV, and of its place on the page."""
    title: str
    """The finding, as a sentence."""
    drawings: tuple[Drawing, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """What was assumed, and how to read it."""
    sources: tuple[str, ...] = ()
    """Where the numbers come from, with dates."""

    @property
    def csv(self) -> str:
        """The numbers as comma-separated text, a line each; amounts in full, days as ISO 8601."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        writer.writerows([raw(cell) for cell in row] for row in self.rows)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A picture that is left out, and why."""

    key: str
    reason: str


def raw(cell: Cell) -> str:
    """A cell as a machine reads it; "" for what is not known."""
    if cell is None:
        return ""
    if isinstance(cell, date):
        return cell.isoformat()
    if isinstance(cell, str):
        # A spreadsheet runs a text that begins like a formula; names come from other people's files.
        return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
    return repr(cell)


def shown(cell: Cell, *, column: Column) -> str:
    """A cell as a reader sees it."""
    if cell is None:
        return "–"
    return column.show(cell) if isinstance(cell, int | float) else str(cell)


def plane_drawing(plane: Plane, *, caption: str, form: Form = "full") -> Drawing:
    """A plane, drawn for a desk and for a phone."""
    desk, phone = SIZES[form]
    return Drawing(
        caption=caption,
        desk=draw_plane(plane, title=caption, size=desk),
        phone=draw_plane(plane, title=caption, size=phone),
        form=form,
    )


def waterfall_drawing(parts: list[Part], *, caption: str) -> Drawing:
    """A waterfall, drawn for a desk and for a phone."""
    return Drawing(
        caption=caption,
        desk=draw_waterfall(parts, title=caption, size=DESK),
        phone=draw_waterfall(parts, title=caption, size=PHONE),
    )
