"""Propositional logic by truth tables: which conclusions follow from premises, and need more than one of them.

A truth table is one integer, a bit for each assignment of the variables, so that `and` is `&` and "follows" is one
operation on integers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from aha.tasks.verifiers import UnreadableError

MAX_CHARS = 500
MAX_VARIABLES = 12
_TOKEN = re.compile(r"\s*([A-Z]|[()¬∧∨→↔])")
_BINARY = "↔→∨∧"
"""Weakest first."""


class TruthTables:
    """The truth tables of formulas over some variables."""

    def __init__(self, variables: Sequence[str]) -> None:
        if len(variables) > MAX_VARIABLES:
            raise ValueError(f"{len(variables)} variables; at most {MAX_VARIABLES}")
        num_rows = 1 << len(variables)
        self.true = (1 << num_rows) - 1
        self._of: dict[str, int] = {
            name: sum(1 << row for row in range(num_rows) if row >> index & 1) for index, name in enumerate(variables)
        }

    def read(self, text: str) -> int:
        """The truth table of a formula in the notation P, ¬, ∧, ∨, →, ↔ and parentheses.

        Raises:
            UnreadableError: when it is none, or uses other variables.
        """
        if len(text) > MAX_CHARS:
            raise UnreadableError(f"answer of {len(text):,} characters; at most {MAX_CHARS} are read")
        tokens, position = [], 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise UnreadableError(f"no formula: {text[position : position + 10]!r}")
            tokens.append(match[1])
            position = match.end()
        tokens.reverse()  # a stack: the next token is the last
        table = self._read_level(tokens, 0)
        if tokens:
            raise UnreadableError(f"no formula: {tokens[-1]!r} is left over")
        return table

    def _read_level(self, tokens: list[str], level: int) -> int:
        if level == len(_BINARY):
            return self._read_atom(tokens)
        left = self._read_level(tokens, level + 1)
        while tokens and tokens[-1] == _BINARY[level]:
            sign = tokens.pop()
            # → is read from the right: P → Q → R is P → (Q → R).
            right = self._read_level(tokens, level if sign == "→" else level + 1)
            left = self._combine(left, sign, right)
        return left

    def _read_atom(self, tokens: list[str]) -> int:
        token = tokens.pop() if tokens else "its end"
        if token == "¬":
            return self.true ^ self._read_atom(tokens)
        if token == "(":
            table = self._read_level(tokens, 0)
            if not tokens or tokens.pop() != ")":
                raise UnreadableError("no formula: unbalanced parentheses")
            return table
        if token not in self._of:
            raise UnreadableError(f"no formula: {token!r}")
        return self._of[token]

    def _combine(self, left: int, sign: str, right: int) -> int:
        match sign:
            case "∧":
                return left & right
            case "∨":
                return left | right
            case "→":
                return (self.true ^ left) | right
            case _:
                return self.true ^ left ^ right

    def is_conclusion(self, conclusion: int, premises: Sequence[int]) -> bool:
        """Whether it follows from the premises together, and from no single one of them.

        Without the second half a premise said again, or weakened ("P ∨ anything"), would be right.
        """
        everything = self.true
        for premise in premises:
            everything &= premise
        if not everything:  # contradictory premises: anything follows
            return False
        return everything & ~conclusion == 0 and all(premise & ~conclusion for premise in premises)


def example_conclusion(variables: Sequence[str], premises: Sequence[str]) -> str:
    """A short conclusion that needs more than one premise; "" when there is none among the short ones."""
    tables = TruthTables(variables)
    given = [tables.read(premise) for premise in premises]
    return next((text for text in _short(variables) if tables.is_conclusion(tables.read(text), given)), "")


def _short(variables: Sequence[str]) -> Iterator[str]:
    literals = [*variables, *(f"¬{name}" for name in variables)]
    yield from literals
    for left, right in itertools.combinations(literals, 2):
        yield from (f"({left} {sign} {right})" for sign in "∧∨↔")
