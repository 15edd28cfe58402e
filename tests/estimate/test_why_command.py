"""`aha cost why` from end to end: what it prints, its JSON, bad input in one line, and docs/why.md word for word."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aha import cli
from aha.errors import ConfigError, DataError
from aha.estimate.why.command import read_count
from aha.estimate.why.measured import measured_table, read_measured
from aha.estimate.why.result import Why, explain, render
from aha.estimate.why.text import dollars
from tests.estimate.test_why import V3, setting

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "why.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results" / "why.json"
DAY = ["--on", "2025-01-31"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["aha", "cost", "why", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def v3() -> Why:
    return explain(V3, setting=setting(), measured=read_measured(str(RESULTS)))


def test_output_fits_a_hundred_columns_and_names_every_option(v3: Why) -> None:
    text = render(v3, form="text")
    assert max(map(len, text.splitlines())) <= 100
    for option in ("--price", "--tokens", "--nodes", "--speed", "--context", "--acceptance", "--trainer-share",
                   "--flat-share"):  # fmt: skip
        assert option in text.partition("\nAssumptions\n")[2]


@pytest.mark.parametrize("model", ["smollm2", "Qwen3-30B-A3B"])
def test_command_answers_for_any_model(why: Any, model: str) -> None:
    ran = why(model, "--tokens", "1T", "--nodes", "4", *DAY)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Algorithms against scale: ")
    assert "For the same dollars" in ran.out


def test_docs_show_what_the_command_prints(v3: Why) -> None:
    printed = render(v3, form="text") + "\n"
    blocks = re.findall(r"^```text\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    for block in blocks:
        assert block in printed, f"docs/why.md shows what aha cost why does not print:\n{block}"


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys_of(inner)}
    return {key for inner in value for key in keys_of(inner)} if isinstance(value, list) else set()


def test_json_has_the_documented_keys_and_the_sums_of_the_text(v3: Why) -> None:
    found = json.loads(render(v3, form="json"))
    undocumented = {key for key in keys_of(found) if f"`{key}`" not in DOCS}
    assert not undocumented
    assert found["cost_usd"] == pytest.approx(found["gpu_hours"] * found["usd_per_gpu_hour"])
    for chain in found["chains"]:
        assert chain["saved_usd"] == pytest.approx(sum(step["saved_usd"] for step in chain["steps"]))
    for row in found["rows"]:
        assert row["saved_usd"] == pytest.approx(row["without_usd"] - row["with_usd"])
        assert row["ratio"] == pytest.approx(row["without_usd"] / row["with_usd"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tokens", "many"],
            "--tokens must be a number from 1 to 1,000,000T, such as 14.8T, 200B or 3e12, got 'many'",
        ),
        (["--nodes", "0"], "--nodes must be from 1 to 1,000,000, got 0"),
        (["--gpu", "h8000"], "unknown GPU 'h8000'; did you mean 'h800'?"),
        (["--on", "yesterday"], "--on must be a day such as 2025-01-31, got 'yesterday'"),
        (["--acceptance", "1.2"], "acceptance is a share from 0 to 1, got 1.2"),
        (["--flat-share", "nan"], "flat_share is a share from 0 to 1, got nan"),
        (["--context", "0"], "context_tokens must be above 0 and finite, got 0"),
        (["--price", "nothing-hour"], "unknown machine price 'nothing-hour'"),
        (["--price", "0"], "at $0 leaves nothing to compare"),
        (
            ["--speed", "100000"],
            "no replica of 1 to 320 NVIDIA H800 SXM 80GB writes 100000 tokens a second to each reader",
        ),
        (["no/such-model-at-all"], "no/such-model-at-all"),
        (["--measured", "nothing.json"], "'nothing.json' is not a file of python -m bench.why"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(why: Any, arguments: list[str], said: str) -> None:
    ran = why(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (48e6, "$48.0M"),
        (-42_345.0, "-$42.3K"),
        (0.0273, "$0.0273"),
        (161_000, "$161K"),
        (999_700, "$1.00M"),
        (1234e9, "$1,234B"),
        (2.0, "$2.00"),
        (1e-5, "$0"),
        (-1e-5, "$0"),
    ],
)
def test_dollars_have_three_figures_and_a_unit(amount: float, text: str) -> None:
    assert dollars(amount) == text


@pytest.mark.parametrize(("text", "count"), [("14.8T", 14.8e12), ("200b", 200e9), ("3e12", 3e12), ("1K", 1000.0)])
def test_counts_are_read_with_their_unit(text: str, count: float) -> None:
    assert read_count(text, option="--tokens") == pytest.approx(count)


@pytest.mark.parametrize("text", ["", "T", "-1T", "0", "nan", "inf", "1e30", "14.8 trillion", "1TT"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--tokens must be a number"):
        read_count(text, option="--tokens")


def row(**changes: Any) -> dict[str, Any]:
    return {"choice": "a", "what": "b", "side": "c", "unit": "s", "median": 1.0, "ratio": 1.0} | changes


@pytest.mark.parametrize(
    "found",
    [
        "not json",
        "[" * 100_000,
        "[]",
        {"kind": "other", "format": 1},
        {"kind": "why", "format": 2},
        {"kind": "why", "format": 1, "rows": [], "machine": {}},
        {"kind": "why", "format": 1, "date": "d", "machine": {"processor": "p"}, "rows": ["x"]},
        {"kind": "why", "format": 1, "date": "d", "machine": {"processor": "p"}, "rows": [row(median=float("nan"))]},
        {"kind": "why", "format": 1, "date": "d", "machine": {"processor": "p"}, "rows": [row(ratio=True)]},
        {"kind": "why", "format": 1, "date": "d", "machine": {"processor": "p"}, "rows": [row(side="\x1b[2J")]},
        {"kind": "why", "format": 1, "date": "d", "machine": {"processor": "p"}, "rows": [row(what="x" * 1000)]},
        {"kind": "why", "format": 1, "date": "d", "machine": {"processor": "p"}, "rows": [row()] * 1000},
        {"kind": "why", "format": 1, "date": "d", "machine": {}, "rows": [row()]},
    ],
)
def test_a_file_that_bench_why_did_not_write_is_refused(tmp_path: Path, found: Any) -> None:
    path = tmp_path / "why.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")
    with pytest.raises(DataError, match=r"why\.json"):
        read_measured(str(path))


def test_kept_figures_are_read_and_shown() -> None:
    found = read_measured(str(RESULTS))
    table = measured_table(found)
    assert not found["is_quick"]
    assert len(table.splitlines()) == 2 + len(found["rows"])
    assert {"experts_against_total", "attention_against_full_heads", "precision", "multi_token_prediction",
            "group_baseline", "flat_groups_dropped"} <= {one["choice"] for one in found["rows"]}  # fmt: skip
