"""Own or call: the closed forms by hand, against a simulation day by day, and what may never happen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.errors import ConfigError
from aha.estimate.breakeven import DAYS_PER_MONTH, HOURS_PER_MONTH, ApiRate, BreakEven, Owning, Workload
from aha.estimate.breakeven.sensitivity import flips, scale_api_price, scale_demand, sensitivity, set_utilisation
from aha.estimate.serving import ServingRate

# A replica at $3.60 an hour is $0.001 a busy second: $0.10 a million tokens read, $1 a million written.
RATE = ServingRate(
    usd_per_hour=3.6,
    seconds_per_input_token=1e-4,
    seconds_per_cached_token=0.0,
    seconds_per_output_token=1e-3,
    basis="made up",
)
RANK = {"api": 0, "unclear": 1, "own": 2}


def api(price_in: float = 1.0, price_out: float = 10.0, **changed: Any) -> ApiRate:
    return ApiRate(
        name="vendor-x", usd_per_million_input=price_in, usd_per_million_cached=price_in / 2,
        usd_per_million_output=price_out, price_id="vendor-x@2025-01-01", source="made up", confidence="user",
        **changed,
    )  # fmt: skip


def case(
    requests_per_day: float | None = 10_000, *, training_usd: float = 99.0, vendor: ApiRate | None = None, **own: Any
) -> BreakEven:
    """1,000 tokens in and 1,000 out: 1.1 busy seconds or $0.0011 of one's own, $0.011 at the API."""
    return BreakEven(
        work=Workload(input_tokens=1000, output_tokens=1000, requests_per_day=requests_per_day),
        owning=Owning(rate=RATE, training_usd=training_usd, **own),
        api=vendor or api(),
        horizon_months=12,
    )


def test_break_even_by_the_second_is_training_over_what_a_token_saves() -> None:
    found = case(1000, pay="second")
    assert found.own_usd_per_task == pytest.approx(0.0011)
    assert found.api_usd_per_task == pytest.approx(0.011)
    # $99 / ($0.011 - $0.0011) = 10,000 requests of 2,000 tokens, ten days' worth.
    assert found.break_even_tokens == pytest.approx(20e6)
    assert found.break_even_months == pytest.approx(10 / DAYS_PER_MONTH)
    assert found.verdict == "own"


def test_break_even_by_the_month_is_training_over_what_a_month_saves() -> None:
    found = case(10_000)
    rent, calls = 3.6 * HOURS_PER_MONTH, 10_000 * DAYS_PER_MONTH * 0.011
    assert (found.own_usd_per_month, found.api_usd_per_month) == (pytest.approx(rent), pytest.approx(calls))
    assert found.break_even_months == pytest.approx(99 / (calls - rent))
    assert found.break_even_tokens == pytest.approx(99 / (calls - rent) * 10_000 * DAYS_PER_MONTH * 2000)
    assert found.utilisation == pytest.approx(11_000 / 86_400)


def test_break_even_utilisation_is_rent_over_what_a_busy_hour_would_cost_at_the_api() -> None:
    # u* = (GPU $/h x overhead) / (tokens/s x 3600 x API price a token), for output alone.
    found = replace(case(), work=Workload(input_tokens=0, output_tokens=500))
    assert found.break_even_utilisation == pytest.approx(3.6 / (1000 * 3600 * 10 / 1e6))


def test_rent_is_earned_exactly_at_the_break_even_utilisation() -> None:
    found = case(None, training_usd=0.0)
    share = found.break_even_utilisation
    assert share == pytest.approx(0.1)
    needed = share * 86_400 / 1.1
    assert found.break_even_requests_per_day == pytest.approx(needed)
    assert case(needed * 1.001, training_usd=0.0).verdict == "own"
    assert case(needed * 0.999, training_usd=0.0).verdict == "api"


def test_another_replica_is_rented_when_the_load_exceeds_one() -> None:
    per_replica = 0.5 * 86_400 / 1.1
    for load, count in ((0, 1), (1, 1), (per_replica, 1), (per_replica + 1, 2), (7.5 * per_replica, 8)):
        found = case(load, max_utilisation=0.5)
        assert found.owning.num_replicas(found.work) == count
        assert found.utilisation is not None
        assert found.utilisation <= 0.5 * (1 + 1e-9)
    assert case(7.5 * per_replica, max_utilisation=0.5).own_usd_per_month == pytest.approx(8 * 3.6 * HOURS_PER_MONTH)


