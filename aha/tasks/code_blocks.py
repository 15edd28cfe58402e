"""Building blocks of small function-writing problems: what each does, in words, in code, and as a function of ours.

A block takes the value `x` of one kind and gives one of another; its parameters `k` and `c` are drawn. The line of code
is what a gold solution consists of; the function computes the expected values, so that no code text is ever evaluated
in this process. A test runs the lines in the sandbox and sees that both agree.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal["numbers", "words", "text", "number"]

KIND_NAMES: dict[Kind, str] = {
    "numbers": "a list of integers",
    "words": "a list of strings",
    "text": "a string",
    "number": "an integer",
}
VOWELS = "aeiou"
_LETTERS = "aeiorstnl"
_WORDS = [
    "apple", "river", "stone", "cloud", "tiger", "lemon", "table", "green", "silver", "orange", "window", "garden",
    "pencil", "rabbit", "yellow", "castle", "moon", "star", "tree", "lion", "nest", "rose", "sand", "salt", "corn",
    "rain", "atlas", "eagle", "onion", "ratio",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One step of a problem."""

    takes: Kind
    gives: Kind
    words: str
    """With {k} and {c}: "add {k} to every number"."""
    code: str
    """An expression of x, with {k} and {c}."""
    apply: Callable[[Any, int, str], Any]
    """The same as a function of (x, k, c)."""
    low: int = 0
    high: int = 0
    """Range of k; both 0 where it has none."""


class Step(NamedTuple):
    """A block with its parameters."""

    block: Block
    k: int
    c: str

    @property
    def words(self) -> str:
        return self.block.words.format(k=self.k, c=self.c)

    @property
    def code(self) -> str:
        return self.block.code.format(k=self.k, c=self.c)

    def apply(self, x: Any) -> Any:
        return self.block.apply(x, self.k, self.c)


def _distinct(x: list[Any]) -> list[Any]:
    return list(dict.fromkeys(x))


