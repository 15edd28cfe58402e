"""Read a run folder, finished or still being written: what is missing stays empty, what is broken is named."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aha.errors import DataError
from aha.evaluate import EvalResult, load_result

FORMAT = 1
LARGEST = 1e15
MAX_STEPS_SHOWN = 12
MAX_SAMPLES_PER_STEP = 3

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion as samples.jsonl and eval/*.jsonl keep it; any part may be missing there."""

    text: str
    reasoning: str
    answer: str
    note: str
    reward: float | None
    is_correct: bool
    num_tokens: float | None
    is_truncated: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A problem and one answer to it, drawn at a training step."""

    step: float
    prompt: str
    gold: str
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A held-out problem and the model's first answers to it before and after."""

    prompt: str
    gold: str
    before: Answer
    after: Answer


@dataclass(kw_only=True)
class RunFolder:
    """Everything a report shows. Empty means that the run folder does not have it."""

    path: Path
    run: Row = field(default_factory=dict)
    recipe: Row = field(default_factory=dict)
    recipe_text: str = ""
    steps: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    stages: list[Row] = field(default_factory=list)
    """Finished stages, in order; one row even where the run has one stage only."""
    before: EvalResult | None = None
    after: EvalResult | None = None
    baselines: Row = field(default_factory=dict)
    preflight: Row = field(default_factory=dict)
    bill: Row = field(default_factory=dict)
    contrasts: list[Contrast] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    num_samples_kept: int = 0
    """How many lines samples.jsonl has; `samples` is a selection."""
    complaints: list[str] = field(default_factory=list)
    """What is there but cannot be read."""


def read_folder(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        DataError: no such folder, not a run, or a run of a newer format.
    """
    if not path.is_dir():
        raise DataError(f"no run folder at {path}; give a folder that `aha train` made, such as runs/countdown")
    if not any((path / name).is_file() for name in ("run.json", "recipe.toml", "metrics.jsonl")):
        raise DataError(f"{path} is not a run folder: it has no run.json, recipe.toml or metrics.jsonl")
    found = RunFolder(path=path)
    found.run = _read_json(found, "run.json")
    version = found.run.get("format", found.run.get("format_version", FORMAT))
    if version != FORMAT:
        raise DataError(f"{path} has run format {version!r}, this version of aha reads {FORMAT}; use the aha it names")
    found.bill = _read_json(found, "bill.json")
    found.baselines = _read_json(found, "baselines.json")
    found.preflight = _read_json(found, "preflight.json")
    found.before = _read_result(found, "eval/before.json")
    found.after = _read_result(found, "eval/after.json")
    _read_recipe(found)
    for _, row in _read_lines(found, "metrics.jsonl"):
        if number(row, "step") is not None:
            {"eval": found.evals, "stage": found.stages}.get(text_of(row, "kind"), found.steps).append(row)
    _read_samples(found)
    _read_contrasts(found)
    return found


def number(row: Row, key: str) -> float | None:
    """A number that can be drawn, or None: absent, null, NaN, text and the absurdly large are all "not known"."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None  # false for NaN too


def text_of(row: Row, key: str) -> str:
    """A text, "" when absent; other values as JSON."""
    value = row.get(key, "")
    return value if isinstance(value, str) else json.dumps(value)


def _read_json(found: RunFolder, name: str) -> Row:
    try:
        value = json.loads((found.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        found.complaints.append(f"{name} cannot be read ({error})")
        return {}
    if isinstance(value, dict):
        return value
    found.complaints.append(f"{name} does not hold a JSON object")
    return {}


def _read_result(found: RunFolder, name: str) -> EvalResult | None:
    if not (found.path / name).exists():
        return None
    try:
        return load_result(found.path / name)
    except DataError as error:
        found.complaints.append(str(error))
        return None


def _read_recipe(found: RunFolder) -> None:
    try:
        found.recipe_text = (found.path / "recipe.toml").read_text(encoding="utf-8", errors="replace")
        found.recipe = tomllib.loads(found.recipe_text)
    except FileNotFoundError:
        return
    except (OSError, tomllib.TOMLDecodeError) as error:
        found.complaints.append(f"recipe.toml cannot be read ({error})")


def _read_lines(found: RunFolder, name: str) -> Iterator[tuple[int, Row]]:
    """(offset in bytes, object) of each line. A last line without its newline is still being written: no complaint."""
    num_broken = 0
    try:
        with (found.path / name).open("rb") as file:
            offset = 0
            for line in file:
                row = _parse_line(line)
                if row is not None:
                    yield offset, row
                elif line.strip() and line.endswith(b"\n"):
                    num_broken += 1
                offset += len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        found.complaints.append(f"{name} cannot be read ({error.strerror})")
    if num_broken:
        found.complaints.append(f"{name} has {num_broken} lines that cannot be read")


def _parse_line(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _rows_at(path: Path, offsets: list[int]) -> list[Row]:
    rows: list[Row] = []
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            rows.append(_parse_line(file.readline()) or {})
    return rows


def _read_samples(found: RunFolder) -> None:
    """A few samples of steps spread evenly from the first to the last. Offsets first: the file may be large."""
    offsets_of: defaultdict[float, list[int]] = defaultdict(list)
    for offset, row in _read_lines(found, "samples.jsonl"):
        offsets_of[number(row, "step") or 0.0].append(offset)
        found.num_samples_kept += 1
    steps = sorted(offsets_of)
    if len(steps) > MAX_STEPS_SHOWN:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_STEPS_SHOWN - 1))] for i in range(MAX_STEPS_SHOWN)]
    chosen = [offset for step in steps for offset in offsets_of[step][:MAX_SAMPLES_PER_STEP]]
    found.samples = [
        Sample(
            step=number(row, "step") or 0.0,
            prompt=text_of(row, "prompt"),
            gold=text_of(row, "gold"),
            answer=_read_answer(row),
        )
        for row in (_rows_at(found.path / "samples.jsonl", chosen) if chosen else [])
    ]