def test_cached_tokens_take_their_own_price_on_both_sides() -> None:
    found = replace(case(), work=Workload(input_tokens=1000, cached_tokens=600, output_tokens=1000))
    assert found.api_usd_per_task == pytest.approx((400 * 1 + 600 * 0.5 + 1000 * 10) / 1e6)
    assert found.owning.busy_seconds(found.work) == pytest.approx(400e-4 + 1.0)


def test_equal_prices_never_pay_back() -> None:
    found = case(1000, pay="second", vendor=api(0.1, 1.0))
    assert found.api_usd_per_task == found.own_usd_per_task
    assert (found.verdict, found.break_even_tokens, found.break_even_months) == ("api", None, None)
    assert case(1000, pay="second", vendor=api(0.1, 1.0), training_usd=0.0).verdict == "api"


def test_a_model_used_as_it_is_pays_from_the_first_token() -> None:
    found = case(10_000, training_usd=0.0)
    assert (found.verdict, found.break_even_tokens, found.break_even_months) == ("own", 0, 0)


def test_a_free_api_is_never_beaten() -> None:
    for load in (None, 0, 10_000):
        found = case(load, training_usd=0.0, vendor=api(0, 0))
        assert (found.verdict, found.break_even_tokens, found.break_even_utilisation) == ("api", None, None)
        assert found.break_even_requests_per_day is None


def test_payback_beyond_the_horizon_is_no_payback() -> None:
    monthly = case(10_000, training_usd=0.0)
    assert monthly.api_usd_per_month is not None
    assert monthly.own_usd_per_month is not None
    saved = monthly.api_usd_per_month - monthly.own_usd_per_month
    assert case(10_000, training_usd=11.9 * saved).verdict == "own"
    assert case(10_000, training_usd=12.1 * saved).verdict == "api"


def test_without_a_load_only_what_no_load_decides_is_decided() -> None:
    assert case(None).verdict == "unclear"
    assert case(None).break_even_months is None
    assert case(None, vendor=api(0.05, 0.5)).verdict == "api"
    assert case(None, vendor=api(0.11, 1.1), max_utilisation=0.8).verdict == "api"  # full replicas would do, these not


def test_wrong_answers_are_paid_for_on_both_sides() -> None:
    found = case(1000, pay="second", pass_at_1=0.5, vendor=api(pass_at_1=0.8))
    assert found.own_usd_per_task == pytest.approx(0.0011 / 0.5)
    assert found.api_usd_per_task == pytest.approx(0.011 / 0.8)
    tasks = 99 / (0.011 / 0.8 - 0.0022)
    assert found.break_even_tokens == pytest.approx(tasks / 0.5 * 2000)  # two attempts a task
    assert found.break_even_months == pytest.approx(tasks / 1000 / DAYS_PER_MONTH)
    rented = case(40_000, pass_at_1=0.5)
    assert rented.owning.num_replicas(rented.work) == 2  # 80,000 attempts of 1.1 s


def test_who_never_solves_a_task_never_wins() -> None:
    ours = case(1000, pass_at_1=0.0)
    assert (ours.verdict, ours.break_even_tokens, ours.break_even_utilisation) == ("api", None, None)
    assert ours.to_dict()["cost_usd_per_solved"] is None
    assert case(1000, vendor=api(pass_at_1=0.0)).verdict == "own"
    neither = case(1000, pass_at_1=0.0, vendor=api(pass_at_1=0.0))
    assert neither.verdict == "unclear"
    for found in (ours, neither, case(0, pass_at_1=0.0), case(None, pass_at_1=0.0)):
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in found.to_dict().values())


def test_an_api_that_thinks_longer_costs_more_and_ours_does_not() -> None:
    found = case(vendor=api(output_ratio=3.0))
    assert found.api_usd_per_task == pytest.approx(0.031)
    assert found.own_usd_per_month == case().own_usd_per_month


