"""What a finished run knows about itself: what it cost, how long its prompts and answers are, how fast it answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aha.errors import DataError
from aha.estimate.breakeven.case import MAX_FIGURE
from aha.estimate.breakeven.solved import check_result
from aha.evaluate import EvalResult, load_result

RUNS_FOLDER = Path("runs")
CLOSING = "evaluation after"
"""The phase of a bill that is the run's closing evaluation."""
PHASES = {"before": "evaluation before", "after": CLOSING}
"""Result in the folder eval of a run → its phase of the bill."""
MAX_BILL_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder with its bill. Everything in it was read from files, and may be anything."""

    folder: Path
    bill: dict[str, Any]
    closing: EvalResult | None
    """Its closing evaluation."""

    @property
    def cost_usd(self) -> float:
        """What the run cost. Raises DataError where the bill does not say."""
        usd = _figure(self.bill, "cost_usd")
        if usd is None:
            raise DataError(f"{self.folder}/bill.json has no cost_usd of 0 or more; give --training-usd")
        return usd

    @property
    def prompt_tokens(self) -> float | None:
        """Of a prompt of the closing evaluation, on average; None where the bill does not say."""
        tokens = _figure(self._closing_phase, "prompt_tokens")
        return tokens / self.closing.num_completions if tokens and self.closing else None

    @property
    def output_tokens(self) -> float | None:
        """Of an answer of the closing evaluation, on average, thinking included; None without one."""
        return self.closing.mean_tokens if self.closing else None

    @property
    def seconds_per_output_token(self) -> float | None:
        """Of the closing evaluation, its prompts included, many at a time; None where the bill does not say."""
        phase = self._closing_phase
        seconds, tokens = _figure(phase, "wall_seconds"), _figure(phase, "completion_tokens")
        return seconds / tokens if seconds and tokens else None

    @property
    def usd_per_hour(self) -> float | None:
        """Of the machine it ran on; None where the bill does not say."""
        return _figure(self._machine, "usd_per_hour")

    @property
    def machine(self) -> str:
        """The id of that price; "" where the bill does not say."""
        name = self._machine.get("price_id")
        return " ".join(name.split())[:80] if isinstance(name, str) else ""

    def phase_usd(self, name: str) -> float | None:
        """What a phase cost; None where the bill does not have it."""
        return _figure(self._phase(name), "cost_usd")

    @property
    def _machine(self) -> dict[str, Any]:
        machine = self.bill.get("machine_price")
        return machine if isinstance(machine, dict) else {}

    @property
    def _closing_phase(self) -> dict[str, Any]:
        return self._phase(CLOSING)

    def _phase(self, name: str) -> dict[str, Any]:
        phases = self.bill.get("phases")
        rows = [row for row in phases if isinstance(row, dict)] if isinstance(phases, list) else []
        return next((row for row in rows if row.get("name") == name), {})


def find_run(name: str) -> Run | None:
    """A run by its folder or its name; None where there is none of that name, or it has no bill.

    Raises:
        DataError: its bill or its closing evaluation cannot be read.
    """
    folders = (Path(name), RUNS_FOLDER / name) if name else ()
    folder = next((folder for folder in folders if _is_file(folder / "bill.json")), None)
    if folder is None:
        return None
    path, after = folder / "bill.json", folder / "eval" / "after.json"
    try:
        if path.stat().st_size > MAX_BILL_BYTES:
            raise DataError(f"{path} is too long to be a bill")
        bill = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read the bill {path}: {error}") from error
    if not isinstance(bill, dict):
        raise DataError(f"{path} is not a bill: it does not hold a JSON object")
    closing = check_result(load_result(after), label=str(after)) if _is_file(after) else None
    return Run(folder=folder, bill=bill, closing=closing)


class BilledPhase(NamedTuple):
    """A phase of a run's bill that an evaluation is."""

    run: Run
    name: str


def find_billed(name: str) -> BilledPhase | None:
    """The run and the phase that pay for an evaluation, named by its run or by its file there; None where none does.

    Raises:
        DataError: the run's bill cannot be read.
    """
    path = Path(name)
    if _is_file(path):
        run = find_run(str(path.parent.parent)) if path.parent.name == "eval" else None
        return BilledPhase(run, PHASES[path.stem]) if run and path.stem in PHASES else None
    run = find_run(name)
    return BilledPhase(run, CLOSING) if run else None


def _figure(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_FIGURE:
        return None
    return float(value)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
