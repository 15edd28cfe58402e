"""Tests for code under judgement, as they stand in a data file: calls with what they return, or input with output.

    [{"call": "area(2, h=3)", "returns": 6}, {"call": "Box([1]).top()", "returns": null}]
    [{"stdin": "2 3\\n", "stdout": "6\\n"}]

A call is read, never evaluated: a chain of names and calls whose arguments are literals. So a test can hold no
comparison, which would put the expected value into the hands of the code (an object whose `==` is always true).
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

MAX_TESTS = 1_000
MAX_DEPTH = 60

Step = dict[str, Any]
"""{"name": …} takes an attribute; with "args" and "kwargs" it is called. See `code_driver`."""


class TestsError(ValueError):
    """The text holds no usable tests; the message says what is wrong with which."""

    __test__ = False  # not for pytest


@dataclass(frozen=True)
class CallTest:
    """Call something of the code; right is what it must return."""

    text: str
    """As a person wrote it, for notes."""
    steps: tuple[Step, ...]
    returns: Any
    tolerance: float | None
    """None: numbers equal in type and value. Else 1 and 1.0 are the same, and may differ by this much."""


@dataclass(frozen=True)
class InputTest:
    """Run the code as a program; right is what it must print."""

    stdin: str
    stdout: str
    tolerance: float | None


Test = CallTest | InputTest


def read_tests(text: str) -> tuple[Test, ...]:
    """The tests in a JSON text.

    Raises:
        TestsError: when it is no JSON, or a test cannot be used.
    """
    try:
        values = read_strict_json(text)
    except ValueError as error:
        raise TestsError(f"no JSON: {error}") from None
    return as_tests(values)


def as_tests(values: Any) -> tuple[Test, ...]:
    """The tests in a list of JSON objects.

    Raises:
        TestsError: when one cannot be used.
    """
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_TESTS:
        raise TestsError(f'tests must be a list of 1 to {MAX_TESTS:,} objects such as {{"call": "f(1)", "returns": 2}}')
    tests = []
    for number, value in enumerate(values, start=1):
        try:
            tests.append(_as_test(value))
        except TestsError as error:
            raise TestsError(f"test {number}: {error}") from None
    return tuple(tests)


def _as_test(value: Any) -> Test:
    if not isinstance(value, dict):
        raise TestsError(f"must be an object, got {value!r:.40}")
    fields = {key for key in value if key != "tolerance"}
    tolerance = value.get("tolerance")
    is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if tolerance is not None and not (is_number and 0 <= tolerance < math.inf):
        raise TestsError(f"tolerance must be a number, 0 or more, got {tolerance!r:.40}")
    if fields == {"call", "returns"}:
        if not isinstance(value["call"], str):
            raise TestsError(f"call must be a text, got {value['call']!r:.40}")
        return CallTest(value["call"], tuple(read_call(value["call"])), value["returns"], tolerance)
    if fields == {"stdin", "stdout"}:
        if not isinstance(value["stdin"], str) or not isinstance(value["stdout"], str):
            raise TestsError("stdin and stdout must be texts")
        return InputTest(value["stdin"], value["stdout"], tolerance)
    found = ", ".join(sorted(map(str, value))) or "nothing"
    raise TestsError(f"needs call and returns, or stdin and stdout (and may have tolerance); has {found[:80]}")


def read_call(text: str) -> list[Step]:
    """The steps of a call such as "f(1, [2])" or "Stack().push(x=(1, 2))".

    Raises:
        TestsError: when it is anything else.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"call {text[:60]!r} is no Python: {type(error).__name__}") from None
    if not isinstance(node, ast.Call):
        raise TestsError(f"call {text[:60]!r} must be a call, such as f(1, 2); what it gives belongs into returns")
    steps: list[Step] = []
    while True:
        step: Step = {}
        if isinstance(node, ast.Call):
            step["args"] = [_literal(argument, text) for argument in node.args]
            step["kwargs"] = {str(keyword.arg): _literal(keyword.value, text) for keyword in node.keywords}
            if any(keyword.arg is None for keyword in node.keywords):
                raise TestsError(f"call {text[:60]!r}: write every argument out, without **")
            node = node.func
        if isinstance(node, ast.Name):
            return [{"name": node.id, **step}, *steps]
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            raise TestsError(f"call {text[:60]!r} must be a chain of names and calls, such as Box(1).top()")
        steps.insert(0, {"name": node.attr, **step})
        node = node.value


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return encode_argument(ast.literal_eval(node))
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise TestsError(
            f"call {text[:60]!r}: arguments must be literals, such as 1, 'a', [1, 2], {{'a': (1,)}}"
        ) from None


