"""Algorithms against scale, in dollars: what each choice of a model saves, and what the same dollars buy without."""

from aha.estimate.why.comparison import (
    Row,
    Setting,
    choice_rows,
    sides_of,
    walk,
)

__all__ = [
    "Row",
    "Setting",
    "choice_rows",
    "sides_of",
    "walk",
]
