"""Evaluations side by side: one table, and for each pair what differs on the problems they share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aha.errors import DataError
from aha.evaluate.record import describe_differences
from aha.evaluate.result import EvalResult, load_result
from aha.evaluate.statistics import bootstrap_interval, paired_test

SAME = ("task", "split", "num_problems", "problem_seed", "num_samples", "temperature", "top_p", "top_k", "min_p",
        "max_tokens", "stop", "extractor", "problems_sha256")  # fmt: skip
"""Parts of the manifest in which two evaluations must agree for a difference to be the models'."""
RUNS_FOLDER = Path("runs")
RESULT_NAMES = ("eval.json", "after.json", "eval/after.json", "eval/eval.json")
"""Where the result of a folder lies: of `aha eval --out`, or of a run."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """after - before, on the same problems, in shares of 1; a 95 % interval by paired bootstrap over problems."""

    pass_at_1: float
    interval_low: float
    interval_high: float
    num_problems: int
    num_improved: int
    num_worsened: int
    p_value: float
    """Two-sided, that neither is better: see `aha.evaluate.statistics.paired_test`."""
    test: str
    """Which test that is."""

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval_low > 0.0 or self.interval_high < 0.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One evaluation of a comparison."""

    label: str
    """How it is called in the table."""
    result: EvalResult


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several evaluations of the same problems by the same protocol."""

    entries: tuple[Entry, ...]
    pairs: tuple[tuple[int, int, Difference], ...]
    """Every pair as (index of the earlier, index of the later, later - earlier)."""

    def to_json(self) -> str:
        """The keys are documented in docs/evaluation.md."""
        pairs = [
            {
                "before": self.entries[a].label,
                "after": self.entries[b].label,
                "pass_at_1_difference": change.pass_at_1,
                "interval_low": change.interval_low,
                "interval_high": change.interval_high,
                "p_value": change.p_value,
                "test": change.test,
                "num_problems": change.num_problems,
                "num_improved": change.num_improved,
                "num_worsened": change.num_worsened,
            }
            for a, b, change in self.pairs
        ]
        return json.dumps({"evaluations": [_columns(entry) for entry in self.entries], "pairs": pairs}, indent=1) + "\n"


def compare(before: EvalResult, after: EvalResult, *, seed: int = 0) -> Difference:
    """What changed, problem by problem: the difference in pass@1, its interval by paired bootstrap, a paired test.

    Raises:
        DataError: the two were not asked the same problems in the same way, so that a difference would mean nothing.
    """
    if before.problem_scores.keys() != after.problem_scores.keys():
        raise DataError(
            f"evaluations {before.name!r} and {after.name!r} asked different problems"
            f"{_in_brackets(before, after)}; evaluate both with the same task, split, seed and num_problems"
        )
    changed = describe_differences(before.manifest, after.manifest, keys=SAME)
    if changed:
        raise DataError(
            f"evaluations {before.name!r} and {after.name!r} asked by different protocols: {changed}; "
            "evaluate both with the same options"
        )
    pairs = [(before.problem_scores[key], after.problem_scores[key]) for key in before.problem_scores]
    pairs = [(earlier, later) for earlier, later in pairs if earlier[1] and later[1]]
    if not pairs:
        raise DataError(f"no problem was scored in both {before.name!r} and {after.name!r}")
    differences = [
        right_after / of_after - right_before / of_before
        for (right_before, of_before), (right_after, of_after) in pairs
    ]
    low, high = bootstrap_interval(differences, seed=seed, lowest=-1.0, highest=1.0)
    test = paired_test(pairs, seed=seed)
    return Difference(
        pass_at_1=sum(differences) / len(differences),
        interval_low=low,
        interval_high=high,
        num_problems=len(differences),
        num_improved=sum(difference > 0.0 for difference in differences),
        num_worsened=sum(difference < 0.0 for difference in differences),
        p_value=test.p_value,
        test=test.name,
    )


def _in_brackets(before: EvalResult, after: EvalResult) -> str:
    changed = describe_differences(
        before.manifest, after.manifest, keys=("task", "split", "num_problems", "problem_seed")
    )
    return f" ({changed})" if changed else ""


def compare_all(entries: Sequence[Entry], *, seed: int = 0) -> Comparison:
    """Each pair of evaluations compared.

    Raises:
        DataError: fewer than two, or two of them did not ask the same.
    """
    if len(entries) < 2:
        raise DataError(f"a comparison needs at least two evaluations, got {len(entries)}")
    # Named as in the table: for most of them the name of the file is "eval".
    named = [replace(entry.result, name=entry.label) for entry in entries]
    pairs = tuple(
        (a, b, compare(named[a], named[b], seed=seed)) for a, b in itertools.combinations(range(len(entries)), 2)
    )
    return Comparison(entries=tuple(entries), pairs=pairs)


def read_entries(names: Sequence[str]) -> list[Entry]:
    """The evaluations that names lead to: a result's file, the folder of `aha eval --out`, a run's folder or name.

    Raises:
        DataError: a name that leads to none, with what was looked for; or a result that cannot be read.
    """
    results = [load_result(find_result(name)) for name in names]
    models = [str(result.manifest.get("model", "")) for result in results]
    # The models' own names where they tell the evaluations apart, else what was typed.
    use_models = all(models) and len(set(models)) == len(models)
    labels = models if use_models else names
    return [
        Entry(label=label.partition("@sha256:")[0] if use_models else label, result=result)
        for label, result in zip(labels, results, strict=True)
    ]


def find_result(name: str) -> Path:
    """The file of the result that a name leads to, as `read_entries` looks for it. Raises DataError where none is."""
    try:
        for folder in (Path(name), RUNS_FOLDER / name):
            for path in (folder, *(folder / result_name for result_name in RESULT_NAMES)):
                if path.is_file():
                    return path
    except (OSError, ValueError) as error:  # a name that no file can have
        raise DataError(f"no evaluation at {name[:80]!r}: {error.__class__.__name__}") from None
    partials = sorted(Path(name).glob("*.partial"))
    if partials:
        raise DataError(f"the evaluation in {name} is not finished ({partials[0].name}); call it again to go on")
    raise DataError(
        f"no evaluation at {name!r}; give a file such as scores/eval.json, a folder of aha eval --out, or a run"
    )


def _columns(entry: Entry) -> dict[str, Any]:
    """What a script wants of one row of the table."""
    result = entry.result
    return {
        "label": entry.label,
        "model": result.manifest.get("model", ""),
        "pass_at_1": result.pass_at_1,
        "interval_low": result.interval_low,
        "interval_high": result.interval_high,
        "pass_at_k": result.pass_at_k,
        "consensus_at_k": result.consensus_at_k,
        "num_problems": result.num_problems,
        "num_samples": result.manifest["num_samples"],
        "mean_tokens": result.mean_tokens,
        "truncated_fraction": result.truncated_fraction,
        "parse_failure_fraction": result.parse_failure_fraction,
        "error_fraction": result.error_fraction,
        "timeout_fraction": result.timeout_fraction,
        "max_tokens_cap": result.manifest.get("max_tokens_cap"),
        "cost_usd": result.cost_usd,
        "usd_per_solved": result.usd_per_solved,
    }
