"""What `aha cost prices` answers: published ratios, that they are a date's, forms for scripts, one-line errors."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aha.cli import app
from aha.cost.prices import token_names
from aha.cost.prices.answer import PriceQuestion, answer_prices
from aha.cost.prices.table import dollars
from aha.errors import ConfigError

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def ask(*names: str, **fields: Any) -> str:
    return answer_prices(PriceQuestion(names=names, **fields), now=NOW)


def ask_json(*names: str, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(*names, form="json", **fields))
    return answer


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))


def test_o1_over_r1_is_what_was_published_in_january_2025() -> None:
    (ratio,) = ask_json("o1", "deepseek-r1", ask="compare", on="2025-01-31")["ratios"]
    assert ratio["price_id"] == "openai-o1@2025-01-01"
    assert ratio["over_price_id"] == "deepseek-r1@2025-01-20"
    figures = [ratio[f"{kind}_ratio"] for kind in ("input", "cached", "output", "blended_3_to_1")]
    assert figures == pytest.approx([27.3, 53.6, 27.4, 27.3], abs=0.05)
    text = ask("o1", "deepseek-r1", ask="compare", on="2025-01-31")
    assert re.search(r"openai-o1 / deepseek-r1 +27\.3x +53\.6x +27\.4x +27\.3x\n", text)


def test_comparison_says_that_it_is_a_snapshot_and_where_the_market_stands_today() -> None:
    text = " ".join(ask("o1", "deepseek-r1", ask="compare", on="2025-01-31").split())
    assert "A spread is the snapshot of a date, here of 2025-01-31." in text
    assert "Today no price of deepseek-r1 is known" in text
    assert "On 2026-11-25, a million output tokens of an open model cost $0.60 (deepseek-flash)" in text
    assert "Cheapest closed over cheapest open, 0.83x: the closed one is cheaper." in text
    assert "* third-party record" in text


def test_ratios_of_autumn_2026_are_those_of_the_lists() -> None:
    answer = ask_json("gpt-6-luna", "deepseek-flash", ask="compare", on="2026-10-28")
    by_id = {ratio["over_price_id"]: ratio["output_ratio"] for ratio in answer["ratios"]}
    assert by_id["deepseek-flash@2026-10-17"] == pytest.approx(0.833, abs=0.001)
    answer = ask_json("gpt-6-astra", "deepseek-v4-pro", ask="compare", on="2026-10-28")
    by_id = {ratio["over_price_id"]: ratio["output_ratio"] for ratio in answer["ratios"]}
    assert by_id["deepseek-v4-pro@2026-08-22T16:00Z+peak"] == pytest.approx(12.6, abs=0.05)
    assert answer["ratios_today"], "both are sold today"


def test_comparison_without_a_day_falls_back_to_the_last_on_which_all_were_sold_and_says_so() -> None:
    text = ask("o1", "deepseek-r1", ask="compare")
    assert "shown for 2025-09-04, the last day on which all had one" in " ".join(text.split())
    with pytest.raises(ConfigError, match="'deepseek-r1' is not known for 2026-11-25"):
        ask("o1", "deepseek-r1", ask="compare", on="2026-11-25")


def test_tables_fit_100_columns_and_shorten_sources_that_json_has_whole() -> None:
    forms: list[dict[str, Any]] = [{}, {"tier": "all"}, {"of": "machines"}, {"sources": "full"}, {"on": "2025-01-31"}]
    forms += [{"ask": "history"}, {"ask": "history", "sources": "full"}]
    for fields in forms:
        names = token_names() if fields.get("ask") == "history" else []
        lines = ask(*names, **fields).splitlines()
        # An address has no place to break; every other line ends by column 100.
        assert all(len(line) <= 100 or line.strip().startswith("http") for line in lines), fields
    prices = {row["price_id"]: row for row in ask_json()["prices"]}
    assert prices["openai-gpt-6-luna@2026-09-22"]["source"].startswith("https://developers.openai.com/api/docs/models/")


def test_columns_stand_below_their_heads() -> None:
    lines = ask("gpt-6-luna", "deepseek-flash").splitlines()
    for title, first in (("open weights", "  deepseek-flash "), ("closed", "  openai-gpt-6-luna ")):
        head = next(line for line in lines if line.startswith(title))
        row = next(line for line in lines if line.startswith(first))
        assert head.index("output") + len("output") == re.search(r"0\.[56]0 ", row).end() - 1  # type: ignore[union-attr]
        assert head.index("from") == row.index("2026-")


def test_json_keys_are_the_documented_ones() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "prices.md").read_text(encoding="utf-8")
    answer = ask_json("o1", "deepseek-r1", ask="compare", on="2025-01-31")
    machines = ask_json(of="machines")
    keys = {*answer, *answer["prices"][0], *answer["ratios"][0], *answer["spread"], *machines["prices"][0]}
    assert not [key for key in sorted(keys) if f"`{key}`" not in documented]


def test_csv_has_the_rows_of_json() -> None:
    rows = list(csv.DictReader(io.StringIO(ask(form="csv"))))
    listed = ask_json()["prices"]
    assert [row["price_id"] for row in rows] == [row["price_id"] for row in listed]
    assert rows[0].keys() == listed[0].keys()
    assert [float(row["usd_per_million_output_tokens"]) for row in rows] == [
        row["usd_per_million_output_tokens"] for row in listed
    ]


def test_moment_shows_the_one_price_of_that_hour() -> None:
    def ids(on: str) -> list[str]:
        return [row["price_id"] for row in ask_json("deepseek-r1", on=on)["prices"]]

    assert ids("2025-03-01T17:00Z") == ["deepseek-r1@2025-02-26T16:30Z+off-peak"]
    assert ids("2025-03-01T12:00+00:00") == ["deepseek-r1@2025-01-20"]
    assert len(ids("2025-03-01")) == 2


def test_history_is_oldest_first_and_machines_have_theirs() -> None:
    starts = [row["effective_from"] for row in ask_json("deepseek-v4-pro", ask="history")["prices"]]
    assert len(starts) == 5
    assert starts == sorted(starts)
    hours = [row["usd_per_hour"] for row in ask_json("h100-index-hour", ask="history", of="machines")["prices"]]
    assert hours == [1.70, 2.35]


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        (["gpt9"], {}, "unknown token price 'gpt9'"),
        (["o1"], {"on": "yesterday"}, "--on must be a day such as 2025-01-31 .* got 'yesterday'"),
        (["o1"], {"on": "2025-03-01T17:00"}, "has no time zone"),
        (["o1"], {"ask": "compare"}, "--compare needs two names or more, got 1"),
        ([], {"ask": "history"}, "--history needs a name"),
        (["o1"], {"tier": "batch"}, "has no tier 'batch'; choose from: standard"),
        ([], {"tier": "gold"}, "no price of tier 'gold'"),
        (["gpt-6-sol"], {"prompt_tokens": 300_000}, "not known for a prompt of 300,000 tokens"),
        (["h100-hour", "h200-hour"], {"of": "machines", "ask": "compare"}, "--compare sets token prices"),
        (["o1", "deepseek-r1"], {"ask": "compare", "on": "2020-01-01"}, "'openai-o1' .*is not known for 2020-01-01"),
    ],
)
def test_question_that_cannot_be_answered_is_an_error_of_one_line(
    names: list[str], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ask(*names, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pico_usd", "words"),
    [(3_625, "0.003625"), (15_000_000, "15.00"), (550_000, "0.55"), (0, "0.00"), (75_000, "0.075")],
)
def test_dollars_are_exact_with_two_decimals_or_more(pico_usd: int, words: str) -> None:
    assert dollars(pico_usd) == words


def test_command_line_takes_names_before_and_after_its_flags() -> None:
    run = CliRunner().invoke(app, ["cost", "prices", "--compare", "o1", "deepseek-r1", "--on", "2025-01-31"])
    assert run.exit_code == 0, run.output
    assert "27.4x" in run.output
    run = CliRunner().invoke(app, ["cost", "prices", "deepseek-r1", "--history", "--json"])
    assert len(json.loads(run.output)["prices"]) == 2
    assert "aha cost prices --compare o1 deepseek-r1" in CliRunner().invoke(app, ["cost", "prices", "--help"]).output
