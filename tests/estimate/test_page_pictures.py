"""The pictures of `aha cost page`: each number is that of the function it comes from, or of a published figure."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aha.cost.prices import LETTER_DATE, machine_price, token_price
from aha.cost.prices.compare import spread_on
from aha.errors import DataError
from aha.estimate.charts import Spot
from aha.estimate.page import Gap, Picture
from aha.estimate.page import breakeven as own_or_call_pictures
from aha.estimate.page.breakeven import load_picture, months_picture, own_or_call, utilisation_picture
from aha.estimate.page.prices import FIRST_MOMENT, history_picture, short_name, spread_picture
from aha.estimate.page.published import phases, scores
from aha.estimate.page.quality import pareto, priced_scores, quality_picture, read_solved, solved_picture
from aha.estimate.page.spread import Stretch, blended_usd_per_million, end_of, history, spread_over_time
from aha.estimate.page.training import phases_picture, waterfall_picture
from aha.estimate.page.words import Words
from aha.estimate.training import bill_training
from aha.estimate.training.public_runs import public_runs
from aha.evaluate import Entry, EvalResult

DAY = date(2025, 3, 1)
EN = Words("en")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No prices of whoever runs the tests."""
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def result(name: str, **fields: Any) -> EvalResult:
    values: dict[str, Any] = {
        "name": name, "manifest": {"model": name, "task": "countdown"}, "num_problems": 500, "num_completions": 500,
        "pass_at_1": 0.89, "interval_low": 0.86, "interval_high": 0.92, "pass_at_k": {1: 0.89}, "cons_at_k": 0.89,
        "truncated_fraction": 0.0, "parse_failure_fraction": 0.0, "error_fraction": 0.0, "mean_tokens": 75.0,
        "mean_thinking_tokens": 67.0, "completion_tokens": 37_500, "wall_seconds": 60.0,
        "problem_scores": {"0": (1, 1)}, "cost_usd": 0.00133, "usd_per_solved": 0.00133 / 445,
    }  # fmt: skip
    return EvalResult(**{**values, **fields})


def test_letter_of_january_2025_is_marked_with_27_times() -> None:
    picture = spread_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    assert "In January 2025 o1's output cost 27.4× that of R1" in picture.title
    assert "o1 / R1, 2025-01: 27.4×" in picture.drawings[1].desk


def test_spread_is_that_of_aha_cost_prices_on_every_day_without_a_change() -> None:
    spreads = spread_over_time(until=date(2026, 11, 1))
    num_days = 0
    for spread in spreads:
        day = (spread.start + timedelta(days=1)).date()
        if end_of(day) >= spread.end:
            continue
        found = spread_on(day)
        assert found is not None
        for end in ("dearest_closed", "cheapest_closed", "dearest_open", "cheapest_open"):
            assert getattr(spread, end).pico_usd_per_output_token == getattr(found, end).pico_usd_per_output_token
        num_days += 1
    assert num_days > 10
    assert all(before.end <= after.start for before, after in pairwise(spreads))


def test_spread_ratios_are_closed_over_open() -> None:
    last = spread_over_time(until=date(2026, 11, 1))[-1]
    assert last.end == end_of(date(2026, 11, 1))
    assert last.dearest_ratio == (
        last.dearest_closed.pico_usd_per_output_token / last.dearest_open.pico_usd_per_output_token
    )
    assert last.cheapest_ratio == (
        last.cheapest_closed.pico_usd_per_output_token / last.cheapest_open.pico_usd_per_output_token
    )


def test_history_has_the_prices_of_the_book(home: Path) -> None:
    picture = history_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    keys = [column.key for column in picture.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in picture.rows]
    o1 = next(row for row in rows if row["model"] == "openai-o1")
    price = token_price("openai-o1", on=LETTER_DATE)
    assert o1["usd_per_million_output"] == price.pico_usd_per_output_token / 10**6 == 60.0
    assert o1["price_id"] == price.price_id
    assert all(str(row["effective_from"]) <= "2025-03-01T99" for row in rows)
    assert [row["hours"] for row in rows if row["price_id"] == "deepseek-r1@2025-02-26T16:30Z+off-peak"] == [
        "off-peak: 16:30-00:30"
    ]


def test_third_party_prices_have_hollow_marks() -> None:
    picture = history_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    drawn = str(picture.drawings[0].desk)
    began = [stretch for stretch in history(until=DAY) if stretch.start >= FIRST_MOMENT]
    hollow = sum(stretch.price.confidence != "primary" for stretch in began)
    assert 0 < hollow < len(began)
    assert len(re.findall("dot (?:main|second) hollow", drawn)) == hollow
    assert len(re.findall("dot (?:main|second) full", drawn)) == len(began) - hollow


