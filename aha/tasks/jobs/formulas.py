"""Arithmetic and algebra written by a model, read without ever being evaluated as Python.

`sympy.parse_expr` and `sympify` hand their text to `eval`. Here Python's parser makes a tree, and only the nodes named
below get a meaning; names, powers and numbers are bounded, so that `9**9**9` is refused before it is computed.
"""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import sympy

from aha.tasks.verifiers import UnreadableError

MAX_CHARS = 4_000
MAX_DIGITS = 40
MAX_NUMERIC_POWER = 64
"""Largest exponent over a number."""
MAX_SYMBOLIC_POWER = 10_000
"""Largest exponent over an expression with a variable in it, which is kept as it stands."""

NUM_POINTS = 6

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "exp": sympy.exp, "log": sympy.log, "ln": sympy.log, "sqrt": sympy.sqrt, "Abs": sympy.Abs, "abs": sympy.Abs,
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "asin": sympy.asin, "acos": sympy.acos, "atan": sympy.atan,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
    "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh,
    "asinh": sympy.asinh, "acosh": sympy.acosh, "atanh": sympy.atanh,
}  # fmt: skip
"""Functions of one argument that a formula may use."""
CONSTANTS = {"pi": sympy.pi, "E": sympy.E}
_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Arithmetic(NamedTuple):
    """A value and the whole numbers it was written with."""

    value: Fraction
    numbers: tuple[int, ...]


def read_arithmetic(text: str) -> Arithmetic:
    """Whole numbers with + - * / and parentheses, as an exact fraction.

    Raises:
        UnreadableError: for anything else, a division by zero included.
    """
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10**MAX_DIGITS:
            numbers.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            result: Fraction = _OPERATORS[type(node.op)](value(node.left), value(node.right))
            return result
        raise UnreadableError(f"no arithmetic: {type(node).__name__}")

    try:
        return Arithmetic(value(_tree(text)), tuple(numbers))
    except ZeroDivisionError:
        raise UnreadableError("division by zero") from None
    except RecursionError:
        raise UnreadableError("nested too deeply") from None


def read_formula(text: str, *, symbols: Mapping[str, sympy.Symbol]) -> sympy.Expr:
    """A formula in Python's notation (`**`, `*`) over these symbols, `pi`, `E` and the functions above.

    Raises:
        UnreadableError: for anything else.
    """
    try:
        return _formula(_tree(text), symbols)
    except RecursionError:
        raise UnreadableError("nested too deeply") from None


def is_zero(formula: sympy.Expr, variable: sympy.Symbol) -> bool:
    """Whether a formula in one variable is zero everywhere, judged by its values at NUM_POINTS points.

    Not by `simplify`, which takes seconds on a wrong answer with powers of sines: it would be masked instead of scored.
    The points depend on the formula, so that no answer can be fitted to them.

    Raises:
        UnreadableError: when it has no value at most points, or another variable.
    """
    formula = formula.subs(dict.fromkeys(formula.free_symbols - {variable}, 1))
    rng = random.Random(str(formula))
    num_valued = 0
    for _ in range(2 * NUM_POINTS):
        point = sympy.Rational(rng.randint(-3_000_000, 3_000_000), 1_000_003)
        value = formula.subs(variable, point).evalf(30, maxn=200)
        if not value.is_number or not value.is_finite:
            continue
        if abs(value) > sympy.Float("1e-18"):
            return False
        num_valued += 1
        if num_valued == NUM_POINTS:
            return True
    raise UnreadableError("a formula without values")


def _tree(text: str) -> ast.expr:
    if not text.strip():
        raise UnreadableError("no answer")
    if len(text) > MAX_CHARS:
        raise UnreadableError(f"answer of {len(text):,} characters; at most {MAX_CHARS:,} are read")
    try:
        return ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UnreadableError("no formula") from None


def _formula(node: ast.expr, symbols: Mapping[str, sympy.Symbol]) -> Any:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return _number(node)
        case ast.Name(id=name):
            if name not in symbols and name not in CONSTANTS:
                raise UnreadableError(f"unknown name {name[:20]!r}")
            return symbols.get(name, CONSTANTS.get(name))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_formula(operand, symbols)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _formula(operand, symbols)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_formula(left, symbols), _formula(right, symbols))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_formula(left, symbols), _formula(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](_formula(argument, symbols))
    raise UnreadableError(f"no formula: {type(node).__name__}")


def _number(node: ast.Constant) -> sympy.Expr:
    text = repr(node.value)
    if len(text) > MAX_DIGITS or text in ("inf", "nan"):
        raise UnreadableError("number too long")
    return sympy.Rational(text)


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    largest = MAX_SYMBOLIC_POWER if base.free_symbols else MAX_NUMERIC_POWER
    if exponent.is_number and not (exponent.is_Rational and abs(exponent) <= largest):
        raise UnreadableError("power too large")
    return base**exponent
