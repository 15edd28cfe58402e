"""docs/ledger.md does what it says: its commands, its program and its SQL run, its keys are the ones printed."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sqlite3
import sys
from pathlib import Path

import pytest

from aha import cli
from aha.cost import Ledger

from .conftest import write_some

PAGE = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(aha cost ledger[^#\n]*)", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_works(command: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_some(path)
    assert call(command.replace("deepseek-r1", "deepseek-r1@2025-01-20"), monkeypatch) == 0


def test_program_of_the_page_books_two_entries_and_charges_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (path.parent / "program.py").write_text(program)
    runpy.run_path(str(path.parent / "program.py"))
    assert float(capsys.readouterr().out) == 2 * 33_333 / 1e9
    with Ledger.open(path) as ledger:
        assert ledger.num_entries() == 2
        assert ledger.budgets.state("email").spent_nano_usd == 33_333
        assert ledger.verify() == []


def test_sql_of_the_page_runs(path: Path) -> None:
    write_some(path)
    statements = re.findall(r'"(SELECT[^"]*)"', PAGE)
    assert len(statements) == 2
    connection = sqlite3.connect(path)
    amounts = [sum(row[1] for row in connection.execute(statement)) for statement in statements]
    connection.close()
    assert amounts[0] > 0
    assert amounts[1] == pytest.approx(0)


def test_every_key_that_is_printed_is_described(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_some(path)
    call("aha cost ledger --json --at deepseek-r1@2025-01-20", monkeypatch)
    printed = json.loads(capsys.readouterr().out)
    for key in (*printed, *printed["total"], *printed["at"]):
        assert f"`{key}`" in PAGE or f"`{key}[]`" in PAGE, key


def test_verdict_on_the_books_is_json_where_it_is_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_some(path)
    assert call("aha cost ledger --verify --json", monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["is_consistent"], printed["findings"]) == (True, [])
    assert not [key for key in printed if f"`{key}`" not in PAGE and f"`{key}[]`" not in PAGE]
    assert call("aha cost ledger --verify --csv", monkeypatch) == 2


def test_every_column_is_described(path: Path) -> None:
    write_some(path)
    connection = sqlite3.connect(path)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(entry)")]
    bases = re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)
    connection.close()
    assert [name for name in columns if f"`{name}`" not in PAGE] == ["entry_id"]
    from aha.cost import Basis

    assert set(Basis) <= set(bases)
