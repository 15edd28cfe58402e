"""Rows of figures as one Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Unit = Literal["tokens/s", "s/step"]
HEADER = ("what", "side", "figure", "aha is", "peak memory", "of GEMM ceiling", "settings")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side of one comparison. Rows of the same `what` are compared with the first of them, which is ours."""

    what: str
    side: str
    settings: str
    figures: tuple[float, ...]
    """One a repetition; the median counts. Empty when it could not be measured."""
    unit: Unit
    peak_bytes: int = 0
    ceiling: float | None = None
    """The figure that matrix products alone would reach, in the same unit; None when there is none to name."""
    problem: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For the results file."""

    @property
    def figure(self) -> float | None:
        return statistics.median(self.figures) if self.figures else None

    @property
    def share_of_ceiling(self) -> float | None:
        """How much of what the machine's matrix products allow is reached: 1 is all of it."""
        if self.figure is None or self.ceiling is None:
            return None
        return self.figure / self.ceiling if self.unit == "tokens/s" else self.ceiling / self.figure


def speedup(ours: Row, theirs: Row) -> float | None:
    """How many times as fast ours is."""
    if ours.figure is None or theirs.figure is None:
        return None
    return ours.figure / theirs.figure if ours.unit == "tokens/s" else theirs.figure / ours.figure


def memory_ratio(ours: Row, theirs: Row) -> float | None:
    """Our peak memory as a share of theirs."""
    return ours.peak_bytes / theirs.peak_bytes if ours.peak_bytes and theirs.peak_bytes else None


def to_markdown(rows: Sequence[Row]) -> str:
    """One table; peers show how many times as fast ours is."""
    lines = [HEADER, tuple("---" for _ in HEADER)]
    first: dict[str, Row] = {}
    for row in rows:
        lines.append(_cells(row, ours=first.setdefault(row.what, row)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: Row, *, ours: Row) -> tuple[str, ...]:
    if row.problem:
        return (row.what, row.side, "–", "–", "–", "–", f"not measured: {row.problem}")
    is_peer = row is not ours and not row.side.startswith("aha")
    ratio, share = speedup(ours, row), row.share_of_ceiling
    return (
        row.what,
        row.side,
        _figure(row),
        f"{ratio:.2f}x as fast" if is_peer and ratio else "",
        f"{row.peak_bytes / 2**30:.2f} GiB" if row.peak_bytes else "–",
        f"{share:.0%}" if share is not None else "–",
        row.settings,
    )


def _figure(row: Row) -> str:
    assert row.figure is not None
    spread = f" ({min(row.figures):.3g} to {max(row.figures):.3g})" if len(row.figures) > 1 else ""
    return f"{row.figure:.3g} {row.unit}{spread}"


def to_json(row: Row, *, ours: Row) -> dict[str, Any]:
    """The row with everything that was tried, for the results file."""
    return {
        "what": row.what,
        "side": row.side,
        "settings": row.settings,
        "unit": row.unit,
        "median": row.figure,
        "repetitions": list(row.figures),
        "aha_is_times_as_fast": speedup(ours, row),
        "peak_bytes": row.peak_bytes,
        "aha_share_of_its_memory": memory_ratio(ours, row),
        "gemm_ceiling": row.ceiling,
        "share_of_gemm_ceiling": row.share_of_ceiling,
        "problem": row.problem,
        **row.details,
    }
