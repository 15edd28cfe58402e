"""SIGKILL between any two statements loses and doubles nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from aha.cost import EntryKind, Ledger, LedgerFilter
from aha.cost.ledger import BudgetRefusedError
from aha.cost.ledger.report import verify_ledger

from .conftest import O1, machine_row, token_row

ROOT = Path(__file__).parents[2]
LIMIT = 10**9


def workload(path: Path) -> Iterator[str]:
    """Says what it has been promised, as it is. Done again from the start it leaves the same ledger."""
    with Ledger.open(path) as ledger:
        ledger.record_many([machine_row(ms, key=f"run:{ms}") for ms in (10, 20)])
        yield "two"
        ledger.record(machine_row(25, key="run:20"), on_difference="amend")
        yield "amended"
        ledger.correct(LedgerFilter(kind=EntryKind.REQUEST), price=O1)
        ledger.budgets.set("all", limit_nano_usd=LIMIT)
        held = ledger.budgets.reserve(
            "all", amount_nano_usd=10**8, kind=EntryKind.REQUEST, run_id="serve", phase="/v1", entry_key=_key(path)
        )
        ledger.budgets.mark_sent(held)
        ledger.budgets.settle(held, row=token_row(10, completion_tokens=20))
        yield "settled"


def _key(path: Path) -> str:
    """A request of one process: the next process asks again, and pays again."""
    return f"request:{os.getpid()}:{path.name}"


def fork_and_kill_at(path: Path, statement: int) -> tuple[list[str], bool]:
    """The workload in a child that is killed as it begins its Nth statement; what it was promised, and if it ended."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child of this one needs none
        child = os.fork()
    if child == 0:
        os.close(read)
        _run_and_die(path, statement, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        promised = pipe.read().decode().split()
    _, status = os.waitpid(child, 0)
    return promised, os.WIFEXITED(status)


def _run_and_die(path: Path, statement: int, write: int) -> None:
    import sqlite3

    left = statement
    connect = sqlite3.connect

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)  # type: ignore[arg-type]
        connection.set_trace_callback(count)
        return connection

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlite3.connect = traced  # type: ignore[assignment]
    code = 1
    try:
        for said in workload(path):
            os.write(write, f"{said}\n".encode())
        code = 0
    finally:
        os._exit(code)


def check(path: Path, promised: list[str]) -> None:
    """All that was promised is there, and nothing twice, and the books are in order."""
    assert verify_ledger(path=path)[0] == []
    with Ledger.open(path) as ledger:
        runs = ledger.totals(LedgerFilter(run_id="runs/a"))
        assert runs.wall_ms in {0: (0, 30, 35), 1: (30, 35)}.get(len(promised), (35,))
        assert runs.num_entries == {0: 0, 30: 2, 35: 3}[runs.wall_ms]
        if "settled" in promised:
            assert ledger.totals(LedgerFilter(model="o1")).num_entries == 1
        assert ledger.verify() == [], "what the opening has recovered is in order too"


def kill_everywhere(tmp_path: Path, *, step: int) -> int:
    """Kill at every `step`th statement, look, go on to the end, look again; returns how many there were."""
    statement = 1
    while True:
        path = tmp_path / f"{statement}.db"
        promised, has_ended = fork_and_kill_at(path, statement)
        if has_ended:
            return statement
        if path.exists():
            check(path, promised)
        promised, has_ended = fork_and_kill_at(path, 10**9)
        assert has_ended
        assert promised == ["two", "amended", "settled"]
        check(path, promised)
        statement += step


def test_kill_between_any_two_writes_loses_and_doubles_nothing(tmp_path: Path) -> None:
    # One in eleven on an ordinary day; the slow test takes them all.
    assert kill_everywhere(tmp_path, step=11) > 150, "the file's making, its migrations, and all that is booked"


@pytest.mark.slow
def test_kill_at_every_statement_loses_and_doubles_nothing(tmp_path: Path) -> None:
    assert kill_everywhere(tmp_path, step=1) > 150


RESERVE = """
import os, signal, sys
from pathlib import Path
from aha.cost import EntryKind, Ledger

ledger = Ledger.open(Path(sys.argv[1]))
held = ledger.budgets.reserve("all", amount_nano_usd=400, kind=EntryKind.REQUEST, run_id="serve", phase="/v1",
                              entry_key="request:7")
if sys.argv[2] == "sent":
    ledger.budgets.mark_sent(held)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("state", "spent"), [("reserved", 0), ("sent", 400)])
def test_kill_between_reserve_and_settle_is_recovered_at_the_next_start(path: Path, state: str, spent: int) -> None:
    """Not sent: the money comes back. Sent: nobody knows what it cost, so all that was reserved is spent."""
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1000)
    assert subprocess.run([sys.executable, "-c", RESERVE, str(path), state], cwd=ROOT, check=False).returncode == -9
    with Ledger.open(path) as ledger:
        assert ledger.recovery == ((1, 0) if state == "reserved" else (0, 1))
        state_now = ledger.budgets.state("all")
        assert (state_now.spent_nano_usd, state_now.reserved_nano_usd) == (spent, 0)
        assert ledger.total_nano_usd() == spent, "what the budget has spent is what its entries cost"
        assert ledger.verify() == []
    with Ledger.open(path) as ledger:
        assert ledger.recovery == (0, 0)


def test_living_processes_keep_their_reservations(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1000)
        ledger.budgets.reserve("all", amount_nano_usd=900, kind=EntryKind.REQUEST, run_id="serve", phase="/v1")
        with Ledger.open(path) as other:
            assert other.recovery == (0, 0)
            with pytest.raises(BudgetRefusedError):
                other.budgets.reserve("all", amount_nano_usd=101, kind=EntryKind.REQUEST, run_id="s", phase="/v1")
