"""Month by month: prices that fall, demand that grows because they do."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost.prices import price_history, token_names
from aha.estimate.breakeven import DAYS_PER_MONTH, ApiRate, BreakEven, Owning, Workload
from aha.estimate.breakeven.path import Outlook, observed_fall, walk
from aha.estimate.serving import ServingRate

RATE = ServingRate(
    usd_per_hour=3.6,
    seconds_per_input_token=0.0,
    seconds_per_cached_token=0.0,
    seconds_per_output_token=1e-3,
    basis="made up",
)
VENDOR = ApiRate(
    name="vendor-x", usd_per_million_input=0.0, usd_per_million_cached=0.0, usd_per_million_output=10.0,
    price_id="vendor-x@2025-01-01", source="made up", confidence="user",
)  # fmt: skip


def case(load: float = 10_000, *, training_usd: float = 99.0, pay: str = "month") -> BreakEven:
    """$0.01 a request at the API, one busy second or $0.001 of one's own."""
    return BreakEven(
        work=Workload(input_tokens=0, output_tokens=1000, requests_per_day=load),
        owning=Owning(rate=RATE, training_usd=training_usd, pay=pay, max_utilisation=0.8),  # type: ignore[arg-type]
        api=VENDOR,
        horizon_months=12,
    )


def outlook(found: BreakEven, *, fall: float = 0.0, elasticity: float = 0.0, months: int = 12) -> Outlook:
    rows = walk(found, months=months, fall_per_year=fall, elasticity=elasticity)
    return Outlook(fall_per_year=fall, elasticity=elasticity, source="", months=rows)


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 1e6), st.floats(0, 1e5), st.sampled_from(["month", "second"]))
def test_prices_that_stay_give_the_closed_form(load: float, training: float, pay: str) -> None:
    found = case(load, training_usd=training, pay=pay)
    walked, closed = outlook(found).break_even_months, found.break_even_months
    if closed is None or closed > 11.999:
        assert walked is None or walked > 11.9 or (closed is None and training == 0)
    else:
        assert walked == pytest.approx(closed, rel=1e-6, abs=1e-9)


def test_price_halves_in_a_year_by_hand() -> None:
    rows = walk(case(), months=12, fall_per_year=0.5)
    assert rows[0].api_price_factor == pytest.approx(0.5 ** (0.5 / 12))
    assert rows[11].api_price_factor == pytest.approx(0.5 ** (11.5 / 12))
    paid = sum(10_000 * DAYS_PER_MONTH * 0.01 * 0.5 ** ((month - 0.5) / 12) for month in range(1, 13))
    assert rows[-1].api_total_usd == pytest.approx(paid)
    # The sum at mid-months is the integral of the fall: 12 (1 - 1/2) / ln 2 months' worth.
    assert rows[-1].api_total_usd == pytest.approx(12 * 0.5 / math.log(2) * 10_000 * DAYS_PER_MONTH * 0.01, rel=1e-3)


@pytest.mark.parametrize(("elasticity", "trend"), [(0.5, "falls"), (1.0, "stays"), (1.5, "rises")])
def test_spend_follows_the_elasticity(elasticity: float, trend: str) -> None:
    rows = walk(case(), months=24, fall_per_year=0.9, elasticity=elasticity)
    assert rows[-1].requests_per_day == pytest.approx(10_000 * 0.1 ** (-elasticity * 23.5 / 12))
    first, last = rows[0].api_usd, rows[-1].api_usd
    assert last == pytest.approx(first * 10 ** ((elasticity - 1) * 23 / 12))
    assert {"falls": last < first, "stays": last == pytest.approx(first), "rises": last > first}[trend]


def test_growing_demand_takes_more_replicas() -> None:
    rows = walk(case(60_000), months=12, fall_per_year=0.75, elasticity=1.0)
    for row in rows:
        assert row.num_replicas == max(1, math.ceil(row.requests_per_day / (86_400 * 0.8)))
    assert rows[0].num_replicas == 1
    assert rows[-1].num_replicas == 4  # 60,000 x 4^(11.5/12) requests of a second each


def test_falling_prices_can_turn_the_verdict() -> None:
    found = case(10_000, training_usd=1500.0)
    assert outlook(found).verdict == found.verdict == "own"
    assert outlook(found, fall=0.9).verdict == "api"
    assert outlook(found, fall=0.9).break_even_months is None


def test_payback_may_come_and_be_lost_again() -> None:
    found = outlook(case(10_000, training_usd=50.0), fall=0.9, months=24)
    assert found.break_even_months is not None
    assert found.verdict == "api"  # by the end the API has cost less
    assert found.is_lost_again


def test_observed_fall_is_the_change_of_the_workloads_price_over_the_time() -> None:
    work = Workload(input_tokens=1000, output_tokens=1000)
    seen = observed_fall("deepseek-r1", on=date(2025, 9, 1), work=work)
    assert seen is not None
    assert "deepseek" in seen.source
    first, last = (name.split(": ")[-1] for name in seen.source.split(" to "))
    book = {row.price_id: row for name in token_names() for row in price_history(name)}
    before, after = (book[id].pico_usd_per_input_token + book[id].pico_usd_per_output_token for id in (first, last))
    days = (datetime(2025, 9, 1, tzinfo=UTC) - book[first].effective_from).days
    assert (1.0 - seen.per_year) ** (days / 365.25) == pytest.approx(after / before)


def test_nothing_is_observed_of_a_price_that_is_new_or_unknown() -> None:
    work = Workload(input_tokens=1000, output_tokens=1000)
    assert observed_fall("openai-o1", on=date(2023, 1, 10), work=work) is None
    assert observed_fall("custom-1-1-2-usd-per-million", on=date(2025, 9, 20), work=work) is None