def simulated_months(found: BreakEven) -> float | None:
    """Day by day: what was paid to either side until owning has cost no more."""
    own, work, vendor = found.owning, found.work, found.api
    assert work.requests_per_day
    attempts = work.requests_per_day / own.pass_at_1
    seconds = attempts * (work.input_tokens * 1e-4 + work.output_tokens * 1e-3)
    if own.pay == "second":
        own_day = seconds * 0.001 / own.utilisation
    else:
        replicas = 1
        while replicas * 86_400 * own.max_utilisation < seconds:
            replicas += 1
        own_day = replicas * 24 * 3.6
    each = (work.input_tokens * vendor.usd_per_million_input + work.output_tokens * vendor.usd_per_million_output) / 1e6
    api_day = work.requests_per_day / vendor.pass_at_1 * each
    paid_own, paid_api = own.training_usd + own.engineering_usd, 0.0
    for day in range(1, 4000):
        paid_own, paid_api = paid_own + own_day, paid_api + api_day
        if paid_own <= paid_api:
            return day / DAYS_PER_MONTH
    return None


@settings(max_examples=60, deadline=None)
@given(
    load=st.floats(10, 300_000),
    training=st.floats(0, 20_000),
    price=st.floats(0.05, 20),
    passes=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)),
    pay=st.sampled_from(["month", "second"]),
)
def test_closed_form_is_what_a_simulation_day_by_day_finds(
    load: float, training: float, price: float, passes: tuple[float, float], pay: str
) -> None:
    vendor = api(price / 10, price, pass_at_1=passes[1])
    found = case(load, training_usd=training, vendor=vendor, pass_at_1=passes[0], pay=pay, max_utilisation=0.8)
    simulated, closed = simulated_months(found), found.break_even_months
    if closed is None or closed > 4000 / DAYS_PER_MONTH - 0.1:
        assert simulated is None or simulated > 4000 / DAYS_PER_MONTH - 0.2
    else:
        assert simulated is not None
        assert closed <= simulated + 1e-6
        assert simulated - closed <= 1.001 / DAYS_PER_MONTH + 1e-6 * closed


