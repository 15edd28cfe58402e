"""Small charts as inline SVG: axes, ticks, direct labels, tooltips. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

# A drawing is 360 wide: on a phone one unit is one CSS pixel, so that 11-unit letters stay readable.
WIDTH = 360.0
HEIGHT = 190.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 64.0, 12.0, 30.0
LABEL_GAP = 13.0
MAX_POINTS = 240

Format = Callable[[float], str]


class Point(NamedTuple):
    """A measurement; low and high are its interval, equal to y when there is none."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve with its name written at its end."""

    label: str
    points: Sequence[Point]
    style: str = "main"
    """A class of the style sheet: main, second, third, faint."""
    has_dots: bool = False
    """Measurements apart, drawn with their intervals and joined thinly."""
    breaks: tuple[float, ...] = ()
    """Steps after which something else begins: the curve is not drawn across them."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of a forest plot."""

    label: str
    value: float
    low: float
    high: float
    style: str


class Scale(NamedTuple):
    """Maps data to drawing units."""

    lowest: float
    highest: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.lowest) / (self.highest - self.lowest) * (self.end - self.start)


def nice_ticks(lowest: float, highest: float, *, num_ticks: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten that enclose [lowest, highest], about `num_ticks` of them."""
    if highest <= lowest:
        margin = abs(lowest) * 0.1 or 1.0
        lowest, highest = lowest - (margin if lowest < 0 else 0.0), highest + margin
    rough = (highest - lowest) / max(1, num_ticks - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    width = next((factor * power for factor in (1.0, 2.0, 2.5, 5.0) if factor * power >= rough * 0.999), 10.0 * power)
    first, last = math.floor(lowest / width + 1e-9), math.ceil(highest / width - 1e-9)
    return [float(f"{index * width:.9g}") for index in range(first, last + 1)]


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points: means of equal runs of neighbours."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / MAX_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [Point(*(sum(column) / len(run) for column in zip(*run, strict=True))) for run in runs]


def line_chart(
    title: str, *, lines: Sequence[Line], show: Format, y_range: tuple[float, float] | None = None
) -> Markup:
    """Curves over training steps.

    Args:
        title: for screen readers; the page sets its own caption.
        lines: drawn in order; those without points are left out.
        show: writes a value of the y axis.
        y_range: ends of the y axis; None fits the data, from 0 when all of it is positive.
    """
    drawn = [Line(**{**vars(line), "points": thin(line.points)}) for line in lines if line.points]
    if not drawn:
        return Markup("")
    everything = [point for line in drawn for point in line.points]
    lows, highs = [point.low for point in everything], [point.high for point in everything]
    low, high = y_range or (min(0.0, *lows), max(highs))
    y_ticks = nice_ticks(low, high, num_ticks=6)
    xs = [point.x for point in everything]
    x_low = 0.0 if min(xs) <= 1.0 else min(xs)  # one axis for curves from step 1 and evaluations from step 0
    x_high = max(max(xs), x_low + 1.0)
    x_scale = Scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y_scale = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, num_ticks=5) if x_low <= tick <= x_high]
    parts = [_y_axis(y_ticks, y_scale, show), _x_axis(x_ticks, x_scale)]
    parts += [_curve(line, x_scale, y_scale, show) for line in drawn]
    parts += _end_labels(drawn, y_scale)
    return draw(parts, title=title, height=HEIGHT)


def forest_plot(title: str, *, bars: Sequence[Bar], show: Format) -> Markup:
    """Shares from 0 to 1 as dots with their intervals on one axis, each under its name."""
    if not bars:
        return Markup("")
    row_height, right = 35.0, 56.0
    foot = row_height * len(bars) + 6.0
    scale = Scale(0.0, 1.0, 6.0, WIDTH - right)
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:.1f}"/>').format(scale(tick), foot)
        + write_text(f"{100 * tick:.0f}", x=scale(tick), y=foot + 13.0, style="tick middle")
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for index, bar in enumerate(bars):
        y = row_height * index + 24.0
        parts += [
            write_text(bar.label, x=scale(0.0) + 4.0, y=y - 11.0, style=f"name halo {bar.style}"),
            Markup('<line class="interval {}" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                bar.style, scale(bar.low), scale(bar.high), y=y
            ),
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
                bar.style, scale(bar.value), y, f"{bar.label}: {show(bar.value)}"
            ),
            write_text(show(bar.value), x=WIDTH - 2.0, y=y + 4.0, style=f"value end {bar.style}"),
        ]
    return draw(parts, title=title, height=foot + 18.0)


def draw(parts: Sequence[Markup], *, title: str, height: float, width: float = WIDTH) -> Markup:
    """A whole drawing. `title` is for readers without eyes."""
    head = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(width, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def write_text(text: str, *, x: float, y: float, style: str) -> Markup:
    """A text with its base line at y; `style` is classes of the style sheet."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, text)


def _y_axis(ticks: Sequence[float], scale: Scale, show: Format) -> Markup:
    parts = [
        Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
            LEFT, WIDTH - RIGHT, y=scale(tick)
        )
        + write_text(show(tick), x=LEFT - 6.0, y=scale(tick) + 3.5, style="tick end")
        for tick in ticks
    ]
    return Markup("").join(parts)


