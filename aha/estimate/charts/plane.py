"""Drawings in a plane: curves, steps, bands and named points between two axes, once for a desk and once for a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from markupsafe import Markup

from aha.estimate.charts.axes import Axis, Tick, thinned
from aha.estimate.charts.labels import GAP, LEAD, LINE, Box, Name, Placed, place, text_width
from aha.report.plot import draw, write_text

TOP, BOTTOM, RIGHT = 22.0, 24.0, 18.0
RADIUS = 3.5
EDGE = 0.97
"""Share of the x axis from which on a line counts as going on to its end."""
MAX_MARGIN = 0.46
"""Share of the width that names at the right edge may take."""


class Size(NamedTuple):
    """Of a drawing, in units; on the screen that it is made for one is about one CSS pixel."""

    width: float
    height: float


DESK, HALF, PHONE = Size(800.0, 380.0), Size(390.0, 300.0), Size(360.0, 340.0)


class Spot(NamedTuple):
    """A place in data."""

    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line with its name at its end."""

    spots: tuple[Spot, ...]
    """From left to right."""
    style: str
    """A class of the style sheet: main, second, third, faint."""
    label: str = ""
    shape: Literal["straight", "steps"] = "straight"
    """Steps: a value holds until the next one."""
    rank: int = 0
    """Lower ones have their names placed first."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A measurement, with its name beside it and its words under the pointer."""

    spot: Spot
    style: str
    tip: str
    label: str = ""
    mark: Literal["full", "hollow"] = "full"
    """Hollow: known from a third party, or assumed."""
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Band:
    """What lies between two step lines over the same x."""

    lower: tuple[Spot, ...]
    upper: tuple[Spot, ...]
    style: str


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value of the y axis drawn across, with words."""

    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Everything that one drawing shows."""

    x: Axis
    y: Axis
    curves: tuple[Curve, ...] = ()
    dots: tuple[Dot, ...] = ()
    bands: tuple[Band, ...] = ()
    levels: tuple[Level, ...] = ()


def draw_plane(plane: Plane, *, title: str, size: Size) -> Markup:
    """The drawing. `title` is for readers without eyes; the page sets its own."""
    frame = _frame(plane, size)
    parts = [_grid(plane, frame)]
    parts += [_band(band, plane, frame) for band in plane.bands]
    parts += [_level(level, plane, frame) for level in plane.levels]
    parts += [_curve(curve, plane, frame) for curve in plane.curves]
    parts += [_level_words(level, plane, frame) for level in plane.levels]  # over the lines: they have a halo
    names = place_names(plane, size=size)
    parts += [_leader(placed) for placed in names if placed.is_far]
    parts += [_dot(dot, plane, frame) for dot in plane.dots]
    parts += [_name(placed) for placed in names]
    return draw(parts, title=title, width=size.width, height=size.height)


def place_names(plane: Plane, *, size: Size) -> list[Placed]:
    """Where the names of curves and dots stand; none covers a dot, a level's words or another name."""
    frame = _frame(plane, size)
    places = [_place(dot.spot, plane, frame) for dot in plane.dots]
    taken = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places]
    for level in plane.levels:
        y = _place(Spot(plane.x.lowest, level.y), plane, frame).y
        taken.append(Box(frame.left, y - LINE - 2, frame.left + text_width(level.label) + GAP, y))
    names = [
        Name(text=dot.label, x=x, y=y, style=dot.style, rank=dot.rank)
        for dot, (x, y) in zip(plane.dots, places, strict=True)
        if dot.label
    ]
    for curve in plane.curves:
        x, y = _place(curve.spots[-1], plane, frame)
        if curve.label:
            side: Literal["around", "edge"] = "edge" if _is_at_edge(curve, plane) else "around"
            names.append(Name(text=curve.label, x=x, y=y, style=curve.style, rank=curve.rank, side=side))
    lines = [box for curve in plane.curves for box in _boxes(curve, plane, frame)]
    return place(names, frame=Box(frame.left, TOP - LINE, size.width, frame.bottom), taken=taken, lines=lines)


def _is_at_edge(curve: Curve, plane: Plane) -> bool:
    return plane.x.share(curve.spots[-1].x) > EDGE


