"""Pictures of the price book: what tokens cost over time, and how far the prices lie apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta

from aha.cost.prices import LETTER_DATE, TokenPrice, moment_words, token_price
from aha.errors import ConfigError
from aha.estimate.charts import Band, Curve, Dot, Level, Plane, Spot, day_axis, log_axis
from aha.estimate.page.picture import Cell, Column, Drawing, Gap, Picture, plane_drawing
from aha.estimate.page.spread import (
    Spread,
    Stretch,
    day_number,
    end_of,
    history,
    series_name,
    spread_over_time,
    usd_per_million,
)
from aha.estimate.page.words import Words, price_text, tick_dollars, times

LETTER_PAIR = ("openai-o1", "deepseek-r1")
"""Whose prices made the news in January 2025."""
LETTER_RANK = -(10**6)
"""Of their names: before all others."""
NUM_DAY_TICKS = 9
FIRST_MOMENT = datetime(2024, 7, 1, tzinfo=UTC)
"""Drawings begin half a year before R1; the table has what is older."""
MIN_DAYS = 90
"""That a drawing shows in any case."""
OPEN, CLOSED, NEITHER = "main", "second", "third"


def history_picture(words: Words, *, day: date) -> Picture | Gap:
    """Step lines of every model in the book, output and input apart, on logarithmic axes."""
    stretches = history(until=day)
    if not stretches:
        return Gap(key="price_history", reason=words("no_prices", day=words.day(day)))
    kinds: list[tuple[str, Callable[[TokenPrice], int]]] = [
        ("output", lambda price: price.pico_usd_per_output_token),
        ("input", lambda price: price.pico_usd_per_input_token),
    ]
    drawings = [_history_drawing(words, stretches, day=day, kind=kind, amount=amount) for kind, amount in kinds]
    return Picture(
        key="price_history",
        title=_history_title(words, stretches, day=day),
        drawings=tuple(drawing for drawing in drawings if drawing is not None),
        columns=_history_columns(words),
        rows=tuple(_history_row(stretch.price) for stretch in stretches),
        notes=(words("history_how"), words("hollow"), words("token_counts")),
        sources=tuple(dict.fromkeys(source_words(stretch.price, words=words) for stretch in stretches)),
    )


def spread_picture(words: Words, *, day: date) -> Picture | Gap:
    """The dearest and the cheapest of both kinds over time, and their ratios."""
    days = spread_over_time(until=day)
    if not days:
        return Gap(key="price_spread", reason=words("no_spread", day=words.day(day)))
    return Picture(
        key="price_spread",
        title=_spread_title(words, days),
        drawings=(_ends_drawing(words, days, day=day), _ratio_drawing(words, days, day=day)),
        columns=_spread_columns(words),
        rows=tuple(_spread_row(spread) for spread in days),
        notes=(words("spread_how"), words("snapshot"), words("token_counts")),
        sources=tuple(dict.fromkeys(source_words(end, words=words) for spread in days for end in spread.ends)),
    )


def source_words(price: TokenPrice, *, words: Words) -> str:
    """Who says so, and of which day."""
    return f"{price.source} ({price.source_date.isoformat()}, {words(price.confidence)})"


def short_name(price: TokenPrice) -> str:
    """A name for a drawing, with its hours: without its maker, where what is left still says what it is."""
    name = series_name(price)
    rest = name.removeprefix(f"{price.provider}-")
    return rest if re.match(r"[a-z]{3}.*\d", rest) else name


def _history_drawing(
    words: Words, stretches: Sequence[Stretch], *, day: date, kind: str, amount: Callable[[TokenPrice], int]
) -> Drawing | None:
    first = min(FIRST_MOMENT, end_of(day) - timedelta(days=MIN_DAYS))
    drawn = [stretch for stretch in stretches if amount(stretch.price) > 0 and stretch.end > first]
    if not drawn:
        return None
    curves, dots = [], []
    for name in dict.fromkeys(stretch.series for stretch in drawn):
        own = [stretch for stretch in drawn if stretch.series == name]
        style = OPEN if own[-1].price.is_open_weight else CLOSED
        curves += _history_curves(own, amount=amount, style=style, day=day)
        dots += [_history_dot(words, stretch, amount=amount, style=style) for stretch in own if stretch.start >= first]
    values = [usd_per_million(amount(stretch.price)) for stretch in drawn]
    plane = Plane(
        x=day_axis(
            max(first, min(stretch.start for stretch in drawn)).date(),
            last=day,
            num_ticks=NUM_DAY_TICKS,
            months=words.months,
        ),
        y=log_axis(values, show=tick_dollars, title=words(f"axis_{kind}")),
        curves=tuple(curves),
        dots=tuple(dots),
    )
    return plane_drawing(plane, caption=words(f"history_{kind}"), form="tall")


def _history_curves(
    own: Sequence[Stretch], *, amount: Callable[[TokenPrice], int], style: str, day: date
) -> list[Curve]:
    """The line of one model: as its sources vouch for it, and faint where they have grown old."""
    first = min(FIRST_MOMENT, end_of(day) - timedelta(days=MIN_DAYS))
    usd = {stretch.price.price_id: usd_per_million(amount(stretch.price)) for stretch in own}
    fresh = [(max(s.start, first), s.fresh_until, usd[s.price.price_id]) for s in own if s.fresh_until > first]
    stale = [(max(s.fresh_until, first), s.end, usd[s.price.price_id]) for s in own if s.end > s.fresh_until]
    curves = [
        Curve(spots=tuple(piece), style=f"{style} stale", shape="steps")
        for piece in _pieces([step for step in stale if step[1] > first])
    ]
    if fresh:
        # What is sold on the day is named first, and of what is not the latest.
        rank = (day - fresh[-1][1].date()).days * 1000 - round(fresh[-1][2])
        if own[-1].price.name in LETTER_PAIR:
            rank = LETTER_RANK
        curves += _step_curves(fresh, style=style, label=short_name(own[-1].price), rank=rank)
    return curves


def _pieces(steps: Sequence[tuple[datetime, datetime, float]]) -> list[list[Spot]]:
    """Step lines of (from, until, value), cut where one does not begin when the one before it ends."""
    pieces: list[list[Spot]] = []
    previous: datetime | None = None
    for start, end, value in steps:
        if start != previous:
            pieces.append([])
        pieces[-1] += [Spot(day_number(start), value), Spot(day_number(end), value)]
        previous = end
    return pieces


def _step_curves(
    steps: Sequence[tuple[datetime, datetime, float]], *, style: str, label: str, rank: int
) -> list[Curve]:
    """One model's line, with its name at the end of its last piece."""
    pieces = _pieces(steps)
    return [
        Curve(spots=tuple(piece), style=style, label=label if piece is pieces[-1] else "", shape="steps", rank=rank)
        for piece in pieces
    ]


