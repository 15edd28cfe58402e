"""Values of a config.json, which anyone may have written: each is of its type or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def whole_number(raw: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    """A whole number.

    Raises:
        KeyError: it is missing and has no default.
        TypeError: it is something else.
    """
    value = raw[key] if default is None else raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} must be a whole number, got {shortened(value)}")
    return value


def number(raw: Mapping[str, Any], key: str, *, default: float | None = None) -> float:
    """A number, whole or not.

    Raises:
        KeyError: it is missing and has no default.
        TypeError: it is something else; text that looks like a number too.
    """
    value = raw[key] if default is None else raw.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{key} must be a number, got {shortened(value)}")
    return float(value)


def flag(raw: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """true or false; null is the default.

    Raises:
        TypeError: it is something else; the text "false" is true to Python.
    """
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise TypeError(f"{key} must be true or false, got {shortened(value)}")
    return value


def token_id(value: Any, key: str) -> int:
    """One token.

    Raises:
        TypeError: it is no whole number that a token can have.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise TypeError(f"{key} must be a token's number, got {shortened(value)}")
    return value
