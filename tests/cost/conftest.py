"""Rows that the tests of the ledger share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from aha.cost import EntryKind, Ledger, LedgerRow, MachinePrice, machine_price, token_price
from aha.cost.prices import LETTER_DATE

PRICE = machine_price("cpu-2core-hour", on=date(2026, 6, 1))
O1 = token_price("openai-o1", on=LETTER_DATE)
R1 = token_price("deepseek-r1", on=LETTER_DATE)


def machine_row(wall_ms: int, *, price: MachinePrice = PRICE, **changes: object) -> LedgerRow:
    """A row whose amount follows from its milliseconds."""
    row = LedgerRow(
        kind=EntryKind.TRAINING, run_id="runs/a", phase="grpo", price=price, wall_ms=wall_ms,
        cost_nano_usd=price.cost_nano_usd(wall_ms), model="tiny", device="cpu", device_ms=wall_ms,
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


def token_row(prompt_tokens: int, *, completion_tokens: int, **changes: object) -> LedgerRow:
    """A row whose amount follows from its tokens."""
    row = LedgerRow(
        kind=EntryKind.REQUEST, run_id="serve tiny", phase="/v1/chat/completions", price=O1, model="o1",
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
        cost_nano_usd=O1.cost_nano_usd(prompt_tokens, completion_tokens=completion_tokens),
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger may be made."""
    return tmp_path / "ledger.db"


@pytest.fixture
def by_sql(path: Path) -> Callable[..., list[tuple[object, ...]]]:
    """Does to the file what only raw SQL can: no triggers, no checks."""

    def run(*statements: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA writable_schema = ON")
            rows: list[tuple[object, ...]] = []
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            return rows
        finally:
            connection.close()

    return run


def write_some(path: Path) -> None:
    """A small ledger with every kind of thing in it."""
    with Ledger.open(path) as ledger:
        ledger.record_many([machine_row(ms, key=f"run:{ms}") for ms in (1, 1234, 56789)])
        ledger.record(machine_row(2000, key="run:1234"), on_difference="amend")
        ledger.record(token_row(1000, completion_tokens=200, key="request:1"))
        ledger.record(replace(machine_row(5), price=None, cost_nano_usd=0, kind=EntryKind.ACTION, app="email"))
        ledger.budgets.set("all", limit_nano_usd=10**12)
        held = ledger.budgets.reserve("all", amount_nano_usd=10**9, kind=EntryKind.REQUEST, run_id="serve", phase="/v1")
        ledger.budgets.settle(held, row=token_row(10, completion_tokens=20))
        ledger.budgets.reserve("all", amount_nano_usd=77, kind=EntryKind.REQUEST, run_id="serve", phase="/v1")
