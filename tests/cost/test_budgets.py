"""Budgets hold for any number of threads and processes; what is spent is what entries cost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aha.cost import EntryKind, Ledger, LedgerFilter
from aha.cost.ledger import BudgetRefusedError, LedgerError, Reservation

from .conftest import machine_row, token_row

ROOT = Path(__file__).parents[2]
BySql = Callable[..., list[tuple[object, ...]]]
ROW = token_row(10, completion_tokens=1)  # $0.00021


def reserve(ledger: Ledger, amount_nano_usd: int, *, name: str = "all", **labels: object) -> Reservation:
    return ledger.budgets.reserve(
        name, amount_nano_usd=amount_nano_usd, kind=EntryKind.REQUEST, run_id="serve", phase="/v1", **labels
    )  # type: ignore[arg-type]


def test_reservation_is_refused_where_it_does_not_fit(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1_000_000)
        held = reserve(ledger, 600_000)
        with pytest.raises(
            BudgetRefusedError, match=r"'all' of \$0\.001 has \$0\.0004 left and this may cost \$0\.0005"
        ):
            reserve(ledger, 500_000)
        ledger.budgets.release(held)
        ledger.budgets.release(held)  # once is enough, twice is no harm
        assert ledger.budgets.state("all").left_nano_usd == 1_000_000
        reserve(ledger, 1_000_000)
        assert ledger.budgets.state("all").left_nano_usd == 0


def test_settling_books_the_entry_and_frees_what_was_not_needed(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1_000_000)
        held = reserve(ledger, 600_000)
        first = ledger.budgets.settle(held, row=ROW)
        assert ledger.budgets.settle(held, row=ROW) == first, "once, however often it is said"
        state = ledger.budgets.state("all")
        assert (state.spent_nano_usd, state.reserved_nano_usd) == (ROW.cost_nano_usd, 0)
        assert ledger.total_nano_usd() == state.spent_nano_usd
        assert first.excess_nano_usd == 0
        assert ledger.verify() == []


def test_more_than_was_reserved_is_booked_and_kept_as_excess(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=100)
        assert ledger.budgets.settle(reserve(ledger, 100), row=ROW).excess_nano_usd == ROW.cost_nano_usd - 100
        assert ledger.total_nano_usd() == ledger.budgets.state("all").spent_nano_usd == ROW.cost_nano_usd
        with pytest.raises(BudgetRefusedError):
            reserve(ledger, 1)
        assert ledger.verify() == []
    assert by_sql("SELECT excess_nano_usd FROM charge") == [(ROW.cost_nano_usd - 100,)]


def test_budget_by_the_day_begins_anew_and_charges_the_day_of_the_reservation(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon, day_ns = 20_000 * 86_400 * 10**9, 86_400 * 10**9
    with Ledger.open(path) as ledger:
        monkeypatch.setattr(time, "time_ns", lambda: noon)
        ledger.budgets.set("daily", limit_nano_usd=1_000_000, period="day")
        held = reserve(ledger, 1_000_000, name="daily")
        monkeypatch.setattr(time, "time_ns", lambda: noon + day_ns)
        reserve(ledger, 1_000_000, name="daily")
        ledger.budgets.settle(held, row=ROW)
        assert ledger.budgets.state("daily").spent_nano_usd == 0
        monkeypatch.setattr(time, "time_ns", lambda: noon)
        assert ledger.budgets.state("daily").spent_nano_usd == ROW.cost_nano_usd
        assert ledger.verify() == []


def test_limit_can_change_and_the_period_cannot(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=10)
        ledger.budgets.set("all", limit_nano_usd=20)
        assert ledger.budgets.state("all").limit_nano_usd == 20
        with pytest.raises(LedgerError, match="goes by 'total', not 'day'"):
            ledger.budgets.set("all", limit_nano_usd=20, period="day")
        with pytest.raises(LedgerError, match="limit_nano_usd must be from 0"):
            ledger.budgets.set("other", limit_nano_usd=-1)
        with pytest.raises(LedgerError, match="unknown budget 'al'; choose from: all"):
            reserve(ledger, 1, name="al")
        with pytest.raises(LedgerError, match="a reservation is from 0"):
            reserve(ledger, 2**63)


def test_correction_of_an_entry_goes_through_to_its_budget(path: Path) -> None:
    from .conftest import R1

    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1_000_000)
        ledger.budgets.settle(reserve(ledger, 600_000), row=ROW)
        ledger.correct(LedgerFilter(), price=R1)
        assert ledger.budgets.state("all").spent_nano_usd == ledger.total_nano_usd() == 7_690
        assert ledger.verify() == []


def test_owner_that_lived_all_the_same_amends_its_worst_case(path: Path, by_sql: BySql) -> None:
    """Of another container, past its expiry: nothing here can tell that it is alive."""
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1_000_000)
        held = reserve(ledger, 600_000, lifetime_seconds=-1)
        ledger.budgets.mark_sent(held)
        by_sql("UPDATE reservation SET namespace = 'pid:[elsewhere]'")
        with Ledger.open(path) as other:
            assert other.recovery == (0, 1)
        assert ledger.budgets.state("all").spent_nano_usd == 600_000
        ledger.budgets.settle(held, row=ROW)
        assert ledger.budgets.state("all").spent_nano_usd == ledger.total_nano_usd() == ROW.cost_nano_usd
        assert ledger.verify() == []


@pytest.mark.parametrize("change", ["boot_id = 'another boot'", "started_at = '1'", "pid = 4194304"])
def test_reservation_of_a_process_that_is_no_more_is_released(path: Path, by_sql: BySql, change: str) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=1_000_000)
        reserve(ledger, 600_000)
        by_sql(f"UPDATE reservation SET {change}")
        with Ledger.open(path) as other:
            assert other.recovery == (1, 0)


def in_threads(count: int, job: Callable[[], None]) -> None:
    threads = [threading.Thread(target=job) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_64_threads_never_pass_the_limit(path: Path) -> None:
    with Ledger.open(path) as ledger:
        limit, worst = 100 * ROW.cost_nano_usd + 7, 2 * ROW.cost_nano_usd
        ledger.budgets.set("all", limit_nano_usd=limit)
        highest: list[int] = []

        def spend() -> None:
            for _ in range(6):
                try:
                    held = reserve(ledger, worst)
                except BudgetRefusedError:
                    continue
                state = ledger.budgets.state("all")
                highest.append(state.spent_nano_usd + state.reserved_nano_usd)
                ledger.budgets.settle(held, row=ROW)

        in_threads(64, spend)
        while ledger.budgets.state("all").left_nano_usd >= worst:  # what the last ones held while others were refused
            spend()
        state = ledger.budgets.state("all")
        assert max(highest) <= limit
        assert limit - worst < state.spent_nano_usd <= limit, "and it is used up as far as the worst case allows"
        assert state.spent_nano_usd == ledger.total_nano_usd()
        assert ledger.verify() == []


SPEND = """
import sys
from pathlib import Path
from aha.cost import EntryKind, Ledger
from aha.cost.ledger import BudgetRefusedError
from aha.cost import LedgerRow

