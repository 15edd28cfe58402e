"""Where a run's metrics go besides metrics.jsonl: TensorBoard, or anything that speaks Weights & Biases' three calls.

A sink is a convenience: metrics.jsonl is the record. One that fails is dropped with a word, and the run goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from aha.errors import ConfigError, unknown_name


class Sink(Protocol):
    """Takes numbers by step."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one step, counted through all stages."""

    def close(self) -> None:
        """Write out what is left."""


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path, *, name: str, config: Mapping[str, Any], first_step: int) -> None:
        tensorboard = _import("tensorboardX", extra="tensorboard")
        # What a killed process logged after the checkpoint that the run goes on from is hidden by the viewer.
        self._writer = tensorboard.SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key.replace(".", "/"), value, global_step=step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, or where it is not installed trackio, which keeps the same calls on this machine."""

    def __init__(self, folder: Path, *, name: str, config: Mapping[str, Any], first_step: int) -> None:
        module = _import("wandb", "trackio", extra="wandb")
        self._module = module
        arguments: dict[str, Any] = {"project": "aha", "name": name, "config": dict(config)}
        if module.__name__ == "wandb":
            # The same id after a kill goes on with the same curves.
            arguments |= {
                "dir": str(folder),
                "id": f"{name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}",
                "resume": "allow",
            }
        module.init(**arguments)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._module.log(dict(numbers), step=step)

    def close(self) -> None:
        self._module.finish()


SINKS: dict[str, Callable[..., Sink]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Names that `aha train --track` takes."""


class Sinks:
    """The sinks of a run. None of them can stop it."""

    def __init__(self, sinks: Mapping[str, Sink], *, say: Callable[[str], None]) -> None:
        self._sinks = dict(sinks)
        self._say = say

    def log(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row of metrics.jsonl; an evaluation's go under "eval"."""
        kind = row.get("kind")
        prefix = "" if kind == "step" else f"{kind}."
        numbers = {f"{prefix}{key}": float(value) for key, value in row.items() if key != "step" and _is_number(value)}
        for name in list(self._sinks):
            self._try(name, "log", int(row["step"]), numbers)

    def close(self) -> None:
        for name in list(self._sinks):
            self._try(name, "close")

    def _try(self, name: str, method: str, *arguments: Any) -> None:
        try:
            getattr(self._sinks[name], method)(*arguments)
        except Exception as error:  # noqa: BLE001 - other people's code, over a network: it may raise anything
            self._say(_dropped(name, error))
            del self._sinks[name]


def open_sinks(
    names: Sequence[str],
    folder: Path,
    *,
    config: Mapping[str, Any],
    first_step: int,
    say: Callable[[str], None],
) -> Sinks:
    """The sinks of a run's folder.

    Args:
        names: keys of SINKS.
        config: what is trained, for those that show it.
        first_step: steps that were done before this process.
        say: tells the user of a sink that failed.
    """
    opened: dict[str, Sink] = {}
    for name in dict.fromkeys(names):
        try:
            opened[name] = SINKS[name](folder, name=folder.name, config=config, first_step=first_step)
        except Exception as error:  # noqa: BLE001 - as in Sinks
            say(_dropped(name, error))
    return Sinks(opened, say=say)


def _dropped(name: str, error: Exception) -> str:
    return f"--track {name} failed and is dropped; metrics.jsonl has everything ({error})"


def check_sinks(names: Sequence[str]) -> None:
    """Raises ConfigError for an unknown sink, or one whose library is not installed, before there is a run."""
    needed = {"tensorboard": (("tensorboardX",), "tensorboard"), "wandb": (("wandb", "trackio"), "wandb")}
    for name in names:
        if name not in SINKS:
            raise ConfigError(unknown_name("sink", name, SINKS))
        modules, extra = needed[name]
        _import(*modules, extra=extra)


def _import(*names: str, extra: str) -> ModuleType:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ConfigError(f"--track {extra} needs {' or '.join(names)}; run: pip install 'aha[{extra}]'")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