BLOCKS: tuple[Block, ...] = (
    # A list of integers to another.
    Block("numbers", "numbers", "keep only the even numbers", "[n for n in x if n % 2 == 0]",
          lambda x, k, c: [n for n in x if n % 2 == 0]),
    Block("numbers", "numbers", "keep only the odd numbers", "[n for n in x if n % 2 == 1]",
          lambda x, k, c: [n for n in x if n % 2 == 1]),
    Block("numbers", "numbers", "keep only the numbers greater than {k}", "[n for n in x if n > {k}]",
          lambda x, k, c: [n for n in x if n > k], -5, 12),
    Block("numbers", "numbers", "keep only the numbers less than {k}", "[n for n in x if n < {k}]",
          lambda x, k, c: [n for n in x if n < k], -2, 15),
    Block("numbers", "numbers", "keep only the multiples of {k}", "[n for n in x if n % {k} == 0]",
          lambda x, k, c: [n for n in x if n % k == 0], 3, 7),
    Block("numbers", "numbers", "remove the multiples of {k}", "[n for n in x if n % {k} != 0]",
          lambda x, k, c: [n for n in x if n % k != 0], 2, 7),
    Block("numbers", "numbers", "add {k} to every number", "[n + {k} for n in x]",
          lambda x, k, c: [n + k for n in x], 1, 20),
    Block("numbers", "numbers", "subtract {k} from every number", "[n - {k} for n in x]",
          lambda x, k, c: [n - k for n in x], 1, 20),
    Block("numbers", "numbers", "multiply every number by {k}", "[n * {k} for n in x]",
          lambda x, k, c: [n * k for n in x], 2, 12),
    Block("numbers", "numbers", "replace every number by its remainder modulo {k}", "[n % {k} for n in x]",
          lambda x, k, c: [n % k for n in x], 3, 12),
    Block("numbers", "numbers", "replace every number by its square", "[n * n for n in x]",
          lambda x, k, c: [n * n for n in x]),
    Block("numbers", "numbers", "replace every number by its absolute value", "[abs(n) for n in x]",
          lambda x, k, c: [abs(n) for n in x]),
    Block("numbers", "numbers", "replace every number greater than {k} by {k}", "[min(n, {k}) for n in x]",
          lambda x, k, c: [min(n, k) for n in x], 2, 14),
    Block("numbers", "numbers", "sort the numbers in ascending order", "sorted(x)", lambda x, k, c: sorted(x)),
    Block("numbers", "numbers", "sort the numbers in descending order", "sorted(x, reverse=True)",
          lambda x, k, c: sorted(x, reverse=True)),
    Block("numbers", "numbers", "reverse the list", "x[::-1]", lambda x, k, c: x[::-1]),
    Block("numbers", "numbers", "remove repeated numbers, keeping the first of each", "list(dict.fromkeys(x))",
          lambda x, k, c: _distinct(x)),
    Block("numbers", "numbers", "keep only the first {k} elements", "x[:{k}]", lambda x, k, c: x[:k], 2, 5),
    Block("numbers", "numbers", "keep only the last {k} elements", "x[-{k}:]", lambda x, k, c: x[-k:], 2, 5),
    Block("numbers", "numbers", "drop the first {k} elements", "x[{k}:]", lambda x, k, c: x[k:], 1, 4),
    Block("numbers", "numbers", "keep only the elements at positions 0, {k}, 2 * {k} and so on", "x[::{k}]",
          lambda x, k, c: x[::k], 2, 4),
    Block("numbers", "numbers", "replace the list by its running totals",
          "[sum(x[:i + 1]) for i in range(len(x))]", lambda x, k, c: list(itertools.accumulate(x))),
    Block("numbers", "numbers", "replace the list by the differences of each element and the one before it",
          "[b - a for a, b in zip(x, x[1:])]", lambda x, k, c: [b - a for a, b in itertools.pairwise(x)]),
    # A list of integers to one.
    Block("numbers", "number", "return the sum (0 for an empty list)", "sum(x)", lambda x, k, c: sum(x)),
    Block("numbers", "number", "return the largest number ({k} for an empty list)", "max(x, default={k})",
          lambda x, k, c: max(x, default=k), -1, 1),
    Block("numbers", "number", "return the smallest number ({k} for an empty list)", "min(x, default={k})",
          lambda x, k, c: min(x, default=k), -1, 1),
    Block("numbers", "number", "return how many elements there are", "len(x)", lambda x, k, c: len(x)),
    Block("numbers", "number", "return how many elements are greater than {k}", "sum(n > {k} for n in x)",
          lambda x, k, c: sum(n > k for n in x), 0, 10),
    Block("numbers", "number", "return how many different numbers there are", "len(set(x))",
          lambda x, k, c: len(set(x))),
    # A list of strings to another.
    Block("words", "words", "keep only the strings longer than {k} characters", "[w for w in x if len(w) > {k}]",
          lambda x, k, c: [w for w in x if len(w) > k], 3, 5),
    Block("words", "words", "keep only the strings that contain the letter '{c}'", "[w for w in x if '{c}' in w]",
          lambda x, k, c: [w for w in x if c in w]),
    Block("words", "words", "remove the strings that start with the letter '{c}'",
          "[w for w in x if not w.startswith('{c}')]", lambda x, k, c: [w for w in x if not w.startswith(c)]),
    Block("words", "words", "write every string in capitals", "[w.upper() for w in x]",
          lambda x, k, c: [w.upper() for w in x]),
    Block("words", "words", "write every string backwards", "[w[::-1] for w in x]",
          lambda x, k, c: [w[::-1] for w in x]),
    Block("words", "words", "cut every string to its first {k} characters", "[w[:{k}] for w in x]",
          lambda x, k, c: [w[:k] for w in x], 1, 4),
    Block("words", "words", "add the letter '{c}' to the end of every string", "[w + '{c}' for w in x]",
          lambda x, k, c: [w + c for w in x]),
    Block("words", "words", "sort the strings alphabetically", "sorted(x)", lambda x, k, c: sorted(x)),
    Block("words", "words", "sort the strings by length, shortest first, equal lengths in their given order",
          "sorted(x, key=len)", lambda x, k, c: sorted(x, key=len)),
    Block("words", "words", "reverse the list", "x[::-1]", lambda x, k, c: x[::-1]),
    Block("words", "words", "remove repeated strings, keeping the first of each", "list(dict.fromkeys(x))",
          lambda x, k, c: _distinct(x)),
    Block("words", "words", "keep only the first {k} elements", "x[:{k}]", lambda x, k, c: x[:k], 2, 4),
    # A list of strings to something else.
    Block("words", "numbers", "replace every string by its length", "[len(w) for w in x]",
          lambda x, k, c: [len(w) for w in x]),
    Block("words", "numbers", "replace every string by the number of times it contains the letter '{c}'",
          "[w.count('{c}') for w in x]", lambda x, k, c: [w.count(c) for w in x]),
    Block("words", "text", "join the strings with the letter '{c}' between them", "'{c}'.join(x)",
          lambda x, k, c: c.join(x)),
    Block("words", "text", "join the strings without anything between them", "''.join(x)",
          lambda x, k, c: "".join(x)),
    # A string to another.
    Block("text", "text", "reverse the string", "x[::-1]", lambda x, k, c: x[::-1]),
    Block("text", "text", "write the string in capitals", "x.upper()", lambda x, k, c: x.upper()),
    Block("text", "text", "remove every lower-case vowel (a, e, i, o, u)",
          "''.join(ch for ch in x if ch not in 'aeiou')",
          lambda x, k, c: "".join(ch for ch in x if ch not in VOWELS)),
    Block("text", "text", "remove every letter '{c}'", "x.replace('{c}', '')", lambda x, k, c: x.replace(c, "")),
    Block("text", "text", "replace every letter '{c}' by '*'", "x.replace('{c}', '*')",
          lambda x, k, c: x.replace(c, "*")),
    Block("text", "text", "keep only the characters at positions 0, {k}, 2 * {k} and so on", "x[::{k}]",
          lambda x, k, c: x[::k], 2, 4),
    Block("text", "text", "keep only the first {k} characters", "x[:{k}]", lambda x, k, c: x[:k], 3, 9),
    Block("text", "text", "drop the first {k} characters", "x[{k}:]", lambda x, k, c: x[k:], 1, 6),
    # A string to something else.
    Block("text", "words", "split the string at its spaces", "x.split()", lambda x, k, c: x.split()),
    Block("text", "number", "return how many times the letter '{c}' occurs", "x.count('{c}')",
          lambda x, k, c: x.count(c)),
    Block("text", "number", "return the number of lower-case vowels (a, e, i, o, u)", "sum(ch in 'aeiou' for ch in x)",
          lambda x, k, c: sum(ch in VOWELS for ch in x)),
    Block("text", "number", "return the length of the string", "len(x)", lambda x, k, c: len(x)),
)  # fmt: skip


def draw_steps(rng: random.Random, *, num_steps: int) -> list[Step]:
    """A chain of steps in which each takes what the one before gives."""
    kind: Kind = rng.choice(("numbers", "words", "text"))
    steps: list[Step] = []
    while len(steps) < num_steps:
        is_last = len(steps) == num_steps - 1
        blocks = [block for block in BLOCKS if block.takes == kind and (is_last or block.gives != "number")]
        block = rng.choice(blocks)
        steps.append(Step(block, rng.randint(block.low, block.high), rng.choice(_LETTERS)))
        kind = block.gives
    return steps


def draw_input(rng: random.Random, kind: Kind) -> Any:
    """An input of a kind: sometimes empty, often with repetitions."""
    if rng.random() < 0.1:
        return "" if kind == "text" else []
    if kind == "numbers":
        return [rng.randint(-9, 20) for _ in range(rng.randint(1, 9))]
    words = rng.choices(rng.sample(_WORDS, k=6), k=rng.randint(1, 6))
    return " ".join(words) if kind == "text" else words
