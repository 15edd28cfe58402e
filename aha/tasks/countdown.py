"""Countdown: combine all the given numbers with + - * / to make the target.

The prompt is terse ("3 7 8 > 24") so that a model of a million parameters can read it; the answer is one
arithmetic expression. Expressions are read by a small recursive-descent parser over digits, the four operators and
parentheses, in exact fractions: there is no power, no function, no name, and nothing is ever evaluated as code.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import NamedTuple

from aha.errors import ConfigError
from aha.tasks.base import Demonstration, Split
from aha.types import Completion, FinishReason, Outcome, Problem, Score

MAX_ANSWER_CHARS = 200  # a correct answer on four three-digit numbers has under 40
TEST_SHARE_PERCENT = 10
PATIENCE_LINES = (1, 1, 1, 1, 2, 2, 2, 12, 12)
"""How many lines the searches of the demonstrations go on for; see docs/LOG.md on the built-in base."""


class ExpressionError(ValueError):
    """The text is not an arithmetic expression that this task accepts."""


class Expression(NamedTuple):
    """An expression's exact value and the numbers that stand in it."""

    value: Fraction
    numbers: tuple[int, ...]


def parse_expression(text: str) -> Expression:
    """Read an expression of integers, + - * / and parentheses.

    Raises:
        ExpressionError: for anything else, a division by zero, or more than MAX_ANSWER_CHARS characters.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise ExpressionError("too long")
    normalised = text.replace("×", "*").replace("÷", "/").replace("−", "-")
    tokens = re.findall(r"[0-9]+|[-+*/()]|\S", normalised)
    if not tokens:
        raise ExpressionError("empty")
    parser = _Parser(tokens)
    value = parser.read_sum()
    if parser.peek():
        raise ExpressionError(f"unexpected {parser.peek()!r}")
    return Expression(value, tuple(parser.numbers))


class _Parser:
    """Recursive descent; MAX_ANSWER_CHARS bounds its depth."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def read_sum(self) -> Fraction:
        value = self.read_product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value += sign * self.read_product()
        return value

    def read_product(self) -> Fraction:
        value = self.read_atom()
        while self.peek() in ("*", "/"):
            operator = self.take()
            operand = self.read_atom()
            if operator == "*":
                value *= operand
            elif operand == 0:
                raise ExpressionError("division by zero")
            else:
                value /= operand
        return value

    def read_atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.read_sum()
            if self.take() != ")":
                raise ExpressionError("unbalanced parentheses")
            return value
        # isascii: str.isdigit also accepts other scripts' digits, which int() would read.
        if not (token.isascii() and token.isdigit()):
            raise ExpressionError(f"unexpected {token!r}" if token else "incomplete")
        if len(token) > 6:
            raise ExpressionError("number too large")
        self.numbers.append(int(token))
        return Fraction(int(token))


class Combination(NamedTuple):
    """Two positive numbers combined into a third."""

    value: int
    left: int
    operator: str
    right: int

    @property
    def text(self) -> str:
        return f"{self.left}{self.operator}{self.right}"