def _history_dot(words: Words, stretch: Stretch, *, amount: Callable[[TokenPrice], int], style: str) -> Dot:
    usd = usd_per_million(amount(stretch.price))
    return Dot(
        spot=Spot(day_number(stretch.start), usd),
        style=style,
        mark="full" if stretch.price.confidence == "primary" else "hollow",
        tip=f"{stretch.series}, {moment_words(stretch.start)}: {price_text(usd)} ({words(stretch.price.confidence)})",
    )


def _history_title(words: Words, stretches: Sequence[Stretch], *, day: date) -> str:
    sold = [stretch.price for stretch in stretches if stretch.is_current]
    if not sold:
        return words("history_title_none", day=words.day(day))
    low = min(sold, key=lambda price: (price.pico_usd_per_output_token, price.price_id))
    high = max(sold, key=lambda price: (price.pico_usd_per_output_token, price.price_id))
    return words(
        "history_title",
        day=words.day(day),
        low=price_text(usd_per_million(low.pico_usd_per_output_token)),
        low_name=low.name,
        high=price_text(usd_per_million(high.pico_usd_per_output_token)),
        high_name=high.name,
    )


def _history_columns(words: Words) -> tuple[Column, ...]:
    money = ("usd_per_million_input", "usd_per_million_cached", "usd_per_million_output")
    return (
        Column(key="model", title=words("column_model")),
        Column(key="weights", title=words("column_weights")),
        Column(key="hours", title=words("column_hours")),
        Column(key="effective_from", title=words("column_from")),
        Column(key="effective_to", title=words("column_to")),
        *(Column(key=key, title=words(f"column_{key}"), show=price_text) for key in money),
        Column(key="confidence", title=words("column_confidence")),
        Column(key="price_id", title=words("column_price_id")),
    )


def _history_row(price: TokenPrice) -> tuple[Cell, ...]:
    return (
        price.name,
        "open" if price.is_open_weight else "closed",
        "" if price.hours is None else f"{price.window}: {price.hours.words()}",
        moment_words(price.effective_from),
        None if price.effective_to is None else moment_words(price.effective_to),
        usd_per_million(price.pico_usd_per_input_token),
        usd_per_million(price.pico_usd_per_cached_token),
        usd_per_million(price.pico_usd_per_output_token),
        price.confidence,
        price.price_id,
    )


