"""A generator of reasoning-gym from its name and parameters: texts of a command line become values of its types."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import date, time
from enum import Enum
from typing import Any

from reasoning_gym.factory import DATASETS

from aha.errors import unknown_name
from aha.tasks.jobs.gym_rules import RULES, Rule

ITEMS_PER_SEED = 500
"""reasoning-gym's own default; some generators prepare this many items at once."""
RUN_FIELDS = ("seed", "size")
"""Parameters of every generator that the run sets."""


class ParameterError(ValueError):
    """A name or a value that the generator does not take; the message is for the user."""


def rule_of(name: str) -> Rule:
    """How answers to a generator are scored; one that we have not read only where it keeps the library's comparison.

    Raises:
        ParameterError: for an unknown generator, or one that cannot be offered.
    """
    if name not in DATASETS:
        raise ParameterError(unknown_name("generator", name, [n for n in DATASETS if n != "composite"]))
    rule = RULES.get(name)
    if rule is None and any("score_answer" in vars(base) for base in DATASETS[name][0].__mro__[:-3]):
        raise ParameterError(f"{name}: its scorer has not been reviewed; it may evaluate model text")
    if rule is not None and rule.how == "refused":
        raise ParameterError(f"{name}: {rule.why}")
    return rule or Rule("exact")


def typed_parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values that `make_dataset` takes.

    Args:
        given: parameter → its text on a command line, or a JSON value.

    Raises:
        ParameterError: unknown generator or parameter, a value of the wrong type or out of range.
    """
    rule_of(name)
    hints = _hints(name)
    for key in given:
        if key not in hints:
            raise ParameterError(unknown_name("parameter", key, hints))
    plain = {}
    for key, value in given.items():
        plain[key] = _read_text(value) if isinstance(value, str) and not _is_text(hints[key][0]) else value
        _convert(plain[key], *hints[key], place=f"{name}: {key}")
    make_dataset(name, json.dumps(plain, sort_keys=True), seed=0)
    return plain


@functools.lru_cache(maxsize=32)
def make_dataset(name: str, parameters: str, *, seed: int) -> Any:
    """The generator itself.

    Args:
        parameters: a JSON object.

    Raises:
        ParameterError: when it refuses its parameters.
    """
    make, config = DATASETS[name]
    hints = _hints(name)
    values = {k: _convert(v, *hints[k], place=f"{name}: {k}") for k, v in json.loads(parameters).items()}
    try:
        return make(config=config(**values, seed=seed, size=ITEMS_PER_SEED))
    except Exception as error:  # noqa: BLE001 - the generators assert, and raise whatever follows
        raise ParameterError(f"{name}: {error or 'refuses these parameters'}"[:300]) from None


@functools.cache
def _hints(name: str) -> dict[str, tuple[Any, Any]]:
    """Parameter → its type and its default."""
    config = DATASETS[name][1]
    types_of = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name not in RUN_FIELDS:
            found[field.name] = (types_of[field.name], default)
    return found


def _is_text(hint: Any) -> bool:
    """Whether a text is a value of this type as it stands."""
    origin = typing.get_origin(hint)
    is_optional_text = origin in (typing.Union, types.UnionType) and str in typing.get_args(hint)
    return hint is str or is_optional_text or origin is typing.Literal


def _read_text(text: str) -> Any:
    """JSON, or a list of bare words: "[1,2]", "+|-", "[+,-]", "true", "none"."""
    stripped = text.strip()
    if stripped.lower() in ("none", "null", "true", "false"):
        return {"true": True, "false": False}.get(stripped.lower())
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    if stripped[:1] + stripped[-1:] in ("[]", "()"):
        return [_read_text(part) for part in stripped[1:-1].split(",") if part.strip()]
    if "|" in stripped:
        return [_read_text(part) for part in stripped.split("|")]
    return stripped


def _convert(value: Any, hint: Any, default: Any, *, place: str) -> Any:
    """A JSON value as a value of the type.

    Raises:
        ParameterError: when it is none.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), default, place=place)
    if origin is typing.Literal:
        if value not in arguments:
            raise ParameterError(f"{place}: {unknown_name('value', str(value), map(str, arguments))}")
        return value
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return _convert_list(value, hint, default, place=place)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(value, hint, place=place)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return typing.cast(Any, hint)(**value)
    return _convert_scalar(value, hint, place=place)


def _convert_list(value: Any, hint: Any, default: Any, *, place: str) -> Any:
    is_tuple = typing.get_origin(hint) is tuple or hint is tuple or isinstance(default, tuple)
    items = value if isinstance(value, list | tuple) else [value]
    arguments = [a for a in typing.get_args(hint) if a is not ...]
    if len(arguments) > 1:  # tuple[float, float]
        if len(items) != len(arguments):
            raise ParameterError(f"{place} must be a list of {len(arguments)} values, got {value!r:.60}")
        kinds = arguments
    else:
        # `tuple` alone says nothing of what it holds; its default does.
        kind = arguments[0] if arguments else type(default[0]) if isinstance(default, tuple) and default else object
        kinds = [kind] * len(items)
    converted = [_convert(item, kind, None, place=place) for item, kind in zip(items, kinds, strict=True)]
    return tuple(converted) if is_tuple else converted


def _convert_enum(value: Any, hint: type[Enum], *, place: str) -> Enum:
    for member in hint:
        if value in (member.value, member.name) or str(value).lower() in (
            str(member.value).lower(),
            member.name.lower(),
        ):
            return member
    raise ParameterError(f"{place}: {unknown_name('value', str(value), [str(m.value) for m in hint])}")


def _convert_scalar(value: Any, hint: Any, *, place: str) -> Any:
    if hint is str and not isinstance(value, list | dict):
        return value if isinstance(value, str) else json.dumps(value)
    if hint is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (hint is float or (hint is int and value == int(value))):
        return hint(value)
    if hint in (date, time) and isinstance(value, str):
        try:
            return hint.fromisoformat(value)
        except ValueError as error:
            raise ParameterError(f"{place}: {error}") from None
    if hint is object or hint is Any:
        return value
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise ParameterError(f"{place} must be {expected.get(hint, getattr(hint, '__name__', hint))}, got {value!r:.60}")
