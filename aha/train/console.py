"""What a training run shows: a live table on a terminal, one plain line a step elsewhere, a summary at the end."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, TextIO

import rich.console
from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aha.train.columns import (
    COLLECTING_COLUMNS,
    COST_COLUMNS,
    FOLLOWING_COLUMNS,
    LOSS_COLUMNS,
    MORE_REWARD_COLUMNS,
    REWARD_COLUMNS,
    SPARSE_COLUMNS,
    Column,
    clock,
    number_of,
    short,
    shows,
)

ConsoleMode = Literal["live", "plain", "quiet"]
MAX_SHOWN_CHARS = 600  # of one answer in the summary; samples.jsonl keeps all of it
HEADER_EVERY = 25  # rows; a terminal shows about that many
WIDE_COLUMNS = 100
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class PassRate:
    """pass@1 in shares of 1, with its 95 % interval."""

    pass_at_1: float
    interval_low: float
    interval_high: float
    num_problems: int


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Something that needs no model, on the same problems."""

    label: str
    pass_at_1: float


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer to a problem."""

    text: str
    """Thinking and answer as sampled."""
    is_correct: bool


@dataclass(frozen=True, kw_only=True)
class ShownProblem:
    """One held-out problem, answered before and after the training."""

    prompt: str
    before: Answered
    after: Answered


class BillLine(NamedTuple):
    """One line of the bill, both columns as they are to be printed."""

    label: str
    amount: str


class NextCommand(NamedTuple):
    """A command to type next, and what it does."""

    command: str
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished run says at its end."""

    run: str
    """The run's folder as the user would type it."""
    before: PassRate | None = None
    after: PassRate | None = None
    baselines: tuple[Baseline, ...] = ()
    verdict: str = ""
    """One sentence on what the numbers show, e.g. whether the gain is certain and whether it beats blind search."""
    problems: tuple[ShownProblem, ...] = ()
    bill: tuple[BillLine, ...] = ()
    next_commands: tuple[NextCommand, ...] = ()


class Advance(Protocol):
    """Says that so many more are done, and a few words on how it stands."""

    def __call__(self, count: int = 1, *, note: str = "") -> None: ...