def combine(a: int, b: int, *, division: bool) -> list[Combination]:
    """Every combination of two positive numbers whose value is a positive integer too."""
    high, low = max(a, b), min(a, b)
    found = [Combination(a + b, a, "+", b), Combination(a * b, a, "*", b)]
    if high != low:
        found.append(Combination(high - low, high, "-", low))
    if division and high % low == 0:
        found.append(Combination(high // low, high, "/", low))
    return found


class Plan(NamedTuple):
    """Set one number aside and undo the last operation: the `others` must make `need`.

    Goal-directed search with such steps is what the demonstrations write line by line.
    """

    others: tuple[int, ...]
    need: int
    text: str
    before: str
    after: str

    def expression(self, inner: str) -> str:
        return f"{self.before}({inner}){self.after}"


def plans(numbers: tuple[int, ...], target: int, *, division: bool) -> list[Plan]:
    """Every last operation that could make the target from three numbers, solved for what the other two must make.

    A need above everything the other two can make is left out: that is the reason in choosing a step.
    """
    found = []
    for index, aside in enumerate(numbers):
        others = numbers[:index] + numbers[index + 1 :]
        options = [(target + aside, f"{target}+{aside}", "", f"-{aside}")]
        if target > aside:
            options.append((target - aside, f"{target}-{aside}", "", f"+{aside}"))
        if aside > target:
            options.append((aside - target, f"{aside}-{target}", f"{aside}-", ""))
        if target % aside == 0:
            options.append((target // aside, f"{target}/{aside}", "", f"*{aside}"))
        if division:
            options.append((target * aside, f"{target}*{aside}", "", f"/{aside}"))
        if division and aside % target == 0:
            options.append((aside // target, f"{aside}/{target}", f"{aside}/", ""))
        reach = max(sum(others), math.prod(others))
        found += [Plan(others, n, f"{text}={n}", b, a) for n, text, b, a in options if n <= reach]
    return found


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """Make the target from all the numbers, each used once."""

    num_numbers: int = 3
    """How many numbers a problem has: 3 or 4."""
    max_number: int = 30
    """The numbers are 1 to max_number."""
    max_target: int = 200
    """The targets are 1 to max_target."""
    division: bool = True
    """Whether problems are made with exact division too; answers may always divide."""

    def __post_init__(self) -> None:
        if self.num_numbers not in (3, 4):
            raise ConfigError(f"countdown: num_numbers must be 3 or 4, got {self.num_numbers}")
        if not 4 <= self.max_number <= 999:
            raise ConfigError(f"countdown: max_number must be 4 to 999, got {self.max_number}")
        if not 1 <= self.max_target <= 9999:
            raise ConfigError(f"countdown: max_target must be 1 to 9999, got {self.max_target}")

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "countdown:max_number=50"."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return "countdown" + (":" + ",".join(changed) if changed else "")

    @property
    def system_prompt(self) -> str:
        return (
            "You get some numbers and a target, written like 3 7 8 > 24. Combine all the numbers, each exactly once, "
            "with + - * / and parentheses so that they make the target. Think step by step inside <think> and "
            "</think>, then write only the expression, for example (7-3)*8-8."
        )

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"countdown {split} {seed}")
        while True:
            yield self._draw(rng, split)

    def _draw(self, rng: random.Random, split: Split) -> Problem:
        """Draw a solvable problem by combining random numbers in random order."""
        while True:
            numbers = [rng.randint(1, self.max_number) for _ in range(self.num_numbers)]
            if _is_held_out(numbers) != (split == "test"):
                continue
            value, text = _combine_all(rng, numbers, division=self.division)
            if 1 <= value <= self.max_target:
                return make_problem(numbers, value, answer=text)

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        candidate = completion.answer.strip()
        if candidate.count("=") == 1:  # "(7-3)*8-8 = 24": what is claimed after the sign is not looked at
            candidate = candidate.split("=")[0]
        try:
            expression = parse_expression(candidate)
        except ExpressionError as error:
            return Score(0.0, False, f"no expression: {error}", Outcome.PARSE_FAILURE)
        if sorted(expression.numbers) != sorted(problem.data["numbers"]):
            return Score(0.0, False, "does not use each number once")
        if expression.value != problem.data["target"]:
            return Score(0.0, False, f"makes {expression.value}")
        return Score(1.0, True, "right")

    def demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        """Searches by people of different patience: each gives up after its own number of lines, with a guess."""
        rng = random.Random(f"countdown demonstrations {seed}")
        while True:
            problem = self._draw(rng, "train")
            # Patience is drawn, so that some searches are cut short: RL can then learn that it pays to go on.
            num_lines = rng.choice(PATIENCE_LINES)
            yield demonstrate(problem, rng, num_lines=num_lines, division=self.division)

    def blind_pass_rate(self, problems: list[Problem], *, num_tries: int, seed: int) -> float:
        """Share solved by random search: a try combines the numbers in random order with random operations."""
        rng = random.Random(f"countdown blind {seed}")
        solved = sum(
            any(
                _combine_all(rng, p.data["numbers"], division=self.division)[0] == p.data["target"]
                for _ in range(num_tries)
            )
            for p in problems
        )
        return solved / max(1, len(problems))

    def count_tries(self, completion: Completion) -> int:
        """Candidates that the thinking compares with what is needed, plus the answer.

        A line "81-23=58: 17+4=21 17*4=68 17-4=13?" tries three complete expressions: one per result after the colon.
        """
        return 1 + sum(line.split(":", 1)[1].count("=") for line in completion.reasoning.splitlines() if ":" in line)


def make_problem(numbers: Sequence[int], target: int, *, answer: str) -> Problem:
    """A problem on these numbers; its id depends on the multiset of numbers and the target alone."""
    key = "-".join(map(str, sorted(numbers)))
    return Problem(
        problem_id=f"countdown-{key}-{target}",
        prompt=f"{' '.join(map(str, numbers))} > {target}",
        answer=answer,
        data={"numbers": list(numbers), "target": target},
    )


def demonstrate(problem: Problem, rng: random.Random, *, num_lines: int, division: bool) -> Demonstration:
    """Search in random order for at most `num_lines` lines; unsolved, end with a guess that is wrong."""
    numbers, target = tuple(problem.data["numbers"]), int(problem.data["target"])
    lines = []
    answer = ""
    for prefix, plan, undo in _search_order(rng, numbers, target, num_lines=num_lines, division=division):
        tried = combine(plan.others[0], plan.others[1], division=division)
        hit = next((c for c in tried if c.value == plan.need), None)
        results = " ".join(f"{c.text}={c.value}" for c in tried)
        lines.append(f"{prefix}{plan.text}: {results}{'!' if hit else '?'}")
        answer = plan.expression((hit or tried[0]).text)
        for value, text in undo.items():
            answer = re.sub(rf"\b{value}\b", text, answer, count=1)
        if hit:
            break
    return Demonstration(problem, reasoning="\n".join(lines), answer=answer)


def _search_order(
    rng: random.Random, numbers: tuple[int, ...], target: int, *, num_lines: int, division: bool
) -> Iterator[tuple[str, Plan, dict[int, str]]]:
    """Lines of the search: a prefix, a plan for three numbers, and how to write what the prefix combined."""
    if len(numbers) == 3:
        order = plans(numbers, target, division=division)
        rng.shuffle(order)
        yield from (("", plan, {}) for plan in order[:num_lines])
        return
    num_drawn = num_found = 0
    while num_drawn < num_lines or num_found == 0:  # four numbers: combine two first, then plan as for three
        shuffled = rng.sample(numbers, k=4)
        first = rng.choice(combine(shuffled[0], shuffled[1], division=division))
        options = plans((first.value, *shuffled[2:]), target, division=division)
        # Once the patience is over any line will do: a search never ends without one, and some pair always has plans.
        if options and (first.value not in shuffled[2:] or num_drawn >= num_lines):
            yield f"{first.text}={first.value}; ", rng.choice(options), {first.value: f"({first.text})"}
            num_found += 1
        num_drawn += 1


def _is_held_out(numbers: Sequence[int]) -> bool:
    """Whether problems on this multiset of numbers belong to the test split, whatever the order or target."""
    key = " ".join(map(str, sorted(numbers)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < TEST_SHARE_PERCENT


def _combine_all(rng: random.Random, numbers: Sequence[int], *, division: bool) -> tuple[int, str]:
    """Combine all numbers by random operations in random order into one (value, expression)."""
    pool = [(n, str(n)) for n in numbers]
    while len(pool) > 1:
        rng.shuffle(pool)
        (a, a_text), (b, b_text) = pool.pop(), pool.pop()
        chosen = rng.choice(combine(a, b, division=division))
        left, right = (a_text, b_text) if chosen.left == a else (b_text, a_text)
        pool.append((chosen.value, f"({left}{chosen.operator}{right})"))
    value, text = pool[0]
    return value, text[1:-1]
