"""`python -m bench.sandbox`: what confinement costs a run, over the same program run bare, and how many fit a second.

Bare and confined runs take turns, so that both see the same machine; the overhead of a run is its difference to the
bare one beside it. "Judged" is a whole verdict of the code task: eight calls, with its driver, compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from aha.errors import SandboxError
from aha.sandbox import BACKENDS, require
from aha.sandbox.runtime import python_executable
from aha.tasks.code import LIMITS, Code
from aha.tasks.code_judge import judge
from aha.tasks.code_tests import as_tests
from bench.machine import describe_machine

PROGRAM = "print(sum(range(1000)))"
NUM_WORKERS = 2


def main(arguments: list[str] | None = None) -> int:
    """Measure each backend that confines here and print a Markdown table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="runs of each kind (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON with the machine instead of a table")
    options = parser.parse_args(arguments)
    rows = []
    for backend in BACKENDS:
        try:
            rows.append(measure(backend, num_runs=options.runs))
        except SandboxError as error:
            print(f"{backend}: {error}", file=sys.stderr)
    machine = describe_machine()
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return 0
    quiet = "quiet" if machine["is_quiet"] else f"busy, load average {machine['load_average']}"
    print(f"{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, {quiet}\n")
    print("| backend | bare ms | overhead ms, median | p95 | runs/s, 2 workers | judged ms | judged/s, 2 workers |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(f"{value:.1f}" if isinstance(value, float) else value for value in row.values()) + " |")
    return 0


def measure(backend: str, *, num_runs: int) -> dict[str, Any]:
    """The figures of one backend."""
    sandbox = require(backends=(backend,))
    problem = next(islice(Code().problems("train", seed=0), 1))
    tests = as_tests(problem.data["tests"])
    bare_command = [python_executable(), "-s", "-S", "-P", "-B", "-X", "utf8", "-c", PROGRAM]

    def run_bare() -> None:
        subprocess.run(bare_command, env={}, capture_output=True, check=True, stdin=subprocess.DEVNULL)

    def run_confined() -> None:
        assert sandbox.run_python(PROGRAM).is_ok

    def run_judged() -> None:
        assert judge(tests, problem.answer, sandbox=sandbox, limits=LIMITS).is_correct

    for warm_up in (run_bare, run_confined, run_judged):
        milliseconds(warm_up)
    pairs = [(milliseconds(run_bare), milliseconds(run_confined)) for _ in range(num_runs)]
    overheads = sorted(confined - bare for bare, confined in pairs)
    return {
        "backend": backend,
        "bare_ms": statistics.median(bare for bare, _ in pairs),
        "overhead_median_ms": statistics.median(overheads),
        "overhead_p95_ms": overheads[int(0.95 * len(overheads))],
        "runs_per_second": throughput(run_confined, num_runs=num_runs),
        "judged_ms": statistics.median(milliseconds(run_judged) for _ in range(num_runs)),
        "judged_per_second": throughput(run_judged, num_runs=num_runs),
    }


def milliseconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def throughput(run: Callable[[], None], *, num_runs: int) -> float:
    """Runs per second with NUM_WORKERS threads."""
    started = time.perf_counter()
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        for future in [pool.submit(run) for _ in range(num_runs)]:
            future.result()
    return num_runs / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
