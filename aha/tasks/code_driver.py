"""Runs inside the sandbox, beside the code under judgement: calls its functions and reports what they return.

It knows what to call and nothing of what should come out, so there is nothing here to steal or to forge: the judge
compares, in another process. The file "calls.json" holds {"nonce": …, "calls": [[step, …], …]}; each step takes an
attribute of what the step before gave, of the module at first, and calls it where it has arguments. One line of JSON a
call goes to the channel: {"nonce", "index", "value"}, or "error" in place of the value.
"""

from __future__ import annotations

import json
import os
import sys
import types
from _frozen_importlib_external import SourceFileLoader
from collections.abc import Callable, Sequence
from typing import Any

CHANNEL_FD = 3
MAX_DEPTH = 60
_SCALARS: dict[type, Callable[[Any], Any]] = {int: int.__int__, float: float.__float__, str: str.__str__}
CALLS_FILE = "calls.json"
SOLUTION_FILE = "solution.py"


def decode(tagged: Any) -> Any:
    """An argument as `code_tests.encode_argument` wrote it: JSON, containers as {"kind": items}."""
    if not isinstance(tagged, dict):
        return tagged
    ((kind, items),) = tagged.items()
    if kind == "dict":
        return {decode(key): decode(value) for key, value in items}
    values = [decode(item) for item in items]
    return {"list": list, "tuple": tuple, "set": set}[kind](values)


def plain(value: Any, depth: int = 0) -> Any:
    """A value of JSON's types only; a tuple is a list, and subclasses of int, str … are what they are made of.

    Raises:
        TypeError: for anything else, a dictionary with keys other than strings included.
    """
    if depth > MAX_DEPTH:
        raise TypeError("a value nested too deeply")
    if value is None or value is True or value is False:
        return value
    for kind, made_of in _SCALARS.items():
        if isinstance(value, kind):
            return made_of(value)
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {plain(key): plain(item, depth + 1) for key, item in value.items()}
    raise TypeError(f"a value of type {type(value).__name__}")


def follow(module: object, steps: Sequence[dict[str, Any]]) -> Any:
    """The value of a chain of attributes and calls, e.g. of Solution().add(1, 2)."""
    value: Any = module
    for step in steps:
        value = getattr(value, step["name"])
        if "args" in step:
            args = [decode(argument) for argument in step["args"]]
            value = value(*args, **{name: decode(argument) for name, argument in step["kwargs"].items()})
    return value


def report(line: dict[str, Any]) -> None:
    content = json.dumps(line, allow_nan=False).encode("ascii") + b"\n"
    while content:
        content = content[os.write(CHANNEL_FD, content) :]


def main() -> None:
    with open(CALLS_FILE, encoding="utf-8") as stream:
        job = json.load(stream)
    module = sys.modules["solution"] = types.ModuleType("solution")
    SourceFileLoader("solution", os.path.abspath(SOLUTION_FILE)).exec_module(module)
    for index, steps in enumerate(job["calls"]):
        head = {"nonce": job["nonce"], "index": index}
        try:
            report({**head, "value": plain(follow(module, steps))})
        except Exception as error:  # noqa: BLE001 - whatever the code under judgement raises is its answer
            reason = f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else "an exception"
            report({**head, "error": reason[:200]})
    sys.stdout.flush()
    os._exit(0)  # every call is answered: threads that still run, or functions registered for the end, change nothing


if __name__ == "__main__":
    main()
