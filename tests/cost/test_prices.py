"""The price book: figures of record, lookups by day, and rounding."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost import custom_machine_price, custom_token_price, machine_price, token_price
from aha.cost.prices import LETTER_DATE, machine_names, token_names
from aha.errors import ConfigError

TODAY = date(2026, 6, 1)


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
    prices = [machine_price(name, on=TODAY) for name in machine_names()]
    days = (LETTER_DATE, date(2025, 3, 1), date(2025, 9, 10))
    tokens = [token_price(name, on=day) for day in days for name in token_names(on=day)]
    assert {price.name for price in tokens} == set(token_names())
    assert all(price.source and price.confidence in ("primary", "third-party", "assumption") for price in prices)
    assert all(price.source and price.confidence in ("primary", "third-party") for price in tokens)


def test_price_id_finds_its_price_on_any_day() -> None:
    price = machine_price("cpu-2core-hour", on=TODAY)
    assert machine_price(price.price_id, on=date(1999, 1, 1)) == price


def test_unknown_price_lists_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown machine price 'h80-hour'; did you mean 'h800-hour'\?.*h200-hour"):
        machine_price("h80-hour", on=TODAY)
    with pytest.raises(
        ConfigError, match=r"unknown token price 'gpt'.*deepseek-r1, deepseek-v3, deepseek-v3.1, openai-o1"
    ):
        token_price("gpt", on=TODAY)


def test_price_is_never_guessed_for_a_day_it_is_not_known_for() -> None:
    with pytest.raises(ConfigError, match=r"'deepseek-r1' is not known for 2025-09-05.*deepseek-r1@2025-01-20"):
        token_price("deepseek-r1", on=date(2025, 9, 5))
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