def _boxes(curve: Curve, plane: Plane, frame: Box) -> list[Box]:
    """About what a line covers."""
    corners = [_place(spot, plane, frame) for spot in _corners(curve)]
    boxes = []
    for (x, y), (next_x, next_y) in pairwise(corners):
        pieces = max(1, int(min(abs(next_x - x), abs(next_y - y)) // LINE))
        for piece in range(pieces):
            ends_x = [x + (next_x - x) * part / pieces for part in (piece, piece + 1)]
            ends_y = [y + (next_y - y) * part / pieces for part in (piece, piece + 1)]
            boxes.append(Box(min(ends_x), min(ends_y) - 1.0, max(ends_x), max(ends_y) + 1.0))
    return boxes


def _frame(plane: Plane, size: Size) -> Box:
    """The rectangle between the axes: the left leaves room for the ticks, the right for names of what ends there."""
    ticks = [text_width(tick.text) / 2 for tick in plane.x.ticks] or [0.0]
    left = max(*(text_width(tick.text) + 8.0 for tick in plane.y.ticks), ticks[0])
    ends = [curve.label for curve in plane.curves if curve.label and _is_at_edge(curve, plane)]
    room = max([RIGHT, ticks[-1], *(text_width(text) + LEAD for text in ends)])
    return Box(
        left,
        TOP,
        size.width - min(room, size.width * MAX_MARGIN),
        size.height - BOTTOM - (LINE if plane.x.title else 0.0),
    )


def _place(spot: Spot, plane: Plane, frame: Box) -> Spot:
    x = frame.left + plane.x.share(spot.x) * (frame.right - frame.left)
    return Spot(x, frame.bottom - plane.y.share(spot.y) * (frame.bottom - frame.top))


def _grid(plane: Plane, frame: Box) -> Markup:
    parts = []
    for tick in plane.y.ticks:
        y = _place(Spot(plane.x.lowest, tick.value), plane, frame).y
        parts.append(
            Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                frame.left, frame.right, y=y
            )
        )
        parts.append(write_text(tick.text, x=frame.left - 6.0, y=y + 3.5, style="tick end"))
    if plane.y.title:
        parts.append(write_text(plane.y.title, x=0.0, y=9.0, style="tick"))

    def apart(ticks: Sequence[Tick]) -> bool:
        ends = [(_x(tick, plane, frame), text_width(tick.text) / 2) for tick in ticks]
        return all(x + half + 2.0 <= next_x - next_half for (x, half), (next_x, next_half) in pairwise(ends))

    for tick in thinned(plane.x.ticks, fits=apart):
        x = _x(tick, plane, frame)
        parts.append(
            Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                frame.bottom, frame.bottom + 4.0, x=x
            )
        )
        parts.append(write_text(tick.text, x=x, y=frame.bottom + 15.0, style="tick middle"))
    if plane.x.title:
        middle = (frame.left + frame.right) / 2
        parts.append(write_text(plane.x.title, x=middle, y=frame.bottom + 29.0, style="tick middle"))
    return Markup("").join(parts)


def _x(tick: Tick, plane: Plane, frame: Box) -> float:
    return _place(Spot(tick.value, plane.y.lowest), plane, frame).x


def _steps(spots: Sequence[Spot]) -> list[Spot]:
    """The corners of a line that holds each value until the next."""
    corners = [spots[0]]
    for spot in spots[1:]:
        corners += [Spot(spot.x, corners[-1].y), spot]
    return corners


def _corners(curve: Curve) -> Sequence[Spot]:
    return _steps(curve.spots) if curve.shape == "steps" else curve.spots


def _path(spots: Sequence[Spot], plane: Plane, frame: Box) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(spot, plane, frame) for spot in spots))


def _curve(curve: Curve, plane: Plane, frame: Box) -> Markup:
    spots = _corners(curve)
    line = Markup('<polyline class="curve {}" points="{}"').format(curve.style, _path(spots, plane, frame))
    return line + Markup("><title>{}</title></polyline>").format(curve.label) if curve.label else line + Markup("/>")


def _band(band: Band, plane: Plane, frame: Box) -> Markup:
    spots = [*_steps(band.upper), *reversed(_steps(band.lower))]
    return Markup('<polygon class="band {}" points="{}"/>').format(band.style, _path(spots, plane, frame))


def _level(level: Level, plane: Plane, frame: Box) -> Markup:
    y = _place(Spot(plane.x.lowest, level.y), plane, frame).y
    return Markup('<line class="level" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
        frame.left, frame.right, y=y
    )


def _level_words(level: Level, plane: Plane, frame: Box) -> Markup:
    y = _place(Spot(plane.x.lowest, level.y), plane, frame).y
    return write_text(level.label, x=frame.left + 4.0, y=y - 4.0, style="tick halo")


def _dot(dot: Dot, plane: Plane, frame: Box) -> Markup:
    x, y = _place(dot.spot, plane, frame)
    mark = Markup('<circle class="dot {} {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
        dot.style, dot.mark, x, y, RADIUS
    )
    # A disc larger than the mark: a pointer need not hit the mark itself.
    return mark + Markup('<circle class="aim" cx="{:.1f}" cy="{:.1f}" r="8"><title>{}</title></circle>').format(
        x, y, dot.tip
    )


def _leader(placed: Placed) -> Markup:
    box, name = placed.box, placed.name
    x = box.left - 2.0 if name.side == "edge" else min(max(name.x, box.left), box.right)
    y = min(max(name.y, box.top + 2.0), box.bottom - 2.0) if name.side == "around" else box.bottom - LINE / 2
    return Markup('<line class="leader {}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        name.style, name.x, name.y, x, y
    )


def _name(placed: Placed) -> Markup:
    box, name = placed.box, placed.name
    if box.right <= name.x:
        return write_text(name.text, x=box.right, y=box.bottom - 3.0, style=f"name halo end {name.style}")
    if box.left >= name.x - 0.01 or box.bottom > name.y > box.top:
        return write_text(name.text, x=box.left, y=box.bottom - 3.0, style=f"name halo {name.style}")
    return write_text(
        name.text, x=(box.left + box.right) / 2, y=box.bottom - 3.0, style=f"name halo middle {name.style}"
    )
