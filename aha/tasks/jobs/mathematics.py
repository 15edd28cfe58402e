"""Compares mathematical answers with math-verify: is this LaTeX the same value, set, interval, matrix or formula?

math-verify guards itself with `signal.alarm`, which works in the main thread only and made a whole trainer's scores 0
when it ran in another (verl pull request 5635). Its own limits are off here; the worker process has better ones.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.parsing import sympy_parser

from aha.tasks.verifiers import UnreadableError, last_boxed

MAX_CHARS = 1_000
"""Of a final answer; the longest of MATH's has some 160."""
MAX_EXPONENT = 60
"""Of a power of ten in a number; any other power is not computed, in an answer that should be a number."""
MAX_DEPTH = 30
SMALL = 0.01
"""math-verify rounds to six decimals, which makes 1e-19 of an electron's charge 0: below this, digits count instead."""
_CONFIG = [LatexExtractionConfig(boxed_match_priority=0)]
_SEGMENT = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?%?|(?<![\w.])-?\.\d+")
_NUMERAL_CODE = re.compile(r"(Integer|Float|Rational) \('?[0-9.]+'? \)")
_COMMAND = re.compile(r"\\(?:text|mathrm)\{[^{}]*\}|\\[A-Za-z]+")
_WITH_BASE = re.compile(r"([0-9A-Z.]+)_([0-9]+)")
_UNDONE = (sympy.Derivative, sympy.Integral, sympy.Limit, sympy.Sum, sympy.Product)
_WORDS = re.compile(r"[a-z][a-z ]+")
_NOISE = re.compile(r"\\left|\\right|\\[,;:! ]|\\(?:text|mathrm|textbf|mbox)(?=\{)|[\s{}$]|\.$|^\(|\)$")


class GoldError(ValueError):
    """The gold answer is nothing that can be compared with."""


def answer(question: Any) -> dict[str, Any]:
    """{"gold", "text", where `text` is all that stands after the thinking} → {"is_right", "read": the final answer}.

    Raises:
        UnreadableError: when the text has no final answer, or none that is mathematics.
        GoldError: when the gold answer cannot be read.
    """
    logging.disable()
    gold_text = last_boxed(question["gold"]).strip().strip("$")
    gold = _parse(gold_text)
    if not gold:
        raise GoldError(f"gold answer {gold_text[:40]!r} is no mathematics")
    found = final_answer(question["text"])
    return {"is_right": _is_same(gold, gold_text, found), "read": found}


def final_answer(text: str) -> str:
    """What stands in the last \\boxed{}, else in the last formula between dollar signs, else all of a text that is
    nothing but a formula, else the last number.

    Raises:
        UnreadableError: when there is none, or it is too long.
    """
    text = text.replace("\\fbox{", "\\boxed{")
    if "\\boxed{" in text:
        found = last_boxed(text)
    elif segments := _SEGMENT.findall(text[-10 * MAX_CHARS :]):
        found = next(part for part in segments[-1] if part)
    elif _is_bare(text.strip()):
        found = text
    elif numbers := _NUMBER.findall(text[-10 * MAX_CHARS :]):
        found = numbers[-1]
    else:
        raise UnreadableError("no final answer" if text.strip() else "no answer")
    found = found.strip()
    if not found:
        raise UnreadableError("an empty box")
    if len(found) > MAX_CHARS:
        raise UnreadableError(f"final answer of {len(found):,} characters; at most {MAX_CHARS:,} are read")
    if _depth(found) > MAX_DEPTH:
        raise UnreadableError("nested too deeply")
    return found


def _is_bare(text: str) -> bool:
    """Whether a text is a formula or one word, without a sentence around it."""
    return bool(text) and (len(text.split()) == 1 or not re.search(r"[A-Za-z]{2}", _COMMAND.sub("", text)))


