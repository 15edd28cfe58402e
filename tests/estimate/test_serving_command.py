"""`aha cost serve` as it is typed: every mode, as text and for scripts, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aha import cli
from aha.cost.ledger import EntryKind, Ledger, LedgerRow
from aha.cost.prices import machine_price
from aha.errors import AhaError
from aha.estimate.serving.check import check_serving, median_error
from aha.estimate.serving.command import ServingQuestion, run_serving
from aha.estimate.serving.table import describe_groups

GUIDE = Path(__file__).parents[2] / "docs" / "serving_cost.md"
V3 = ServingQuestion(model="DeepSeek-V3", gpu="h200", precision="float8", on="2026-06-01")


def ask(**changes: Any) -> Any:
    question = {**vars(V3), **changes}
    return json.loads(run_serving(ServingQuestion(**question), form="json"))


def test_answer_begins_with_the_dollars_and_ends_with_the_assumptions() -> None:
    lines = run_serving(V3, form="text").splitlines()
    assert re.match(r"deepseek-ai/DeepSeek-V3: \$\d+\.\d\d a million tokens when fully busy", lines[0])
    assert "at our token counts" in " ".join(lines)
    assert any(line.startswith("Assumptions") for line in lines)
    assert max(map(len, lines)) <= 120


def test_costs_at_five_utilisations_are_inverse_to_them() -> None:
    costs = {row["utilisation"]: row["usd_per_million_output"] for row in ask()["costs"]}
    assert list(costs) == [0.05, 0.2, 0.5, 0.8, 1.0]
    assert costs[0.05] == pytest.approx(20 * costs[1.0])


def test_january_2025_stands_beside_it_at_our_token_counts() -> None:
    apis = {row["price_id"]: row for row in ask(input_tokens=1000, output_tokens=1000, cache_hits=0.0)["comparisons"]}
    r1 = apis["deepseek-r1@2025-01-20"]
    assert r1["usd_per_million_blended"] == pytest.approx((0.55 + 2.19) / 2)
    assert apis["openai-o1@2025-01-01"]["usd_per_million_blended"] == pytest.approx((15 + 60) / 2)
    assert r1["cheaper_above_utilisation"] == pytest.approx(
        ask(input_tokens=1000, output_tokens=1000)["costs"][-1]["usd_per_million_blended"]
        / r1["usd_per_million_blended"]
    )


def test_api_that_is_never_dearer_says_never() -> None:
    assert "never" in run_serving(ServingQuestion(**{**vars(V3), "price": "900"}), form="text")
    assert all(row["cheaper_above_utilisation"] is None for row in ask(price="9000")["comparisons"])


def test_price_in_dollars_is_what_a_gpu_hour_costs() -> None:
    shown = ask(price="2", overhead=1.0, num_gpus=16)
    assert shown["usd_per_hour"] == 32
    assert shown["num_gpus"] == 16


def test_own_rates_stand_in_for_predicted_ones() -> None:
    shown = ask(gpu="", price="3.6", overhead=1.0, tokens_per_second="1000/100")
    assert shown["costs"][-1]["usd_per_million_input"] == pytest.approx(1)
    assert shown["costs"][-1]["usd_per_million_output"] == pytest.approx(10)


def test_published_day_says_that_it_is_reproduced() -> None:
    text = run_serving(ServingQuestion(mode="published"), form="text")
    assert text.startswith("DeepSeek's inference day: 5 published figures reproduced within 0.1%")
    assert len(ask(mode="published")["figures"]) == 10


def test_check_holds_its_errors() -> None:
    rows = check_serving()
    held_out = [row for row in rows if row.role == "held out"]
    assert len(held_out) >= 60
    assert all(row.source for row in rows)
    assert median_error(held_out) <= 0.15
    shown = ask(mode="check")
    assert shown["median_error"]["held_out"] == pytest.approx(median_error(held_out))
    assert (
        run_serving(ServingQuestion(mode="check"), form="text").splitlines()[0].startswith(f"{len(held_out)} figures")
    )


def test_guide_has_the_table_of_errors_as_it_is() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for line in describe_groups(check_serving()):
        assert line in guide, f"docs/serving_cost.md lacks: {line}"


def test_every_key_for_scripts_is_in_the_guide() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    keys = {*ask(), *ask()["costs"][0], *ask()["comparisons"][0], *ask()["decode_terms"][0], *ask()["assumptions"][0]}
    keys |= {*ask(mode="published"), *ask(mode="published")["figures"][0]}
    keys |= {*ask(mode="check"), *ask(mode="check")["figures"][0]}
    assert not [key for key in sorted(keys) if f"`{key}`" not in guide]


def serve_some(count: int) -> None:
    price = machine_price("cpu-2core-hour", on=V3.when)
    with Ledger.open() as ledger:
        for index in range(count):
            wall_ms = 100 + 10 * index
            ledger.record(
                LedgerRow(
                    kind=EntryKind.REQUEST, run_id="serve tiny", phase="/v1/chat/completions", price=price,
                    cost_nano_usd=price.cost_nano_usd(wall_ms), wall_ms=wall_ms, prompt_tokens=30, completion_tokens=9,
                )
            )  # fmt: skip
            time.sleep(0.002)


def test_measured_reads_the_users_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))
    serve_some(4)
    text = run_serving(ServingQuestion(mode="measured", server="serve tiny"), form="text")
    assert "Note: only 4 requests" in text
    shown = ask(mode="measured", model="", gpu="")
    assert (shown["num_requests"], shown["output_tokens"], shown["split"]) == (4, 36, "together")
    assert ask(mode="measured")["split"] == "roofline"
    guide = GUIDE.read_text(encoding="utf-8")
    assert not [key for key in shown if f"`{key}`" not in guide]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "name the MODEL to predict"),
        ({"gpu": ""}, "name the GPU, e.g. --gpu h200"),
        ({"gpu": "h1000"}, "unknown GPU 'h1000'; did you mean"),
        ({"model": "no-such-model-here"}, "no-such-model-here"),
        ({"price": "h2000-hour"}, "unknown machine price 'h2000-hour'"),
        ({"on": "yesterday"}, "--on must be a day or a moment such as 2025-01-31"),
        ({"compare": ("gpt-99",)}, "gpt-99"),
        ({"assume": ("speed=9",)}, "unknown assumption 'speed'"),
        ({"tokens_per_second": "100"}, "--tokens-per-second must be PROMPT/ANSWER"),
        ({"tokens_per_second": "0/1"}, "--tokens-per-second must be PROMPT/ANSWER"),
        ({"tokens_per_second": "nan/1"}, "--tokens-per-second must be PROMPT/ANSWER"),
        ({"tokens_per_second": "9/9", "gpu": ""}, "needs the price of an hour"),
        ({"overhead": 0.5}, "overhead must be from 1 to 100"),
        ({"mode": "measured", "since": "now"}, "--since must be a day or a moment"),
    ],
)
def test_question_that_cannot_be_answered_is_refused_in_one_line(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))
    with pytest.raises(AhaError) as refused:
        ask(**changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("command", commands())
def test_command_of_the_guide_runs(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))
    serve_some(3)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err


def test_two_modes_at_once_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["aha", "cost", "serve", "--published", "--check"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "aha: choose one of --published, --check\n"


def test_option_of_the_ledger_is_refused_where_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["aha", "cost", "serve", "tiny", "--gpu", "h100", "--since", "yesterday"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--since chooses among the ledger's requests: add --measured" in capsys.readouterr().err


def test_prices_that_may_have_ended_do_not_stand_among_those_of_the_day() -> None:
    shown = {row["name"] for row in ask(on="2026-11-25")["comparisons"]}
    assert not shown & {"groq-llama-3-70b", "google-gemini-2.5-pro"}
    assert {"openai-o1", "deepseek-r1", "openai-gpt-6.2-sol"} <= shown
