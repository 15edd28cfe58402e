"""The curves of a report: what is drawn, and the sentence that says how to read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from aha.report import words
from aha.report.folder import Row, RunFolder, number
from aha.report.plot import Line, Point, line_chart


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with the sentence that says how to read it."""

    caption: str
    chart: Markup


def draw_figures(found: RunFolder) -> list[Figure]:
    """The curves of a run, without those that it has no numbers for."""
    held_out = Line(label="held out", points=_held_out(found), has_dots=True)
    training = _line(found, _Curve("training", "pass_at_1", "third"))
    figures = [
        _figure(
            "pass@1 on held-out problems with 95 % intervals, and share of right rollouts in training",
            _share,
            [training, held_out],
        )
    ]
    figures += [_figure(caption, show, [_line(found, curve) for curve in curves]) for caption, show, *curves in _CHARTS]
    figures.append(_figure("loss of the supervised steps", words.quantity, [_supervised_loss(found)]))
    return [figure for figure in figures if figure.chart]


class _Curve(NamedTuple):
    """One number of the steps' rows."""

    label: str
    key: str
    style: str = "main"


def _line(found: RunFolder, curve: _Curve) -> Line:
    points = _curve(found.steps, curve.key)
    return Line(label=curve.label, points=points, style=curve.style, breaks=_stage_ends(found))


def _stage_ends(found: RunFolder) -> tuple[float, ...]:
    """The last steps of all stages but the last."""
    return tuple(end for row in found.stages[:-1] if (end := number(row, "step")) is not None)


def _figure(caption: str, show: Callable[[float], str], lines: Sequence[Line]) -> Figure:
    y_range = (0.0, 1.0) if show is _share else None
    return Figure(caption=caption, chart=line_chart(caption, lines=lines, show=show, y_range=y_range))


def _curve(rows: Sequence[Row], key: str) -> list[Point]:
    pairs = ((number(row, "step"), number(row, key)) for row in rows)
    return [Point(x, y, y, y) for x, y in pairs if x is not None and y is not None]


def _held_out(found: RunFolder) -> list[Point]:
    """The evaluations along the run; without any, the first and the last."""
    marks = []
    for row in found.evals:
        x, y = number(row, "step"), number(row, "pass_at_1")
        if x is not None and y is not None:
            low, high = number(row, "interval_low"), number(row, "interval_high")
            marks.append(Point(x, y, y if low is None else low, y if high is None else high))
    last = number(found.steps[-1], "step") if found.steps else None
    if not marks and last is not None:
        for x, result in ((0.0, found.before), (last, found.after)):
            marks += [Point(x, result.pass_at_1, result.interval_low, result.interval_high)] if result else []
    return marks


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _supervised_loss(found: RunFolder) -> Line:
    """The loss of policy-gradient steps is left out: its size means nothing."""
    rows = [row for row in found.steps if number(row, "reward_mean") is None]
    return Line(label="loss", points=_curve(rows, "loss"), breaks=_stage_ends(found))


_CHARTS: tuple[Any, ...] = (
    ("reward of the rollouts, mean of a step", words.quantity, _Curve("reward", "reward_mean")),
    (
        "length in tokens: the thinking, and the whole answer",
        words.quantity,
        _Curve("whole", "mean_tokens", "third"),
        _Curve("thinking", "mean_thinking_tokens"),
    ),
    (
        "groups of rollouts: mixed ones teach, all-right and all-wrong ones have nothing to compare",
        _share,
        _Curve("all right", "all_right_fraction", "third"),
        _Curve("all wrong", "all_wrong_fraction", "second"),
        _Curve("mixed", "teaching_fraction"),
    ),
    ("entropy of the policy, nats a token; near 0 it no longer explores", words.quantity, _Curve("entropy", "entropy")),
    (
        "distance to the teacher, nats a token on the student's own answers",
        words.quantity,
        _Curve("divergence", "divergence"),
    ),
    (
        "two tokens ahead: loss of multi-token prediction in the supervised steps, nats a token",
        words.quantity,
        _Curve("mtp loss", "mtp_loss"),
    ),
    (
        "load of the experts: deviation by mean, of the worst layer and over all; 0 is even",
        words.quantity,
        _Curve("worst layer", "expert_load_cv_worst", "third"),
        _Curve("all layers", "expert_load_cv"),
    ),
    ("speed, tokens a second", words.quantity, _Curve("tokens/s", "tokens_per_second")),
)
"""Caption, how its numbers are shown, and the curves."""
