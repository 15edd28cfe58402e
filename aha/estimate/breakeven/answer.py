"""Should I train or call? One verdict against every API that was named, and everything that was assumed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, NamedTuple

from aha.estimate.breakeven.case import DAYS_PER_MONTH, ApiRate, BreakEven, Owning, Pay, Verdict, Workload, per_thousand
from aha.estimate.breakeven.path import A16Z_FALL_PER_YEAR, Outlook, observed_fall, walk
from aha.estimate.breakeven.sensitivity import Flip, Row, flips, sensitivity
from aha.report.words import usd

FORMAT = 1


class Assumption(NamedTuple):
    """What the answer takes for granted."""

    name: str
    value: str
    source: str
    option: str
    """What sets it."""


class PassInterval(NamedTuple):
    """95 % interval of a pass@1."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One model of one's own against several APIs, on one day."""

    model: str
    on: date | datetime
    cases: tuple[BreakEven, ...]
    """One for each API, the cheapest for this workload first: that is the one to beat."""
    elasticity: float = 1.0
    assumptions: tuple[Assumption, ...] = ()
    own_pass: PassInterval | None = None
    """Of pass@1 of one's own model; None where it is taken as exact."""
    api_pass: PassInterval | None = None

    @property
    def deciding(self) -> BreakEven:
        return self.cases[0]

    @property
    def verdict(self) -> Verdict:
        """Of the API that is cheapest for this workload; "unclear" where it turns within the intervals of pass@1."""
        found = {case.verdict for case in self._corners()}
        return found.pop() if len(found) == 1 else "unclear"

    def _corners(self) -> list[BreakEven]:
        case = self.deciding
        own = self.own_pass or PassInterval(case.owning.pass_at_1, case.owning.pass_at_1)
        api = self.api_pass or PassInterval(case.api.pass_at_1, case.api.pass_at_1)
        return [case] + [
            replace(case, owning=replace(case.owning, pass_at_1=ours), api=replace(case.api, pass_at_1=theirs))
            for ours, theirs in ((own.low, api.high), (own.high, api.low))
        ]

    @property
    def headline(self) -> str:
        """The answer in a line."""
        case, name = self.deciding, self.deciding.api.name
        if self.verdict != case.verdict:
            return (
                f"unclear: within the 95 % intervals of pass@1, both owning and {name} come out cheaper; evaluate more"
            )
        return {"own": _say_own, "api": _say_api, "unclear": _say_unclear}[self.verdict](case)

    @property
    def by_the_second(self) -> BreakEven:
        """The deciding case paid the other way: by the second where it is by the month, and the reverse."""
        case = self.deciding
        other: Pay = "second" if case.owning.pay == "month" else "month"
        return replace(case, owning=replace(case.owning, pay=other))

    def sensitivity(self) -> tuple[Row, ...]:
        return sensitivity(self.deciding)

    def flips(self) -> tuple[Flip, ...]:
        return flips(self.deciding)

    def outlooks(self) -> tuple[Outlook, ...]:
        """With prices that stay, fall as the book saw them, and fall as others did; each with and without growth.

        None without a load, nor where either side never solves a task: there is nothing to add up.
        """
        case = self.deciding
        if not case.work.requests_per_day or not case.owning.pass_at_1 or not case.api.pass_at_1:
            return ()
        rates = [(0.0, "prices stay as they are")]
        seen = observed_fall(case.api.price_id.partition("@")[0], on=self.on, work=case.work)
        rates += [(seen.per_year, seen.source)] if seen and seen.per_year < 1 else []
        rates.append((A16Z_FALL_PER_YEAR, "third-party: a tenth each year at equal quality, a16z 2024"))
        grows = [0.0, self.elasticity] if self.elasticity else [0.0]
        months = max(1, math.ceil(case.horizon_months))
        return tuple(
            Outlook(
                fall_per_year=fall,
                elasticity=elasticity,
                source=source,
                months=walk(case, months=months, fall_per_year=fall, elasticity=elasticity),
            )
            for fall, source in rates
            for elasticity in (grows if fall else [0.0])
        )

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        case = self.deciding
        own, work = case.owning, case.work
        return {
            "format": FORMAT,
            "headline": self.headline,
            **case.to_dict(),
            "verdict": self.verdict,
            "model": self.model,
            "on": self.on.isoformat(),
            "training_usd": own.training_usd,
            "engineering_usd": own.engineering_usd,
            "usd_per_replica_hour": own.rate.usd_per_hour,
            "overhead": own.overhead,
            "basis": own.rate.basis,
            "horizon_months": case.horizon_months,
            "requests_per_day": work.requests_per_day,
            "input_tokens": work.input_tokens,
            "cached_tokens": work.cached_tokens,
            "output_tokens": work.output_tokens,
            "pass_at_1_own": own.pass_at_1,
            "pass_at_1_api": case.api.pass_at_1,
            "apis": [other.to_dict() for other in self.cases],
            "paid_the_other_way": self.by_the_second.to_dict(),
            "flips": [flip.to_dict() for flip in self.flips()],
            "sensitivity": [row.to_dict() for row in self.sensitivity()],
            "outlooks": [outlook.to_dict() for outlook in self.outlooks()],
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }


