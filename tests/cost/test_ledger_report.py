"""`aha cost ledger`: what a user reads, what a script reads, what it says when there is nothing."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from aha import cli
from aha.cost import EntryKind, Ledger
from aha.cost.ledger import MIGRATIONS
from aha.cost.ledger.report import show_usd

from .conftest import machine_row, token_row, write_some


class Ran:
    """One call of the command line."""

    def __init__(self, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["aha", "cost", "ledger", *arguments.split()])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        self.code = exit_.value.code
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("AHA_HOME", str(tmp_path))
    return lambda arguments="": Ran(arguments, monkeypatch, capsys)


@pytest.fixture
def written(path: Path) -> Path:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(45_000, trained_tokens=70))
        ledger.record(machine_row(90_000, kind=EntryKind.EVALUATION, run_id="eval \x1b[31mred", completion_tokens=9))
        ledger.record(token_row(1_000_000, completion_tokens=500_000))
    return path


def test_ledger_that_is_not_there_yet_is_one_friendly_line(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments in ("", "--verify"):
        said = run(arguments)
        assert said.code == 0
        assert said.out == f"no ledger yet at {tmp_path}/ledger.db: the first aha train, eval or serve begins it\n"
    found = json.loads(run("--by run --json").out)
    assert (found["by"], found["groups"], found["total"]["cost_nano_usd"]) == ("run", [], 0)
    assert run("--by run --csv").out.startswith("run,num_entries,")
    assert not (tmp_path / "ledger.db").exists()


def test_table_is_aligned_and_its_total_is_the_sum(run, written: Path) -> None:  # type: ignore[no-untyped-def]
    lines = run().out.splitlines()
    assert lines[0].split() == ["kind", "entries", "seconds", "input", "cached", "output", "thinking", "trained", "kJ",
                                "dollars"]  # fmt: skip
    assert [line.split()[0] for line in lines[1:4]] == ["evaluation", "request", "training"]
    assert lines[5].split() == ["total", "3", "135.0", "1,000,000", "0", "500,009", "0", "70", "?", "45.003"]
    assert len({len(line) for line in lines[:6]}) == 1
    assert "kJ: read for 0 of 3 entries; ? is not known, and not 0" in lines


@pytest.mark.parametrize("by", ["run", "day", "kind", "model", "price", "app", "key"])
def test_groups_add_up_in_json_and_csv(run, written: Path, by: str) -> None:  # type: ignore[no-untyped-def]
    found = json.loads(run(f"--by {by} --json").out)
    for key in ("num_entries", "cost_nano_usd", "completion_tokens", "wall_seconds"):
        assert found["total"][key] == sum(group[key] for group in found["groups"])
    rows = list(csv.DictReader(io.StringIO(run(f"--by {by} --csv").out)))
    assert [row["cost_nano_usd"] for row in rows] == [str(group["cost_nano_usd"]) for group in found["groups"]]
    assert [row[by] for row in rows] == [group[by] for group in found["groups"]]


def test_filters_narrow(run, written: Path) -> None:  # type: ignore[no-untyped-def]
    assert json.loads(run("--kind training --json").out)["total"]["num_entries"] == 1
    assert json.loads(run("--model o1 --json").out)["total"]["prompt_tokens"] == 1_000_000
    assert json.loads(run("--run runs/a --since 2020-01-01 --json").out)["total"]["num_entries"] == 1
    assert "no entry is of that kind, run, model and time" in run("--until 2020-01-01T10:00Z").out


def test_names_of_others_cannot_colour_the_terminal(run, written: Path) -> None:  # type: ignore[no-untyped-def]
    assert "\x1b" not in run("--by run").out


def test_another_price_is_shown_beside_and_booked_on_request(run, written: Path) -> None:  # type: ignore[no-untyped-def]
    text = run("--at deepseek-r1 --on 2025-01-31").out
    assert text.splitlines()[0].endswith("booked of these  at deepseek-r1@2025-01-20")
    assert "1 entry has nothing that this prices, and is left out of both" in text
    at = json.loads(run("--kind request --at deepseek-r1 --on 2025-01-31 --json").out)["total"]
    assert (at["cost_nano_usd"], at["at_cost_nano_usd"]) == (45_000_000_000, 550_000_000 + 1_095_000_000)
    run("--kind request --at deepseek-r1 --on 2025-01-31 --correct")
    assert json.loads(run("--kind request --json").out)["total"]["cost_nano_usd"] == 1_645_000_000
    assert run("--verify").code == 0
    assert json.loads(run("--at 3.6 --json").out)["total"]["at_cost_nano_usd"] == 135_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--since yesterday", "--since must be a day such as 2025-01-31, or 2025-01-31T16:30Z, got 'yesterday'"),
        ("--at nothing", "unknown token price 'nothing'"),
        ("--correct", "--correct is about another price; name it by --at PRICE"),
        ("--csv --json", "give one of them"),
        ("--by colour", "colour"),
    ],
)
def test_question_that_cannot_be_answered_is_said_in_one_line(run, written: Path, arguments: str, said: str) -> None:  # type: ignore[no-untyped-def]
    ran = run(arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_verify_exits_with_2_and_lists_what_it_found(run, written: Path) -> None:  # type: ignore[no-untyped-def]
    clean = run("--verify")
    assert (clean.code, clean.out) == (0, f"{written}: 3 entries, $45.003: consistent\n")
    connection = sqlite3.connect(written, isolation_level=None)
    connection.execute("UPDATE grand_total SET num_entries = 4")
    connection.close()
    broken = run("--verify")
    assert broken.code == 2
    assert broken.out.splitlines()[0].startswith("the grand total says [(4, 45003000000)]")
    assert broken.out.splitlines()[1].startswith(f"{written}: 1 thing is inconsistent")


def test_amounts_are_shown_to_the_nano_dollar() -> None:
    assert [show_usd(n) for n in (0, 1, 1_230_000_000, -5 * 10**8, 12_345 * 10**9)] == [
        "$0.00", "$0.000000001", "$1.23", "-$0.50", "$12,345.00",
    ]  # fmt: skip


def test_file_of_the_first_version_is_upgraded_without_loss(path: Path, run) -> None:  # type: ignore[no-untyped-def]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    connection.execute("INSERT INTO price VALUES ('h800-hour@2024-12-27', 2000000000, NULL, NULL, NULL, 's', 'd', 'c')")
    connection.execute("INSERT INTO price VALUES ('r1@2025-01-20', NULL, 550000, 140000, 2190000, 's', 'd', 'c')")
    rows = [
        ("training", "runs/a", "grpo", "h800-hour@2024-12-27", 36_000, 0, 0, 5, 2, 7, 20_000_000),
        ("training", "runs/a", "teacher's endpoint", "h800-hour@2024-12-27", 0, 9, 0, 5, 0, 0, 123),  # as it was booked
        ("request", "serve x", "/v1", "r1@2025-01-20", 3, 1000, 400, 10, 10, 0, 407_900),
        ("evaluation", "b", "eval", "h800-hour@2024-12-27", 10**11, 0, 0, 0, 0, 0, 55_555_555_555_556),
    ]
    connection.executemany(f"INSERT INTO entry VALUES (NULL, 1767225600000{', ?' * 11})", rows)
    before = connection.execute("SELECT * FROM entry ORDER BY entry_id").fetchall()
    connection.close()
    assert run("--verify").code == 0
    connection = sqlite3.connect(path)
    names = "entry_id, recorded_at_ms, kind, run_id, phase, price_id, wall_ms, prompt_tokens, cached_tokens,"
    names += " completion_tokens, reasoning_tokens, trained_tokens, cost_nano_usd"
    assert connection.execute(f"SELECT {names} FROM entry ORDER BY entry_id").fetchall() == before
    bases = [row[0] for row in connection.execute("SELECT basis FROM entry ORDER BY entry_id")]
    assert bases == ["machine_time", "stated", "list_price", "machine_time"]
    assert connection.execute("SELECT sum(amount_nano_usd), count(*) FROM posting").fetchone() == (0, 8)
    connection.close()
    write_some(path)
    assert run("--verify").code == 0


def test_summary_of_one_moment_adds_up_while_others_write(path: Path) -> None:
    import threading

    from aha.cost import LedgerFilter

    with Ledger.open(path) as ledger:
        writer = threading.Thread(target=lambda: [ledger.record(machine_row(3)) for _ in range(150)])
        writer.start()
        while writer.is_alive():
            groups, total, _ = ledger.summary(LedgerFilter(), by="kind")
            assert sum(group.num_entries for group in groups.values()) == total.num_entries
        writer.join()


def test_label_that_a_spreadsheet_would_compute_is_text_in_csv(run, written: Path) -> None:  # type: ignore[no-untyped-def]
    with Ledger.open(written) as ledger:
        ledger.record(machine_row(5, run_id="=1+1"))
    assert "\n'=1+1," in run("--by run --csv").out
