"""A model's choices measured where they can be run here: a DeepSeek-V3 of two million parameters on a CPU.

    python -m bench.why [--quick] [--threads 1] [--results bench/results/why.json]

Under six minutes. Sides take turns in one process and the median counts; on a machine that others use, believe ratios
only. `aha cost why --measured bench/results/why.json` shows the figures beside the computed ones, docs/why.md explains.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.child import Measurement, MeasurementError, run_child
from bench.machine import describe_machine
from bench.sweep import say

RESULTS = Path(__file__).parent / "results" / "why.json"
RACES = "bench.why_races"
JOBS: dict[str, dict[str, Any]] = {
    "race_training": {"num_examples": 16, "rounds": 9},
    "race_decoding": {"prompt": 2048, "rows": 16, "num_tokens": 24, "rounds": 7},
    "race_drafts": {"steps": 400, "num_tokens": 100, "rounds": 5, "batches": [1, 8]},
    "race_critic": {"side": "critic", "shape": "wide", "num_sequences": 16, "length": 128, "rounds": 5},
    "race_critic_memory": {"side": "group", "shape": "wide", "num_sequences": 16, "length": 128, "rounds": 1},
    "race_dropping": {"prompts": 20, "group_size": 8, "max_tokens": 256, "flat_share": 0.4, "rounds": 5},
}
QUICK: dict[str, Any] = {
    "num_examples": 2, "rounds": 1, "prompt": 32, "rows": 2, "num_tokens": 4, "steps": 2, "batches": [1],
    "shape": "tiny", "num_sequences": 2, "length": 24, "prompts": 5, "group_size": 2, "max_tokens": 16,
}  # fmt: skip
"""What --quick measures: a few tokens of everything, to see that every side runs."""
CITED: list[dict[str, Any]] = [
    {"choice": "distilling", "side": "GRPO of the weak student", "seconds": 119, "pass_at_1": 0.504},
    {"choice": "distilling", "side": "SFT on the teacher's answers, weak student", "seconds": 47, "pass_at_1": 0.536},
    {"choice": "distilling", "side": "GRPO of the built-in base", "seconds": 174, "pass_at_1": 0.886},
    {"choice": "distilling", "side": "SFT on the teacher's answers, built-in base", "seconds": 46, "pass_at_1": 0.908},
    {"choice": "flat_groups_dropped", "side": "R1's second RL stage, flat groups at first", "share": 0.59},
]
"""Measured before, by the recipes themselves: docs/LOG.md 2026-11-24, without the teacher's own training."""


def main(arguments: list[str] | None = None) -> None:
    """Measure everything, print a table, keep the figures."""
    options = _parser().parse_args(arguments)
    machine = describe_machine()
    if not machine["is_quiet"]:
        say(f"this machine is busy (load average {machine['load_average']}): believe ratios only, and those with care")
    rows = list(_rows(options))
    print(to_markdown(rows))
    found = {
        "kind": "why", "format": 1, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "is_quick": options.quick, "threads": options.threads, "machine": machine, "rows": rows, "cited": CITED,
    }  # fmt: skip
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    say(f"kept in {options.results}")


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield from training_rows(_run("race_training", options))
    yield from decoding_rows(_run("race_decoding", options))
    yield from draft_rows(_run("race_drafts", options))
    yield from critic_rows(_run("race_critic", options), alone=_run("race_critic_memory", options))
    yield from dropping_rows(_run("race_dropping", options))


def _run(name: str, options: argparse.Namespace) -> Measurement:
    job = JOBS[name] | ({key: value for key, value in QUICK.items() if key in JOBS[name]} if options.quick else {})
    say(f"{name.removeprefix('race_').replace('_', ' ')} …")
    entry = f"{RACES}:{name.removesuffix('_memory')}"
    return run_child(entry, job, num_threads=options.threads, timeout_seconds=options.timeout)