def _spread_title(words: Words, days: Sequence[Spread]) -> str:
    last = days[-1]
    now = words(
        "spread_now",
        day=words.day(last.end.date()),
        dearest=words.times(last.dearest_ratio),
        cheapest=words.times(last.cheapest_ratio),
    )
    letter = _letter()
    if letter is None:
        return now
    return words("spread_title", ratio=words.times(letter.spot.y), now=now)


def _letter() -> Dot | None:
    """The ratio of January 2025, o1's output price over R1's; None when the book lacks either."""
    try:
        closed, open_ = (token_price(name, on=LETTER_DATE) for name in LETTER_PAIR)
    except ConfigError:
        return None
    ratio = closed.pico_usd_per_output_token / open_.pico_usd_per_output_token
    return Dot(
        spot=Spot(LETTER_DATE.toordinal(), ratio),
        style=NEITHER,
        tip=f"{LETTER_DATE.isoformat()}: {closed.price_id} / {open_.price_id} = {times(ratio)}",
        label=f"o1 / R1, {LETTER_DATE:%Y-%m}: {times(ratio)}",
        rank=-2,
    )


def _ends_drawing(words: Words, spreads: Sequence[Spread], *, day: date) -> Drawing:
    curves, bands, values = [], [], []
    for kind, style in (("closed", CLOSED), ("open", OPEN)):
        pieces = []
        for end in ("cheapest", "dearest"):
            prices: list[TokenPrice] = [getattr(spread, f"{end}_{kind}") for spread in spreads]
            usd = [usd_per_million(row.pico_usd_per_output_token) for row in prices]
            steps = [(spread.start, spread.end, value) for spread, value in zip(spreads, usd, strict=True)]
            label = f"{words(f'label_{end}_{kind}')} {price_text(usd[-1])}"
            curves += _step_curves(steps, style=style, label=label, rank=0)
            pieces.append(_pieces(steps))
            values += usd
        bands += [Band(lower=tuple(low), upper=tuple(high), style=style) for low, high in zip(*pieces, strict=True)]
    plane = Plane(
        x=day_axis(spreads[0].start.date(), last=day, num_ticks=NUM_DAY_TICKS, months=words.months),
        y=log_axis(values, show=tick_dollars, title=words("axis_output")),
        bands=tuple(bands),
        curves=tuple(curves),
    )
    return plane_drawing(plane, caption=words("spread_ends"))


def _ratio_drawing(words: Words, spreads: Sequence[Spread], *, day: date) -> Drawing:
    curves, values = [], [1.0]
    for end, style in (("dearest", CLOSED), ("cheapest", OPEN)):
        ratios: list[float] = [getattr(spread, f"{end}_ratio") for spread in spreads]
        steps = [(spread.start, spread.end, ratio) for spread, ratio in zip(spreads, ratios, strict=True)]
        curves += _step_curves(steps, style=style, label=f"{words(f'label_{end}')} {words.times(ratios[-1])}", rank=-1)
        values += ratios
    letter = _letter()
    plane = Plane(
        x=day_axis(spreads[0].start.date(), last=day, num_ticks=NUM_DAY_TICKS, months=words.months),
        y=log_axis([*values, *([letter.spot.y] if letter else [])], show=lambda value: f"{value:g}×"),
        curves=tuple(curves),
        dots=(letter,) if letter else (),
        levels=(Level(y=1.0, label=words("level_equal")),),
    )
    return plane_drawing(plane, caption=words("spread_ratio"))


def _spread_columns(words: Words) -> tuple[Column, ...]:
    columns = [Column(key="from", title=words("column_from")), Column(key="until", title=words("column_to"))]
    for name in ("dearest_closed", "cheapest_closed", "dearest_open", "cheapest_open"):
        columns.append(Column(key=f"{name}_model", title=words(f"label_{name}")))
        columns.append(
            Column(key=f"{name}_usd_per_million_output", title=words("column_usd_per_million_output"), show=price_text)
        )
    return (
        *columns,
        Column(key="dearest_closed_over_open", title=words("label_dearest"), show=times),
        Column(key="cheapest_closed_over_open", title=words("label_cheapest"), show=times),
    )


def _spread_row(spread: Spread) -> tuple[Cell, ...]:
    cells: list[Cell] = [moment_words(spread.start), moment_words(spread.end)]
    for end in spread.ends:
        cells += [end.name, usd_per_million(end.pico_usd_per_output_token)]
    return (*cells, spread.dearest_ratio, spread.cheapest_ratio)
