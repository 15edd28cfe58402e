"""Arithmetic: sums of three to five numbers, at most one pair of them multiplied, asked in several ways.

Made for instruct models of a hundred million parameters whose tokenizer makes one token of each digit: partial results
stay between 0 and a few hundred, and the demonstrations write every step.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from aha.errors import ConfigError
from aha.tasks.base import Demonstration, Split
from aha.tasks.verifiers import number, vote
from aha.types import Completion, FinishReason, Outcome, Problem, Score

TEST_SHARE_PERCENT = 10
MAX_FACTOR = 9
"""The second number of a product is 2 to MAX_FACTOR, so that the product can be written as tens plus ones."""
PRODUCT_SHARE = 0.5
"""Share of the problems that have a product, when products are on."""


class Term(NamedTuple):
    """One summand: `number`, or `number` times `factor` where `factor` is not 1."""

    sign: str
    number: int
    factor: int

    @property
    def value(self) -> int:
        return self.number * self.factor * (1 if self.sign == "+" else -1)

    @property
    def text(self) -> str:
        return str(self.number) if self.factor == 1 else f"{self.number} * {self.factor}"


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Work out a sum of whole numbers, one pair of them possibly multiplied."""

    min_terms: int = 3
    """Fewest numbers in a problem, the factors of a product included; at least 2."""
    max_terms: int = 5
    """Most numbers in a problem."""
    max_number: int = 99
    """Sums are made of numbers from 2 to max_number."""
    products: bool = True
    """Whether half the problems hold a product of a number and a digit."""

    def __post_init__(self) -> None:
        if not 2 <= self.min_terms <= 12:
            raise ConfigError(f"arithmetic: min_terms must be 2 to 12, got {self.min_terms}")
        if not self.min_terms <= self.max_terms <= 12:
            raise ConfigError(f"arithmetic: max_terms must be min_terms ({self.min_terms}) to 12, got {self.max_terms}")
        if not 9 <= self.max_number <= 9999:
            raise ConfigError(f"arithmetic: max_number must be 9 to 9999, got {self.max_number}")

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "arithmetic:max_number=20"."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return "arithmetic" + (":" + ",".join(changed) if changed else "")

    @property
    def system_prompt(self) -> str:
        return "Think step by step inside <think> and </think>, then write only the number."

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"arithmetic {split} {seed}")
        while True:
            yield self._draw(rng, split)

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        return number(problem.answer, completion.answer)

    def vote(self, problem: Problem, completion: Completion) -> str:
        return vote("number", completion.answer)

    def demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        """Training problems with every intermediate result, e.g. "23 + 41 = 64. 64 - 17 = 47."."""
        rng = random.Random(f"arithmetic demonstrations {seed}")
        while True:
            problem = self._draw(rng, "train")
            terms = [Term(*term) for term in problem.data["terms"]]
            yield Demonstration(problem, reasoning=work_out(terms), answer=problem.answer)

    def _draw(self, rng: random.Random, split: Split) -> Problem:
        while True:
            terms = self._draw_terms(rng)
            totals = _running_totals(terms)
            operands = [n for term in terms for n in (term.number, term.factor)]
            # A total among the operands would reward a model that only copies the last number of the question.
            if min(totals) < 0 or totals[-1] in operands or _is_held_out(terms) != (split == "test"):
                continue
            return make_problem(terms, prompt=rng.choice(PHRASINGS)(rng, terms))

    def _draw_terms(self, rng: random.Random) -> list[Term]:
        num_numbers = rng.randint(self.min_terms, self.max_terms)
        has_product = self.products and rng.random() < PRODUCT_SHARE
        num_terms = num_numbers - has_product  # a product takes two of the numbers
        place = rng.randrange(num_terms) if has_product else -1
        return [
            Term(
                rng.choice("+-") if index else "+",
                rng.randint(2, self.max_number),
                rng.randint(2, MAX_FACTOR) if index == place else 1,
            )
            for index in range(num_terms)
        ]