class Console:
    """Shows a run while it happens. Use as a context manager, so that the terminal is restored whatever happens."""

    def __init__(self, mode: ConsoleMode | Literal["auto"] = "auto", *, stream: TextIO | None = None) -> None:
        """
        Args:
            mode: "auto" is "live" on a terminal and "plain" elsewhere; "quiet" shows nothing at all.
            stream: where to write; None is stdout.
        """
        self._rich = rich.console.Console(file=stream or sys.stdout, highlight=False, soft_wrap=False)
        if mode == "auto":
            mode = "live" if self._rich.is_terminal else "plain"
        self.mode: ConsoleMode = mode
        self._live: Live | None = None
        self._last_step = 0
        self._first_row: Mapping[str, object] | None = None
        self._rows_since_header = 0
        self._titles: tuple[str, ...] = ()
        self._history: dict[str, list[float]] = {"reward_mean": [], "mean_thinking_tokens": [], "loss": []}
        self._phase: _Phase | None = None

    def __enter__(self) -> Console:
        if self.mode == "live":
            self._live = Live(console=self._rich, get_renderable=self._footer, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, title: str, *, last_step: int) -> None:
        """Announce a stage that ends with step `last_step`, counted through all stages; 0 when that is not known."""
        self._last_step = last_step
        self._first_row = None
        self._titles = ()
        for values in self._history.values():
            values.clear()
        self.say(title)

    def say(self, text: str) -> None:
        """Show a message, with its own line breaks."""
        if self.mode != "quiet":
            self._print(Text(text))

    def row(self, metrics: Mapping[str, object]) -> None:
        """Show one row of metrics.jsonl: a step, or an evaluation."""
        if self.mode == "quiet":
            return
        if metrics.get("kind") == "eval":
            self._print(Text(_evaluation_line(metrics), style="bold"))
            return
        for name, values in self._history.items():
            if name in metrics:
                values.append(number_of(metrics, name))
        self._first_row = self._first_row or metrics
        columns = self._columns(metrics)
        if self.mode == "plain":
            self._print(Text("  ".join(column.words.format(column.show(metrics).strip()) for column in columns)))
        else:
            self._table_row(metrics, columns)
        if metrics.get("note"):
            self._print(Text(f"  {metrics['note']}", style="yellow"))

    @contextmanager
    def progress(self, label: str, *, total: int) -> Iterator[Advance]:
        """Show how far a long phase has come: `with console.progress("eval", total=500) as advance: advance(32)`."""
        phase = _Phase(label, total)
        outer, self._phase = self._phase, phase

        def advance(count: int = 1, *, note: str = "") -> None:
            quarters_before = 4 * phase.num_done // max(total, 1)
            phase.num_done += count
            phase.note = note
            if self.mode == "plain" and 4 * phase.num_done // max(total, 1) > quarters_before:
                self._print(Text(f"{label}: {phase.words}"))

        try:
            yield advance
        finally:
            self._phase = outer

    def summary(self, summary: Summary) -> None:
        """Show how the run ended."""
        if self.mode != "quiet":
            for block in _summary_blocks(summary, width=min(self._rich.width, 120)):
                self._print(block)

    def _print(self, block: Text | Table) -> None:
        self._rich.print(block, soft_wrap=self.mode == "plain" and isinstance(block, Text))

    def _columns(self, metrics: Mapping[str, object]) -> list[Column]:
        step = Column("step", 8, lambda row: self._step_words(row), "step {}")
        left = Column("left", 6, lambda row: self._time_left(row), "{} left")
        is_reward_step = "reward_mean" in metrics
        is_wide = self.mode == "plain" or self._rich.width >= WIDE_COLUMNS
        middle = list(REWARD_COLUMNS if is_reward_step else LOSS_COLUMNS)
        if "num_kept" in metrics:
            middle = list(COLLECTING_COLUMNS)
        elif "divergence" in metrics:
            middle = list(FOLLOWING_COLUMNS)
        elif is_reward_step and is_wide:
            middle += MORE_REWARD_COLUMNS
        elif is_wide:
            middle += [column for key, column in SPARSE_COLUMNS.items() if key in metrics]
        return [step, *middle, *COST_COLUMNS, left]

    def _step_words(self, row: Mapping[str, object]) -> str:
        step = int(number_of(row, "step"))
        return f"{step}/{self._last_step}" if self._last_step else str(step)

    def _time_left(self, row: Mapping[str, object]) -> str:
        """At the pace since this stage's first row; a first row has only the run's pace so far to go by."""
        since = {"step": 0, "time_seconds": 0.0} if self._first_row in (None, row) else self._first_row
        assert since is not None
        num_steps = number_of(row, "step") - number_of(since, "step")
        seconds = number_of(row, "time_seconds") - number_of(since, "time_seconds")
        if not self._last_step or num_steps <= 0:
            return "?"
        return clock(seconds / num_steps * max(self._last_step - number_of(row, "step"), 0.0))

    def _table_row(self, metrics: Mapping[str, object], columns: Sequence[Column]) -> None:
        titles = tuple(column.title for column in columns)
        if titles != self._titles or self._rows_since_header == HEADER_EVERY:
            self._titles, self._rows_since_header = titles, 0
            header = " ".join(f"{column.title:>{column.width}}" for column in columns)
            self._print(Text(header, style="bold underline"))
        self._rows_since_header += 1
        line = " ".join(f"{column.show(metrics):>{column.width}}" for column in columns)
        self._print(Text(line, style="dim" if metrics.get("is_skipped") else ""))

    def _footer(self) -> Table:
        """The lines that stay at the bottom of a live terminal: curves so far, and the phase that is running."""
        grid = Table.grid(padding=(0, 2))
        width = max(self._rich.width - 40, 10)
        for name, label in (("reward_mean", "reward"), ("mean_thinking_tokens", "thinking"), ("loss", "loss")):
            values = self._history[name]
            if len(values) > 1 and not (name == "loss" and self._history["reward_mean"]):
                ends = f"{short(values[0])} to {short(values[-1])}"
                grid.add_row(Text(label, style="dim"), Text(sparkline(values, width=width), style="cyan"), Text(ends))
        if self._phase is not None:
            done = min(self._phase.num_done / max(self._phase.total, 1), 1.0)
            width = max(width - len(self._phase.note), 10)
            bar = "━" * round(done * width)
            bar = bar.ljust(width, "─")
            grid.add_row(Text(self._phase.label), Text(bar, style="green"), Text(self._phase.words))
        return grid


