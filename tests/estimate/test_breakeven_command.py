"""`aha cost breakeven` and `aha cost solved`: the verdict first, the assumptions named, every refusal in a line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha import cli
from aha.cost import Bill, BillPhase, EntryKind, Ledger, LedgerRow, machine_price
from aha.errors import AhaError
from aha.estimate.breakeven import Pay
from aha.estimate.breakeven.options import BreakEvenOptions
from aha.estimate.breakeven.rate import RateOptions
from aha.estimate.breakeven.text import run_break_even
from aha.evaluate.result import Sample, summarise
from aha.types import Outcome

MANIFEST = {
    "task": "countdown", "split": "test", "problem_seed": 0, "num_samples": 1, "temperature": 0.6, "top_p": 0.95,
    "top_k": 0, "min_p": 0.0, "max_tokens": 256, "stop": [], "extractor": "", "problems_sha256": "abc",
    "model": "", "price": "",
}  # fmt: skip


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Aha = Callable[[str], Ran]


@pytest.fixture
def aha(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Aha:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))

    def call(arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["aha", "cost", *arguments.split()])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, *capsys.readouterr())

    return call


def write_evaluation(path: Path, *, num_right: int, tokens: int, cost_usd: float | None = None, **changed: Any) -> None:
    """500 problems, an answer each."""
    samples = {
        f"p{index}": [
            Sample(
                answer=str(index),
                is_correct=index % 500 < num_right,
                outcome=Outcome.SCORED,
                num_tokens=tokens,
                num_thinking_tokens=None,
                is_truncated=False,
            )
        ]
        for index in range(500)
    }
    found = summarise("after", {**MANIFEST, **changed}, samples, wall_seconds=6.0, cost_usd=cost_usd)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found.to_json(), encoding="utf-8")


def write_run(folder: Path) -> None:
    """As `aha train countdown` leaves one: $0.0054 in all, 445 of 500 right with 60 tokens each, in 6 s."""
    phases = (
        BillPhase(name="evaluation before", seconds=6.0, completion_tokens=32_000),
        BillPhase(name="sampling", seconds=110.0, prompt_tokens=20_000, completion_tokens=1_200_000),
        BillPhase(name="training", seconds=121.0, trained_tokens=1_000_000),
        BillPhase(name="evaluation after", seconds=6.0, completion_tokens=30_000),
    )
    Bill(phases=phases, price=machine_price("cpu-2core-hour", on=date(2026, 6, 1))).write(folder / "bill.json")
    write_evaluation(folder / "eval" / "after.json", num_right=445, tokens=60)
    write_evaluation(folder / "eval" / "before.json", num_right=285, tokens=64)


GIVEN = (
    "--training-usd 500 --input-tokens 800 --output-tokens 1500 --price 2 --tokens-per-second 9000/2500 --overhead 1"
)
THEN = "--against deepseek-r1,openai-o1 --on 2025-01-31"


def test_first_line_is_the_verdict(aha: Aha) -> None:
    first = {
        load: aha(f"breakeven {GIVEN} {THEN} {load}").out.splitlines()[0]
        for load in ("--requests-per-day 100", "--requests-per-day 1e6", "", "--requests-per-day 0")
    }
    assert first["--requests-per-day 100"].startswith("use the API (deepseek-r1): at 100 requests a day owning costs")
    assert first["--requests-per-day 1e6"].startswith("own it: pays back after ")
    assert first[""].startswith("unclear: owning beats deepseek-r1 above 13,")
    assert first["--requests-per-day 0"] == "use the API (deepseek-r1): without requests nothing pays back"


def test_narrow_terminal_leaves_out_what_can_be_had_elsewhere(aha: Aha, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = f"breakeven {GIVEN} {THEN} --requests-per-day 100"
    assert "after tokens" in aha(asked).out.split("What would turn it over")[0]
    monkeypatch.setenv("COLUMNS", "90")
    lines = aha(asked).out.partition("\n\n")[2].splitlines()
    assert "after tokens" not in "\n".join(lines).split("What would turn it over")[0]
    assert max(map(len, lines)) <= 112


def test_never_is_said_plainly(aha: Aha) -> None:
    # 800/9000 + 1500/2500 = 0.689 busy seconds of $2 an hour are $0.383 per 1,000 requests.
    ran = aha(f"breakeven {GIVEN} --against 0.01/0.1 --requests-per-day 1e6")
    assert ran.out.splitlines()[0] == (
        "use the API (API at $0.01/0.01/0.1): owning never pays back: "
        "1,000 requests cost $0.383 at full load, the API $0.158"
    )
    assert "no load is enough" in ran.out


def test_the_cheapest_api_is_the_one_to_beat_and_each_has_its_row(aha: Aha) -> None:
    found = json.loads(aha(f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --json").out)
    assert [row["api"] for row in found["apis"]] == ["deepseek-r1", "openai-o1"]
    assert [row["verdict"] for row in found["apis"]] == ["api", "own"]
    assert (found["api"], found["verdict"]) == ("deepseek-r1", "api")
    # o1: 10,000 requests of 800 x $15 + 1,500 x $60 a million, every day; one machine at $2 an hour.
    saved = 10_000 * 30.4375 * 0.102 - 2 * 730.5
    assert found["apis"][1]["break_even_months"] == pytest.approx(500 / saved)
    assert found["apis"][1]["break_even_tokens"] == pytest.approx(500 / saved * 30.4375 * 10_000 * 2300)


def test_columns_of_dollars_have_as_many_decimals_each(aha: Aha) -> None:
    lines = aha(f"breakeven {GIVEN} --on 2026-11-25 --requests-per-day 100").out.split("\n\n")[1].splitlines()
    figures = [re.findall(r"  (\d[\d,]*\.\d+)(?= )", line + " ") for line in lines[2:-1]]
    assert len(figures) > 5
    for column in zip(*(row[:5] for row in figures), strict=True):
        assert len({len(figure.partition(".")[2]) for figure in column}) == 1, column


def test_keys_for_scripts_are_those_of_the_page(aha: Aha) -> None:
    found = json.loads(aha(f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --json").out)
    page = (Path(__file__).parents[2] / "docs" / "breakeven.md").read_text(encoding="utf-8")
    keys = set(found) | {key for name in ("apis", "flips", "sensitivity", "outlooks", "assumptions")
                         for key in found[name][0]}  # fmt: skip
    missing = [key for key in sorted(keys) if f"`{key}`" not in page]
    assert not missing, f"docs/breakeven.md does not describe {missing}"
    for promised in ("break_even_tokens", "break_even_months", "break_even_utilisation", "verdict",
                     "cost_usd_per_solved", "sensitivity", "assumptions"):  # fmt: skip
        assert promised in found


def test_every_option_that_decides_is_among_the_assumptions(aha: Aha) -> None:
    found = json.loads(aha(f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --json").out)
    named = " ".join(row["option"] for row in found["assumptions"])
    for option in ("--training-usd", "--engineering-usd", "--overhead", "--months", "--elasticity", "--max-utilisation",
                   "--pay", "--price", "--gpus", "--tokens-per-second", "--input-tokens", "--cached-tokens",
                   "--output-tokens", "--api-output-ratio", "--requests-per-day", "--pass-at-1-own",
                   "--pass-at-1-api"):  # fmt: skip
        assert option in named, option
    assert all(row["source"] for row in found["assumptions"])
    assert "your time is not counted" in aha(f"breakeven {GIVEN} {THEN}").out.lower()


def test_run_brings_its_dollars_tokens_and_speed(aha: Aha) -> None:
    write_run(Path("runs/countdown"))
    text = f"breakeven countdown {THEN} --input-tokens 40 --requests-per-day 10000"
    found = json.loads(aha(f"{text} --json").out)
    assert found["training_usd"] == pytest.approx(243 / 3600 * 0.08)
    assert (found["input_tokens"], found["output_tokens"]) == (40, 60)
    assert found["usd_per_replica_hour"] == pytest.approx(0.08 * 1.35)
    assert found["utilisation"] == pytest.approx(10_000 * 60 * 6 / 30_000 / 86_400)
    assert aha(text).out.startswith("use the API (deepseek-r1): at 10,000 requests a day owning costs $78.89 a month")


def test_solved_tasks_are_compared_where_pass_at_1_is_given(aha: Aha) -> None:
    text = f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --pass-at-1-own 0.5 --pass-at-1-api 1 --json"
    found = json.loads(aha(text).out)
    plain = json.loads(aha(f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --json").out)
    assert found["break_even_utilisation"] == pytest.approx(2 * plain["break_even_utilisation"])
    never = json.loads(aha(text.replace("0.5", "0")).out)
    assert (never["verdict"], never["cost_usd_per_solved"]) == ("api", None)
    assert "your own model never solves a task" in never["headline"]


def test_interval_of_an_evaluation_can_leave_the_answer_open(aha: Aha) -> None:
    write_evaluation(Path("ours/eval.json"), num_right=445, tokens=60)
    text = f"breakeven {GIVEN} {THEN} --pay second --requests-per-day 10000 --training-usd 0 --pass-at-1-own ours"
    assert json.loads(aha(f"{text} --pass-at-1-api 0.9 --json").out)["verdict"] == "own"
    # $0.383 / p of one's own meets $3.725 / 0.9 of the API at p = 0.0926, which the interval of 46 in 500 holds.
    write_evaluation(Path("ours/eval.json"), num_right=46, tokens=60)
    found = json.loads(aha(f"{text} --pass-at-1-api 0.9 --json").out)
    assert found["verdict"] == "unclear"
    assert found["headline"].startswith("unclear: within the 95 % intervals of pass@1")


def test_model_is_predicted_from_its_shape(aha: Aha) -> None:
    text = (
        "breakeven DeepSeek-V3 --gpu h200 --precision float8 --input-tokens 2000 --output-tokens 1000 --on 2026-06-01"
    )
    found = json.loads(aha(f"{text} --against 0.5/2 --requests-per-day 1000 --json").out)
    assert found["training_usd"] == 0
    assert found["basis"].startswith("predicted: roofline")
    assert found["verdict"] == "api"
    set_by = {row["name"]: row for row in found["assumptions"]}
    assert set_by["slowest answer"]["option"] == "--user-speed"
    assert any(name.startswith("roofline: ") for name in set_by)


def test_close_call_is_named(aha: Aha) -> None:
    # 10,000 requests cost $1,133.80 a month at R1's price; a machine at $1.50 an hour costs $1,095.75.
    text = f"breakeven {GIVEN} --price 1.5 --training-usd 0 --against deepseek-r1 --on 2025-01-31 --requests-per-day"
    assert "A close call: it turns at x0.966 of one assumption" in aha(f"{text} 10000").out
    assert "A close call" not in aha(f"{text} 20000").out


def test_every_api_of_the_day_is_asked_where_none_is_named(aha: Aha) -> None:
    text = f"breakeven {GIVEN} --on 2026-11-25 --requests-per-day 1000"
    found = json.loads(aha(f"{text} --json").out)["apis"]
    costs = [row["api_cost_usd_per_solved"] for row in found]
    assert costs == sorted(costs)
    assert {"openai-gpt-6-luna", "deepseek-flash"} <= {row["api"] for row in found}
    assert f"and {len(found) - 12} dearer ones" in aha(text).out


def test_prices_of_the_outlook_fall_and_demand_grows(aha: Aha) -> None:
    outlooks = json.loads(aha(f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --json").out)["outlooks"]
    stay, *others = outlooks
    assert (stay["api_price_fall_per_year"], stay["elasticity"]) == (0, 0)
    grown = [row for row in others if row["api_price_fall_per_year"] == 0.9 and row["elasticity"] == 1.0]
    assert grown[0]["api_usd_per_month_at_horizon"] == pytest.approx(stay["api_usd_per_month_at_horizon"])
    assert grown[0]["requests_per_day_at_horizon"] > 10_000
    none = json.loads(aha(f"breakeven {GIVEN} {THEN} --requests-per-day 10000 --elasticity 0 --json").out)
    assert {row["elasticity"] for row in none["outlooks"]} == {0}


def test_day_whose_price_changes_with_the_hour_is_that_of_an_even_load(aha: Aha) -> None:
    # A Wednesday: 01 to 04 and 06 to 10 UTC at twice the price.
    text = f"breakeven {GIVEN} --against deepseek-flash --requests-per-day 10 --on 2026-11-25"
    mean, peak, low = (
        json.loads(aha(f"{text}{at} --json").out)["api_usd_per_month"] for at in ("", "T02:00Z", "T12:00Z")
    )
    assert peak == pytest.approx(2 * low)
    assert mean == pytest.approx((7 * peak + 17 * low) / 24)
    assert "7 h deepseek-flash@" in aha(text).out


def test_ledger_brings_speed_price_and_lengths(aha: Aha, tmp_path: Path) -> None:
    price = machine_price("cpu-2core-hour", on=date(2026, 6, 1))
    with Ledger.open(tmp_path / "home" / "ledger.db") as ledger:
        for _ in range(4):
            ledger.record(
                LedgerRow(
                    kind=EntryKind.REQUEST,
                    run_id="serve tiny",
                    phase="/v1/chat/completions",
                    price=price,
                    cost_nano_usd=price.cost_nano_usd(9000),
                    wall_ms=9000,
                    prompt_tokens=1000,
                    cached_tokens=100,
                    completion_tokens=900,
                )
            )
    found = json.loads(aha(f"breakeven tiny {THEN} --measured --requests-per-day 100 --json").out)
    assert (found["input_tokens"], found["cached_tokens"], found["output_tokens"]) == (1000, 100, 900)
    assert found["usd_per_replica_hour"] == pytest.approx(0.08 * 1.35, rel=1e-4)
    # Nine seconds of one machine each, however prompt and answer share them.
    assert found["utilisation"] == pytest.approx(100 * 9 / 86_400)
    assert found["basis"].startswith("measured: 4 requests of the ledger")
    ran = aha(f"breakeven tiny {THEN} --measured --gpu h200")
    assert (ran.code, "give one of --measured" in ran.err) == (2, True)
    empty = aha(f"breakeven tiny {THEN} --measured --run nobody")
    assert (empty.code, "has no request of 'nobody'" in empty.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (f"{THEN}", ["what training costs is not known", "--training-usd"]),
        (f"some-model {THEN}", ["input tokens are not known", "'some-model' is no run here", "--input-tokens"]),
        (f"m {THEN} --input-tokens 1 --output-tokens 1", ["--tokens-per-second", "--gpu h200"]),
        (f"m {THEN} --input-tokens 1 --output-tokens 1 --tokens-per-second 5/5", ["--price"]),
        (f"m {THEN} --input-tokens 1 --output-tokens 1 --tokens-per-second 5", ["IN/OUT", "'5'"]),
        (f"m {THEN} --input-tokens 1 --output-tokens 1 --tokens-per-second 5/0 --price 1", ["above 0"]),
        (f"m {THEN} --input-tokens 1 --output-tokens 1 --tokens-per-second 5/5 --gpu h200", ["not both"]),
        (f"m {THEN} --input-tokens 1 --output-tokens 1 --gpu h2000 --price 1", ["unknown GPU 'h2000'"]),
        (f"{GIVEN} --against deepseek-r9 --on 2025-01-31", ["deepseek-r9", "deepseek-r1"]),
        (f"{GIVEN} --against deepseek-r1 --on 2019-01-31", ["deepseek-r1", "2019"]),
        (f"{GIVEN} --on 2019-01-31", ["2019-01-31", "--against"]),
        (f"{GIVEN} --against 1/x", ["usd_per_million_output", "'x'"]),
        (f"{GIVEN} --on yesterday", ["2025-01-31", "'yesterday'"]),
        (f"{GIVEN} --on 2026-01-01T10:00", ["--on is a day"]),
        (f"{GIVEN} {THEN} --requests-per-day -5", ["requests_per_day", "-5"]),
        (f"{GIVEN} {THEN} --requests-per-day nan", ["requests_per_day", "nan"]),
        (f"{GIVEN} {THEN} --cached-tokens 900", ["part of input_tokens: 900 of 800"]),
        (f"{GIVEN} {THEN} --pass-at-1-own 0.9", ["give both", "--pass-at-1-own"]),
        (f"{GIVEN} {THEN} --pass-at-1-own 1.9 --pass-at-1-api 1", ["--pass-at-1-own", "1.9"]),
        (f"{GIVEN} {THEN} --pass-at-1-own nowhere --pass-at-1-api 1", ["no evaluation at 'nowhere'"]),
        (f"{GIVEN} {THEN} --months 0", ["horizon_months"]),
        (f"{GIVEN} {THEN} --elasticity 99", ["elasticity must be a number from 0 to 10"]),
        (f"{GIVEN} {THEN} --overhead 0.5", ["overhead is a factor of at least 1"]),
        (f"{GIVEN} {THEN} --max-utilisation 0", ["max_utilisation must be above 0"]),
        (f"{GIVEN} {THEN} --gpus -1", ["--gpus"]),
        (f"{GIVEN} {THEN} --accepted nan", ["--accepted is of a prediction", "--gpu h200"]),
        (f"{GIVEN} {THEN} --user-speed 50", ["--user-speed is of a prediction"]),
        (f"{GIVEN} {THEN} --assume memory=2", ["--assume is of a prediction"]),
        (f"{GIVEN} {THEN} --run nobody", ["--run names a server", "--measured"]),
        (f"{GIVEN} --against OpenAI-O1 --on 2025-01-31", ["did you mean 'openai-o1'?"]),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(aha: Aha, arguments: str, parts: list[str]) -> None:
    ran = aha(f"breakeven {arguments}")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
    assert not [part for part in parts if part not in ran.err], ran.err


@pytest.mark.parametrize(
    "bill", ["[]", "{", '{"cost_usd": "much"}', '{"cost_usd": -1}', '{"cost_usd": 1e400}', "[" * 9999]
)
def test_broken_bill_is_refused_in_a_line(aha: Aha, bill: str) -> None:
    Path("run").mkdir()
    Path("run/bill.json").write_text(bill)
    ran = aha(f"breakeven run {THEN} --input-tokens 9 --output-tokens 9 --tokens-per-second 9/9 --price 1")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
    assert "run/bill.json" in ran.err


def test_solved_ranks_evaluations_by_dollars(aha: Aha) -> None:
    write_run(Path("runs/countdown"))
    write_evaluation(Path("api/eval.json"), num_right=475, tokens=900, cost_usd=1.2, price="deepseek-r1@2025-01-20")
    ran = aha("solved runs/countdown api --reprice deepseek-r1 --on 2025-01-31 --input-tokens 40")
    first, *_ = ran.out.splitlines()
    # The run's closing evaluation by its bill: 6 s at $0.08 an hour for 445 right ones.
    assert first.startswith("runs/countdown costs $0.000300 per 1,000 solved tasks, the least; ")
    found = json.loads(aha("solved runs/countdown api --json").out)
    assert found["cheapest"] == "runs/countdown"
    assert found["is_certain"] is True
    ours, theirs = found["evaluations"]
    assert ours["cost_usd_per_solved"] == pytest.approx(6 * 0.08 / 3600 / 445)
    assert theirs["cost_usd_per_solved"] == pytest.approx(1.2 / 475)
    assert "at our token counts" in ran.out


def test_keys_of_solved_are_those_of_the_page(aha: Aha) -> None:
    write_run(Path("runs/countdown"))
    found = json.loads(aha("solved runs/countdown runs/countdown/eval/before.json --json").out)
    page = (Path(__file__).parents[2] / "docs" / "breakeven.md").read_text(encoding="utf-8")
    keys = {*found, *found["evaluations"][0], *found["pairs"][0]}
    assert not [key for key in sorted(keys) if f"`{key}`" not in page]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("nowhere", ["no evaluation at 'nowhere'"]),
        ("unpriced", ["knows no dollars", "--reprice"]),
        ("unpriced --reprice deepseek-r1 --on 2025-01-31", ["--input-tokens"]),
        ("unpriced --reprice deepseek-r1 --on 2025-01-31 --input-tokens 5 --cached-tokens 6", ["6 of 5"]),
        ("unpriced --reprice deepseek-r1 --on 2025-01-31 --input-tokens -5", ["input_tokens"]),
        ("other ours", ["different problems"]),
        ("broken", ["mean_tokens", "evaluate again"]),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(aha: Aha, arguments: str, parts: list[str]) -> None:
    write_evaluation(Path("unpriced/eval.json"), num_right=4, tokens=60)
    write_evaluation(Path("ours/eval.json"), num_right=4, tokens=60, cost_usd=1.0)
    write_evaluation(Path("other/eval.json"), num_right=4, tokens=60, cost_usd=1.0, task="sums")
    text = Path("ours/eval.json").read_text().replace('"mean_tokens": 60.0', '"mean_tokens": "many"')
    Path("broken").mkdir()
    Path("broken/eval.json").write_text(text)
    ran = aha(f"solved {arguments}")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
    assert not [part for part in parts if part not in ran.err], ran.err


PAGE = (Path(__file__).parents[2] / "docs" / "breakeven.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_says_what_the_page_shows(aha: Aha, command: str) -> None:
    write_run(Path("runs/countdown"))
    ran = aha(command.removeprefix("aha cost "))
    assert ran.code == 0, ran.err
    following = PAGE[PAGE.index(command) :].partition("```\n")[2].lstrip()
    if following.startswith("```text\n"):
        assert ran.out.startswith(following.removeprefix("```text\n").partition("```")[0])
    else:
        assert ran.out.startswith(("own it: ", "use the API "))


EXTREMES = st.sampled_from([0.0, 1e-9, 0.5, 1.0, 1000.0, 1e11])


@settings(max_examples=40, deadline=None)
@given(
    amounts=st.tuples(*[EXTREMES] * 5),
    load=st.none() | EXTREMES,
    shares=st.tuples(*[st.sampled_from(["0", "1e-9", "0.5", "1"])] * 2),
    price=st.sampled_from(["0", "0.000000001", "2", "1000000"]),
    vendor=st.sampled_from(["0/0", "0.000001/0.000001", "1/10", "1000000/1000000"]),
    pay=st.sampled_from(["month", "second"]),
    months=st.sampled_from([0.001, 12.0, 120.0]),
    elasticity=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_extremes_are_answered_or_refused_but_never_break(
    amounts: tuple[float, ...], load: float | None, shares: tuple[str, str], price: str, vendor: str, pay: Pay,
    months: float, elasticity: float,
) -> None:  # fmt: skip
    training, engineering, tokens_in, cached, tokens_out = amounts
    options = BreakEvenOptions(
        model="m", against=[vendor], on=date(2026, 11, 25),
        rate=RateOptions(tokens_per_second="1e12/1e-3", price=price),
        training_usd=training, engineering_usd=engineering, input_tokens=tokens_in, cached_tokens=cached,
        output_tokens=tokens_out, requests_per_day=load, pass_at_1_own=shares[0], pass_at_1_api=shares[1], pay=pay,
        horizon_months=months, elasticity=elasticity,
    )  # fmt: skip
    try:
        text, answer = run_break_even(options, form="text"), run_break_even(options, form="json")
    except AhaError:
        return
    assert text.startswith(("own it: ", "use the API ", "unclear: "))
    found = json.loads(answer, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert text.splitlines()[0] == found["headline"]


@pytest.mark.parametrize("command", ["solved", f"breakeven {GIVEN} {THEN} --pass-at-1-api 1 --pass-at-1-own"])
def test_evaluations_that_are_none_are_refused_in_a_line(aha: Aha, command: str) -> None:
    write_evaluation(Path("bad/eval.json"), num_right=4, tokens=60)
    path = Path("bad/eval.json")
    whole = json.loads(path.read_text())
    texts = [json.dumps({**whole, "manifest": []}), json.dumps({**whole, "pass_at_1": 2}), "{", "[]", "[" * 9999]
    for text in texts:
        path.write_text(text)
        ran = aha(f"{command} bad")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), (text[:80], ran)
    ran = aha(f"{command} {'x' * 5000}")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