def _read_answer(row: Row) -> Answer:
    return Answer(
        text=text_of(row, "text"),
        reasoning=text_of(row, "reasoning"),
        answer=text_of(row, "answer"),
        note=text_of(row, "note"),
        reward=number(row, "reward"),
        is_correct=row.get("is_correct") is True,
        num_tokens=number(row, "num_tokens"),
        is_truncated=row.get("finish_reason") == "length",
    )


def _first_sample(row: Row) -> Row:
    samples = row.get("samples")
    return samples[0] if isinstance(samples, list) and samples and isinstance(samples[0], dict) else {}


def _read_contrasts(found: RunFolder) -> None:
    """Three problems by rule, not taste: the first that became right, the first still wrong, the first right twice."""
    places_before = _places(found, "eval/before.jsonl")
    places_after = _places(found, "eval/after.jsonl")
    shared = [key for key in places_after if key in places_before]
    outcomes = [(places_before[key][1], places_after[key][1]) for key in shared]
    chosen = [outcomes.index(kind) for kind in ((False, True), (False, False), (True, True)) if kind in outcomes]
    chosen += [i for i in range(len(shared)) if i not in chosen][: 3 - len(chosen)]
    if not chosen:
        return
    rows_before = _rows_at(found.path / "eval/before.jsonl", [places_before[shared[i]][0] for i in chosen])
    rows_after = _rows_at(found.path / "eval/after.jsonl", [places_after[shared[i]][0] for i in chosen])
    found.contrasts = [
        Contrast(
            prompt=text_of(after, "prompt"),
            gold=text_of(after, "gold"),
            before=_read_answer(_first_sample(before)),
            after=_read_answer(_first_sample(after)),
        )
        for before, after in zip(rows_before, rows_after, strict=True)
    ]


def _places(found: RunFolder, name: str) -> dict[str, tuple[int, bool]]:
    """problem_id → (offset of its line, whether its first answer is right)."""
    return {
        text_of(row, "problem_id"): (offset, _first_sample(row).get("is_correct") is True)
        for offset, row in _read_lines(found, name)
    }
