"""Verifiable tasks. `TASKS` maps a name to its class; `get_task` reads "NAME:option=value,…" or a data file."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args, get_origin, get_type_hints

from aha.errors import ConfigError, unknown_name
from aha.tasks.arithmetic import Arithmetic
from aha.tasks.base import Demonstration, HasBaselines, HasDemonstrations, HasTurns, HasVote, Split, Task
from aha.tasks.benchmarks import BENCHMARKS
from aha.tasks.code import Code
from aha.tasks.countdown import Countdown
from aha.tasks.livecodebench import LiveCodeBench
from aha.tasks.mixture import Mixture, split_mixture
from aha.tasks.python_file import PythonTask, load_task
from aha.tasks.reasoning_gym import ReasoningGym
from aha.tasks.table import Table
from aha.tasks.verifiers import VERIFIERS
from aha.tasks.warehouse import Warehouse

__all__ = [
    "TASKS",
    "VERIFIERS",
    "Arithmetic",
    "Code",
    "Countdown",
    "Demonstration",
    "HasBaselines",
    "HasDemonstrations",
    "HasTurns",
    "HasVote",
    "LiveCodeBench",
    "Mixture",
    "PythonTask",
    "ReasoningGym",
    "Split",
    "Table",
    "Task",
    "Warehouse",
    "get_task",
]

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": Arithmetic,
    "code": Code,
    "countdown": Countdown,
    "warehouse": Warehouse,
    "livecodebench": LiveCodeBench,
    "reasoning_gym": ReasoningGym,
    **BENCHMARKS,
}
"""Name → class. Its annotated keyword arguments are the task's options, so a frozen dataclass is the easy way; a class
with `from_spec(options)` reads their texts itself."""

Value = bool | int | float | str


def get_task(spec: str) -> Task:
    """A spec's task: "countdown", "countdown:max_number=50", "data.csv:verify=number", "task.py", "a + 2*b".

    Raises:
        ConfigError: for an unknown task or option, or an option's value of the wrong type or range.
        DataError: for a data or Python file that cannot be used.
    """
    if parts := split_mixture(spec):
        return Mixture(tuple((weight, get_task(part)) for weight, part in parts))
    name, text = (spec, "") if os.path.isfile(spec) else _cut(spec)
    if name in ("rg", "reasoning_gym"):  # the generator may stand first: rg:chain_sum,max_terms=5
        name, first = "reasoning_gym", text.split(",")[0]
        text = f"dataset={text}" if first and "=" not in first else text
    options = split_options(text, spec=spec)
    if read_options := getattr(TASKS.get(name), "from_spec", None):
        made: Task = read_options(options)
        return made
    if name in TASKS:
        return TASKS[name](**typed_options(options, TASKS[name], owner=name))
    if name.endswith(".py"):
        return load_task(name, options=options, read_options=typed_options)
    if name.endswith((".jsonl", ".csv")) or "/" in name or os.path.isfile(name):
        if "path" in options:
            raise ConfigError(f"{spec}: the path stands before the colon, it is no option")
        make_table: Callable[..., Task] = Table
        return make_table(path=name, **typed_options(options, Table, owner=name))
    raise ConfigError(f"{unknown_name('task', name, TASKS)}, or a data file ending in .jsonl or .csv, or a .py file")


def _cut(spec: str) -> tuple[str, str]:
    name, _, text = spec.partition(":")
    return name, text


def split_options(text: str, *, spec: str) -> dict[str, str]:
    """The texts of "option=value,option=value"."""
    options: dict[str, str] = {}
    for part in _split_at_commas(text) if text else ():
        key, sign, value = part.partition("=")
        if not sign:
            raise ConfigError(f"{spec}: {part!r} is no option; write NAME:option=value,option=value")
        if key in options:
            raise ConfigError(f"{spec}: option {key!r} stands twice")
        options[key] = value
    return options


def _split_at_commas(text: str) -> list[str]:
    """The parts between commas; one within brackets or quotes belongs to a value: sizes=[1,2]."""
    parts, depth, is_quoted = [""], 0, False
    for character in text:
        is_quoted ^= character == '"'
        depth += 0 if is_quoted else (character in "[({") - (character in "])}")
        if character == "," and depth == 0 and not is_quoted:
            parts.append("")
        else:
            parts[-1] += character
    return text.split(",") if depth or is_quoted else parts


def typed_options(options: Mapping[str, str], make: Callable[..., object], *, owner: str) -> dict[str, Value]:
    """Option texts as values of the field types of the dataclass `make`."""
    types = {key: kind for key, kind in get_type_hints(make).items() if key in inspect.signature(make).parameters}
    for key in options.keys() - types.keys():
        raise ConfigError(unknown_name(f"option of {owner}", key, types))
    return {key: _read_value(text, types[key], place=f"{owner}: {key}") for key, text in options.items()}


def _read_value(text: str, kind: object, *, place: str) -> Value:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{place}: {unknown_name('value', text, get_args(kind))}")
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and re.fullmatch("-?[0-9]{1,18}", text):
        return int(text)
    if kind is float and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?(e-?[0-9]{1,2})?", text):
        return float(text)
    if kind is str:
        return text
    expected = {bool: "true or false", int: "a whole number", float: "a number"}
    assert kind in expected, f"{place}: options of type {kind} cannot be written in a spec"
    raise ConfigError(f"{place} must be {expected[kind]}, got {text!r}")
