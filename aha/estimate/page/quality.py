"""Pictures of cost against quality: published scores at the prices of their day, and own evaluations by solved task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from aha.cost.prices import TokenPrice, token_price
from aha.errors import ConfigError, DataError
from aha.estimate.charts import Curve, Dot, Plane, Spot, linear_axis, log_axis
from aha.estimate.page.picture import Cell, Column, Drawing, Form, Gap, Picture, plane_drawing
from aha.estimate.page.prices import CLOSED, NEITHER, OPEN, source_words
from aha.estimate.page.published import BENCHMARKS, Score, scores
from aha.estimate.page.spread import blended_usd_per_million
from aha.estimate.page.words import Words, digits, percent, points, price_text, tick_dollars
from aha.evaluate import Entry

MAX_NAME = 28
"""Letters of a name in a drawing; the table has all of it, up to MAX_CELL."""
MAX_CELL = 200


@dataclass(frozen=True, kw_only=True)
class Solved:
    """An evaluation that somebody made: numbers that are numbers, whatever stands in its file."""

    name: str
    task: str
    pass_at_1: float
    usd_per_solved: float | None
    """None: unpriced, or nothing was solved."""
    cost_usd: float | None
    num_problems: float | None
    mean_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class PricedScore:
    """A score with what its model cost on the day of its source."""

    score: Score
    price: TokenPrice | None
    """None: not sold by the token, or not in the book for that day."""

    @property
    def usd(self) -> float | None:
        """Of a million tokens, three of input to one of output."""
        return None if self.price is None else blended_usd_per_million(self.price)


def priced_scores(*, until: date) -> list[PricedScore]:
    """Every score published by a day, with its price where the book has one."""
    return [PricedScore(score=score, price=_price(score)) for score in scores() if score.source.date <= until]


def pareto(spots: Sequence[Spot]) -> list[Spot]:
    """Those that no other beats: none costs as little and scores higher, or scores as high and costs less."""
    best: list[Spot] = []
    for spot in sorted(set(spots), key=lambda spot: (spot.x, -spot.y)):
        if not best or spot.y > best[-1].y:
            best.append(spot)
    return best


def quality_picture(words: Words, *, day: date) -> Picture | Gap:
    """Dollars for a million blended tokens against benchmark scores, one drawing a benchmark."""
    rows = priced_scores(until=day)
    priced = [row for row in rows if row.usd]
    if len(priced) < 2:
        return Gap(key="cost_quality", reason=words("no_quality", num=str(len(priced))))
    return Picture(
        key="cost_quality",
        title=_quality_title(words, priced),
        drawings=tuple(
            _quality_drawing(words, priced, key=key, form="half" if index else "full")
            for index, key in enumerate(BENCHMARKS)
        ),
        columns=_quality_columns(words),
        rows=tuple(_quality_row(row) for row in rows),
        notes=(words("quality_how"), words("quality_unpriced"), words("hollow"), words("token_counts")),
        sources=tuple(
            dict.fromkeys(
                [f"{row.score.source.title} ({row.score.source.date.isoformat()})" for row in rows]
                + [source_words(row.price, words=words) for row in rows if row.price]
            )
        ),
    )


def read_solved(entry: Entry) -> Solved:
    """What the picture shows of an evaluation. Raises DataError when it has no score from 0 to 1."""
    result, name = entry.result, _short(entry.label, MAX_CELL)
    pass_at_1 = _number(result.pass_at_1)
    if pass_at_1 is None or not 0 <= pass_at_1 <= 1:
        raise DataError(f"pass_at_1 of {name!r} must be a share from 0 to 1, got {result.pass_at_1!r:.40}")
    usd = _number(result.usd_per_solved)
    return Solved(
        name=name,
        task=_short(str(result.manifest.get("task", "")), MAX_CELL),
        pass_at_1=pass_at_1,
        usd_per_solved=usd if usd is not None and 1e-12 < usd < 1e12 else None,
        cost_usd=_number(result.cost_usd),
        num_problems=_number(result.num_problems),
        mean_tokens=_number(result.mean_tokens),
    )


def solved_picture(words: Words, *, entries: Sequence[Entry]) -> Picture | Gap:
    """Dollars for a solved problem against pass@1, of evaluations that were given.

    Raises:
        DataError: an evaluation without a score.
    """
    if not entries:
        return Gap(key="cost_solved", reason=words("no_evaluations"))
    rows = [read_solved(entry) for entry in entries]
    priced = [row for row in rows if row.usd_per_solved is not None]
    if not priced:
        return Gap(key="cost_solved", reason=words("no_priced_evaluations", num=str(len(entries))))
    best = min(priced, key=lambda row: row.usd_per_solved or 0.0)
    return Picture(
        key="cost_solved",
        title=words("solved_title", name=_short(best.name, MAX_NAME * 2), usd=f"${digits(best.usd_per_solved or 0.0)}"),
        drawings=(_solved_drawing(words, priced),),
        columns=_solved_columns(words),
        rows=tuple(
            (row.name, row.task, row.pass_at_1, row.usd_per_solved, row.cost_usd, row.num_problems, row.mean_tokens)
            for row in rows
        ),
        notes=(words("solved_how"),),
    )


def _price(score: Score) -> TokenPrice | None:
    if not score.price:
        return None
    try:
        return token_price(score.price, on=score.source.date)
    except ConfigError:
        return None


def _quality_title(words: Words, rows: Sequence[PricedScore]) -> str:
    """The best open and the best closed of the first benchmark, and what the one costs of the other."""
    key, name = next(iter(BENCHMARKS.items()))
    open_ = [row for row in rows if row.score.is_open_weight and key in row.score.scores]
    closed = [row for row in rows if not row.score.is_open_weight and key in row.score.scores]
    if not open_ or not closed:
        return words("quality_title_plain", benchmark=name)
    ours, theirs = (max(kind, key=lambda row: row.score.scores[key]) for kind in (open_, closed))
    return words(
        "quality_title",
        benchmark=name,
        open=ours.score.model,
        open_score=points(ours.score.scores[key]),
        open_usd=price_text(ours.usd or 0.0),
        closed=theirs.score.model,
        closed_score=points(theirs.score.scores[key]),
        closed_usd=price_text(theirs.usd or 0.0),
        ratio=words.times((theirs.usd or 0.0) / (ours.usd or 1.0)),
    )


def _quality_drawing(words: Words, rows: Sequence[PricedScore], *, key: str, form: Form) -> Drawing:
    drawn = [row for row in rows if key in row.score.scores]
    spots = [Spot(row.usd or 0.0, row.score.scores[key]) for row in drawn]
    best = pareto(spots)
    dots = tuple(
        Dot(
            spot=spot,
            style=OPEN if row.score.is_open_weight else CLOSED,
            mark="full" if row.price and row.price.confidence == "primary" else "hollow",
            tip=f"{row.score.model}: {points(spot.y)}, {price_text(spot.x)}",
            label=row.score.model,
            rank=0 if spot in best else 1,
        )
        for row, spot in zip(drawn, spots, strict=True)
    )
    plane = Plane(
        x=log_axis([spot.x for spot in spots], show=tick_dollars, title=words("axis_blended")),
        y=linear_axis([*(spot.y for spot in spots), 100.0], show=lambda value: f"{value:g}", title=BENCHMARKS[key]),
        curves=(Curve(spots=tuple(best), style="faint", shape="steps"),),
        dots=dots,
    )
    return plane_drawing(plane, caption=words("quality_caption", benchmark=BENCHMARKS[key]), form=form)


def _quality_columns(words: Words) -> tuple[Column, ...]:
    return (
        Column(key="model", title=words("column_model")),
        Column(key="weights", title=words("column_weights")),
        *(Column(key=f"{key}_score", title=name, show=points) for key, name in BENCHMARKS.items()),
        Column(key="usd_per_million_blended", title=words("column_blended"), show=price_text),
        Column(key="price_id", title=words("column_price_id")),
        Column(key="day", title=words("column_day")),
    )


def _quality_row(row: PricedScore) -> tuple[Cell, ...]:
    score = row.score
    return (
        score.model,
        "open" if score.is_open_weight else "closed",
        *(score.scores.get(key) for key in BENCHMARKS),
        row.usd,
        row.price.price_id if row.price else None,
        score.source.date,
    )


def _solved_drawing(words: Words, rows: Sequence[Solved]) -> Drawing:
    spots = [Spot(row.usd_per_solved or 0.0, 100 * row.pass_at_1) for row in rows]
    dots = tuple(
        Dot(
            spot=spot,
            style=NEITHER,
            tip=f"{row.name}: {points(spot.y)} %, ${digits(spot.x)}",
            label=_short(row.name, MAX_NAME),
        )
        for row, spot in zip(rows, spots, strict=True)
    )
    plane = Plane(
        x=log_axis([spot.x for spot in spots], show=tick_dollars, title=words("axis_solved")),
        y=linear_axis([*(spot.y for spot in spots), 100.0], show=lambda value: f"{value:g} %", title="pass@1"),
        dots=dots,
    )
    return plane_drawing(plane, caption=words("solved_caption"))


def _solved_columns(words: Words) -> tuple[Column, ...]:
    return (
        Column(key="evaluation", title=words("column_evaluation")),
        Column(key="task", title=words("column_task")),
        Column(key="pass_at_1", title="pass@1", show=percent),
        Column(key="usd_per_solved", title=words("column_solved"), show=lambda usd: f"${digits(usd)}"),
        Column(key="cost_usd", title=words("column_cost"), show=lambda usd: f"${digits(usd)}"),
        Column(key="num_problems", title=words("column_problems"), show=lambda value: f"{value:,.0f}"),
        Column(key="tokens_per_answer", title=words("column_tokens"), show=digits),
    )


def _number(value: object) -> float | None:
    """A finite number, or None: a file may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 else None


def _short(text: str, max_chars: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"
