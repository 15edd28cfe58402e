"""Pictures of owning against calling: a model served on rented GPUs against the APIs of the day, over load and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from aha.cost.prices import MachinePrice, TokenPrice, machine_price
from aha.errors import AhaError, ConfigError
from aha.estimate.breakeven import DAYS_PER_MONTH, ApiRate, BreakEven, Owning, Workload
from aha.estimate.breakeven.path import walk
from aha.estimate.charts import Axis, Curve, Dot, Part, Plane, Spot, Tick, log_axis
from aha.estimate.hardware import GPU, find_gpu
from aha.estimate.page.picture import Cell, Column, Drawing, Gap, Picture, plane_drawing, waterfall_drawing
from aha.estimate.page.prices import CLOSED, NEITHER, OPEN, short_name, source_words
from aha.estimate.page.published import BASE_MODEL, phases
from aha.estimate.page.spread import series_name, spread_over_time
from aha.estimate.page.training import RENT
from aha.estimate.page.words import Words, digits, dollars, percent, tick_dollars
from aha.estimate.serving import OVERHEAD, ServingPlan, ServingPrediction, predict_serving
from aha.estimate.shape import find_shape

MODEL = "deepseek-r1"
GPU_NAMES = ("h200", "h800")
"""The first of them that the price book has a price of on the page's day."""
INPUT_TOKENS, OUTPUT_TOKENS = 1_000, 4_000
"""A question, and an answer with its thinking: an assumption, named on the page."""
REQUESTS_PER_DAY = 20_000
MAX_UTILISATION = 0.8
MONTHS = 24
LOADS = (1e2, 1e7)
"""Requests a day from which and up to which costs are drawn."""
POINTS_PER_DECADE = 24


@dataclass(frozen=True, kw_only=True)
class OwnOrCall:
    """Everything that both pictures show."""

    cases: tuple[BreakEven, ...]
    """One an API, the dearest closed first; the load is known."""
    prices: tuple[TokenPrice, ...]
    """Of the same APIs."""
    serving: ServingPrediction


def own_or_call(words: Words, *, day: date) -> OwnOrCall | str:
    """The model of its own at the page's load against the dearest and cheapest APIs of a day; or why there is none.

    Paid once is what the reasoning stages of R1 took by its supplement, at the price of its GPUs.
    """
    spreads = spread_over_time(until=day)
    if not spreads or spreads[-1].end.date() != day:
        return words("not_both", day=words.day(day))
    try:
        serving = _predict(day)
        training_usd = _training_usd(day)
    except AhaError as error:
        return words("no_breakeven", reason=str(error))
    owning = Owning(rate=serving.rate, training_usd=training_usd, overhead=OVERHEAD, max_utilisation=MAX_UTILISATION)
    work = Workload(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, requests_per_day=REQUESTS_PER_DAY)
    prices = tuple(dict.fromkeys(spreads[-1].ends))
    cases = tuple(
        BreakEven(work=work, owning=owning, api=ApiRate.from_price(price), horizon_months=MONTHS) for price in prices
    )
    return OwnOrCall(cases=cases, prices=prices, serving=serving)


def load_picture(words: Words, *, day: date) -> Picture | Gap:
    """Dollars a month against requests a day: an API grows with the load, owning comes by the replica."""
    found = own_or_call(words, day=day)
    if isinstance(found, str):
        return Gap(key="breakeven_load", reason=found)
    return Picture(
        key="breakeven_load",
        title=_load_title(words, found),
        drawings=(_load_drawing(words, found),),
        columns=(
            Column(key="requests_per_day", title=words("axis_load"), show=lambda value: f"{value:,.0f}"),
            Column(key="num_replicas", title=words("column_replicas")),
            Column(key="own_usd_per_month", title=words("own"), show=dollars),
            *_api_columns(found, suffix="usd_per_month"),
        ),
        rows=tuple(_load_row(found, load) for load in _table_loads(found)),
        notes=(*_assumptions(words, found), words("token_counts")),
        sources=_sources(words, found),
    )


def utilisation_picture(words: Words, *, day: date) -> Picture | Gap:
    """How busy a replica has to be to cost no more than each API, and what becomes of what is paid once."""
    found = own_or_call(words, day=day)
    if isinstance(found, str):
        return Gap(key="breakeven_utilisation", reason=found)
    shares = [(case, price, case.break_even_utilisation or 0.0) for case, price in _pairs(found)]
    parts = [
        Part(label=series_name(price), start=0.0, amount=share, shown=percent(share), style=_style(price))
        for _, price, share in shares
    ]
    never = sum(share > 1 for _, _, share in shares)
    return Picture(
        key="breakeven_utilisation",
        title=words("utilisation_title", never=str(never), all=str(len(shares))),
        drawings=(waterfall_drawing(parts, caption=words("utilisation_caption")),),
        columns=_verdict_columns(words),
        rows=tuple(_verdict_row(case) for case in found.cases),
        notes=(words("as_above"), words("utilisation_how", load=f"{REQUESTS_PER_DAY:,}"), words("token_counts")),
        sources=_sources(words, found),
    )


