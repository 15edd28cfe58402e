"""What the answer hangs on: the same question under other assumptions, and where each of them turns it over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from aha.estimate.breakeven.case import MAX_FIGURE, BreakEven, Verdict

UTILISATIONS = (0.05, 0.2, 0.5, 0.8, 1.0)
OVERHEADS = (1.0, 1.35)
STEPS_PER_DOUBLING = 8
FURTHEST = 1000.0
"""Factor, up and down, beyond which an assumption is not looked at: it would be another question."""

Change = Callable[[BreakEven, float], BreakEven]
"""A case with one assumption set, or multiplied."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The case with one assumption changed."""

    assumption: str
    value: str
    case: BreakEven

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        keys = ("verdict", "break_even_tokens", "break_even_months", "cost_usd_per_solved", "api_cost_usd_per_solved",
                "usd_per_month", "api_usd_per_month")  # fmt: skip
        whole = self.case.to_dict()
        return {"assumption": self.assumption, "value": self.value, **{key: whole[key] for key in keys}}


@dataclass(frozen=True, kw_only=True)
class Flip:
    """The value of one assumption, all others as they are, at which the verdict becomes another."""

    assumption: str
    unit: str
    value: float
    """Where it turns over."""
    now: float
    """What is assumed."""
    verdict: Verdict
    """Beyond that value."""

    @property
    def factor(self) -> float | None:
        """Of what is assumed; None where that is 0."""
        return self.value / self.now if self.now else None

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        return {
            "assumption": self.assumption,
            "unit": self.unit,
            "now": self.now,
            "flips_at": self.value,
            "factor": self.factor,
            "verdict": self.verdict,
        }


def sensitivity(case: BreakEven) -> tuple[Row, ...]:
    """The case under each of the usual other assumptions, one at a time."""
    rows = [
        Row(assumption="busy share of the hours paid for", value=f"{share:.0%}", case=set_utilisation(case, share))
        for share in UTILISATIONS
    ]
    rows += [
        Row(assumption="API price", value=f"x{factor:g}", case=scale_api_price(case, factor)) for factor in (0.5, 0.25)
    ]
    if case.work.requests_per_day:
        rows += [
            Row(assumption="requests a day", value=f"x{factor:g}", case=scale_demand(case, factor))
            for factor in (0.1, 10)
        ]
    rows.append(Row(assumption="output length, both", value="x3", case=scale_output(case, 3)))
    rows.append(Row(assumption="output length, yours alone", value="x3", case=scale_own_output(case, 3)))
    rows += [Row(assumption="overhead", value=f"{factor:g}", case=set_overhead(case, factor)) for factor in OVERHEADS]
    return tuple(rows)


def flips(case: BreakEven) -> tuple[Flip, ...]:
    """Each assumption's nearest value at which the verdict is another; those that cannot turn it are left out.

    By search from what is assumed outwards, because replicas come in whole numbers and a verdict may turn twice. Its
    steps are of 9 %: a verdict that turns and turns back within one is passed over.
    """
    own, work, api = case.owning, case.work, case.api
    levers: list[tuple[str, str, float, Change]] = [
        ("API price", "$ per 1,000 requests", 1000 * api.usd_per_request(work), scale_api_price),
        ("requests a day", "a day", work.requests_per_day or 0.0, scale_demand),
        ("output length, both", "tokens a request", work.output_tokens, scale_output),
        ("output length, yours alone", "tokens a request", work.output_tokens, scale_own_output),
        ("replica price", "$ an hour, overhead included", own.rate.usd_per_hour, scale_machines),
        ("speed of a replica", "requests a busy hour", 3600 / (own.busy_seconds(work) or math.inf), scale_speed),
        ("pass@1, yours", "share", own.pass_at_1, scale_own_pass),
        ("pass@1, API", "share", api.pass_at_1, scale_api_pass),
    ]
    found = [
        Flip(assumption=name, unit=unit, value=factor * now, now=now, verdict=verdict)
        for name, unit, now, change in levers
        if now > 0
        for factor, verdict in _turns(
            case, change, upper=1 / now if unit == "share" else min(FURTHEST, MAX_FIGURE / now)
        )
    ]
    return (*found, *_once_flip(case))