@dataclass
class _Phase:
    label: str
    total: int
    num_done: int = field(default=0)
    note: str = ""

    @property
    def words(self) -> str:
        return f"{self.num_done} of {self.total}" + (f", {self.note}" if self.note else "")


def sparkline(values: Sequence[float], *, width: int) -> str:
    """A curve one line high and at most `width` characters wide; each is the mean of the values it stands for."""
    num_points = min(width, len(values))
    edges = [round(i * len(values) / num_points) for i in range(num_points + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    levels = "▁▂▃▄▅▆▇█"
    return "".join(levels[round((value - low) / (high - low) * 7) if high > low else 3] for value in means)


def _percent(rate: PassRate) -> str:
    low, high = 100 * rate.interval_low, 100 * rate.interval_high
    return f"{100 * rate.pass_at_1:5.1f} %  (95 % interval {low:.1f} to {high:.1f})"


def _evaluation_line(row: Mapping[str, object]) -> str:
    share, low, high = (shows(name, ".1f", scale=100)(row) for name in ("pass_at_1", "interval_low", "interval_high"))
    thinking = shows("mean_thinking_tokens", ".0f")(row)
    step = shows("step", ".0f")(row)
    return f"held out after step {step}: pass@1 {share} % ({low} to {high}), thinking {thinking} tokens"


def _summary_blocks(summary: Summary, *, width: int) -> Iterator[Text | Table]:
    if summary.before or summary.after or summary.baselines:
        yield _heading("held-out pass@1", width)
        yield _rates_table(summary)
    if summary.verdict:
        yield Text(summary.verdict)
    for problem in summary.problems:
        yield _heading(problem.prompt, width)
        for label, answered in (("before", problem.before), ("after", problem.after)):
            verdict = "right" if answered.is_correct else "wrong"
            head = Text(f"{label}, {verdict}: ", style="bold green" if answered.is_correct else "bold red")
            yield head.append(_excerpt(answered.text), style="not bold default")
    if summary.bill:
        yield _heading("bill", width)
        yield _two_columns([(line.label, line.amount) for line in summary.bill])
    if summary.next_commands:
        yield _heading(f"next (the run is in {summary.run})", width)
        longest = max(len(step.command) for step in summary.next_commands)
        for step in summary.next_commands:
            yield Text(f"  {step.command.ljust(longest)}  # {step.purpose}")


def _heading(text: str, width: int) -> Text:
    return Text(f"\n── {text} ".ljust(width, "─"), style="bold cyan", overflow="fold")


def _rates_table(summary: Summary) -> Table:
    rows = [(b.label, f"{100 * b.pass_at_1:5.1f} %") for b in summary.baselines]
    rates = [("before training", summary.before), ("after training", summary.after)]
    rows += [(f"{label}, {rate.num_problems} problems", _percent(rate)) for label, rate in rates if rate]
    return _two_columns(rows)


def _two_columns(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False, padding=(0, 3, 0, 0))
    for left, right in rows:
        table.add_row(Text(left, no_wrap=False), Text(right))
    return table


def _excerpt(text: str) -> str:
    shown = printable(text.strip())
    if len(shown) <= MAX_SHOWN_CHARS:
        return shown
    half = MAX_SHOWN_CHARS // 2
    return f"{shown[:half]} … {shown[-half:]}"


def printable(text: str) -> str:
    """A model's text without the control characters that would steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