def row(
    choice: str, what: str, side: str, unit: str, figures: Sequence[float], *, first: float = 0.0
) -> dict[str, Any]:
    """One figure of the file; its ratio is to the side that the model has chosen."""
    median = statistics.median(figures)
    return {
        "choice": choice, "what": what, "side": side, "unit": unit, "median": median, "repetitions": list(figures),
        "ratio": median / first if first else 1.0,
    }  # fmt: skip


def training_rows(found: Measurement) -> Iterator[dict[str, Any]]:
    """Tokens a second of gradients; the model as it is comes first for every choice."""
    from bench.why_races import variants

    rates = {side: [found.num_tokens / s for s in seconds] for side, seconds in found.details["seconds"].items()}
    first = statistics.median(rates["as it is"])
    for side, (choice, *_) in variants().items():
        counts = found.details["parameters"][side]
        one = row(choice or "as it is", "training", side, "tokens/s", rates[side], first=first)
        yield one | {"num_parameters": counts["total"], "num_active_parameters": counts["active"]}


def decoding_rows(found: Measurement) -> Iterator[dict[str, Any]]:
    """Tokens a second over latents and over heads, and what a token leaves in the cache."""
    choice, first, least = "attention_against_full_heads", 0.0, 0.0
    for side, seconds in found.details["seconds"].items():
        rates = [found.num_tokens / s for s in seconds]
        cached = float(found.details["cache_bytes_per_token"][side])
        first, least = first or statistics.median(rates), least or cached
        yield row(choice, "decoding", side, "tokens/s", rates, first=first)
        yield row(choice, "cache", side, "bytes/token, float32", [cached], first=least)


def draft_rows(found: Measurement) -> Iterator[dict[str, Any]]:
    """Tokens a second with drafts and without."""
    for size, ways in found.details["batches"].items():
        first = ways["always"]["tokens_per_second"]
        for way, side in (("always", "with drafts"), ("off", "without drafts")):
            share = ways[way]["acceptance"]
            one = row("multi_token_prediction", f"decoding, batch {size}", side, "tokens/s",
                      [ways[way]["tokens_per_second"]], first=first)  # fmt: skip
            yield one | {"acceptance": None if math.isnan(share) else share}


def critic_rows(found: Measurement, *, alone: Measurement) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of a step's training, with a second model as large and without."""
    first = statistics.median(found.details["seconds"]["GRPO's group"])
    for side, seconds in found.details["seconds"].items():
        yield row("group_baseline", "training step", side, "s", seconds, first=first)
    for side, one in (("GRPO's group", alone), ("PPO's critic", found)):
        yield row("group_baseline", "peak memory", side, "MB", [one.peak_bytes / 1e6], first=alone.peak_bytes / 1e6)


def dropping_rows(found: Measurement) -> Iterator[dict[str, Any]]:
    """Seconds of a step's training on all groups and without the flat ones."""
    first = statistics.median(found.details["seconds"]["flat groups dropped"])
    for side, seconds in found.details["seconds"].items():
        one = row("flat_groups_dropped", "training step", side, "s", seconds, first=first)
        yield one | {"num_tokens": found.details["tokens"][side], "own_flat_share": found.details["own_flat_share"]}


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table; the ratio is to the side that the model has chosen, which comes first."""
    lines = ["| choice | what | side | median | ratio |", "|---|---|---|---|---|"]
    for one in rows:
        figure = f"{one['median']:,.4g} {one['unit']}"
        lines.append(f"| {one['choice']} | {one['what']} | {one['side']} | {figure} | {one['ratio']:.2f}x |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.why", description=__doc__, epilog="See docs/why.md.")
    parser.add_argument("--quick", action="store_true", help="a few tokens of everything: does it run at all?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one race")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go")
    return parser


if __name__ == "__main__":
    try:
        main()
    except MeasurementError as error:
        raise SystemExit(f"error: {error}") from None
