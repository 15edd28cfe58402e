"""A small DeepSeek-V3 on a CPU beside transformers: training, sampling; and attention over latents beside expanded.

    python -m bench.v3 [--only training sampling latent] [--shapes tiny wide] [--sampled-shapes tiny wide] [--quick]

The two sides of a race live in one process and take turns, round after round; what counts is the ratio of medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from bench.child import Measurement, MeasurementError, run_child
from bench.machine import describe_machine
from bench.sweep import say

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 192, "layers": 6, "heads": 6, "nope": 32, "rope": 16, "latent": 64, "experts": 16, "chosen": 4,
             "expert_width": 96, "dense_width": 512, "vocab": 1300},
    "wide": {"hidden": 512, "layers": 4, "heads": 8, "nope": 64, "rope": 32, "latent": 128, "experts": 64, "chosen": 6,
             "expert_width": 128, "dense_width": 1408, "vocab": 1300},
}  # fmt: skip
"""Tiny is recipes/v3_tiny.toml's kind; wide has more and larger experts. Both: one dense layer, one shared expert."""

LATENT_LENGTHS = (256, 1024, 2048, 4096, 8192)
QUICK: dict[str, Any] = {"rounds": 1, "num_documents": 2, "length": 16, "num_sequences": 2, "num_tokens": 4}


def main(arguments: list[str] | None = None) -> None:
    """Run the races and print a table of each."""
    options = _parser().parse_args(arguments)
    machine = describe_machine()
    if not machine["is_quiet"]:
        say(f"this machine is busy (load average {machine['load_average']}): believe ratios only, and those with care")
    say(f"{machine['processor']}, {options.threads} thread(s), {machine['versions']}")
    for title, header, lines in (
        ("training", "what | dtype | side | ms a step | range | aha is", _training(options)),
        ("sampling", "what | dtype | side | tokens/s | range | aha is | same tokens", _sampling(options)),
        ("latent", "cached tokens | dtype | absorbed ms | per-head cache ms | expanded each step ms | absorbed is",
         _latent(options)),
    ):  # fmt: skip
        if title not in options.only:
            continue
        print(f"\n| {header} |\n|{'---|' * (header.count('|') + 1)}")
        for line in lines:
            print(f"| {line} |", flush=True)


def _training(options: argparse.Namespace) -> Iterator[str]:
    for shape in options.shapes:
        for dtype in options.dtypes:
            for batch in ("equal", "completions"):
                # Equal lengths and all logits; or a group's completions and their log-probabilities, as GRPO trains.
                job = {"batch": batch, "num_documents": 16, "length": 128 if shape == "tiny" else 32}
                found = _race("bench.v3_races:race_training", job, options, shape=shape, dtype=dtype)
                what = {"equal": "all logits, equal lengths", "completions": "completions, prompts shared"}[batch]
                for side, seconds in found.details["seconds"].items():
                    yield f"{shape}: {what} | {dtype} | {side} | {_figures(seconds, 1e3)} | {_ratio(found, side)}"


def _sampling(options: argparse.Namespace) -> Iterator[str]:
    for shape in options.sampled_shapes:
        for dtype in options.dtypes:
            job = {"num_sequences": 64, "num_tokens": 48}
            found = _race("bench.v3_races:race_sampling", job, options, shape=shape, dtype=dtype)
            for side, seconds in found.details["seconds"].items():
                rates = [found.num_tokens / s for s in seconds]
                same = f"{found.details['same_tokens']:.1%}" if side != "aha" else ""
                what = f"{shape}: {found.details['num_sequences']} sequences, greedy"
                yield f"{what} | {dtype} | {side} | {_figures(rates, 1)} | {_ratio(found, side)} | {same}"


def _latent(options: argparse.Namespace) -> Iterator[str]:
    for dtype in options.dtypes:
        for length in (64, 128) if options.quick else LATENT_LENGTHS:
            job = {"length": length, "rows": 4, "dtype": dtype, "rounds": 2 if options.quick else 7}
            entry = "bench.v3_races:race_latent"
            found = run_child(entry, job, num_threads=options.threads, timeout_seconds=options.timeout)
            absorbed, cached, expanded = (statistics.median(s) for s in found.details["seconds"].values())
            times = " | ".join(f"{1e3 * s:.3g}" for s in (absorbed, cached, expanded))
            yield f"{length} | {dtype} | {times} | {cached / absorbed:.2f}x, {expanded / absorbed:.2f}x as fast"


def _race(entry: str, job: dict[str, Any], options: argparse.Namespace, *, shape: str, dtype: str) -> Measurement:
    job = {**job, "shape": SHAPES[shape], "dtype": dtype, "rounds": options.rounds}
    job |= {key: value for key, value in QUICK.items() if options.quick and key in job}
    return run_child(entry, job, num_threads=options.threads, timeout_seconds=options.timeout)


def _figures(figures: list[float], unit: float) -> str:
    """Median and range."""
    median, least, most = (unit * f for f in (statistics.median(figures), min(figures), max(figures)))
    return f"{median:.4g} | {least:.4g} to {most:.4g}"


def _ratio(found: Measurement, side: str) -> str:
    seconds = found.details["seconds"]
    if side == "aha":
        return ""
    return f"{statistics.median(seconds[side]) / statistics.median(seconds['aha']):.2f}x as fast"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.v3", description=(__doc__ or "").splitlines()[0])
    races = ("training", "sampling", "latent")
    parser.add_argument("--only", nargs="+", choices=races, default=races)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES))
    # Not both: transformers takes minutes to sample from the wide one.
    parser.add_argument("--sampled-shapes", nargs="+", choices=tuple(SHAPES), default=("tiny",))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3, help="timed repetitions of every side")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one race")
    parser.add_argument("--quick", action="store_true", help="a few tokens of everything: does it run at all?")
    return parser


if __name__ == "__main__":
    try:
        main()
    except MeasurementError as error:
        raise SystemExit(f"error: {error}") from None
