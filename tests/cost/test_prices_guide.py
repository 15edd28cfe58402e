"""docs/prices.md does what it says: its program, its commands and the file it tells you to write."""

from __future__ import annotations

import re
import shlex
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aha.cli import app
from aha.cost import machine_price, token_price

GUIDE = (Path(__file__).parents[2] / "docs" / "prices.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return str(text)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))


def test_program_of_the_guide_runs() -> None:
    exec(compile(block("python"), "docs/prices.md", "exec"), {})  # noqa: S102 - our own page


@pytest.mark.parametrize("command", block("sh").splitlines())
def test_command_of_the_guide_answers(command: str) -> None:
    run = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    assert run.exit_code == 0, run.output
    assert run.output.startswith(("Prices ", "History "))


def test_file_of_the_guide_is_read_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(block("toml"), encoding="utf-8")
    assert token_price("acme-one", on=date(2026, 7, 1)).confidence == "user"
    assert machine_price("our-h100-hour", on=date(2026, 7, 1)).usd_per_hour == 1.85
