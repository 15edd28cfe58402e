"""A run is in the ledger once, at its bill, however often it is stopped or killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aha.cost import EntryKind, Ledger, LedgerFilter
from aha.cost.energy import Counter, EnergyMeter
from aha.train import pipeline, train
from aha.train.run import Run

from .conftest import SETTINGS, stop_after_one_step, write_recipe

ROOT = Path(__file__).parents[2]
KILLED_AT_ITS_END = """
import os, signal, sys
from pathlib import Path
from aha.train import pipeline

describe = pipeline.describe_run

def die(status, **about):
    if status == "finished":
        os.kill(os.getpid(), signal.SIGKILL)
    return describe(status, **about)

pipeline.describe_run = die
pipeline.train(Path(sys.argv[1]), out=Path(sys.argv[2]), resume=sys.argv[3] == "resume")
"""


def billed_nano_usd(folder: Path) -> int:
    bill = json.loads((folder / "bill.json").read_text())
    assert round(bill["cost_usd"] * 1e9) == sum(round(phase["cost_usd"] * 1e9) for phase in bill["phases"])
    return round(bill["cost_usd"] * 1e9)


def booked(folder: Path) -> int:
    with Ledger.open() as ledger:
        assert ledger.verify() == []
        return ledger.total_nano_usd(run_id=str(folder))


class Killed(BaseException):
    """Ends a run on the spot, as far as its folder and the ledger can tell."""


@pytest.mark.usefixtures("first_token")
def test_run_killed_between_its_booking_and_its_end_is_booked_once(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill that the ledger used to count twice: booked, and not yet marked as finished."""
    describe, folder = pipeline.describe_run, tmp_path / "out"

    def die(status: str, **about: Any) -> dict[str, Any]:
        if status == "finished":
            raise Killed
        return describe(status, **about)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "describe_run", die)
        for source, is_resumed in ((recipe, False), (folder, True)):
            with pytest.raises(Killed):
                train(source, overrides=[] if is_resumed else ["steps=1"], out=folder, resume=is_resumed)
            assert booked(folder) == billed_nano_usd(folder) > 0
            assert json.loads((folder / "run.json").read_text())["status"] == "running"
    train(folder, resume=True)
    assert booked(folder) == billed_nano_usd(folder)
    num_phases = len(json.loads((folder / "bill.json").read_text())["phases"])
    with Ledger.open() as ledger:
        assert ledger.num_entries() <= num_phases + 2, "the evaluation after was done again, and is amended each time"


@pytest.mark.slow
def test_run_that_sigkill_ends_between_its_booking_and_its_mark_is_booked_once(
    tmp_path: Path, base_folder: Path, child_environment: dict[str, str]
) -> None:
    settings = {**SETTINGS, "task": "arithmetic", "steps": 1, "preflight_prompts": 0}
    recipe = write_recipe(tmp_path / "sum.toml", {"stage": "grpo", "model": str(base_folder), **settings})
    folder = tmp_path / "out"
    for how in ("begin", "resume"):
        source = recipe if how == "begin" else folder
        command = [sys.executable, "-c", KILLED_AT_ITS_END, str(source), str(folder), how]
        assert subprocess.run(command, cwd=ROOT, env=child_environment, check=False).returncode == -signal.SIGKILL
        assert booked(folder) == billed_nano_usd(folder) > 0
    train(folder, resume=True)
    assert booked(folder) == billed_nano_usd(folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    num_phases = len(json.loads((folder / "bill.json").read_text())["phases"])
    with Ledger.open() as ledger:
        assert ledger.num_entries() <= num_phases + 2, "the evaluation after was done again, and is amended each time"


@pytest.mark.usefixtures("first_token")
def test_stopped_run_is_booked_as_far_as_it_came_and_amended_at_its_end(tmp_path: Path, recipe: Path) -> None:
    folder = stop_after_one_step(recipe, overrides=[], out=tmp_path / "out")
    halfway = booked(folder)
    assert halfway > 0
    train(folder, resume=True)
    assert booked(folder) == billed_nano_usd(folder) > halfway
    with Ledger.open() as ledger:
        trained = ledger.totals(LedgerFilter(kind=EntryKind.TRAINING))
        phases = json.loads((folder / "bill.json").read_text())["phases"]
        assert trained.trained_tokens == sum(phase["trained_tokens"] for phase in phases)


@pytest.mark.usefixtures("first_token")
def test_copy_of_a_run_is_another_run(tmp_path: Path, recipe: Path) -> None:
    folder = stop_after_one_step(recipe, overrides=["eval_problems=0"], out=tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert Run(folder).uid == Run(folder).uid
    assert Run(copy).uid != Run(folder).uid
    for one in (folder, copy):
        train(one, resume=True)
        assert booked(one) > 0
    assert Run(folder).uid == json.loads((folder / "run.json").read_text())["run_uid"]


@pytest.mark.usefixtures("first_token")
def test_energy_of_the_phases_is_booked_where_it_can_be_read(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    energy_uj = 0

    def read_uj() -> int:
        nonlocal energy_uj
        energy_uj += 5_000_000
        return energy_uj

    make = EnergyMeter.__init__
    monkeypatch.setattr(EnergyMeter, "__init__", lambda self: make(self, [Counter(read_uj)]))
    folder = train(recipe, overrides=["steps=1"], out=tmp_path / "out")
    bill = json.loads((folder / "bill.json").read_text())
    assert bill["energy_joules"] == pytest.approx(sum(phase["energy_joules"] for phase in bill["phases"]))
    with Ledger.open() as ledger:
        assert ledger.totals(LedgerFilter()).energy_mj == round(bill["energy_joules"] * 1000) > 0


@pytest.mark.usefixtures("first_token")
def test_energy_that_cannot_be_read_is_unknown_and_not_0(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = EnergyMeter.__init__
    monkeypatch.setattr(EnergyMeter, "__init__", lambda self: make(self, []))
    folder = train(recipe, overrides=["steps=1", "eval_problems=0", "preflight_prompts=0"], out=tmp_path / "out")
    bill = json.loads((folder / "bill.json").read_text())
    assert [bill["energy_joules"], *(phase["energy_joules"] for phase in bill["phases"])] == [None] * 3
    with Ledger.open() as ledger:
        totals = ledger.totals(LedgerFilter())
        assert (totals.energy_mj, totals.num_with_energy, totals.num_entries) == (None, 0, 2)


@pytest.mark.usefixtures("first_token")
def test_ledger_that_fails_is_said_and_the_run_ends_well(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("aha.train.console.Console.say", lambda self, text: said.append(str(text)))
    Path(os.environ["AHA_HOME"]).write_text("a file")
    folder = train(recipe, overrides=["steps=1", "eval_problems=0", "preflight_prompts=0"], out=tmp_path / "out")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert any(text.startswith("cannot use the ledger") for text in said)