def test_line_grows_faint_half_a_year_after_its_source() -> None:
    o1 = next(stretch for stretch in history(until=date(2026, 11, 1)) if stretch.price.name == "openai-o1")
    assert o1.fresh_until.date() == o1.price.source_date + timedelta(days=183)
    assert not o1.is_current
    picture = history_picture(EN, day=date(2026, 11, 1))
    assert isinstance(picture, Picture)
    assert "curve second stale" in picture.drawings[0].desk


def test_short_name_drops_the_maker_where_the_rest_says_enough() -> None:
    prices = {stretch.series: stretch.price for stretch in history(until=date(2025, 2, 20))}
    assert short_name(prices["openai-o1"]) == "openai-o1"
    assert short_name(prices["anthropic-claude-3.5-sonnet"]) == "claude-3.5-sonnet"
    assert short_name(prices["deepseek-r1"]) == "deepseek-r1"


def test_blended_prices_of_o1_and_r1_are_those_worked_out_by_hand() -> None:
    o1, r1 = (token_price(name, on=LETTER_DATE) for name in ("openai-o1", "deepseek-r1"))
    assert blended_usd_per_million(o1) == pytest.approx((3 * 15 + 60) / 4) == pytest.approx(26.25)
    assert blended_usd_per_million(r1) == pytest.approx((3 * 0.55 + 2.19) / 4) == pytest.approx(0.96)


def test_published_scores_are_those_of_the_r1_report() -> None:
    found = {score.model: score.scores for score in scores()}
    assert found["DeepSeek-R1"] == {"aime_2024": 79.8, "math_500": 97.3, "gpqa_diamond": 71.5}
    assert found["o1-1217"] == {"aime_2024": 79.2, "math_500": 96.4, "gpqa_diamond": 75.7}
    assert found["R1-Distill-Qwen-32B"]["aime_2024"] == 72.6
    assert all(0 <= value <= 100 for row in found.values() for value in row.values())


def test_quality_is_left_out_without_two_priced_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = quality_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    assert "27.3× the price" in picture.title
    assert len(picture.rows) == len(scores())
    monkeypatch.setattr("aha.estimate.page.quality.scores", lambda: scores()[:0])
    assert isinstance(quality_picture(EN, day=DAY), Gap)


def test_unpriced_scores_are_in_the_table_without_a_price() -> None:
    distilled = next(row for row in priced_scores(until=DAY) if row.score.model == "R1-Distill-Qwen-1.5B")
    assert distilled.price is None
    assert distilled.usd is None


@given(st.lists(st.builds(Spot, st.floats(0.01, 100), st.floats(0, 100)), max_size=12))
def test_pareto_keeps_exactly_those_that_no_other_beats(spots: list[Spot]) -> None:
    def is_beaten(spot: Spot) -> bool:
        return any(o.x <= spot.x and o.y >= spot.y and o != spot for o in spots)

    assert set(pareto(spots)) == {spot for spot in spots if not is_beaten(spot)}


@pytest.mark.parametrize("value", ["0.5", None, 1.5, float("nan"), True])
def test_evaluation_without_a_score_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(DataError, match="pass_at_1 of 'x' must be a share from 0 to 1"):
        read_solved(Entry(label="x", result=result("x", pass_at_1=value)))


@pytest.mark.parametrize("usd", [None, "1", 0.0, -1.0, float("inf"), float("nan"), 1e300])
def test_evaluation_without_a_usable_price_is_unpriced(usd: Any) -> None:
    entry = Entry(label="x", result=result("x", usd_per_solved=usd))
    assert read_solved(entry).usd_per_solved is None
    assert isinstance(solved_picture(EN, entries=[entry]), Gap)


def test_solved_picture_names_the_cheapest() -> None:
    entries = [Entry(label=n, result=result(n, usd_per_solved=usd)) for n, usd in (("dear", 0.02), ("cheap", 0.004))]
    picture = solved_picture(EN, entries=entries)
    assert isinstance(picture, Picture)
    assert picture.title == "cheap solves a problem for $0.004, the least of these evaluations"


