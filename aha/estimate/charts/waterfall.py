"""A waterfall: what a sum is made of, each part beginning where the one before it ends. Rows give names room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aha.estimate.charts.labels import text_width
from aha.estimate.charts.plane import Size
from aha.report.plot import draw, write_text

DESK_ROW, PHONE_ROW, BAR = 24.0, 36.0, 14.0
PHONE_WIDTH = 500.0
"""Narrower drawings have each name above its bar."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a sum, or a sum of those above it."""

    label: str
    start: float
    """Where its bar begins: 0 for a sum."""
    amount: float
    shown: str
    """The amount with its unit."""
    style: str
    tip: str = ""


def stack(amounts: Sequence[tuple[str, float, str, str]], *, style: str) -> list[Part]:
    """Parts one after the other, from (label, amount, shown, tip)."""
    parts, start = [], 0.0
    for label, amount, shown, tip in amounts:
        parts.append(Part(label=label, start=start, amount=amount, shown=shown, style=style, tip=tip))
        start += amount
    return parts


def draw_waterfall(parts: Sequence[Part], *, title: str, size: Size) -> Markup:
    """The drawing; its height follows from the number of parts."""
    is_phone = size.width < PHONE_WIDTH
    row = PHONE_ROW if is_phone else DESK_ROW
    names = 0.0 if is_phone else max(text_width(part.label) for part in parts) + 12.0
    values = max(text_width(part.shown) for part in parts) + 10.0
    longest = max(part.start + part.amount for part in parts)
    unit = (size.width - names - values) / longest
    drawn = []
    for index, part in enumerate(parts):
        top = index * row + (16.0 if is_phone else 4.0)
        left, width = names + part.start * unit, max(part.amount * unit, 1.0)
        drawn.append(
            Markup(
                '<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"><title>{}</title></rect>'
            ).format(part.style, left, top, width, BAR, part.tip or f"{part.label}: {part.shown}")
        )
        label_x, label_y = (0.0, top - 4.0) if is_phone else (names - 10.0, top + 11.0)
        drawn.append(write_text(part.label, x=label_x, y=label_y, style="name" if is_phone else "name end"))
        drawn.append(write_text(part.shown, x=left + width + 5.0, y=top + 11.0, style=f"name {part.style}"))
        if index + 1 < len(parts) and parts[index + 1].start > 0:
            drawn.append(_step(left + width, top=top + BAR, bottom=top + row))
    return draw(drawn, title=title, width=size.width, height=row * len(parts) + 4.0)


def _step(x: float, *, top: float, bottom: float) -> Markup:
    """The thin line from the end of a bar to the beginning of the next."""
    return Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(top, bottom, x=x)