def _depth(text: str) -> int:
    """How deep brackets are nested at most; the parser takes seconds on some hundred open ones."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _is_same(gold: list[Any], gold_text: str, found: str) -> bool:
    if _plain(gold_text) == _plain(found):
        return True
    if _WORDS.fullmatch(_plain_words(gold_text)):  # "even" is a word, not the product of four letters
        return _plain_words(gold_text) == _plain_words(found)
    value = _parse(found)
    if not value:
        raise UnreadableError(f"no mathematics: {found[:40]!r}")
    if _is_plain_number(gold[0]) and not _is_plain_number(value[0]):
        return False  # "3^5 - 2", "\sum_{i=1}^{9} i": the question said again is not its answer
    if any(value[0].has(kind) and not gold[0].has(kind) for kind in _UNDONE):
        return False  # "\frac{d}{dx} x^2" for 2x: said again, too
    if _differ_in_base(gold_text, found) or _differ_in_digits(gold[0], value[0]):
        return False  # which the library does not see
    try:
        return bool(verify(gold, value, timeout_seconds=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - sympy cannot compare the two: they are not the same
        return False


def _parse(text: str) -> list[Any]:
    with _no_eval():
        found: list[Any] = parse(
            f"\\boxed{{{text}}}",
            extraction_config=_CONFIG,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
    return [value for value in found if isinstance(value, sympy.Basic | sympy.MatrixBase)]


@contextmanager
def _no_eval() -> Iterator[None]:
    """While an answer is parsed, sympy's own parser, which evaluates text as Python, takes numerals and nothing else.

    math-verify's parser is a grammar, but hands each numeral to it.
    """
    kept = sympy_parser.eval_expr

    def eval_numeral(code: str, *rest: Any) -> Any:
        if not _NUMERAL_CODE.fullmatch(code.strip()):
            raise ValueError("text is not evaluated here")
        return kept(code, *rest)

    sympy_parser.eval_expr = eval_numeral
    try:
        yield
    finally:
        sympy_parser.eval_expr = kept


def _is_plain_number(value: Any) -> bool:
    """A number written out: digits, a fraction, a sign, per cent, a power of ten; "x = 5" counts as its right side."""
    if isinstance(value, sympy.And):
        value = value.args[-1]
    if isinstance(value, sympy.Equality):
        value = value.rhs
    if isinstance(value, sympy.UnevaluatedExpr):
        value = value.args[0]
    if not isinstance(value, sympy.Expr):
        return False
    if value.is_Number:
        return bool(value.is_finite)
    if isinstance(value, sympy.Mul):
        return all(_is_plain_number(factor) for factor in value.args)
    if isinstance(value, sympy.Pow):
        base, exponent = value.args
        is_power_of_ten = base == 10 and exponent.is_Integer and abs(exponent) <= MAX_EXPONENT
        return bool(base.is_Number and exponent == -1) or bool(is_power_of_ten)
    return False


def _differ_in_base(gold_text: str, found: str) -> bool:
    """Whether two numerals name different bases: the library drops the 2 of 11_2."""
    matches = [_WITH_BASE.fullmatch(_plain(text)) for text in (gold_text, found)]
    return matches[0] is not None and matches[1] is not None and matches[0][2] != matches[1][2]


def _differ_in_digits(gold: Any, value: Any) -> bool:
    """Whether two numbers near 0 differ in their first three digits."""
    if not (_is_plain_number(gold) and _is_plain_number(value)):
        return False
    numbers = [sympy.N(number.rhs if isinstance(number, sympy.Equality) else number) for number in (gold, value)]
    if not all(number.is_Number and number.is_finite for number in numbers):
        return False
    largest = max(abs(number) for number in numbers)
    return bool(largest < SMALL and abs(numbers[0] - numbers[1]) > largest / 1000)


def _plain(text: str) -> str:
    """A text without what changes how LaTeX looks and not what it says."""
    return _NOISE.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").strip())


def _plain_words(text: str) -> str:
    unwrapped = re.sub(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}", r"\1", text)
    return " ".join(unwrapped.lower().strip(" .$").split())