def test_phases_add_up_to_the_published_dollars() -> None:
    v3 = [phase for phase in phases() if phase.model == "DeepSeek-V3"]
    assert sum(phase.gpu_hours for phase in v3) == 2_788_000
    picture = phases_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    assert sum(row[3] for row in picture.rows[:3]) == 5_576_000  # type: ignore[misc]
    assert sum(row[3] for row in picture.rows[3:]) == 294_000  # type: ignore[misc]
    assert picture.title.replace("\N{NO-BREAK SPACE}", " ") == (
        "DeepSeek-V3 took $5.58 M of GPU time by its report, and the thinking of R1 $294 K on top"
    )


def test_waterfall_is_the_training_bill_term_by_term() -> None:
    picture = waterfall_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    public = next(run for run in public_runs() if run.name == "DeepSeek-V3")
    price = machine_price("h800-hour@2024-12-27", on=DAY)
    bill = bill_training(public.config, run=replace(public.run, tokens=14.8e12), price=price)
    assert bill.gpu_hours == pytest.approx(2_664_000, rel=0.1)
    keys = [column.key for column in picture.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in picture.rows]
    assert [row["term"] for row in rows] == [term.name for term in bill.terms]
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(bill.cost_usd)  # type: ignore[misc]
    assert sum(row["gpu_hours"] for row in rows) == pytest.approx(bill.gpu_hours)  # type: ignore[misc]


def test_breakeven_pictures_hold_the_numbers_of_the_functions() -> None:
    found = own_or_call(EN, day=DAY)
    assert not isinstance(found, str)
    load, months = load_picture(EN, day=DAY), months_picture(EN, day=DAY)
    assert isinstance(load, Picture)
    assert isinstance(months, Picture)
    used = utilisation_picture(EN, day=DAY)
    assert isinstance(used, Picture)
    for row, case in zip(used.rows, found.cases, strict=True):
        assert row[:3] == (case.api.name, case.api.price_id, case.break_even_utilisation)
        assert row[4:7] == (case.api_usd_per_task, case.own_usd_per_task, case.break_even_months)
    owning = found.cases[0].owning
    for requests, replicas, own_usd, *api_usd in load.rows:
        assert own_usd == replicas * owning.usd_per_replica_month  # type: ignore[operator]
        for usd, case in zip(api_usd, found.cases, strict=True):
            assert usd == pytest.approx(requests * 365.25 / 12 * case.api_usd_per_task)  # type: ignore[operator]
    last = months.rows[-1]
    case = found.cases[0]
    assert last[0] == 24
    assert last[1] == pytest.approx(case.owning.once_usd + 24 * case.owning.usd_per_month(case.work))
    assert last[2] == pytest.approx(24 * (case.api_usd_per_month or 0))


def test_picture_without_a_machine_price_is_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_or_call_pictures, "GPU_NAMES", ("no-such-gpu",))
    gap = load_picture(EN, day=DAY)
    assert isinstance(gap, Gap)
    assert "unknown GPU 'no-such-gpu'" in gap.reason


def test_price_with_hours_is_a_line_of_its_own(home: Path) -> None:
    home.mkdir(parents=True)
    prices = "\n".join(f'{kind}_per_million = "3"' for kind in ("input", "cached", "output"))
    (home / "prices.toml").write_text(
        '[[token]]\nname = "acme-x"\nprovider = "acme"\nmodel = "x"\nis_open_weight = false\ncurrency = "USD"\n'
        f'{prices}\neffective_from = 2025-02-01\nsource = "test"\nsource_date = 2025-02-01\n'
    )
    names = {stretch.series for stretch in history(until=DAY) if stretch.price.provider == "acme"}
    assert names == {"acme-x"}


def test_stretch_ends_with_the_day_of_the_page() -> None:
    stretches: list[Stretch] = history(until=DAY)
    assert all(stretch.end <= end_of(DAY) for stretch in stretches)
    assert end_of(DAY) == datetime(2025, 3, 1, 23, 59, 59, tzinfo=UTC)
    assert any(stretch.is_current for stretch in stretches)


def test_load_with_a_dot_is_one_at_which_both_cost_the_same() -> None:
    picture = load_picture(EN, day=DAY)
    assert isinstance(picture, Picture)
    odd = [row for row in picture.rows if row[0] not in {f * 10.0**p for p in range(2, 8) for f in (1, 2, 5)}]
    assert odd
    for row in odd:
        assert any(usd == pytest.approx(row[2]) for usd in row[3:])


def test_gpus_without_a_price_on_the_day_give_way_to_those_that_have_one() -> None:
    for day, gpu in ((DAY, "h800"), (date(2026, 11, 25), "h200")):
        found = own_or_call(EN, day=day)
        assert not isinstance(found, str)
        assert found.serving.plan.gpu.name == gpu
