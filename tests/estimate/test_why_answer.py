"""A bigger model or a better algorithm: the law against slow searches, the figures against one another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.estimate.shape import find_shape
from aha.estimate.why import sides_of, walk
from aha.estimate.why.answer import Answer, answer, paragraph
from aha.estimate.why.choices import undo_all
from aha.estimate.why.published import DEEPSEEK_LAW
from aha.estimate.why.rl import rl_rows
from aha.estimate.why.scaling import best_split, deepseek_split, dense_equivalent, least_product, loss
from aha.models.counts import count_parameters
from tests.estimate.test_why import V3, setting


@given(st.floats(18, 30))
@settings(max_examples=50, deadline=None)
def test_best_split_beats_every_other_of_its_product(exponent: float) -> None:
    best = best_split(10**exponent)
    others = [
        loss(best.num_parameters * 2 ** (step / 10), tokens=best.tokens / 2 ** (step / 10)) for step in range(-40, 41)
    ]
    assert best.loss <= min(others) + 1e-12
    assert best.product == pytest.approx(10**exponent)


@given(st.floats(18, 30))
@settings(max_examples=50, deadline=None)
def test_least_product_undoes_the_loss_of_the_best_split(exponent: float) -> None:
    assert least_product(best_split(10**exponent).loss) == pytest.approx(10**exponent, rel=1e-6)


def test_law_gives_its_published_split_of_chinchillas_budget() -> None:
    """Besiroglu et al. find about 20 tokens a parameter at 5.76e23 operations, as Chinchilla itself had."""
    best = best_split(5.76e23 / 6)
    assert 15 < best.tokens / best.num_parameters < 30
    assert loss(70e9, tokens=1.4e12) == pytest.approx(1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658)


def test_deepseeks_split_keeps_to_its_own_product() -> None:
    # M D = C in their law; its two constants multiply to 1 within their rounding.
    assert DEEPSEEK_LAW["M"] * DEEPSEEK_LAW["D"] == pytest.approx(1.0, abs=2e-4)
    split = deepseek_split(1e24)
    assert split.product == pytest.approx(1e24)
    assert split.tokens == pytest.approx(DEEPSEEK_LAW["D"] * 6e24 ** DEEPSEEK_LAW["D_exponent"], rel=2e-3)


def test_rule_of_thumb_is_near_the_one_published_pair() -> None:
    assert dense_equivalent(total=144_600_000_000, active=22_200_000_000) == pytest.approx(67.4e9, rel=0.2)
    assert dense_equivalent(total=100, active=100) == 100


@pytest.fixture(scope="module")
def found() -> Answer:
    side, choices = sides_of(V3, setting=setting())
    return answer(V3, side=side, choices=choices, setting=setting())


def test_the_same_dollars_pay_the_tokens_and_the_parameters_that_are_named(found: Answer) -> None:
    side, choices = sides_of(V3, setting=setting())
    naive = undo_all(side, [choice for choice in choices if choice.in_chain])
    assert setting(tokens=found.naive_tokens).training_usd(naive) == pytest.approx(found.budget_usd, rel=0.05)
    assert found.naive_parameters * 14.8e12 == pytest.approx(found.naive_tokens * count_parameters(V3.config).total)


def test_algorithms_are_worth_what_the_naive_way_would_pay_more(found: Answer) -> None:
    product = found.best_parameters * found.best_tokens
    assert product == pytest.approx(found.naive_parameters * 14.8e12)
    assert best_split(found.worth * product).loss == pytest.approx(found.model_loss)
    assert found.worth_if_active < found.worth < found.worth_if_total
    assert found.worth > 1
    assert found.equivalent_parameters == pytest.approx(math.sqrt(671.03e9 * 37.55e9), rel=1e-3)
    assert found.naive_equal_usd == pytest.approx(found.worth * found.budget_usd)


def test_paragraph_names_its_figures_and_its_limits(found: Answer) -> None:
    side, choices = sides_of(V3, setting=setting())
    output = walk(side, choices, "output", setting=setting())
    text = paragraph(found, name="V3", rows=rl_rows(V3.config, setting=setting()), output=output, setting=setting())
    assert text.startswith("A better algorithm. $")
    assert f"worth {found.worth:.1f}x compute" in text
    assert "\nLimits: " in text


def test_a_model_without_choices_gets_no_verdict() -> None:
    shape = replace(V3, config=replace(find_shape("smollm2").config, num_kv_heads=9))
    chosen = setting(gpu=replace(setting().gpu, teraflops={"bfloat16": 989.5, "float32": 67.0}))
    side, choices = sides_of(shape, setting=chosen)
    assert choices == []
    output = walk(side, choices, "output", setting=chosen)
    one = answer(shape, side=side, choices=choices, setting=chosen)
    text = paragraph(one, name="it", rows=rl_rows(shape.config, setting=setting()), output=output, setting=chosen)
    assert "has no choice here" in text
