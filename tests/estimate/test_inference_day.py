"""DeepSeek's published inference day, to 0.1 %."""

from __future__ import annotations

import pytest

from aha.estimate.serving.inference_day import TOLERANCE, inference_day


def figures() -> dict[str, float]:
    return {row.name: row.value for row in inference_day().derived()}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cost_usd", 87_072),
        ("revenue_usd", 562_027),
        ("margin", 562_027 / 87_072 - 1),
        ("cached_share", 0.563),
        ("average_nodes", 226.75),
    ],
)
def test_published_figure_is_reproduced_within_a_thousandth(name: str, published: float) -> None:
    assert figures()[name] == pytest.approx(published, rel=TOLERANCE)
    assert next(row for row in inference_day().derived() if row.name == name).published == pytest.approx(published)


def test_cost_is_exactly_the_published_one() -> None:
    assert inference_day().cost_usd == 226.75 * 8 * 24 * 2 == 87_072


def test_revenue_is_each_class_of_tokens_at_r1s_price() -> None:
    assert inference_day().revenue_usd == pytest.approx(342e3 * 0.14 + (608e3 - 342e3) * 0.55 + 168e3 * 2.19)


def test_cost_of_input_and_output_adds_up_to_the_days() -> None:
    found = figures()
    together = found["usd_per_million_input"] * 608e3 + found["usd_per_million_output"] * 168e3
    assert together == pytest.approx(87_072)
    # At their own speeds: 16 dollars an hour for a node.
    assert found["usd_per_million_output"] == pytest.approx(16 / 3600 / 14_800 * 1e6, rel=TOLERANCE)


def test_margin_is_545_percent_to_the_digit_that_was_printed() -> None:
    assert f"{562_027 / 87_072 - 1:.0%}" == "545%"
    assert figures()["margin"] == pytest.approx(5.45, abs=0.01)


def test_day_for_scripts_has_source_inputs_and_errors() -> None:
    shown = inference_day().to_dict()
    assert shown["inputs"]["output_tokens"] == 168_000_000_000
    assert "open-infra-index" in shown["source"]
    assert all(abs(figure["error"]) <= TOLERANCE for figure in shown["figures"] if figure["error"] is not None)
