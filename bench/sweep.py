"""A peer's best settings: one axis after another, each tried with the best values of those before it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.child import Measurement, MeasurementError

Settings = Mapping[str, Any]
Measure = Callable[[Settings], Measurement]
Axis = tuple[str, Sequence[Any]]
MAX_TRIALS = 100


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting that was tried."""

    settings: Settings
    seconds: float | None
    """None when it could not be measured."""
    peak_bytes: int = 0
    problem: str = ""


def pick_fastest(
    start: Settings, axes: Sequence[Axis], *, measure: Measure, label: str, max_trials: int = MAX_TRIALS
) -> tuple[Settings, list[Trial]]:
    """Walk along each axis and keep its fastest value.

    Args:
        start: the settings tried first.
        axes: a setting's name and the values it may take, one axis after another.
        measure: what each trial does.
        max_trials: most settings that are tried; 1 takes the peer as it starts.

    Returns:
        The fastest settings found, and everything that was tried.

    Raises:
        MeasurementError: no setting could be measured; with the reason of the first.
    """
    trials = [_try(start, measure, label=label)]
    best = trials[0]
    for axis, values in axes:
        for value in values:
            settings = {**best.settings, axis: value}
            if len(trials) >= max_trials or any(trial.settings == settings for trial in trials):
                continue
            trials.append(_try(settings, measure, label=label))
        measured = [trial for trial in trials if trial.seconds is not None]
        best = min(measured, key=lambda trial: trial.seconds or 0.0, default=best)
    if best.seconds is None:
        raise MeasurementError(best.problem)
    return best.settings, trials


def _try(settings: Settings, measure: Measure, *, label: str) -> Trial:
    try:
        found = measure(settings)
    except MeasurementError as error:
        say(f"  {label}, {describe(settings)}: {error}")
        return Trial(settings=settings, seconds=None, problem=str(error))
    seconds = min(found.seconds)
    say(f"  {label}, {describe(settings)}: {seconds:.2f} s")
    return Trial(settings=settings, seconds=seconds, peak_bytes=found.peak_bytes)


def describe(settings: Settings) -> str:
    """Settings as people read them: "dtype float32, cache static"."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def say(line: str) -> None:
    """A line of progress; standard output is for the table."""
    print(line, file=sys.stderr, flush=True)