def encode_argument(value: Any) -> Any:
    """A literal as JSON that keeps its types: containers become {"kind": items}; see `code_driver.decode`.

    Raises:
        ValueError: for bytes, complex numbers and the like.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set):
        return {type(value).__name__: [encode_argument(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode_argument(key), encode_argument(item)] for key, item in value.items()]}
    raise ValueError(f"{type(value).__name__} is no argument")


def read_strict_json(text: str) -> Any:
    """A JSON value: no key twice, no NaN or infinity, no number of thousands of digits, no depth without end.

    Raises:
        ValueError: when it is none.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _depth(value) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    return value


def _depth(value: Any) -> int:
    """Nesting of a JSON value; json.loads has bounded it already, by the recursion limit."""
    depth = 0
    level = [value]
    while level := [
        item
        for container in level
        if isinstance(container, list | dict)
        for item in (container.values() if isinstance(container, dict) else container)
    ]:
        depth += 1
    return depth


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number too large")
    return value


def same_value(expected: Any, given: Any, *, tolerance: float | None) -> bool:
    """Whether two JSON values are equal, types included: 1 is not true, and not 1.0 unless there is a tolerance."""
    if isinstance(expected, dict) and isinstance(given, dict):
        return expected.keys() == given.keys() and all(
            same_value(value, given[key], tolerance=tolerance) for key, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(given, list):
        return len(expected) == len(given) and all(
            same_value(a, b, tolerance=tolerance) for a, b in zip(expected, given, strict=True)
        )
    if tolerance is not None and _is_number(expected) and _is_number(given):
        # Fractions: a float of a whole number with 400 digits does not exist.
        return abs(Fraction(expected) - Fraction(given)) <= Fraction(tolerance)
    return type(expected) is type(given) and bool(expected == given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_output(expected: str, given: str, *, tolerance: float | None) -> bool:
    """Whether two outputs have the same lines, white space at the ends of lines and of the text apart.

    With a tolerance, words that are numbers on both sides may differ by that much.
    """
    expected_lines, given_lines = (_lines(text) for text in (expected, given))
    if len(expected_lines) != len(given_lines):
        return False
    return all(_same_line(a, b, tolerance=tolerance) for a, b in zip(expected_lines, given_lines, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(expected: str, given: str, *, tolerance: float | None) -> bool:
    if expected == given:
        return True
    expected_words, given_words = expected.split(), given.split()
    if tolerance is None or len(expected_words) != len(given_words):
        return False
    return all(_same_word(a, b, tolerance=tolerance) for a, b in zip(expected_words, given_words, strict=True))


def _same_word(expected: str, given: str, *, tolerance: float) -> bool:
    if expected == given:
        return True
    numbers = [_number_in(word) for word in (expected, given)]
    return numbers[0] is not None and numbers[1] is not None and abs(numbers[0] - numbers[1]) <= Fraction(tolerance)


def _number_in(word: str) -> Fraction | None:
    digits = word.lstrip("+-").replace(".", "", 1)
    mantissa, _, exponent = digits.partition("e")
    if len(word) > 60 or not (mantissa.isascii() and mantissa.isdigit()) or len(exponent) > 3:
        return None
    try:
        return Fraction(word)
    except ValueError:
        return None


def count_expected_bytes(tests: Sequence[Test]) -> int:
    """About how much an answer to all tests takes, to size the limits on output."""
    return sum(len(t.stdout if isinstance(t, InputTest) else json.dumps(t.returns)) for t in tests)