def make_problem(terms: list[Term], *, prompt: str) -> Problem:
    """A problem on these terms; its id depends on them and the wording."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    return Problem(
        problem_id=f"arithmetic-{digest}",
        prompt=prompt,
        answer=str(_running_totals(terms)[-1]),
        data={"terms": [list(term) for term in terms]},
    )


def work_out(terms: list[Term]) -> str:
    """Every step of a sum: the product first, digit by digit, then one term after the other."""
    steps = [_product_steps(term) for term in terms if term.factor != 1]
    totals = _running_totals(terms)
    for before, term, after in zip(totals, terms[1:], totals[1:], strict=False):
        steps.append(f"{before} {term.sign} {abs(term.value)} = {after}.")
    return " ".join(steps)


def _product_steps(term: Term) -> str:
    """A product by the digits of its number: "14 * 6 = 10*6 + 4*6 = 60 + 24 = 84."."""
    places = [int(digit) * 10**power for power, digit in enumerate(reversed(str(term.number))) if digit != "0"][::-1]
    stages = [term.text]
    if len(places) > 1:
        stages.append(" + ".join(f"{place}*{term.factor}" for place in places))
        stages.append(" + ".join(str(place * term.factor) for place in places))
    return " = ".join([*stages, str(term.number * term.factor)]) + "."


def _running_totals(terms: list[Term]) -> list[int]:
    """The total after each term."""
    totals: list[int] = []
    for term in terms:
        totals.append((totals[-1] if totals else 0) + term.value)
    return totals


def _is_held_out(terms: list[Term]) -> bool:
    """Whether the test split owns this multiset of numbers and operators, whatever their order and wording."""
    numbers = sorted(n for term in terms for n in (term.number, term.factor) if n != 1)
    operators = sorted([term.sign for term in terms[1:]] + ["*" for term in terms if term.factor != 1])
    key = f"{numbers} {operators}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < TEST_SHARE_PERCENT


def _symbols(terms: list[Term]) -> str:
    return terms[0].text + "".join(f" {term.sign} {term.text}" for term in terms[1:])


def _words(terms: list[Term]) -> str:
    return _symbols(terms).replace(" + ", " plus ").replace(" - ", " minus ").replace(" * ", " times ")


def _ask_in_symbols(rng: random.Random, terms: list[Term]) -> str:
    frame = rng.choice(("Compute {}.", "Calculate {}.", "What is {}?", "{} = ?"))
    return frame.format(_symbols(terms))


def _ask_in_words(rng: random.Random, terms: list[Term]) -> str:
    frame = rng.choice(("What is {}?", "How much is {}?", "Work out {}."))
    return frame.format(_words(terms))


def _ask_in_steps(rng: random.Random, terms: list[Term]) -> str:
    sentences = [f"Start with {terms[0].text.replace('*', 'times')}."]
    for term in terms[1:]:
        verb = "Add" if term.sign == "+" else "Subtract"
        sentences.append(f"{verb} {term.text.replace('*', 'times')}.")
    return " ".join([*sentences, rng.choice(("What do you get?", "What is the result?"))])


_NAMES = ("Tom", "Mia", "Ben", "Ana", "Sam", "Lily", "Omar", "Yuki")
_THINGS = ("pens", "apples", "coins", "stamps", "cards", "shells", "books", "marbles")
_BOXES = ("boxes", "bags", "packs")
_GAINS = ("{who} buys {what}.", "{who} finds {what}.", "A friend gives {who} {what}.")
_LOSSES = ("{who} gives away {what}.", "{who} sells {what}.", "{who} loses {what}.")


def _ask_in_a_story(rng: random.Random, terms: list[Term]) -> str:
    who, things, boxes = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_BOXES)

    def amount(term: Term) -> str:
        return f"{term.number} {things}" if term.factor == 1 else f"{term.number} {boxes} of {term.factor} {things}"

    sentences = [f"{who} has {amount(terms[0])}."]
    for term in terms[1:]:
        event = rng.choice(_GAINS if term.sign == "+" else _LOSSES)
        sentences.append(event.format(who=who, what=amount(term)))
    return " ".join([*sentences, f"How many {things} does {who} have now?"])


PHRASINGS: tuple[Callable[[random.Random, list[Term]], str], ...] = (
    _ask_in_symbols,
    _ask_in_words,
    _ask_in_steps,
    _ask_in_a_story,
)
