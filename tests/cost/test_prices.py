"""The price book: figures of record, lookups by day, and rounding."""

from __future__ import annotations

import itertools
from datetime import UTC, date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost import custom_machine_price, custom_token_price, machine_price, token_price
from aha.cost.prices import (
    LETTER_DATE,
    MAX_INT64,
    NANO_PER_USD,
    PICO_PER_NANO,
    machine_history,
    machine_names,
    price_history,
    token_names,
)
from aha.errors import ConfigError

TODAY = date(2026, 6, 1)
AUTUMN = date(2026, 11, 25)


def test_the_two_apis_cost_what_they_cost_in_january_2025() -> None:
    o1 = token_price("openai-o1", on=LETTER_DATE)
    r1 = token_price("deepseek-r1", on=LETTER_DATE)
    assert o1.cost_nano_usd(1_000_000, completion_tokens=0) == 15_000_000_000
    assert o1.cost_nano_usd(0, completion_tokens=1_000_000) == 60_000_000_000
    assert r1.cost_nano_usd(1_000_000, completion_tokens=0) == 550_000_000
    assert r1.cost_nano_usd(0, completion_tokens=1_000_000) == 2_190_000_000
    assert r1.cost_nano_usd(1_000_000, completion_tokens=0, cached_tokens=1_000_000) == 140_000_000
    assert o1.pico_usd_per_output_token / r1.pico_usd_per_output_token == pytest.approx(27.4, abs=0.01)


def test_v3_training_bill_is_reproduced() -> None:
    price = machine_price("h800-hour", on=TODAY)
    assert price.cost_nano_usd(2_788_000 * 3_600_000) == 5_576_000 * 10**9  # arXiv:2412.19437, table 1


def test_every_price_says_where_it_comes_from_and_how_sure_it_is() -> None:
    machines = [price for name in machine_names() for price in machine_history(name)]
    tokens = [price for name in token_names() for price in price_history(name, tier="all")]
    assert all(price.source and price.confidence in ("primary", "third-party", "assumption") for price in machines)
    assert all(price.source and price.confidence in ("primary", "third-party") for price in tokens)
    assert all(price.effective_from.tzinfo is UTC for price in tokens), "moments, not days of some time zone"
    assert all(price.pico_usd_per_cached_token <= price.pico_usd_per_input_token for price in tokens)


def test_price_ids_of_the_first_ledgers_still_mean_their_amounts() -> None:
    """Rows of the first release: people's ledgers and the catalogue carry these ids."""
    tokens = {
        "openai-o1@2025-01-01": (15_000_000, 7_500_000, 60_000_000),
        "deepseek-r1@2025-01-20": (550_000, 140_000, 2_190_000),
        "deepseek-v3@2025-02-08": (270_000, 70_000, 1_100_000),
        "deepseek-v3.1@2025-09-05": (560_000, 70_000, 1_680_000),
    }
    for price_id, amounts in tokens.items():
        row = token_price(price_id, on=date(1999, 1, 1))
        assert row.price_id == price_id
        per_token = (row.pico_usd_per_input_token, row.pico_usd_per_cached_token, row.pico_usd_per_output_token)
        assert per_token == amounts
    machines = {
        "cpu-2core-hour@2025-01-01": 80_000_000,
        "h800-hour@2024-12-27": 2_000_000_000,
        "h100-hour@2026-03-01": 4_760_000_000,
        "h100-spot-hour@2026-03-01": 2_690_000_000,
        "h200-hour@2026-03-01": 6_350_000_000,
        "h200-spot-hour@2026-03-01": 3_590_000_000,
    }
    assert {name: machine_price(name, on=TODAY).nano_usd_per_hour for name in machines} == machines


def test_price_id_finds_its_price_on_any_day() -> None:
    price = machine_price("cpu-2core-hour", on=TODAY)
    assert machine_price(price.price_id, on=date(1999, 1, 1)) == price


def test_unknown_price_lists_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown machine price 'h80-hour'; did you mean 'h800-hour'\?.*h200-hour"):
        machine_price("h80-hour", on=TODAY)
    with pytest.raises(
        ConfigError, match=r"unknown token price 'gpt'.*deepseek-r1, deepseek-r1-cny.*openai-o1, openai-o1-mini"
    ):
        token_price("gpt", on=TODAY)


def test_price_is_never_guessed_for_a_day_it_is_not_known_for() -> None:
    with pytest.raises(ConfigError, match=r"'deepseek-r1' is not known for 2025-09-06.*deepseek-r1@2025-01-20"):
        token_price("deepseek-r1", on=date(2025, 9, 6))
    with pytest.raises(ConfigError, match="'h800-hour' is not known for 2020-01-01"):
        machine_price("h800-hour", on=date(2020, 1, 1))


def test_dollars_stand_for_a_price_of_your_own() -> None:
    assert machine_price("0.12", on=TODAY) == custom_machine_price("0.12", on=TODAY)


@pytest.mark.parametrize(("usd", "name"), [(10, "10"), (0.12, "0.12"), (0, "0"), ("1.50", "1.5"), (1000, "1000")])
def test_custom_price_names_its_amount(usd: float | str, name: str) -> None:
    price = custom_machine_price(usd, on=TODAY)
    assert price.price_id == f"custom-{name}-usd-hour@2026-06-01"
    assert price.usd_per_hour == pytest.approx(float(usd))