def answer_break_even(
    model: str,
    *,
    owning: Owning,
    apis: Sequence[ApiRate],
    work: Workload,
    on: date | datetime,
    horizon_months: float = 12.0,
    elasticity: float = 1.0,
    assumptions: Sequence[Assumption] = (),
) -> Answer:
    """One model of one's own against APIs, the cheapest for this workload first.

    Args:
        apis: at least one.
    """
    assert apis, "a comparison needs something to compare with"
    cases = [BreakEven(work=work, owning=owning, api=api, horizon_months=horizon_months) for api in apis]
    ranked = sorted(cases, key=lambda case: (case.api_usd_per_task, case.api.name))
    return Answer(
        model=model,
        on=on,
        cases=tuple(ranked),
        elasticity=elasticity,
        assumptions=(_price(ranked[0].api), *assumptions),
    )


def _price(api: ApiRate) -> Assumption:
    amounts = (api.usd_per_million_input, api.usd_per_million_cached, api.usd_per_million_output)
    value = "$" + "/".join(f"{amount:.4g}" for amount in amounts)
    dated = f", of {api.source_date}" if api.source_date else ""
    return Assumption(f"{api.name}, a million", value, f"{api.confidence}: {api.source}{dated}", "--against, --on")


def unit(case: BreakEven) -> str:
    """What the dollars are per."""
    return "request" if case.owning.pass_at_1 == case.api.pass_at_1 == 1 else "solved task"


def months_as_text(months: float) -> str:
    """12.34 → "12.3 months", 0.4 → "12 days", 0.001 → "44 minutes"."""
    days = months * DAYS_PER_MONTH
    for unit_days, name in ((DAYS_PER_MONTH, "months"), (1.0, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        amount = days / unit_days
        if amount >= 1.95:
            return f"{amount:,.1f} {name}" if amount < 9.95 or name == "months" else f"{amount:.0f} {name}"
    return f"{days * 86_400:.0f} seconds"


def _say_own(case: BreakEven) -> str:
    months, tokens = case.break_even_months, case.break_even_tokens
    assert months is not None
    assert tokens is not None
    costs = f"{usd(case.own_usd_per_month or 0)} a month"
    api_usd = case.api_usd_per_month or 0.0
    costs += f", {case.api.name} {usd(api_usd)}" if math.isfinite(api_usd) else f", {case.api.name} never solves a task"
    if case.owning.once_usd == 0:
        return f"own it: cheaper from the first day: {costs}"
    return f"own it: pays back after {months_as_text(months)} ({tokens:,.0f} tokens): {costs}"


def _say_api(case: BreakEven) -> str:
    name, what = case.api.name, unit(case)
    if math.isinf(case.own_usd_per_task) and case.owning.pass_at_1 == 0:
        return f"use the API ({name}): your own model never solves a task"
    if case.work.requests_per_day == 0:
        return f"use the API ({name}): without requests nothing pays back"
    least = case.owning.usd_per_task(case.work)
    if least >= case.api_usd_per_task:
        prices = f"1,000 {what}s cost {per_thousand(least)} at full load, the API {per_thousand(case.api_usd_per_task)}"
        return f"use the API ({name}): owning never pays back: {prices}"
    if case.work.requests_per_day is None:
        prices = f"1,000 {what}s cost {per_thousand(case.own_usd_per_task)} on replicas as busy as they may be"
        return f"use the API ({name}): owning never pays back: {prices}, the API {per_thousand(case.api_usd_per_task)}"
    months = case.break_even_months
    if months is not None:
        return (
            f"use the API ({name}): owning pays back only after {months_as_text(months)}, "
            f"beyond the {case.horizon_months:g} it is planned for"
        )
    load = f"at {case.work.requests_per_day:,.0f} requests a day"
    costs = f"owning costs {usd(case.own_usd_per_month or 0)} a month, the API {usd(case.api_usd_per_month or 0)}"
    return f"use the API ({name}): {load} {costs}"


def _say_unclear(case: BreakEven) -> str:
    if math.isinf(case.api_usd_per_task):
        return f"unclear: neither your own model nor {case.api.name} ever solves a task"
    needed = case.break_even_requests_per_day
    load = "" if needed is None else f" above {needed:,.0f} requests a day"
    return f"unclear: owning beats {case.api.name}{load}; say how many there are by --requests-per-day"