def months_picture(words: Words, *, day: date) -> Picture | Gap:
    """Dollars since the start against months at one load, what is paid once included."""
    found = own_or_call(words, day=day)
    if isinstance(found, str):
        return Gap(key="breakeven_months", reason=found)
    walks = [walk(case, months=MONTHS) for case in found.cases]
    rows: list[tuple[Cell, ...]] = [
        (index + 1, walks[0][index].own_total_usd, *(path[index].api_total_usd for path in walks))
        for index in range(MONTHS)
    ]
    return Picture(
        key="breakeven_months",
        title=_months_title(words, found),
        drawings=(_months_drawing(words, found, rows),),
        columns=(
            Column(key="month", title=words("column_month")),
            Column(key="own_total_usd", title=words("own"), show=dollars),
            *_api_columns(found, suffix="total_usd"),
        ),
        rows=tuple(rows),
        notes=(words("as_above"), words("months_how"), words("token_counts")),
        sources=_sources(words, found),
    )


def _predict(day: date) -> ServingPrediction:
    gpu, price = _rented(day)
    plan = ServingPlan(gpu=gpu, precision="float8", input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    return predict_serving(find_shape(MODEL).config, plan=plan, price=price)


def _rented(day: date) -> tuple[GPU, MachinePrice]:
    """The GPUs and what one of them costs an hour. Raises ConfigError when none of them has a price on the day."""
    for name in GPU_NAMES[:-1]:
        try:
            return find_gpu(name), machine_price(find_gpu(name).price, on=day)
        except ConfigError:
            continue
    last = find_gpu(GPU_NAMES[-1])
    return last, machine_price(last.price, on=day)


def _training_usd(day: date) -> float:
    """R1's own stages; the base model under it is open."""
    hours = sum(phase.gpu_hours for phase in phases() if phase.model != BASE_MODEL)
    return hours * machine_price(RENT, on=day).usd_per_hour


def _own_name(found: OwnOrCall, words: Words) -> str:
    return f"{words('own')}: {found.serving.replica.num_gpus} × {found.serving.plan.gpu.name.upper()}"


def _loads() -> list[float]:
    low, high = (math.log10(load) for load in LOADS)
    steps = round((high - low) * POINTS_PER_DECADE)
    return [10 ** (low + (high - low) * step / steps) for step in range(steps + 1)]


def _style(price: TokenPrice) -> str:
    return OPEN if price.is_open_weight else CLOSED


def _load_drawing(words: Words, found: OwnOrCall) -> Drawing:
    owning, work = found.cases[0].owning, found.cases[0].work
    own = [Spot(load, owning.usd_per_month(replace(work, requests_per_day=load))) for load in _loads()]
    curves = [Curve(spots=tuple(own), style=NEITHER, label=_own_name(found, words), shape="steps", rank=-1)]
    dots = []
    for case, price in _pairs(found):
        per_request = case.api.usd_per_request(work)
        spots = [Spot(load, load * DAYS_PER_MONTH * per_request) for load in LOADS]
        curves.append(Curve(spots=tuple(spots), style=_style(price), label=short_name(price)))
        load = _rent_alone(case).break_even_requests_per_day
        if load is not None and LOADS[0] <= load <= LOADS[1]:
            spot = Spot(load, load * DAYS_PER_MONTH * per_request)
            tip = f"{series_name(price)}: {load:,.0f}"
            dots.append(Dot(spot=spot, style=_style(price), tip=tip, label=f"{digits(load)}"))
    values = [spot.y for curve in curves for spot in curve.spots]
    plane = Plane(
        x=log_axis(LOADS, show=lambda value: f"{value:,.0f}", title=words("axis_load"), num_ticks=7),
        y=log_axis(values, show=tick_dollars, title=words("axis_month")),
        curves=tuple(curves),
        dots=tuple(dots),
    )
    return plane_drawing(plane, caption=words("load_caption"))


def _months_drawing(words: Words, found: OwnOrCall, rows: Sequence[tuple[Cell, ...]]) -> Drawing:
    names = [_own_name(found, words), *(short_name(price) for price in found.prices)]
    styles = [NEITHER, *(_style(price) for price in found.prices)]
    curves = tuple(
        Curve(spots=tuple(Spot(_amount(row[0]), _amount(row[index + 1])) for row in rows), style=style, label=name)
        for index, (name, style) in enumerate(zip(names, styles, strict=True))
    )
    dots = []
    for case, price in _pairs(found):
        months = case.break_even_months
        if months is not None and 1 <= months <= MONTHS:
            spot = Spot(months, months * (case.api_usd_per_month or 0.0))
            text = words("months", num=f"{months:.1f}")
            dots.append(Dot(spot=spot, style=_style(price), tip=f"{series_name(price)}: {text}", label=text))
    plane = Plane(
        x=_months_axis(words),
        y=log_axis([spot.y for curve in curves for spot in curve.spots], show=tick_dollars, title=words("axis_total")),
        curves=curves,
        dots=tuple(dots),
    )
    return plane_drawing(plane, caption=words("months_caption", load=f"{REQUESTS_PER_DAY:,}"))


def _months_axis(words: Words) -> Axis:
    ticks = tuple(Tick(value=month, text=str(month)) for month in (1, *range(6, MONTHS + 1, 6)))
    return Axis(kind="linear", lowest=1, highest=MONTHS, ticks=ticks, title=words("column_month"))


def _amount(cell: Cell) -> float:
    assert isinstance(cell, int | float), "rows of months hold numbers"
    return float(cell)


def _load_title(words: Words, found: OwnOrCall) -> str:
    rent = _rent_alone(found.cases[-1])
    load = rent.break_even_requests_per_day
    api, own = rent.api.name, dollars(rent.owning.usd_per_replica_month)
    if load is None:
        return words("load_title_never", api=api, own=own)
    return words("load_title", api=api, own=own, load=f"{load:,.0f}")


def _months_title(words: Words, found: OwnOrCall) -> str:
    paid = [case for case in found.cases if case.verdict == "own"]
    load = f"{REQUESTS_PER_DAY:,}"
    if not paid:
        return words("months_title_none", load=load, months=str(MONTHS))
    names = words("comma").join(case.api.name for case in paid)
    return words("months_title", load=load, apis=names, num=str(len(paid)), all=str(len(found.cases)))


def _assumptions(words: Words, found: OwnOrCall) -> tuple[str, ...]:
    serving, owning = found.serving, found.cases[0].owning
    return (
        words(
            "breakeven_how",
            model=find_shape(MODEL).name,
            gpus=f"{serving.replica.num_gpus} × {serving.plan.gpu.title}",
            price=f"${serving.price.usd_per_hour:.2f}",
            overhead=f"{OVERHEAD:g}",
            utilisation=percent(MAX_UTILISATION),
            input=f"{INPUT_TOKENS:,}",
            output=f"{OUTPUT_TOKENS:,}",
            basis=serving.rate.basis,
            once=dollars(owning.once_usd),
        ),
        words("breakeven_own"),
    )


def _sources(words: Words, found: OwnOrCall) -> tuple[str, ...]:
    machine = found.serving.price
    return (
        f"{machine.source} ({machine.source_date.isoformat()}, {words(machine.confidence)})",
        *dict.fromkeys(source_words(price, words=words) for price in found.prices),
    )


def _pairs(found: OwnOrCall) -> list[tuple[BreakEven, TokenPrice]]:
    return list(zip(found.cases, found.prices, strict=True))


def _api_columns(found: OwnOrCall, *, suffix: str) -> list[Column]:
    return [Column(key=f"{price.price_id}_{suffix}", title=series_name(price), show=dollars) for price in found.prices]


def _rent_alone(case: BreakEven) -> BreakEven:
    """The same without what is paid once."""
    return replace(case, owning=replace(case.owning, training_usd=0.0))


def _table_loads(found: OwnOrCall) -> list[float]:
    """1, 2 and 5 of each decade, and the loads that have a dot."""
    decades = range(round(math.log10(LOADS[0])), round(math.log10(LOADS[1])) + 1)
    round_ones = {factor * 10.0**power for power in decades for factor in (1, 2, 5)}
    dots = {_rent_alone(case).break_even_requests_per_day for case in found.cases} - {None}
    return sorted(load for load in round_ones | dots if load is not None and LOADS[0] <= load <= LOADS[1])


def _load_row(found: OwnOrCall, load: float) -> tuple[Cell, ...]:
    owning, work = found.cases[0].owning, replace(found.cases[0].work, requests_per_day=load)
    called = (load * DAYS_PER_MONTH * case.api.usd_per_request(work) for case in found.cases)
    return load, owning.num_replicas(work), owning.usd_per_month(work), *called


def _verdict_columns(words: Words) -> tuple[Column, ...]:
    def cents(usd: float) -> str:
        return f"${digits(usd)}"

    return (
        Column(key="api", title="API"),
        Column(key="price_id", title=words("column_price_id")),
        Column(key="break_even_utilisation", title=words("column_utilisation"), show=percent),
        Column(key="break_even_requests_per_day", title=words("column_load"), show=lambda value: f"{value:,.0f}"),
        Column(key="api_usd_per_request", title=words("column_api_request"), show=cents),
        Column(key="own_usd_per_request", title=words("column_own_request"), show=cents),
        Column(key="break_even_months", title=words("column_months"), show=digits),
        Column(key="verdict", title=words("column_verdict")),
    )


def _verdict_row(case: BreakEven) -> tuple[Cell, ...]:
    return (
        case.api.name,
        case.api.price_id,
        case.break_even_utilisation,
        _rent_alone(case).break_even_requests_per_day,
        case.api_usd_per_task,
        case.own_usd_per_task,
        case.break_even_months,
        case.verdict,
    )
