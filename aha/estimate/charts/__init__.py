"""Charts of money as inline SVG, for a desk and for a phone. Colours come from the page's style sheet."""

from aha.estimate.charts.axes import Axis, Format, Tick, day_axis, linear_axis, log_axis, thinned
from aha.estimate.charts.labels import Box, Name, Placed, place, text_width
from aha.estimate.charts.plane import (
    DESK,
    HALF,
    PHONE,
    Band,
    Curve,
    Dot,
    Level,
    Plane,
    Size,
    Spot,
    draw_plane,
    place_names,
)
from aha.estimate.charts.waterfall import Part, draw_waterfall, stack

__all__ = [
    "DESK",
    "HALF",
    "PHONE",
    "Axis",
    "Band",
    "Box",
    "Curve",
    "Dot",
    "Format",
    "Level",
    "Name",
    "Part",
    "Placed",
    "Plane",
    "Size",
    "Spot",
    "Tick",
    "day_axis",
    "draw_plane",
    "draw_waterfall",
    "linear_axis",
    "log_axis",
    "place",
    "place_names",
    "stack",
    "text_width",
    "thinned",
]
