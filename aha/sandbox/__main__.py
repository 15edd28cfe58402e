"""`python -m aha.sandbox`: whether each backend confines on this machine, and what a run costs."""

from __future__ import annotations

import statistics
import sys

from aha.errors import SandboxError
from aha.sandbox import BACKENDS, Sandbox, probe

NUM_RUNS = 10


def main() -> int:
    """Probe every backend and print a line for each; the exit code."""
    holds = []
    for backend in BACKENDS:
        sandbox = Sandbox(backend=backend)
        try:
            leaks = probe(sandbox)
        except SandboxError as error:
            print(f"{backend}: cannot be used: {str(error).removeprefix(f'{backend}: ')}")
            continue
        if leaks:
            print(f"{backend}: DOES NOT HOLD: a confined program {', '.join(leaks)}")
            continue
        runs = [sandbox.run_python("pass") for _ in range(NUM_RUNS)]
        median_ms = statistics.median(run.setup_ms + run.wall_ms for run in runs)
        print(f"{backend}: holds; an empty program takes {median_ms:.0f} ms (median of {NUM_RUNS})")
        holds.append(backend)
    print(f"in use: {holds[0]}" if holds else "code cannot be confined here; docs/sandbox.md says what is needed")
    return 0 if holds else 2


if __name__ == "__main__":
    sys.exit(main())
