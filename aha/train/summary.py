"""What a finished run says at its end, read back from its own files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from aha.cost.bill import Bill
from aha.errors import DataError
from aha.evaluate import EvalResult, load_result
from aha.tasks.base import HasBaselines, Task
from aha.train.console import Answered, Baseline, BillLine, NextCommand, PassRate, ShownProblem, Summary
from aha.types import Completion, FinishReason, Problem

BLIND_TRIES = (1, 8, 16)
NUM_SHOWN = 3


def measure_baselines(
    task: Task, *, outputs: Path, problems: list[Problem], after: EvalResult
) -> dict[str, Any] | None:
    """Blind search on the evaluated problems, with fixed tries and with as many as the model's thinking makes.

    Args:
        outputs: the evaluation's JSONL, whose thinking is counted.
        problems: the problems it asked.

    Returns:
        The content of baselines.json; None for a task that has no baseline.
    """
    if not isinstance(task, HasBaselines):
        return None
    tries = [task.count_tries(_completion(row["samples"][0])) for row in _rows(outputs) if row["samples"]]
    model_tries = sum(tries) / max(1, len(tries))
    # Rounded up: in doubt the blind search gets the extra try.
    equal_tries = max(1, -(-sum(tries) // max(1, len(tries))))
    rates = {n: task.blind_pass_rate(problems, num_tries=n, seed=0) for n in {*BLIND_TRIES, equal_tries}}
    rows = [
        {"name": f"blind search, {n} {'try' if n == 1 else 'tries'}", "pass_rate": rates[n], "tries": n}
        for n in BLIND_TRIES
    ]
    rows.append(
        {
            "name": f"blind search, {equal_tries} tries as the model",
            "pass_rate": rates[equal_tries],
            "tries": equal_tries,
        }
    )
    return {
        "rows": rows,
        "model_tries": model_tries,
        "equal_tries_pass_rate": rates[equal_tries],
        "beats_blind_search": after.pass_at_1 > rates[equal_tries],
    }


def summarise(folder: Path, *, bill: Bill) -> Summary:
    """The closing summary of a run."""
    before, after = _result(folder, "before"), _result(folder, "after")
    return Summary(
        run=str(folder),
        before=_rate(before),
        after=_rate(after),
        baselines=tuple(
            Baseline(label=r["name"], pass_at_1=r["pass_rate"]) for r in _baselines(folder).get("rows", ())
        ),
        verdict=_verdict(folder, bill, after),
        problems=_shown_problems(folder),
        bill=tuple(BillLine(*line) for line in _bill_lines(bill)),
        next_commands=_next_commands(folder),
    )


def _verdict(folder: Path, bill: Bill, after: EvalResult | None) -> str:
    words = []
    if bill.gain is not None:
        low, high = 100 * bill.gain.interval_low, 100 * bill.gain.interval_high
        words.append(f"pass@1 changed by {bill.gain.points:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}).")
    baselines = _baselines(folder)
    if baselines and after is not None:
        relation = "beats" if baselines["beats_blind_search"] else "does not beat"
        words.append(
            f"At equal tries ({baselines['model_tries']:.1f} a problem) it {relation} blind search: "
            f"{100 * after.pass_at_1:.1f} % against {100 * baselines['equal_tries_pass_rate']:.1f} %."
        )
    return " ".join(words)


def _bill_lines(bill: Bill) -> list[tuple[str, str]]:
    lines = [
        (f"{phase.label}, {phase.seconds:.0f} s", f"${bill.phase_nano_usd(phase) / 1e9:.5f}") for phase in bill.phases
    ]
    lines.append((f"total at ${bill.price.usd_per_hour:.3f} an hour ({bill.price.price_id})", f"${bill.cost_usd:.5f}"))
    if bill.usd_per_point is not None:
        lines.append(("per point of pass@1 gained", f"${bill.usd_per_point:.6f}"))
    return lines


def _next_commands(folder: Path) -> tuple[NextCommand, ...]:
    asked = _rows(folder / "eval" / "after.jsonl") or _rows(folder / "samples.jsonl")
    prompt = asked[0]["prompt"] if asked else ""
    is_countdown = re.fullmatch(r"[0-9 ]+ > [0-9]+", prompt)
    shown = '"3 7 8 > 24"' if is_countdown else shlex.quote((prompt.strip() or "hello").splitlines()[0][:60])
    return (
        NextCommand(f"aha chat {folder} {shown}", "see it think"),
        NextCommand(f"aha serve {folder}", "serve it as an OpenAI-compatible API"),
        NextCommand(f"open {folder}/report.html", "curves, samples and the bill"),
    )


def _shown_problems(folder: Path) -> tuple[ShownProblem, ...]:
    """The first problems of the evaluation: not chosen by how they came out."""
    before = {row["problem_id"]: row for row in _rows(folder / "eval" / "before.jsonl")}
    shown = []
    for row in _rows(folder / "eval" / "after.jsonl"):
        earlier = before.get(row["problem_id"])
        if earlier and earlier["samples"] and row["samples"]:
            sides = {"before": _answered(earlier["samples"][0]), "after": _answered(row["samples"][0])}
            shown.append(ShownProblem(prompt=row["prompt"], **sides))
        if len(shown) == NUM_SHOWN:
            break
    return tuple(shown)


def _answered(sample: dict[str, Any]) -> Answered:
    return Answered(text=sample["text"], is_correct=sample["is_correct"])


def _completion(sample: dict[str, Any]) -> Completion:
    return Completion(
        token_ids=(),
        logprobs=(),
        finish_reason=FinishReason(sample["finish_reason"]),
        reasoning=sample["reasoning"],
        answer=sample["answer"],
    )


def _rate(result: EvalResult | None) -> PassRate | None:
    if result is None:
        return None
    return PassRate(
        pass_at_1=result.pass_at_1,
        interval_low=result.interval_low,
        interval_high=result.interval_high,
        num_problems=result.num_problems,
    )


def _result(folder: Path, name: str) -> EvalResult | None:
    try:
        return load_result(folder / "eval" / f"{name}.json")
    except DataError:
        return None


def _baselines(folder: Path) -> dict[str, Any]:
    path = folder / "baselines.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): it also breaks at U+2028 and the like, which JSON allows inside a string.
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]
