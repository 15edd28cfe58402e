"""Month by month: what owning and calling come to when prices fall, and when demand grows because they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

from aha.cost.prices import TokenPrice, price_history, token_names
from aha.estimate.breakeven.case import DAYS_PER_MONTH, MAX_FIGURE, ApiRate, BreakEven, Verdict, Workload

DAYS_PER_YEAR = 365.25
LEAST_DAYS_OBSERVED = 90
"""A rate for a year from less than a quarter of one would say nothing."""
A16Z_FALL_PER_YEAR = 0.9
"""Third-party: price of the cheapest model of equal MMLU, 2021 to 2024, "10x every year" (a16z.com/llmflation-llm-
inference-cost, November 2024). Epoch AI (epoch.ai/data-insights/llm-inference-price-trends, March 2025) finds 9x to
900x a year, by task."""


class Month(NamedTuple):
    """One month of both ways; dollars."""

    month: int
    """1 is the first."""
    requests_per_day: float
    api_price_factor: float
    """The API's price over that of the day, in the middle of the month."""
    num_replicas: int | None
    """None where the machines are paid by the second."""
    own_usd: float
    api_usd: float
    own_total_usd: float
    """Since the start, with what is paid once."""
    api_total_usd: float


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What becomes of a case when the API's price falls at a steady rate."""

    fall_per_year: float
    """Share of the price that a year takes away; below 0 it rises."""
    elasticity: float
    """Percent of demand gained for each percent of price lost (constant elasticity); 0 leaves demand as it is."""
    source: str
    months: tuple[Month, ...]
    """Up to the horizon, rounded up to whole months."""

    @property
    def verdict(self) -> Verdict:
        """By the totals at the horizon."""
        last = self.months[-1]
        return "own" if last.own_total_usd < last.api_total_usd else "api"

    @property
    def break_even_months(self) -> float | None:
        """When the totals first meet; None where they do not by the horizon."""
        before = self.months[0].own_total_usd - self.months[0].own_usd
        for row in self.months:
            after = row.own_total_usd - row.api_total_usd
            if after <= 0:
                return row.month - 1 + (before / (before - after) if before > after else 0.0)
            before = after
        return None

    @property
    def is_lost_again(self) -> bool:
        """Paid back, and by the horizon dearer all the same."""
        return self.verdict == "api" and self.break_even_months is not None

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        last = self.months[-1]
        return {
            "api_price_fall_per_year": self.fall_per_year,
            "elasticity": self.elasticity,
            "source": self.source,
            "verdict": self.verdict,
            "break_even_months": self.break_even_months,
            "requests_per_day_at_horizon": last.requests_per_day,
            "api_usd_per_month_at_horizon": last.api_usd,
            "own_total_usd": last.own_total_usd,
            "api_total_usd": last.api_total_usd,
        }


def walk(case: BreakEven, *, months: int, fall_per_year: float = 0.0, elasticity: float = 0.0) -> tuple[Month, ...]:
    """Both ways month by month, from the case's load and prices on. The machines' price stays.

    Demand follows the API's price with constant elasticity: requests = requests_0 x (price / price_0)^-elasticity. With
    an elasticity of 1 the spend on an API stays the same while its price falls; above 1 it grows (Jevons 1865, The
    Coal Question, ch. 7).

    Args:
        case: with a load (requests_per_day) that is known.
        months: how many.
        fall_per_year: share of the price that each year takes away, below 1.
    """
    demand = case.work.requests_per_day
    assert demand is not None, "a path needs a load"
    assert fall_per_year < 1, "a price that falls to nothing within a year is no price"
    rows: list[Month] = []
    own_total, api_total = case.owning.once_usd, 0.0
    for month in range(1, months + 1):
        factor = (1.0 - fall_per_year) ** ((month - 0.5) / 12)
        requests = min(demand * factor**-elasticity, MAX_FIGURE)
        work = replace(case.work, requests_per_day=requests)
        own_usd = case.owning.usd_per_month(work)
        api_usd = requests * DAYS_PER_MONTH * case.api_usd_per_task * factor if requests else 0.0
        own_total, api_total = own_total + own_usd, api_total + api_usd
        replicas = case.owning.num_replicas(work) if case.owning.pay == "month" else None
        rows.append(Month(month, requests, factor, replicas, own_usd, api_usd, own_total, api_total))
    return tuple(rows)


class ObservedFall(NamedTuple):
    """How fast a price fell, by the price book."""

    per_year: float
    """Share of the price that a year took away, on average; below 0 it rose."""
    source: str


def observed_fall(name: str, *, on: date | datetime, work: Workload) -> ObservedFall | None:
    """How the price of this workload has moved until a time: of the API itself, else of the cheapest of its provider.

    Models of one provider are not equally good; what is compared is what its cheapest way to serve the workload cost
    when the book begins, and costs now. None where the book knows less than a quarter of a year.
    """
    moment = _moment(on)
    own = [price for other in token_names() if other == name for price in price_history(other)]
    provider = own[0].provider if own else None
    ours = [price for other in token_names() for price in price_history(other) if price.provider == provider]
    for prices, words in ((own, ""), (ours, f"cheapest of {provider}, not equally good: ")):
        starts = [price.effective_from for price in prices if price.effective_from <= moment]
        if not starts or (moment - min(starts)).days < LEAST_DAYS_OBSERVED:
            continue
        first, last = (_cheapest(prices, at=when, work=work) for when in (min(starts), moment))
        if first and last and first.price_id != last.price_id:
            before, after = (ApiRate.from_price(price).usd_per_request(work) for price in (first, last))
            days = (moment - min(starts)).days
            if before > 0 and after > 0:
                per_year = 1.0 - (after / before) ** (DAYS_PER_YEAR / days)
                return ObservedFall(per_year, f"price book: {words}{first.price_id} to {last.price_id}")
    return None


def _cheapest(prices: Sequence[TokenPrice], *, at: datetime, work: Workload) -> TokenPrice | None:
    """For the workload, of those in effect at a moment, whatever the hour."""
    holding = [
        price
        for price in prices
        if price.effective_from <= at
        and (price.effective_to is None or at < price.effective_to)
        and price.takes(round(work.input_tokens))
    ]
    return min(holding, key=lambda price: ApiRate.from_price(price).usd_per_request(work), default=None)


def _moment(on: date | datetime) -> datetime:
    return on if isinstance(on, datetime) else datetime.combine(on, time(), tzinfo=UTC)
