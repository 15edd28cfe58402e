"""`aha cost solved`: evaluations by what a right answer costs, read and shown."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from statistics import fmean

from aha.errors import ConfigError
from aha.estimate.breakeven.apis import read_api
from aha.estimate.breakeven.case import MAX_FIGURE, check_figure, per_thousand
from aha.estimate.breakeven.options import Form
from aha.estimate.breakeven.run import CLOSING, BilledPhase, find_billed
from aha.estimate.breakeven.solved import Solved, SolvedComparison, compare_solved, price_evaluation, reprice
from aha.estimate.breakeven.text import aligned
from aha.evaluate import EvalResult, read_entries
from aha.evaluate.comparison import find_result
from aha.report.words import visible


@dataclass(frozen=True, kw_only=True)
class SolvedOptions:
    """What the command is given."""

    evaluations: Sequence[str]
    """Files of results, folders of `aha eval --out`, runs by folder or name."""
    prices: Sequence[str] = ()
    """Names of the price book, or IN/OUT dollars a million tokens: each evaluation is also priced by these."""
    on: date | datetime
    input_tokens: float | None = None
    """Of a prompt; None takes a run's own count."""
    cached_tokens: float = 0.0


def run_solved(options: SolvedOptions, *, form: Form) -> str:
    """What `aha cost solved` prints.

    Raises:
        AhaError: an evaluation that cannot be read or priced, or those of different problems.
    """
    found = compare_solved(list(_rows(options)))
    return json.dumps(found.to_dict(), indent=1) if form == "json" else describe_solved(found)


def _rows(options: SolvedOptions) -> Iterator[Solved]:
    if not options.evaluations:
        raise ConfigError("give at least one evaluation: a file such as scores/eval.json, a folder of it, or a run")
    names = list(dict.fromkeys(name.strip() for text in options.prices for name in text.split(",") if name.strip()))
    entries = [replace(entry, label=" ".join(entry.label.split())) for entry in read_entries(options.evaluations)]
    for name, entry in zip(options.evaluations, entries, strict=True):
        billed, lengths = find_billed(name), read_lengths(find_result(name), result=entry.result)
        usd = billed.run.phase_usd(billed.name) if billed else None
        if not names or entry.result.cost_usd is not None or usd is not None:
            basis = billed.run.machine if billed and entry.result.cost_usd is None else ""
            yield price_evaluation(
                entry.label, result=entry.result, billed_usd=usd, basis=basis, tokens_by_problem=lengths
            )
        for api_name in names:
            tokens = _input_tokens(options, name=name, billed=billed)
            yield reprice(
                entry.label,
                result=entry.result,
                api=read_api(api_name, on=options.on, prompt_tokens=round(tokens)),
                input_tokens=tokens,
                cached_tokens=options.cached_tokens,
                tokens_by_problem=lengths,
            )


def read_lengths(path: Path, *, result: EvalResult) -> dict[str, float]:
    """problem_id → tokens of an answer to it, on average, from the outputs beside a result (NAME.jsonl).

    Empty where they are not there, not whole or not of this result: then only the mean is known.
    """
    outputs, found = path.with_suffix(".jsonl"), dict[str, float]()
    try:
        with outputs.open("rb") if outputs.is_file() else io.BytesIO() as file:
            for line in file:
                row = json.loads(line)
                lengths = [sample["num_tokens"] for sample in row["samples"]]
                if not all(type(length) is int and 0 <= length <= MAX_FIGURE for length in lengths):
                    return {}
                found[row["problem_id"]] = sum(lengths) / len(lengths)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError):
        return {}
    is_same = bool(found) and found.keys() == result.problem_scores.keys()
    return found if is_same and math.isclose(fmean(found.values()), result.mean_tokens, rel_tol=1e-6) else {}


def _input_tokens(options: SolvedOptions, *, name: str, billed: BilledPhase | None) -> float:
    known = billed.run.prompt_tokens if billed and billed.name == CLOSING else None
    tokens = known if options.input_tokens is None else options.input_tokens
    if tokens is None:
        raise ConfigError(f"how long the prompts of {name!r} are is not known; give --input-tokens N, of a prompt")
    if not check_figure(options.cached_tokens, field="cached_tokens") <= check_figure(tokens, field="input_tokens"):
        raise ConfigError(f"cached_tokens are a part of input_tokens: {options.cached_tokens:g} of {tokens:g}")
    return tokens


def describe_solved(found: SolvedComparison) -> str:
    """The comparison for people; its first line is the verdict."""
    head = ["", "$ per 1,000 solved", "95 % interval", "pass@1", "95 % interval", "tokens an answer", "$/M of them",
            "$ per 1,000 asked", "by"]  # fmt: skip
    lines = [found.headline, "", *aligned([head, *(_row(row) for row in found.rows)])]
    lines += ["", *found.notes] if found.notes else []
    lines += [
        "",
        "$ solved = $ asked / pass@1: asked again until right, every attempt with the same chance.",
        "$/M of them: all dollars, the prompt's too, over the tokens sampled.",
        "Intervals are of 95 %, by bootstrap over problems" + _what_is_drawn(found),
    ]
    return visible("\n".join(lines))


def _what_is_drawn(found: SolvedComparison) -> str:
    if all(row.usd_by_problem for row in found.rows):
        return ": which are right, and how long their answers are."
    return ": which are right; dollars are counted, not drawn, where the answers (NAME.jsonl) are not at hand."


def _row(row: Solved) -> list[str]:
    low, high = row.interval
    million = row.usd_per_million_output
    return [
        row.label,
        per_thousand(row.usd_per_solved) if row.pass_at_1 else "never solved",
        f"{per_thousand(low)} to {per_thousand(high) if row.result.interval_low > 0 else 'no limit'}",
        f"{row.pass_at_1:.1%}",
        f"{row.result.interval_low:.1%} to {row.result.interval_high:.1%}",
        f"{row.tokens_per_answer:,.0f}",
        "–" if million is None else f"{million:,.4g}",
        per_thousand(row.usd_per_attempt),
        row.basis,
    ]
