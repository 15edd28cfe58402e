"""The curves of a report: what is drawn, and the sentence that says how to read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    def line(label: str, key: str, style: str = "main") -> Line:
        return Line(label=label, points=_curve(found.steps, key), style=style)

    def figure(caption: str, show: Callable[[float], str], *lines: Line) -> Figure:
        y_range = (0.0, 1.0) if show is _share else None
        return Figure(caption=caption, chart=line_chart(caption, lines=lines, show=show, y_range=y_range))

    figures = [
        figure(
            "pass@1 on held-out problems with 95 % intervals, and share of right rollouts in training",
            _share,
            line("training", "pass_at_1", "third"),
            Line(label="held out", points=_held_out(found), has_dots=True),
        ),
        figure("reward of the rollouts, mean of a step", words.quantity, line("reward", "reward_mean")),
        figure(
            "length in tokens: the thinking, and the whole answer",
            words.quantity,
            line("whole", "mean_tokens", "third"),
            line("thinking", "mean_thinking_tokens"),
        ),
        figure(
            "groups of rollouts: mixed ones teach, all-right and all-wrong ones have nothing to compare",
            _share,
            line("all right", "all_right_fraction", "third"),
            line("all wrong", "all_wrong_fraction", "second"),
            line("mixed", "teaching_fraction"),
        ),
        figure(
            "entropy of the policy, nats a token; near 0 it no longer explores",
            words.quantity,
            line("entropy", "entropy"),
        ),
        figure(
            "distance to the teacher, nats a token on the student's own answers",
            words.quantity,
            line("divergence", "divergence"),
        ),
        figure("loss of the supervised steps", words.quantity, _supervised_loss(found)),
        figure("speed, tokens a second", words.quantity, line("tokens/s", "tokens_per_second")),
    ]
    return [figure for figure in figures if figure.chart]


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
    return Line(label="loss", points=_curve(rows, "loss"))
