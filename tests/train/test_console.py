"""The console on streams that are no terminal and on ones that say they are."""

from __future__ import annotations

import io

import pytest

from aha.train.console import (
    Answered,
    Baseline,
    BillLine,
    Console,
    NextCommand,
    PassRate,
    ShownProblem,
    Summary,
    sparkline,
)

STEP = {
    "kind": "step", "step": 3, "time_seconds": 12.0, "learning_rate": 2e-4, "loss": 0.1, "reward_mean": 0.4375,
    "pass_at_1": 0.41, "mean_thinking_tokens": 83.2, "entropy": 0.52, "teaching_fraction": 0.75,
    "truncated_fraction": 0.02, "grad_norm": 0.3, "tokens_per_second": 1834.0, "cost_usd": 0.0021, "note": "",
}  # fmt: skip
SFT_STEP = {
    "kind": "step", "step": 4, "time_seconds": 16.0, "learning_rate": 2e-4, "loss": 1.25, "grad_norm": 0.3,
    "tokens_per_second": 900.0, "cost_usd": 0.0022,
}  # fmt: skip
EVAL = {
    "kind": "eval", "step": 20, "pass_at_1": 0.5, "interval_low": 0.45, "interval_high": 0.55,
    "mean_thinking_tokens": 80.0,
}  # fmt: skip
SUMMARY = Summary(
    run="runs/countdown",
    before=PassRate(pass_at_1=0.36, interval_low=0.32, interval_high=0.4, num_problems=500),
    after=PassRate(pass_at_1=0.68, interval_low=0.64, interval_high=0.72, num_problems=500),
    baselines=(Baseline(label="blind search, 1 try", pass_at_1=0.1),),
    verdict="The gain is certain.",
    problems=(
        ShownProblem(
            prompt="3 7 8 > 24",
            before=Answered(text="3*7\x1b[31m", is_correct=False),
            after=Answered(text="[bold] 8*(7-3) " + "x" * 5000, is_correct=True),
        ),
    ),
    bill=(BillLine("this run", "$0.0041"),),
    next_commands=(NextCommand('aha chat runs/countdown "3 7 8 > 24"', "the thinking, then the answer"),),
)


def shown(mode: str, monkeypatch: pytest.MonkeyPatch, *, columns: int = 80) -> str:
    """Everything a run prints: two stages, a watchdog note, an evaluation, a phase, the summary."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    with Console(mode, stream=stream) as console:  # type: ignore[arg-type]
        with console.progress("evaluate before", total=8) as advance:
            for _ in range(4):
                advance(2)
        console.begin("grpo", last_step=12)
        console.row(STEP)
        console.row({**STEP, "step": 4, "time_seconds": 16.0, "note": "every group has equal rewards"})
        console.row(EVAL)
        console.begin("sft", last_step=0)
        console.row(SFT_STEP)
        console.summary(SUMMARY)
    return stream.getvalue()


def test_plain_console_writes_one_line_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown("auto", monkeypatch).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert steps[0] == (
        "step 3/12  reward 0.438  pass@1 41.0 %  thinking 83 tokens  entropy 0.520  teaching groups 75%  "
        "cut off 2%  grad norm 0.300  1834 tok/s  $0.0021  0:12  0:36 left"
    )
    assert steps[1].endswith("0:16  0:32 left")
    assert steps[2] == "step 4  loss 1.2500  learning rate 2.00e-04  grad norm 0.300  900 tok/s  $0.0022  0:16  ? left"
    assert "  every group has equal rewards" in lines
    assert "held out after step 20: pass@1 50.0 % (45.0 to 55.0), thinking 80 tokens" in lines
    assert [line for line in lines if line.startswith("evaluate before")] == [
        f"evaluate before: {done} of 8" for done in (2, 4, 6, 8)
    ]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("mode", ["plain", "live"])
def test_summary_shows_rates_answers_bill_and_commands(
    mode: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(mode, monkeypatch, columns=columns)
    for expected in (
        "36.0 %  (95 % interval 32.0 to 40.0)",
        "68.0 %  (95 % interval 64.0 to 72.0)",
        "blind search, 1 try",
        "The gain is certain.",
        "── 3 7 8 > 24 ──",
        "before, wrong: 3*7",
        "after, right: [bold] 8*(7-3)",
        "$0.0041",
        '  aha chat runs/countdown "3 7 8 > 24"  # the thinking, then the answer',
    ):
        assert expected in text
    assert "\x1b[31m" not in text, "control characters of a model reach the terminal"
    assert text.count("x" * 50) < 20, "a long answer is cut"


@pytest.mark.parametrize("columns", [80, 120])
def test_live_table_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown("live", monkeypatch, columns=columns)
    header = next(line for line in text.splitlines() if "pass@1" in line and "reward" in line)
    assert header.split()[:4] == ["step", "reward", "pass@1", "thinking"]
    assert ("grad norm" in header) == (columns == 120)
    assert max(len(line) for line in text.splitlines() if "\x1b" not in line) <= columns


def test_quiet_console_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown("quiet", monkeypatch) == ""


def test_terminal_is_restored_when_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Console("live", stream=stream) as console:
        console.row(STEP)
        raise KeyboardInterrupt
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().count(hide) == stream.getvalue().count(show) == 1


def test_missing_numbers_are_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Console("plain", stream=stream) as console:
        console.row({"kind": "step", "step": 1, "reward_mean": None})
    assert "reward -" in stream.getvalue()


def test_sparkline_spans_the_range_within_its_width() -> None:
    assert sparkline([0.0, 1.0], width=10) == "▁█"
    assert sparkline([2.0, 2.0, 2.0], width=10) == "▄▄▄"
    assert sparkline(list(range(100)), width=8) == "▁▂▃▄▅▆▇█"


def test_supervised_steps_of_sparse_models_show_their_load_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {**SFT_STEP, "mtp_loss": 2.5, "expert_load_cv": 0.125}
    for mode, columns, is_shown in (("plain", 80, True), ("live", 80, False), ("live", 120, True)):
        monkeypatch.setenv("COLUMNS", str(columns))
        stream = io.StringIO()
        with Console(mode, stream=stream) as console:  # type: ignore[arg-type]
            console.begin("sft", last_step=9)
            console.row(step)
        assert ("2.5000" in stream.getvalue()) is is_shown
        assert ("0.12" in stream.getvalue()) is is_shown
