"""Python values as plain JSON and back: what a generator notes about a problem goes to its scorer in another process.

JSON's own types stand as they are. Everything else is {"~": kind, "v": content}; a dictionary whose keys are not all
texts, or that has the key "~" itself, is a list of pairs.
"""

from __future__ import annotations

import importlib
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

TAG = "~"
_FROM_TEXT: dict[str, Any] = {
    "Fraction": Fraction,
    "Decimal": Decimal,
    "complex": complex,
    "float": float,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
}
_TO_TEXT: dict[type, Any] = {
    Fraction: str,
    Decimal: str,
    complex: str,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
}
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """A value as JSON. What has no JSON form and no known kind becomes its repr, which cannot be read back.

    Numpy's scalars become Python's, its arrays nested lists.
    """
    if isinstance(value, Enum):
        kind = type(value)
        return _tagged("enum", [kind.__module__, kind.__qualname__, value.name])
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, float):  # numpy's float64 is one
        return float(value) if math.isfinite(value) else _tagged("float", repr(float(value)))
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return _encode_dict(value)
    return _encode_other(value)


def _encode_dict(value: dict[Any, Any]) -> Any:
    if all(type(key) is str for key in value) and TAG not in value:
        return {key: encode(item) for key, item in value.items()}
    return _tagged("dict", [[encode(key), encode(item)] for key, item in value.items()])


def _encode_other(value: Any) -> Any:
    kind = type(value)
    if kind in (set, frozenset):
        return _tagged(kind.__name__, sorted((encode(item) for item in value), key=repr))
    if isinstance(value, tuple):
        return _tagged("tuple", [encode(item) for item in value])
    if isinstance(value, timedelta):
        return _tagged("timedelta", [value.days, value.seconds, value.microseconds])
    if kind in _TO_TEXT:
        return _tagged(kind.__name__, _TO_TEXT[kind](value))
    if hasattr(value, "tolist"):
        return encode(value.tolist())
    return _tagged("repr", repr(value))


def decode(value: Any) -> Any:
    """The value that `encode` was given, as far as its kind is known."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, content = value[TAG], value["v"]
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(item) for item in content)
    if kind == "timedelta":
        return timedelta(*content)
    if kind == "enum":
        return _enum(*content)
    return _FROM_TEXT[kind](content) if kind in _FROM_TEXT else content


def _enum(module: str, name: str, member: str) -> Any:
    if module.split(".")[0] != "reasoning_gym":
        raise ValueError(f"{module}.{name} is no enum of reasoning-gym")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found[member]


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    return {TAG: kind, "v": content}