def _once_flip(case: BreakEven) -> Iterator[Flip]:
    """Training and engineering together, in closed form: they may be 0, which no factor moves."""
    api_usd, own_usd = case.api_usd_per_month, case.own_usd_per_month
    if api_usd is None or own_usd is None or case.verdict == "unclear":
        return
    affordable = (api_usd - own_usd) * case.horizon_months
    if math.isfinite(affordable) and affordable > 0:
        verdict: Verdict = "api" if case.verdict == "own" else "own"
        yield Flip(assumption="paid once", unit="$", value=affordable, now=case.owning.once_usd, verdict=verdict)


def _turns(case: BreakEven, change: Change, *, upper: float) -> Iterator[tuple[float, Verdict]]:
    """The first factors above 1 and below 1 at which the verdict turns, and to what."""
    step = 2 ** (1 / STEPS_PER_DOUBLING)
    for limit, ratio in ((upper, step), (1 / FURTHEST, 1 / step)):
        near = far = 1.0
        while far != limit and change(case, far).verdict == case.verdict:
            near, far = far, (min(far * ratio, limit) if ratio > 1 else max(far * ratio, limit))
        turned = change(case, far).verdict
        if turned == case.verdict:
            continue
        for _ in range(60):
            middle = math.sqrt(near * far)
            if change(case, middle).verdict == case.verdict:
                near = middle
            else:
                far, turned = middle, change(case, middle).verdict
        yield far, turned


def set_utilisation(case: BreakEven, share: float) -> BreakEven:
    """Machines that are busy for this share of the hours paid for, however they come to be."""
    return replace(case, owning=replace(case.owning, pay="second", utilisation=share))


def set_overhead(case: BreakEven, overhead: float) -> BreakEven:
    scaled = scale_machines(case, overhead / case.owning.overhead)
    return replace(scaled, owning=replace(scaled.owning, overhead=overhead))


def scale_machines(case: BreakEven, factor: float) -> BreakEven:
    rate = replace(case.owning.rate, usd_per_hour=case.owning.rate.usd_per_hour * factor)
    return replace(case, owning=replace(case.owning, rate=rate))


def scale_speed(case: BreakEven, factor: float) -> BreakEven:
    rate = case.owning.rate
    rate = replace(
        rate,
        seconds_per_input_token=rate.seconds_per_input_token / factor,
        seconds_per_cached_token=rate.seconds_per_cached_token / factor,
        seconds_per_output_token=rate.seconds_per_output_token / factor,
    )
    return replace(case, owning=replace(case.owning, rate=rate))


def scale_api_price(case: BreakEven, factor: float) -> BreakEven:
    api = replace(
        case.api,
        usd_per_million_input=case.api.usd_per_million_input * factor,
        usd_per_million_cached=case.api.usd_per_million_cached * factor,
        usd_per_million_output=case.api.usd_per_million_output * factor,
    )
    return replace(case, api=api)


def scale_demand(case: BreakEven, factor: float) -> BreakEven:
    assert case.work.requests_per_day is not None
    return replace(case, work=replace(case.work, requests_per_day=case.work.requests_per_day * factor))


def scale_output(case: BreakEven, factor: float) -> BreakEven:
    """Both think longer."""
    return replace(case, work=replace(case.work, output_tokens=case.work.output_tokens * factor))


def scale_own_output(case: BreakEven, factor: float) -> BreakEven:
    """Your model thinks longer; the API's output stays."""
    api = replace(case.api, output_ratio=case.api.output_ratio / factor)
    return replace(scale_output(case, factor), api=api)


def scale_own_pass(case: BreakEven, factor: float) -> BreakEven:
    return replace(case, owning=replace(case.owning, pass_at_1=min(1.0, case.owning.pass_at_1 * factor)))


def scale_api_pass(case: BreakEven, factor: float) -> BreakEven:
    return replace(case, api=replace(case.api, pass_at_1=min(1.0, case.api.pass_at_1 * factor)))