row = LedgerRow(kind=EntryKind.REQUEST, run_id="s", phase="/v1", price=None, cost_nano_usd=0)
with Ledger.open(Path(sys.argv[1])) as ledger:
    for _ in range(30):
        try:
            held = ledger.budgets.reserve("all", amount_nano_usd=9, kind=EntryKind.REQUEST, run_id="s", phase="/v1")
        except BudgetRefusedError:
            continue
        from dataclasses import replace
        from aha.cost import Basis
        ledger.budgets.settle(held, row=replace(row, cost_nano_usd=7, basis=Basis.STATED))
"""


def test_processes_never_pass_the_limit(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=500)
        children = [subprocess.Popen([sys.executable, "-c", SPEND, str(path)], cwd=ROOT) for _ in range(4)]
        assert [child.wait() for child in children] == [0, 0, 0, 0]
        state = ledger.budgets.state("all")
        assert 500 - 4 * 9 < state.spent_nano_usd <= 500
        assert (ledger.total_nano_usd(), state.reserved_nano_usd) == (state.spent_nano_usd, 0)
        assert ledger.verify() == []


RECORD = """
import sys
from pathlib import Path
from aha.cost import EntryKind, Ledger, LedgerRow

with Ledger.open(Path(sys.argv[1])) as ledger:
    for number in range(int(sys.argv[3])):
        row = LedgerRow(kind=EntryKind.REQUEST, run_id="s", phase="/v1", price=None, cost_nano_usd=0,
                        key=f"{sys.argv[2]}:{number}", prompt_tokens=1)
        ledger.record(row)
