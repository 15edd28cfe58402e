"""The bill: totals are the sums of their parts, and a price per point is given only when points were gained."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost import Bill, BillPhase, EntryKind, Gain, Ledger, custom_machine_price, machine_price
from aha.errors import DataError

PRICE = machine_price("cpu-2core-hour", on=date(2026, 6, 1))
RISEN = Gain(before=0.36, after=0.68, interval_low=0.28, interval_high=0.36)

tokens = st.integers(0, 10**9)
phases = st.lists(
    st.builds(
        BillPhase,
        name=st.sampled_from(["eval before", "grpo", "sft", "eval after"]),
        seconds=st.floats(0, 1e7),
        prompt_tokens=tokens,
        completion_tokens=tokens,
        trained_tokens=tokens,
    ),
    max_size=8,
).map(tuple)


@settings(max_examples=40, deadline=None)
@given(phases, st.integers(0, 10_000))
def test_totals_are_the_sums_of_the_phases(parts: tuple[BillPhase, ...], cents: int) -> None:
    bill = Bill(phases=parts, price=custom_machine_price(cents / 100, on=date(2026, 6, 1)))
    written = bill.to_dict()
    assert bill.cost_nano_usd == sum(bill.phase_nano_usd(phase) for phase in parts)
    assert sum(row.cost_nano_usd for row in bill.ledger_rows("run")) == bill.cost_nano_usd
    for key in ("prompt_tokens", "completion_tokens", "trained_tokens"):
        assert written[key] == sum(phase[key] for phase in written["phases"])
    assert written["cost_usd"] == pytest.approx(sum(phase["cost_usd"] for phase in written["phases"]), abs=1e-8)
    assert written["wall_seconds"] == pytest.approx(sum(phase["wall_seconds"] for phase in written["phases"]), abs=1e-6)


def test_bill_against_numbers_computed_by_hand(tmp_path: Path) -> None:
    bill = Bill(
        phases=(
            BillPhase(name="eval before", seconds=90, prompt_tokens=5_000, completion_tokens=50_000),
            BillPhase(name="grpo", seconds=1_710, prompt_tokens=95_000, completion_tokens=950_000, trained_tokens=7),
        ),
        price=PRICE,
        gain=RISEN,
    )
    bill.write(tmp_path / "bill.json")
    written = json.loads((tmp_path / "bill.json").read_text())
    assert written["cost_usd"] == 0.04  # half an hour at $0.08
    assert [phase["cost_usd"] for phase in written["phases"]] == [0.002, 0.038]
    assert written["usd_per_point"] == pytest.approx(0.04 / 32)
    assert written["usd_per_point_reason"] == ""
    assert written["machine_price"]["price_id"] == PRICE.price_id
    assert written["machine_price"]["source_date"] == "2025-01-01"
    api = {row["model"]: row["cost_usd"] for row in written["api_comparison"]}
    assert api["openai-o1"] == pytest.approx(0.1 * 15 + 1.0 * 60)
    assert api["deepseek-r1"] == pytest.approx(0.1 * 0.55 + 1.0 * 2.19)


@pytest.mark.parametrize(
    ("gain", "reason"),
    [
        (None, "not evaluated both before and after"),
        (Gain(before=0.4, after=0.4, interval_low=-0.02, interval_high=0.02), "did not rise: 40.0 % before, 40.0 %"),
        (Gain(before=0.4, after=0.3, interval_low=-0.2, interval_high=-0.01), "did not rise"),
        (Gain(before=0.4, after=0.41, interval_low=-0.02, interval_high=0.04), "1.0 points may be chance"),
    ],
)
def test_price_per_point_is_null_with_a_reason_when_nothing_was_gained(gain: Gain | None, reason: str) -> None:
    bill = Bill(phases=(BillPhase(name="grpo", seconds=60),), price=PRICE, gain=gain)
    assert bill.to_dict()["usd_per_point"] is None
    assert reason in bill.to_dict()["usd_per_point_reason"]


def test_bill_and_ledger_agree(tmp_path: Path) -> None:
    bill = Bill(phases=(BillPhase(name="eval before", seconds=7.7), BillPhase(name="grpo", seconds=301.3)), price=PRICE)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.record_many(bill.ledger_rows("runs/a"))
        assert ledger.total_nano_usd(run_id="runs/a") == bill.cost_nano_usd
        evaluated = ledger.total_nano_usd(run_id="runs/a", kind=EntryKind.EVALUATION)
        assert evaluated == bill.phase_nano_usd(bill.phases[0])


def test_bill_of_nothing_is_zero() -> None:
    bill = Bill(phases=(), price=PRICE)
    assert (bill.cost_usd, bill.wall_seconds, bill.completion_tokens) == (0.0, 0.0, 0)


def test_bill_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write .*bill\.json"):
        Bill(phases=(), price=PRICE).write(tmp_path / "run" / "bill.json")
