"""`--verify` finds whatever is done to a ledger from outside; each corruption is made with raw SQL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from aha.cost import Ledger
from aha.cost.ledger.report import verify_ledger
from aha.cost.ledger.schema import connect_to_read
from aha.cost.ledger.verify import verify

from .conftest import machine_row, write_some

BySql = Callable[..., list[tuple[object, ...]]]


def rewritten(old: str, new: str) -> str:
    """Edits a table's definition in the schema itself, as a tampering hand would."""
    return f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}')"


FREE = ("DROP TRIGGER entry_is_never_changed", "DROP TRIGGER entry_is_never_deleted",
        "DROP TRIGGER posting_is_never_changed", "DROP TRIGGER posting_is_never_deleted",
        "DROP TRIGGER price_is_never_changed", "DROP TRIGGER price_is_never_deleted",
        "DROP TRIGGER charge_is_never_changed", "DROP TRIGGER charge_is_never_deleted")  # fmt: skip
FIRST = "WHERE entry_id = 1"


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (("UPDATE entry SET cost_nano_usd = cost_nano_usd + 1 " + FIRST,), "entry 1 costs 23 nano-dollars, and 22 at"),
        (("UPDATE entry SET wall_ms = 999999 " + FIRST,), "entry 1 costs 22 nano-dollars, and 22,222,200 at its price"),
        (("UPDATE entry SET prompt_tokens = 7 WHERE entry_key = 'request:1'",), "nano-dollars, and"),
        (("UPDATE entry SET run_id = 'other' " + FIRST,), "is not the sum of its entries"),
        (("UPDATE entry SET phase = 'other' " + FIRST,), "entry 1 is not as it was written: its seal is broken"),
        (("UPDATE entry SET recorded_at_ms = recorded_at_ms - 1 " + FIRST,), "seal is broken"),
        (("DELETE FROM posting WHERE entry_id = 2", "DELETE FROM entry WHERE entry_id = 2"), "entries 2 to 2 are gone"),
        (("DELETE FROM charge", "DELETE FROM entry WHERE entry_id = (SELECT max(entry_id) FROM entry)"), "grand total"),
        (("UPDATE posting SET amount_nano_usd = 5 WHERE entry_id = 1 AND amount_nano_usd < 0",), "do not balance: +27"),
        (("DELETE FROM posting WHERE entry_id = 1",), "entry 1 is not posted to its expense"),
        (("UPDATE posting SET amount_nano_usd = 2 * amount_nano_usd WHERE entry_id = 1",), "entry 1 is not posted"),
        (("INSERT INTO account VALUES (99, 'machine:mine')",
          "UPDATE posting SET account_id = 99 WHERE entry_id = 1 AND amount_nano_usd < 0"), "'machine:mine', which is"),
        (("INSERT INTO account VALUES (99, 'machine:mine')",
          "UPDATE posting SET account_id = 99 WHERE entry_id = 4 AND amount_nano_usd < 0"), "4 is not posted as what"),
        (("UPDATE entry SET price_id = 'nobody@2026-01-01' " + FIRST,), "'nobody@2026-01-01', which the ledger does"),
        (("UPDATE price SET nano_usd_per_hour = nano_usd_per_hour * 2",), "at its price 'cpu-2core-hour@2025-01-01'"),
        (("UPDATE rollup SET num_entries = num_entries + 1",), "is not the sum of its entries"),
        (("DELETE FROM rollup",), "has entries that its rollup does not have"),
        (("UPDATE grand_total SET cost_nano_usd = 0",), "the grand total says"),
        (("DROP INDEX entry_by_key", "UPDATE entry SET entry_key = 'run:1' WHERE entry_id = 2"), "is booked 2 times"),
        (("UPDATE entry SET amends_entry_id = 4 WHERE entry_id = 5",), "entry 5 amends an amendment"),
        (("UPDATE budget_period SET spent_nano_usd = 0",), "budget 'all', day 0: spent 0 nano-dollars"),
        (("UPDATE budget_period SET reserved_nano_usd = 78",), "reserved 78 nano-dollars, and reservations hold 77"),
        (("UPDATE charge SET amount_nano_usd = 1",), "was charged 1"),
        (("DELETE FROM reservation",), "reservations hold 0"),
        (("UPDATE entry SET basis = 'list_price' " + FIRST,), "is of list_price, and 'cpu-2core-hour@2025-01-01' is"),
        (("PRAGMA ignore_check_constraints = ON", "UPDATE entry SET trained_tokens = -1 " + FIRST), "CHECK constraint"),
        (("DROP TRIGGER entry_is_summed",), "trigger entry_is_summed is missing"),
        (("DROP INDEX entry_by_run",), "index entry_by_run is missing"),
        (("CREATE TABLE mine (x)",), "table mine is not of a ledger"),
        ((rewritten("the ledger is append-only", "hm"),), "trigger entry_is_never_changed has been changed"),
        (("PRAGMA user_version = 1",), "the file says version 1"),
    ],
)  # fmt: skip
def test_corruption_is_found(path: Path, by_sql: BySql, statements: tuple[str, ...], found: str) -> None:
    write_some(path)
    by_sql(*([] if "has been changed" in found else FREE), *statements)
    with closing(connect_to_read(path)) as connection:
        findings = verify(connection)
    assert any(found in finding for finding in findings), findings


def test_whole_ledger_is_consistent_in_one_line(path: Path) -> None:
    write_some(path)
    findings, said = verify_ledger(path=path)
    assert findings == []
    assert said.startswith(f"{path}: 7 entries, $")
    assert said.endswith(": consistent")


def test_triggers_that_are_put_back_hide_nothing(path: Path, by_sql: BySql) -> None:
    write_some(path)
    (trigger,) = by_sql("SELECT sql FROM sqlite_master WHERE name = 'entry_is_never_changed'")
    by_sql("DROP TRIGGER entry_is_never_changed", "UPDATE entry SET phase = 'x' WHERE entry_id = 3", str(trigger[0]))
    findings, said = verify_ledger(path=path)
    assert findings == ["entry 3 is not as it was written: its seal is broken"]
    assert said == f"{path}: 1 thing is inconsistent; the file is left as it is, restore a copy or begin a new one"


@pytest.mark.parametrize("page", [2, 5, 9])
def test_broken_page_is_found(path: Path, by_sql: BySql, page: int) -> None:
    write_some(path)
    by_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096 * page)
        file.write(b"\xa5" * 4096)
    findings, _ = verify_ledger(path=path)
    assert any("damaged file" in finding or "malformed" in finding for finding in findings), findings


def test_file_that_is_no_ledger_is_said(path: Path) -> None:
    path.write_text("my novel, chapter one. " * 100)
    assert verify_ledger(path=path)[0] == ["damaged file: file is not a database"]


def test_many_findings_of_one_kind_are_counted(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.record_many([machine_row(ms) for ms in range(1, 40)])
    by_sql("DROP TRIGGER entry_is_never_changed", "UPDATE entry SET phase = 'x'")
    findings, _ = verify_ledger(path=path)
    assert "… and 29 more like the last one" in findings