@pytest.mark.parametrize("usd", [-1, float("nan"), float("inf"), 1e9, "a lot", ""])
def test_custom_price_that_is_no_price_is_refused(usd: float | str) -> None:
    with pytest.raises(ConfigError, match="usd_per_hour must be a number from 0 to 1,000,000"):
        custom_machine_price(usd, on=TODAY)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**6))
def test_cost_grows_with_tokens_and_caching_never_makes_it_dearer(prompt: int, completion: int, more: int) -> None:
    price = token_price("openai-o1", on=LETTER_DATE)
    cost = price.cost_nano_usd(prompt, completion_tokens=completion)
    assert price.cost_nano_usd(prompt + more, completion_tokens=completion) >= cost
    assert price.cost_nano_usd(prompt, completion_tokens=completion + more) >= cost
    assert price.cost_nano_usd(prompt, completion_tokens=completion, cached_tokens=prompt // 2) <= cost


def test_your_own_token_price_names_its_amounts() -> None:
    price = custom_token_price("0.55", usd_per_million_output=2.19, usd_per_million_cached="0.14", on=TODAY)
    assert price.price_id == "custom-0.55-0.14-2.19-usd-per-million@2026-06-01"
    r1 = token_price("deepseek-r1", on=LETTER_DATE)
    assert price.cost_nano_usd(9, completion_tokens=7, cached_tokens=3) == r1.cost_nano_usd(
        9, completion_tokens=7, cached_tokens=3
    )
    uncached = custom_token_price(1, usd_per_million_output=10, on=TODAY)
    assert uncached.cost_nano_usd(5, completion_tokens=0, cached_tokens=5) == 5_000


@pytest.mark.parametrize("usd", [-1, float("nan"), "free"])
def test_token_price_that_is_no_price_is_refused(usd: float | str) -> None:
    with pytest.raises(ConfigError, match="usd_per_million_output must be a number from 0 to 1,000,000"):
        custom_token_price(1, usd_per_million_output=usd, on=TODAY)


def test_amounts_are_nano_dollars_because_pico_dollars_end_at_9_million() -> None:
    """64 bits of pico-dollars end at $9.2 M, below two trainings of DeepSeek-V3; of nano-dollars at $9.2 billion."""
    assert MAX_INT64 // (NANO_PER_USD * PICO_PER_NANO) == 9_223_372
    assert MAX_INT64 // NANO_PER_USD == 9_223_372_036
    two_trainings = machine_price("h800-hour", on=TODAY).cost_nano_usd(2 * 2_788_000 * 3_600_000)
    assert two_trainings == 11_152_000 * NANO_PER_USD <= MAX_INT64
    assert two_trainings * PICO_PER_NANO > MAX_INT64


def test_sum_of_ten_million_entries_does_not_drift() -> None:
    """Integers: the sum of equal entries is their product, to the nano-dollar. Floats are off after a million."""
    r1 = token_price("deepseek-r1", on=LETTER_DATE)
    one = r1.cost_nano_usd(1_000, completion_tokens=333, cached_tokens=100)
    assert one == 495_000 + 14_000 + 729_270
    assert sum(itertools.repeat(one, 10**7)) == one * 10**7
    drifting = 0.0
    for _ in range(10**6):
        drifting += one / NANO_PER_USD
    assert drifting != one * 10**6 / NANO_PER_USD, "what is kept as float dollars drifts within a million entries"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["openai-o1", "deepseek-r1", "deepseek-v3", "openai-gpt-4o"]), st.data())
def test_cost_of_split_usage_adds_up_within_a_nano_dollar_each(name: str, data: st.DataObject) -> None:
    price = token_price(name, on=LETTER_DATE)
    count = st.integers(0, 10**7)
    parts = data.draw(st.lists(st.tuples(count, count, st.floats(0, 1)), min_size=1, max_size=5))
    costs = [price.cost_nano_usd(p, completion_tokens=c, cached_tokens=int(p * share)) for p, c, share in parts]
    whole = price.cost_nano_usd(
        sum(p for p, _, _ in parts),
        completion_tokens=sum(c for _, c, _ in parts),
        cached_tokens=sum(int(p * share) for p, _, share in parts),
    )
    assert abs(sum(costs) - whole) <= len(parts)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_price_of_the_book_is_monotone_and_never_dearer_for_cached_tokens(data: st.DataObject) -> None:
    rows = [row for name in token_names() for row in price_history(name, tier="all")]
    price = data.draw(st.sampled_from(rows))
    prompt, completion, more = (data.draw(st.integers(0, 10**8)) for _ in range(3))
    cached = data.draw(st.integers(0, prompt))
    cost = price.cost_nano_usd(prompt, completion_tokens=completion)
    assert price.cost_nano_usd(prompt, completion_tokens=completion, cached_tokens=cached) <= cost
    assert price.cost_nano_usd(prompt + more, completion_tokens=completion + more) >= cost


def test_cache_writes_and_reasoning_have_their_own_price_where_a_row_says_so() -> None:
    luna = token_price("gpt-6-luna", on=AUTUMN)
    assert luna.cost_nano_usd(1_000_000, completion_tokens=0, cache_write_tokens=1_000_000) == 125_000_000
    r1 = token_price("deepseek-r1", on=LETTER_DATE)
    assert r1.cost_nano_usd(9, completion_tokens=5, cache_write_tokens=9) == r1.cost_nano_usd(9, completion_tokens=5)
    assert r1.cost_nano_usd(9, completion_tokens=5, reasoning_tokens=4) == r1.cost_nano_usd(9, completion_tokens=5)