def _x_axis(ticks: Sequence[float], scale: Scale) -> Markup:
    foot = HEIGHT - BOTTOM
    parts = [write_text(f"{tick:g}", x=scale(tick), y=foot + 14.0, style="tick middle") for tick in ticks]
    return Markup("").join(
        [*parts, write_text("step", x=(LEFT + WIDTH - RIGHT) / 2, y=foot + 27.0, style="tick middle")]
    )


def _curve(line: Line, x_scale: Scale, y_scale: Scale, show: Format) -> Markup:
    places = [(x_scale(point.x), y_scale(point.y)) for point in line.points]
    kind = "thin" if line.has_dots else "curve"
    parts = [
        Markup('<polyline class="{} {}" points="{}"/>').format(
            kind, line.style, " ".join(f"{x_scale(point.x):.1f},{y_scale(point.y):.1f}" for point in piece)
        )
        for piece in _pieces(line)
    ]
    radius = 3.5 if line.has_dots or len(places) == 1 else 0.0
    for point, (x, y) in zip(line.points, places, strict=True):
        tip = f"step {point.x:g}, {line.label}: {show(point.y)}"
        if point.low < point.high:
            tip += f" ({show(point.low)} to {show(point.high)})"
            parts.append(
                Markup('<line class="interval {}" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    line.style, y_scale(point.low), y_scale(point.high), x=x
                )
            )
        if radius:
            parts.append(
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(line.style, x, y, radius)
            )
        # A disc larger than the mark: a pointer need not hit the line itself.
        parts.append(
            Markup('<circle class="aim" cx="{:.1f}" cy="{:.1f}" r="7"><title>{}</title></circle>').format(x, y, tip)
        )
    return Markup("").join(parts)


def _pieces(line: Line) -> list[list[Point]]:
    """The points of a curve, cut where it breaks."""
    pieces: dict[int, list[Point]] = {}
    for point in line.points:
        pieces.setdefault(sum(point.x > end for end in line.breaks), []).append(point)
    return list(pieces.values())


def _end_labels(lines: Sequence[Line], y_scale: Scale) -> list[Markup]:
    """The names of the curves beside their last points, pushed apart where they would overlap."""
    wanted = sorted(((y_scale(line.points[-1].y) + 3.5, line) for line in lines), key=lambda pair: pair[0])
    places: list[float] = []
    for y, _ in wanted:
        places.append(max(y, places[-1] + LABEL_GAP) if places else y)
    excess = max(0.0, places[-1] - (HEIGHT - BOTTOM + 3.5))
    for index in range(len(places) - 1, -1, -1):
        ceiling = places[index + 1] - LABEL_GAP if index + 1 < len(places) else places[index] - excess
        places[index] = min(places[index], ceiling)
    return [
        write_text(line.label, x=WIDTH - RIGHT + 6.0, y=place, style=f"name {line.style}")
        for place, (_, line) in zip(places, wanted, strict=True)
    ]
