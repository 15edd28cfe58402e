"""What APIs would have charged for a request, by hand at prices of January 2025."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from aha.errors import ConfigError
from aha.serve.comparison import ListedCost, choose_apis, listed_costs
from aha.serve.openai import usage_body
from aha.types import Usage

JANUARY = datetime(2025, 1, 31, 12, tzinfo=UTC)
USAGE = Usage(prompt_tokens=1000, completion_tokens=400, cached_tokens=600, reasoning_tokens=300)


def test_charge_is_the_list_price_of_the_moment_at_our_token_counts() -> None:
    o1, r1 = listed_costs(USAGE, apis=("openai-o1", "deepseek-r1"), on=JANUARY)
    # 400 new and 600 cached tokens of the prompt, 400 written: dollars a million are milli-nano-dollars a token.
    assert o1 == ListedCost("openai-o1", 400 * 15_000 + 600 * 7_500 + 400 * 60_000, "openai-o1@2025-01-01")
    assert r1.nano_usd == 400 * 550 + 600 * 140 + 400 * 2_190


def test_id_is_that_price_whatever_the_day() -> None:
    today = datetime(2026, 11, 25, tzinfo=UTC)
    apis = choose_apis(["openai-o1@2025-01-01"], on=today)
    assert listed_costs(USAGE, apis=apis, on=today)[0].nano_usd == 400 * 15_000 + 600 * 7_500 + 400 * 60_000


def test_price_that_is_not_known_is_null_and_no_guess() -> None:
    before = datetime(2024, 1, 1, tzinfo=UTC)
    found = listed_costs(USAGE, apis=("openai-o1",), on=before)
    assert found == [ListedCost("openai-o1", None, None)]
    body = usage_body(USAGE, cost_nano_usd=5, price_id="p", listed=found)
    assert body["cost"]["compare"] == [{"model": "openai-o1", "usd": None, "price_id": None}]


def test_without_names_both_ends_of_the_closed_models_are_told() -> None:
    apis = choose_apis((), on=JANUARY)
    assert len(apis) == 2
    cheap, dear = (cost.nano_usd for cost in listed_costs(USAGE, apis=apis, on=JANUARY))
    assert cheap is not None
    assert dear is not None
    assert cheap < dear


def test_wrong_name_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match="unknown token price 'o2'"):
        choose_apis(("o2",), on=JANUARY)