"""


@pytest.mark.parametrize("count", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_processes_that_write_at_once_lose_nothing(path: Path, count: int) -> None:
    """Also the making of the file, which all of them find missing."""
    commands = [[sys.executable, "-c", RECORD, str(path), str(number), "20"] for number in range(count)]
    children = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [child.wait() for child in children] == [0] * count
    with Ledger.open(path) as ledger:
        assert ledger.num_entries() == 20 * count
        assert ledger.verify() == []


def test_threads_share_commits_and_one_failure_is_only_its_own(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(1, key="taken"))
        before = ledger.num_commits
        failures: list[LedgerError] = []

        def record() -> None:
            for number in range(10):
                ledger.record(machine_row(3))
                if number == 5:
                    try:
                        ledger.record(machine_row(2, key="taken"))
                    except LedgerError as error:
                        failures.append(error)

        in_threads(32, record)
        assert ledger.num_entries() == 1 + 320
        assert len(failures) == 32
        assert ledger.num_commits - before < 300, "several to a commit"
        assert ledger.verify() == []


def test_error_of_any_kind_is_of_its_own_job_alone(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=100)
        is_begun, go = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            is_begun.set()
            go.wait()

        failures: list[BaseException] = []

        def fail() -> None:
            try:
                reserve(ledger, 1, lifetime_seconds=1e30)  # more milliseconds than SQLite has
            except OverflowError as error:
                failures.append(error)

        jobs = (lambda: ledger._writer.run(hold), fail, lambda: ledger.record(machine_row(3)))
        threads = [threading.Thread(target=job) for job in jobs]
        threads[0].start()
        is_begun.wait()
        for thread in threads[1:]:
            thread.start()
        while len(ledger._writer._waiting) < 2:
            time.sleep(0.001)
        go.set()
        for thread in threads:
            thread.join()
        assert len(failures) == 1
        assert ledger.num_entries() == 1


def test_thread_interrupted_before_its_turn_leaves_the_lead_to_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path) as ledger:

        def interrupt() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ledger._writer, "_commit_waiting", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ledger.record(machine_row(1))
        other = threading.Thread(target=lambda: ledger.record(machine_row(2)), daemon=True)
        other.start()
        other.join(timeout=10)
        assert not other.is_alive(), "it would wait for a leader for ever"
        assert ledger.total_nano_usd() == machine_row(2).cost_nano_usd


def test_key_is_reserved_once_and_never_after_it_is_booked(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=10**9)
        held = reserve(ledger, 100, entry_key="request:1")
        with pytest.raises(LedgerError, match="the key 'request:1' is already reserved; give a new request a key"):
            reserve(ledger, 100, entry_key="request:1")
        ledger.budgets.settle(held, row=ROW)
        with pytest.raises(LedgerError, match="'request:1' is already in the ledger"):
            reserve(ledger, 100, entry_key="request:1")
        assert ledger.budgets.state("all").reserved_nano_usd == 0


def test_ledger_opens_when_a_dead_process_had_booked_the_key_of_its_reservation(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=10**9)
        held = reserve(ledger, 10**6, entry_key="request:1")
        ledger.budgets.settle(held, row=ROW)
        held = reserve(ledger, 10**6, entry_key="request:2")
        ledger.budgets.mark_sent(held)
    # As an earlier aha could leave it: the key of what has been settled is reserved again.
    by_sql("UPDATE reservation SET pid = 1, started_at = 'long ago', entry_key = 'request:1'")
    with Ledger.open(path) as ledger:
        assert ledger.recovery.num_booked == 1
        state = ledger.budgets.state("all")
        assert (state.spent_nano_usd, state.reserved_nano_usd) == (10**6, 0)
        assert ledger.verify() == []


def test_reservation_of_a_zombie_is_released(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("all", limit_nano_usd=100)
    script = (
        "import os, sys; from pathlib import Path; from aha.cost import EntryKind, Ledger\n"
        "reserve = Ledger.open(Path(sys.argv[1])).budgets.reserve\n"
        "reserve('all', amount_nano_usd=1, kind=EntryKind.REQUEST, run_id='', phase='')\n"
        "print('reserved', flush=True); os._exit(0)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.read() == b"reserved\n"  # to its end: it has died, and nobody has waited for it yet
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.exists() and ") Z " not in stat.read_text():
            time.sleep(0.01)
        with Ledger.open(path) as ledger:
            assert ledger.recovery.num_released == 1


def test_text_that_is_no_unicode_can_be_reserved_for(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.budgets.set("\ud800", limit_nano_usd=10**9)
        held = reserve(ledger, 10**6, name="\ud800", model="\udfff", entry_key="\ud801")
        ledger.budgets.settle(held, row=ROW)
        assert ledger.budgets.state("\ud800").spent_nano_usd == ROW.cost_nano_usd
        assert ledger.verify() == []


def test_locked_file_is_said_and_what_comes_after_is_booked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr("aha.cost.ledger.schema.BUSY_TIMEOUT_SECONDS", 0.05)
    with Ledger.open(path) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="database is locked"):
            ledger.record(machine_row(1))
        other.execute("ROLLBACK")
        other.close()
        ledger.record(machine_row(1))
        assert ledger.num_entries() == 1