cases = st.builds(
    lambda load, training, price, mine, theirs, pay, most: case(
        load, training_usd=training, vendor=api(price / 10, price, pass_at_1=theirs), pass_at_1=mine, pay=pay,
        max_utilisation=most,
    ),
    st.none() | st.just(0.0) | st.floats(1e-3, 1e9),
    st.just(0.0) | st.floats(1e-6, 1e9),
    st.just(0.0) | st.floats(1e-6, 1e3),
    st.just(0.0) | st.floats(0.01, 1),
    st.just(0.0) | st.floats(0.01, 1),
    st.sampled_from(["month", "second"]),
    st.floats(0.01, 1),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(cases, st.floats(1, 100))
def test_a_dearer_api_never_speaks_against_owning(found: BreakEven, factor: float) -> None:
    assert RANK[scale_api_price(found, factor).verdict] >= RANK[found.verdict]


@settings(max_examples=150, deadline=None)
@given(cases, st.floats(0, 1e9))
def test_dearer_training_never_speaks_for_owning(found: BreakEven, more: float) -> None:
    dearer = replace(found, owning=replace(found.owning, training_usd=found.owning.training_usd + more))
    assert RANK[dearer.verdict] <= RANK[found.verdict]
    if found.break_even_tokens is not None:
        assert dearer.break_even_tokens is not None
        assert dearer.break_even_tokens >= found.break_even_tokens


@settings(max_examples=60, deadline=None)
@given(cases)
def test_owning_never_wins_without_requests(found: BreakEven) -> None:
    assert replace(found, work=replace(found.work, requests_per_day=0.0)).verdict in ("api", "unclear")


@settings(max_examples=150, deadline=None)
@given(cases)
def test_least_load_is_where_owning_begins_to_win(found: BreakEven) -> None:
    needed = found.break_even_requests_per_day
    at = replace(found, work=replace(found.work, requests_per_day=1.0))
    if needed is None:
        loads = [10.0**power for power in range(-3, 10)]
        assert all(scale_demand(at, load).verdict != "own" for load in loads)
    elif 1e-9 < needed < 1e12:
        # A hair above: where that load fills the replicas exactly, a little more would need another one.
        assert any(scale_demand(at, needed * (1 + hair)).verdict == "own" for hair in (1e-12, 1e-9, 1e-6))
        assert all(scale_demand(at, needed * share).verdict != "own" for share in (0.999, 0.5, 0.1, 1e-3))


@settings(max_examples=30, deadline=None)
@given(cases)
def test_flips_are_where_the_verdict_turns(found: BreakEven) -> None:
    for flip in flips(found):
        assert flip.verdict != found.verdict
        if flip.assumption == "API price" and flip.factor:
            # A hair towards what is assumed it is as it was, a hair beyond it is the other one.
            toward, beyond = (1 - 1e-6, 1 + 1e-6) if flip.factor > 1 else (1 + 1e-6, 1 - 1e-6)
            assert scale_api_price(found, flip.factor * beyond).verdict == flip.verdict
            assert scale_api_price(found, flip.factor * toward).verdict == found.verdict


def test_flips_agree_with_what_can_be_solved_by_hand() -> None:
    found = case(10_000)
    at = {flip.assumption: flip for flip in flips(found)}
    calls = found.api_usd_per_month
    assert calls is not None
    rent = 3.6 * HOURS_PER_MONTH
    # All that is paid in twelve months, over what the calls cost.
    factor = (rent + 99 / 12) / calls
    assert at["API price"].factor == pytest.approx(factor)
    assert at["API price"].value == pytest.approx(factor * 11)  # $ per 1,000 requests
    assert at["API price"].verdict == "api"
    assert at["requests a day"].value == pytest.approx(factor * 10_000)
    assert at["paid once"].value == pytest.approx(12 * (calls - rent))
    assert at["replica price"].value == pytest.approx((calls - 99 / 12) / HOURS_PER_MONTH)


def test_sensitivity_names_each_assumption_with_its_verdict() -> None:
    rows = {(row.assumption, row.value): row.case for row in sensitivity(case(10_000))}
    busy = "busy share of the hours paid for"
    assert [value for name, value in rows if name == busy] == ["5%", "20%", "50%", "80%", "100%"]
    assert rows[busy, "5%"].own_usd_per_task == pytest.approx(0.0011 / 0.05)
    assert rows[busy, "5%"].verdict == "api"
    assert rows[busy, "20%"].break_even_tokens == pytest.approx(99 / (0.011 - 0.0055) * 2000)
    assert rows["API price", "x0.25"].api_usd_per_task == pytest.approx(0.00275)
    assert rows["requests a day", "x0.1"].verdict == "api"
    assert rows["output length, both", "x3"].api_usd_per_task == pytest.approx(0.031)
    alone = rows["output length, yours alone", "x3"]
    assert (alone.api_usd_per_task, alone.owning.busy_seconds(alone.work)) == (pytest.approx(0.011), pytest.approx(3.1))
    assert rows["overhead", "1.35"].own_usd_per_month == pytest.approx(1.35 * 3.6 * HOURS_PER_MONTH)
    assert set_utilisation(case(), 1.0).own_usd_per_task == pytest.approx(0.0011)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Workload(input_tokens=-1, output_tokens=1), "input_tokens must be a number from 0"),
        (lambda: Workload(input_tokens=1, output_tokens=math.nan), "output_tokens must be a number from 0"),
        (lambda: Workload(input_tokens=1, output_tokens=1, requests_per_day=math.inf), "requests_per_day must be"),
        (lambda: Workload(input_tokens=5, cached_tokens=6, output_tokens=1), "part of input_tokens: 6 of 5"),
        (lambda: Workload(input_tokens=0, output_tokens=0), "a request of no tokens"),
        (lambda: case(training_usd=-1.0), "training_usd must be"),
        (lambda: case(pass_at_1=1.1), "pass_at_1_own must be a share"),
        (lambda: case(max_utilisation=0.0), "max_utilisation must be above 0"),
        (lambda: case(overhead=0.9), "overhead is a factor of at least 1"),
        (lambda: api(pass_at_1=-0.1), "pass_at_1_api must be a share"),
    ],
)
def test_impossible_figures_are_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
