"""What surrounds a run while it goes on: its lock, Ctrl-C, the live report and the trackers."""

from __future__ import annotations

import contextlib
import fcntl
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from aha import report
from aha.errors import DataError
from aha.train.job import Job
from aha.train.sinks import open_sinks
from aha.train.source import Plan

_LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process per run folder: two would write over each other's checkpoints."""
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{folder} is being trained by another process; wait for it, or choose another --out"
            ) from None
        yield


@contextlib.contextmanager
def shown_live(job: Job, *, watch_port: int | None) -> Iterator[None]:
    """The live report, where it was asked for."""
    if watch_port is None:
        yield
        return
    with report.serve_live(job.run.folder, port=watch_port) as address:
        job.console.say(f"live report: {address}")
        yield


@contextlib.contextmanager
def tracked(plan: Plan, job: Job, names: Sequence[str]) -> Iterator[None]:
    """The sinks, where any were asked for."""
    if not names:
        yield
        return
    saved = job.run.newest_checkpoint()
    config = {stage.name: dict(stage.values) for stage in plan.recipe.stages}
    first_step = saved.step if saved else 0
    job.sinks = open_sinks(names, job.run.folder, config=config, first_step=first_step, say=job.console.say)
    try:
        yield
    finally:
        job.sinks.close()


@contextlib.contextmanager
def finishing_step_on_ctrl_c(job: Job) -> Iterator[None]:
    """The first Ctrl-C lets the step in hand finish and be saved; the second one stops at once."""

    def on_signal(number: int, frame: object) -> None:
        if job.is_interrupted:
            raise KeyboardInterrupt
        job.is_interrupted = True
        job.console.say("stopping after this step; press Ctrl-C again to stop at once")

    try:
        previous = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not the main thread: there Ctrl-C is somebody else's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
