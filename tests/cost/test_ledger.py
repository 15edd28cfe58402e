"""The ledger: nothing recorded is lost, nothing is changed, nobody else reads it."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from aha.cost import EntryKind, Ledger, LedgerFilter, LedgerRow, machine_price, token_price
from aha.cost.ledger import MIGRATIONS, LedgerError, default_ledger_path
from aha.cost.prices import LETTER_DATE

PRICE = machine_price("cpu-2core-hour", on=date(2026, 6, 1))
ROW = LedgerRow(kind=EntryKind.TRAINING, run_id="a", phase="grpo", price=PRICE, cost_nano_usd=1_234_567, wall_ms=55)


def test_amounts_add_up_by_run_and_by_kind(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.record(ROW)
        ledger.record(replace(ROW, kind=EntryKind.EVALUATION, cost_nano_usd=1))
        ledger.record(replace(ROW, run_id="b", cost_nano_usd=10))
        assert ledger.total_nano_usd() == 1_234_578
        assert ledger.total_nano_usd(run_id="a") == 1_234_568
        assert ledger.total_nano_usd(kind=EntryKind.EVALUATION) == 1
        assert ledger.total_usd(run_id="b") == 1e-8
        assert ledger.total_usd(run_id="nobody") == 0.0


def test_rows_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    for _ in range(3):
        with Ledger.open(tmp_path / "ledger.db") as ledger:
            ledger.record(ROW)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert ledger.num_entries() == 3


KILLED = """
import sys
from datetime import date
from pathlib import Path
from aha.cost import EntryKind, Ledger, LedgerRow, machine_price

price = machine_price("cpu-2core-hour", on=date(2026, 6, 1))
row = LedgerRow(kind=EntryKind.REQUEST, run_id="r", phase="/v1", price=price, cost_nano_usd=1)
ledger = Ledger.open(Path(sys.argv[1]))
while True:
    ledger.record(row)
    print("recorded", flush=True)
"""


def test_every_recorded_row_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for num_before_kill in (1, 57):
        already = 0
        if path.exists():
            with Ledger.open(path) as ledger:
                already = ledger.num_entries()
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            for _ in range(num_before_kill):
                assert process.stdout.readline() == b"recorded\n"
            process.send_signal(signal.SIGKILL)
            promised = num_before_kill + process.stdout.read().count(b"recorded\n")
        with Ledger.open(path) as ledger:
            # One more is allowed: written, and killed before it could say so.
            assert promised <= ledger.num_entries() - already <= promised + 1
            assert ledger.total_nano_usd(run_id="r") == ledger.num_entries()


def test_group_is_recorded_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        with pytest.raises(LedgerError, match="CHECK constraint failed"):
            ledger.record_many([ROW, replace(ROW, cost_nano_usd=-1)])
        assert ledger.num_entries() == 0
        ledger.record_many([ROW] * 100)
        assert ledger.num_entries() == 100


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens": -1}, {"cached_tokens": 1}, {"reasoning_tokens": 2, "completion_tokens": 1}]
)
def test_impossible_counts_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger, pytest.raises(LedgerError, match="CHECK constraint failed"):
        ledger.record(replace(ROW, **wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("statement", ["UPDATE entry SET cost_nano_usd = 0", "DELETE FROM entry", "DELETE FROM price"])
def test_ledger_is_append_only_even_for_sql(tmp_path: Path, statement: str) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.record(ROW)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_row_keeps_the_price_it_was_priced_with(tmp_path: Path) -> None:
    o1 = token_price("openai-o1", on=LETTER_DATE)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.record_many([ROW, replace(ROW, price=o1)])
        dearer = replace(PRICE, nano_usd_per_hour=PRICE.nano_usd_per_hour + 1)
        with pytest.raises(LedgerError, match=r"already in the ledger .* with other amounts"):
            ledger.record(replace(ROW, price=dearer))
    connection = sqlite3.connect(tmp_path / "ledger.db")
    joined = connection.execute(
        "SELECT price_id, nano_usd_per_hour, pico_usd_per_output_token FROM entry JOIN price USING (price_id)"
    ).fetchall()
    connection.close()
    assert joined == [(PRICE.price_id, 80_000_000, None), (o1.price_id, None, 60_000_000)]


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        threads = [threading.Thread(target=lambda: [ledger.record(ROW) for _ in range(25)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.num_entries() == 200


def test_two_open_ledgers_see_each_other(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as one, Ledger.open(tmp_path / "ledger.db") as other:
        one.record(ROW)
        other.record(ROW)
        assert one.num_entries() == other.num_entries() == 2


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "home" / "ledger.db") as ledger:
        ledger.record(ROW)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").iterdir()}
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_only_the_owner_can_read_a_file_that_is_made_through_a_link(tmp_path: Path) -> None:
    link, target = tmp_path / "ledger.db", tmp_path / "elsewhere.db"
    link.symlink_to(target)
    with Ledger.open(link):
        assert target.stat().st_mode & 0o077 == 0


def test_refused_entry_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger, pytest.raises(LedgerError, match="refuses this") as caught:
        ledger.record(replace(ROW, cost_nano_usd=-1))
    assert "AHA_HOME" not in str(caught.value)


def test_default_place_follows_aha_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))
    assert default_ledger_path() == tmp_path / "ledger.db"
    monkeypatch.delenv("AHA_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_ledger_path() == Path("/home/ada/.local/share/aha/ledger.db")


def test_place_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"cannot use the ledger .*file/ledger\.db: .*; set AHA_HOME to a folder"):
        Ledger.open(tmp_path / "file" / "ledger.db")


def test_training_goes_on_with_a_ledger_in_memory_and_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Ledger.open(tmp_path / "file" / "ledger.db", on_failure="memory") as ledger:
        assert ledger.warning.startswith("cannot use the ledger")
        assert ledger.warning.endswith("This run is left out of the ledger")
        ledger.record(ROW)
        assert ledger.total_nano_usd() == ROW.cost_nano_usd
    with Ledger.open(tmp_path / "ledger.db", on_failure="memory") as ledger:
        assert ledger.warning == ""


def test_file_that_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("my novel, chapter one. " * 100)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger.open(path)
    assert path.read_text().startswith("my novel")


def test_ledger_of_a_newer_aha_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(LedgerError, match="written by a newer aha"):
        Ledger.open(path)


def test_totals_are_the_sums_of_the_rows_that_the_filter_leaves(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.record(replace(ROW, cost_nano_usd=5))
        ledger.record(replace(ROW, run_id="b", cost_nano_usd=7))
        assert ledger.totals(LedgerFilter()).cost_nano_usd == 12
        assert ledger.totals(LedgerFilter(run_id="b")).num_entries == 1
        assert ledger.totals(LedgerFilter(since=datetime(2100, 1, 1, tzinfo=UTC))).first_at is None
