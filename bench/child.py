"""Every measurement in a process of its own, so that its peak memory is its own and nothing stays warm for the next.

`run_child` starts `python -m bench.child MODULE:FUNCTION JOB RESULT`; the function gets the job and returns seconds.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aha.errors import AhaError

ROOT = Path(__file__).parent.parent
Job = Mapping[str, Any]
"""What a measurement is told: plain JSON values."""


class MeasurementError(AhaError):
    """A measurement that could not be made, with its reason in one line."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one child found."""

    seconds: tuple[float, ...]
    """Of each timed repetition, after a warm-up."""
    num_tokens: int
    """Tokens sampled in each repetition."""
    peak_bytes: int = 0
    """Largest resident size of the process, mapped weights included; filled in by `main`."""
    details: Mapping[str, Any] = field(default_factory=dict)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far.

    VmHWM where there is a /proc: getrusage's figure also covers the process that started this one (exec hands it on).
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def child_environment(num_threads: int) -> dict[str, str]:
    """The caller's environment with a thread count, no network and quiet libraries."""
    settings = {
        "OMP_NUM_THREADS": str(num_threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    return {**os.environ, **settings}


def run_child(entry: str, job: Job, *, num_threads: int, timeout_seconds: float) -> Measurement:
    """Run `MODULE:FUNCTION` on a job in its own Python.

    Raises:
        MeasurementError: it failed, was killed or took too long.
    """
    with tempfile.TemporaryDirectory() as work:
        job_path, result_path = Path(work, "job.json"), Path(work, "result.json")
        job_path.write_text(json.dumps({**job, "num_threads": num_threads}), encoding="utf-8")
        command = [sys.executable, "-m", "bench.child", entry, str(job_path), str(result_path)]
        run_command(command, num_threads=num_threads, timeout_seconds=timeout_seconds, cwd=ROOT)
        found = json.loads(result_path.read_text(encoding="utf-8"))
    return Measurement(**{**found, "seconds": tuple(found["seconds"])})


def run_command(command: list[str], *, num_threads: int, timeout_seconds: float, cwd: Path) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        MeasurementError: it failed, was killed or took too long; with the last line it wrote.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=child_environment(num_threads), capture_output=True, text=True, check=False,
            timeout=timeout_seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"took longer than {timeout_seconds:.0f} s") from None
    except OSError as error:
        raise MeasurementError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode < 0:
        raise MeasurementError(f"was killed by signal {-done.returncode}; 9 usually means that memory ran out")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise MeasurementError(f"failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def main() -> None:
    """Entry of the child."""
    entry, job_path, result_path = sys.argv[1:]
    module, function = entry.split(":")
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    import torch  # here: the parent process imports this module too, and stays small

    torch.set_num_threads(job["num_threads"])
    found = getattr(importlib.import_module(module), function)(job)
    found = dataclasses.replace(found, peak_bytes=peak_memory_bytes())
    Path(result_path).write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
