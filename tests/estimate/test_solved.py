"""Dollars per solved task: by hand, against slow bootstraps, and what cannot be compared."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from aha.cost.prices import custom_token_price
from aha.errors import DataError
from aha.estimate.breakeven import ApiRate
from aha.estimate.breakeven.solved import compare_solved, cost_ratio, price_evaluation, reprice
from aha.estimate.breakeven.solved_text import read_lengths
from aha.evaluate import EvalResult
from aha.evaluate.statistics import bootstrap_interval

MANIFEST = {
    "task": "sums", "split": "test", "problem_seed": 0, "num_samples": 1, "temperature": 0.6, "top_p": 0.95,
    "top_k": 0, "min_p": 0.0, "max_tokens": 512, "stop": [], "extractor": "Sums.score", "problems_sha256": "abc",
}  # fmt: skip
DAY = date(2025, 1, 31)


def result(right: list[int], *, cost_usd: float | None = 0.5, tokens: float = 100.0, **changed: Any) -> EvalResult:
    """One answer a problem."""
    share = sum(right) / len(right)
    low, high = bootstrap_interval([float(value) for value in right])
    return EvalResult(
        name="eval", manifest={**MANIFEST, "model": "", **changed}, num_problems=len(right),
        num_completions=len(right), pass_at_1=share, interval_low=low, interval_high=high, pass_at_k={1: share},
        cons_at_k=share, truncated_fraction=0.0, parse_failure_fraction=0.0, error_fraction=0.0, mean_tokens=tokens,
        mean_thinking_tokens=None, completion_tokens=round(tokens * len(right)), wall_seconds=1.0,
        problem_scores={f"p{index}": (value, 1) for index, value in enumerate(right)}, cost_usd=cost_usd,
        usd_per_solved=cost_usd / sum(right) if cost_usd is not None and sum(right) else None,
    )  # fmt: skip


def draws(share: float, *, num: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [int(generator.random() < share) for _ in range(num)]


def test_solved_task_costs_an_attempt_over_pass_at_1() -> None:
    row = price_evaluation("ours", result=result([1] * 40 + [0] * 10, cost_usd=0.5))
    assert row.usd_per_attempt == pytest.approx(0.01)
    assert row.usd_per_solved == pytest.approx(0.0125) == row.result.usd_per_solved
    assert row.usd_per_million_output == pytest.approx(100)


def test_interval_is_what_a_slow_bootstrap_of_dollars_finds() -> None:
    right = draws(0.6, num=80, seed=1)
    row = price_evaluation("ours", result=result(right, cost_usd=0.8))
    generator = random.Random(2)
    costs = sorted(0.8 / sum(generator.choices(right, k=80)) for _ in range(4000))
    low, high = row.interval
    assert low == pytest.approx(costs[100], rel=0.03)
    assert high == pytest.approx(costs[3899], rel=0.03)
    assert low < row.usd_per_solved < high


def test_a_cheaper_token_that_thinks_longer_is_not_cheaper() -> None:
    right = draws(0.8, num=200, seed=3)
    price = custom_token_price("0", usd_per_million_output="2", on=DAY)
    dear = custom_token_price("0", usd_per_million_output="4", on=DAY)
    longer = reprice("long", result=result(right, tokens=3000), api=ApiRate.from_price(price), input_tokens=0)
    short = reprice("short", result=result(right, tokens=1000), api=ApiRate.from_price(dear), input_tokens=0)
    found = compare_solved([longer, short])
    assert [row.label.split()[0] for row in found.rows] == ["short", "long"]
    assert found.ratios[0].ratio == pytest.approx(1.5)
    assert found.ratios[0].is_certain
    assert found.headline.startswith("short at")


def test_interval_draws_lengths_with_right_and_wrong() -> None:
    right = draws(0.6, num=80, seed=1)
    # Wrong answers are three times as long.
    tokens = [100.0 if value else 300.0 for value in right]
    lengths = {f"p{index}": value for index, value in enumerate(tokens)}
    found = result(right, cost_usd=0.8, tokens=sum(tokens) / 80)
    row = price_evaluation("ours", result=found, tokens_by_problem=lengths)
    generator, costs = random.Random(2), []
    usd = [0.8 * value / sum(tokens) for value in tokens]
    for _ in range(4000):
        chosen = generator.choices(range(80), k=80)
        costs.append(sum(usd[i] for i in chosen) / sum(right[i] for i in chosen))
    costs.sort()
    low, high = row.interval
    assert row.usd_per_solved == pytest.approx(0.8 / sum(right))
    assert low == pytest.approx(costs[100], rel=0.04)
    assert high == pytest.approx(costs[3899], rel=0.04)
    counted = price_evaluation("ours", result=found).interval
    assert high - low > counted[1] - counted[0]


def test_equal_lengths_change_no_interval() -> None:
    right = draws(0.6, num=80, seed=1)
    lengths = {f"p{index}": 100.0 for index in range(80)}
    a, b = (price_evaluation("a", result=result(right), tokens_by_problem=known) for known in (lengths, None))
    assert a.interval == pytest.approx(b.interval, rel=0.03)
    other = price_evaluation("c", result=result(draws(0.5, num=80, seed=9)))
    assert cost_ratio(a, other).interval_high == pytest.approx(cost_ratio(b, other).interval_high)


def test_lengths_are_read_from_the_outputs_or_not_at_all(tmp_path: Path) -> None:
    found = result([1, 0], tokens=150.0)
    path = tmp_path / "eval.json"
    lines = [json.dumps({"problem_id": f"p{i}", "samples": [{"num_tokens": n}]}) for i, n in enumerate((100, 200))]
    assert read_lengths(path, result=found) == {}
    for text, known in (
        ("\n".join(lines), {"p0": 100.0, "p1": 200.0}),
        (lines[0], {}),
        ("\n".join(lines).replace("100", "101"), {}),
        ("\n".join(lines).replace("100", "1e999"), {}),
        ("\n".join(lines).replace('"p1"', "[]"), {}),
        ("[" * 9999, {}),
        ("\n".join([*lines, '{"problem_id": "p2", "samples": []}']), {}),
    ):
        path.with_suffix(".jsonl").write_text(text)
        assert read_lengths(path, result=found) == known


def test_ratio_interval_is_what_a_slow_paired_bootstrap_finds() -> None:
    hard = draws(0.5, num=150, seed=4)
    easier = [max(one, other) for one, other in zip(hard, draws(0.4, num=150, seed=5), strict=True)]
    a, b = (price_evaluation(name, result=result(right, cost_usd=1.5)) for name, right in (("a", hard), ("b", easier)))
    found = cost_ratio(b, a)
    generator, ratios = random.Random(6), []
    for _ in range(4000):
        chosen = generator.choices(range(150), k=150)
        ratios.append(sum(easier[i] for i in chosen) / sum(hard[i] for i in chosen))
    ratios.sort()
    assert found.ratio == pytest.approx(sum(easier) / sum(hard))
    assert found.interval_low == pytest.approx(ratios[100], rel=0.03)
    assert found.interval_high == pytest.approx(ratios[3899], rel=0.03)
    assert found.is_certain


def test_difference_that_may_be_chance_is_called_so() -> None:
    a = price_evaluation("a", result=result(draws(0.5, num=20, seed=7)))
    b = price_evaluation("b", result=result(draws(0.55, num=20, seed=8)))
    found = compare_solved([a, b])
    assert not found.ratios[0].is_certain
    assert found.headline.startswith("too close to call: ")
    assert found.to_dict()["is_certain"] is False


def test_never_solved_costs_without_limit_and_is_null_for_scripts() -> None:
    none, some = price_evaluation("none", result=result([0] * 20)), price_evaluation("some", result=result([1, 0] * 10))
    assert math.isinf(none.usd_per_solved)
    assert math.isinf(none.interval[1])
    assert none.interval[0] == pytest.approx(0.025 / (1 - 0.025 ** (1 / 20)))
    found = compare_solved([none, some])
    assert found.rows[0].label == "some"
    assert "none solved none" in found.headline
    assert found.to_dict()["evaluations"][1]["cost_usd_per_solved"] is None
    assert compare_solved([none]).headline.startswith("never solved")
    assert compare_solved([none, none]).to_dict()["cheapest"] is None


def test_perfect_scores_claim_no_certainty() -> None:
    a, b = (price_evaluation(name, result=result([1] * 10, cost_usd=usd)) for name, usd in (("a", 0.5), ("b", 0.55)))
    ratio = cost_ratio(a, b)
    assert ratio.interval_low < 1.1 < ratio.interval_high
    assert not ratio.is_certain


def test_free_answers_are_the_cheapest() -> None:
    free, paid = (price_evaluation(n, result=result([1, 0] * 10, cost_usd=usd)) for n, usd in (("free", 0.0), ("x", 1)))
    found = compare_solved([paid, free])
    assert found.rows[0].label == "free"
    assert "the least" in found.headline
    assert found.ratios[0].ratio is None
    assert found.ratios[0].is_certain
    both = cost_ratio(free, free)
    assert not both.is_certain
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))


def test_repriced_at_our_token_counts() -> None:
    price = custom_token_price("1", usd_per_million_cached="0.5", usd_per_million_output="10", on=DAY)
    row = reprice(
        "ours", result=result([1, 0], tokens=200), api=ApiRate.from_price(price), input_tokens=1000, cached_tokens=400
    )
    assert row.usd_per_attempt == pytest.approx((600 * 1 + 400 * 0.5 + 200 * 10) / 1e6)
    assert row.usd_per_solved == pytest.approx(2 * row.usd_per_attempt)
    assert "at our token counts" in row.basis


@pytest.mark.parametrize("changed", [{"task": "other"}, {"problems_sha256": "def"}, {"problem_seed": 1}])
def test_other_problems_are_not_compared(changed: dict[str, Any]) -> None:
    rows = [price_evaluation("a", result=result([1, 0])), price_evaluation("b", result=result([1, 0], **changed))]
    with pytest.raises(DataError, match="different problems"):
        compare_solved(rows)


def test_longer_answers_are_compared_and_the_difference_is_named() -> None:
    a = price_evaluation("a", result=result([1, 0] * 10))
    b = price_evaluation("b", result=result([1, 1] * 10, max_tokens=4096, cost_usd=2.0))
    (note,) = compare_solved([a, b]).notes
    assert "max_tokens" in note


def test_evaluation_without_dollars_says_what_to_do() -> None:
    with pytest.raises(DataError, match="--price"):
        price_evaluation("a", result=result([1, 0], cost_usd=None))
    with pytest.raises(DataError, match="different problems"):
        compare_solved([price_evaluation("a", result=result([1, 0])), price_evaluation("b", result=result([1, 0, 1]))])
    unjudged = replace(result([1, 0]), problem_scores={"p0": (1, 1), "p1": (0, 0)})
    assert cost_ratio(price_evaluation("a", result=unjudged), price_evaluation("b", result=unjudged)).ratio == 1.0
