"""Names written beside what they name, none over another: a place is looked for, near first, for the dearest first."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

LETTER = 6.6
"""Width of a letter of 11 units: DejaVu Serif, the widest of the faces that the page asks for, has 6.4 on average."""
LINE = 13.0
"""Height of a name."""
GAP = 6.0
APART = 5.0
"""Between two names on a line."""
LEAD = 14.0
"""Between the last day and the column of names."""


class Box(NamedTuple):
    """A rectangle of the drawing; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether the other lies within."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True, kw_only=True)
class Name:
    """A text that wants to stand beside a point."""

    text: str
    x: float
    y: float
    style: str
    rank: int = 0
    """Lower ones choose first; one above 0 is left out rather than written over a line."""
    side: Literal["around", "edge"] = "around"
    """Edge: in the column to the right of the frame, for what goes on to the last day."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A name with its place; `box` is what it covers."""

    name: Name
    box: Box

    @property
    def is_far(self) -> bool:
        """Whether a line has to lead from the point to the name."""
        if self.name.side == "edge":
            return abs(self.box.top + LINE / 2 - self.name.y) > 1.0
        x = min(max(self.name.x, self.box.left), self.box.right)
        y = min(max(self.name.y, self.box.top), self.box.bottom)
        return abs(x - self.name.x) + abs(y - self.name.y) > 2 * GAP


def text_width(text: str) -> float:
    """About what a text takes: wide letters of East Asian scripts are as wide as high."""
    return sum(11.0 if unicodedata.east_asian_width(letter) in "WF" else LETTER for letter in text)


def place(names: Sequence[Name], *, frame: Box, taken: Sequence[Box] = (), lines: Sequence[Box] = ()) -> list[Placed]:
    """Where each name stands, the first choice by rank. One that finds no place is left out: it is in the table.

    Args:
        frame: what no name may leave; names of the edge stand in a column at its right end.
        taken: what no name may cover: marks, words.
        lines: what a name covers only where there is no other place near, and its rank is 0 or lower: it has a halo.
    """
    placed = _column([name for name in names if name.side == "edge"], frame=frame)
    full = [*taken, *(done.box for done in placed)]
    for name in sorted(names, key=lambda name: name.rank):
        if name.side == "edge":
            continue
        free = [box for box in _candidates(name) if frame.holds(box) and not _meets(box, full)]
        if free:
            clear = [box for box in free if not _meets(box, lines)]
            if not clear and name.rank > 0:
                continue
            box = (clear or free)[0]
            placed.append(Placed(name=name, box=box))
            full.append(Box(box.left - APART, box.top, box.right + APART, box.bottom))
    return placed


def _meets(box: Box, others: Sequence[Box]) -> bool:
    return any(box.overlaps(other) for other in others)


def _column(names: Sequence[Name], *, frame: Box) -> list[Placed]:
    """Names one under the other, each as near to its point as those beside it let it be."""
    room = int((frame.bottom - frame.top) // LINE)
    left = max((name.x for name in names), default=0.0) + LEAD
    fitting = [name for name in names if left + text_width(name.text) <= frame.right + 0.1]
    kept = sorted(sorted(fitting, key=lambda name: name.rank)[:room], key=lambda name: (name.y, name.text))
    tops: list[float] = []
    for name in kept:
        wanted = max(name.y - LINE / 2, frame.top)
        tops.append(max(wanted, tops[-1] + LINE) if tops else wanted)
    floor = frame.bottom
    for index in range(len(tops) - 1, -1, -1):
        tops[index] = min(tops[index], floor - LINE)
        floor = tops[index]
    return [
        Placed(name=name, box=Box(left, top, left + text_width(name.text), top + LINE))
        for name, top in zip(kept, tops, strict=True)
    ]


def _candidates(name: Name) -> list[Box]:
    """Places around a point: to its right, above, below, to its left; then the same farther away."""
    width, boxes = text_width(name.text), []
    for far in range(6):
        rise = far * LINE * 0.75
        for dy in (-rise, rise) if far else (0.0,):
            middle = name.y + dy
            upper = middle - GAP - LINE if dy <= 0 else middle + GAP
            lower = name.y + GAP
            boxes.append((name.x + GAP, middle - LINE / 2))
            boxes += [(name.x - width, upper), (name.x - width / 2, upper), (name.x, upper)]
            boxes += [] if far else [(name.x - width, lower), (name.x - width / 2, lower), (name.x, lower)]
            boxes.append((name.x - GAP - width, middle - LINE / 2))
    return [Box(left, top, left + width, top + LINE) for left, top in boxes]
