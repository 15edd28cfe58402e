"""Code: write a small Python function from its description; judged by running it, confined, on inputs it has not seen.

Problems are chains of building blocks (`code_blocks`): nothing is downloaded, and every gold solution is known.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from aha.errors import ConfigError
from aha.sandbox import Limits, require
from aha.tasks.base import Demonstration, Split
from aha.tasks.code_blocks import KIND_NAMES, Step, draw_input, draw_steps
from aha.tasks.code_judge import judge
from aha.tasks.code_tests import as_tests
from aha.types import Completion, FinishReason, Outcome, Problem, Score

TEST_SHARE_PERCENT = 10
NUM_DRAWS = 40
"""Inputs that are drawn for a problem; the tests are chosen among them."""
MIN_RESULTS = 3
"""Different results that the tests of a problem have at least: no constant passes them."""
LIMITS = Limits(cpu_seconds=2)
"""A right solution takes milliseconds, and a model that learns writes many loops without end."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Write a Python function of one to a few steps on numbers, words or text."""

    min_steps: int = 2
    """Fewest steps of a function; 1 step makes some hundred problems in all, 2 make tens of thousands."""
    max_steps: int = 3
    """Most steps of a function."""
    num_tests: int = 8
    """Inputs that a solution is run on; it must be right on all."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= 8:
            raise ConfigError(f"code: min_steps must be 1 to 8, got {self.min_steps}")
        if not self.min_steps <= self.max_steps <= 8:
            raise ConfigError(f"code: max_steps must be min_steps ({self.min_steps}) to 8, got {self.max_steps}")
        if not 4 <= self.num_tests <= 30:
            raise ConfigError(f"code: num_tests must be 4 to 30, got {self.num_tests}")
        require()  # raises here, not in the middle of a run

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "code:max_steps=2"."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return "code" + (":" + ",".join(changed) if changed else "")

    @property
    def system_prompt(self) -> str:
        return (
            "Think step by step inside <think> and </think>, then write only the Python function, in one block that "
            "starts with ```python and ends with ```."
        )

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"code {split} {seed}")
        while True:
            yield self._draw(rng, split)[0]

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        return judge(as_tests(problem.data["tests"]), completion.answer, limits=LIMITS)

    def demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        """Training problems, each step with its line of code and what it makes of the example."""
        rng = random.Random(f"code demonstrations {seed}")
        while True:
            problem, steps = self._draw(rng, "train")
            yield Demonstration(problem, reasoning=_work_out(steps, problem.data["example"]), answer=problem.answer)

    def _draw(self, rng: random.Random, split: Split) -> tuple[Problem, list[Step]]:
        while True:
            steps = draw_steps(rng, num_steps=rng.randint(self.min_steps, self.max_steps))
            if _is_held_out(steps) != (split == "test"):
                continue
            inputs = _draw_inputs(steps, num_inputs=self.num_tests + 1)
            if inputs:
                return make_problem(steps, inputs), steps


def make_problem(steps: Sequence[Step], inputs: Sequence[Any]) -> Problem:
    """A problem whose first input is the example in its prompt, and whose other inputs are the tests."""
    example, *others = inputs
    first, last = steps[0].block.takes, steps[-1].block.gives
    tasks = "\n".join(f"{number}. {step.words}" for number, step in enumerate(steps, start=1))
    prompt = (
        f"Write a Python function solve(x) that takes {KIND_NAMES[first]} and returns {KIND_NAMES[last]}. In order:\n"
        f"{tasks}\nFor example, solve({example!r}) returns {_run(steps, example)!r}."
    )
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    tests = [{"call": f"solve({x!r})", "returns": _run(steps, x)} for x in others]
    return Problem(f"code-{digest}", prompt, _solution(steps), {"tests": tests, "example": example})


def _solution(steps: Sequence[Step]) -> str:
    lines = [f"    x = {step.code}" for step in steps[:-1]] + [f"    return {steps[-1].code}"]
    return "```python\ndef solve(x):\n" + "\n".join(lines) + "\n```"


def _work_out(steps: Sequence[Step], example: Any) -> str:
    lines = []
    for number, step in enumerate(steps, start=1):
        after = step.apply(example)
        lines.append(f"Step {number}: {step.words}: {step.code}. {example!r} becomes {after!r}.")
        example = after
    return "\n".join(lines)


def _run(steps: Sequence[Step], x: Any) -> Any:
    for step in steps:
        x = step.apply(x)
    return x


def _draw_inputs(steps: Sequence[Step], *, num_inputs: int) -> list[Any]:
    """An example and tests on which it shows when a step is left out; [] where no inputs show it.

    They depend on the steps alone, so that equal problems have equal tests.
    """
    rng = random.Random(f"code inputs {_key(steps)}")
    drawn = [draw_input(rng, steps[0].block.takes) for _ in range(NUM_DRAWS)]
    distinct = list({json.dumps(x): x for x in drawn}.values())
    results = [_run(steps, x) for x in distinct]
    example = next((index for index, result in enumerate(results) if distinct[index] and result), None)
    if example is None:
        return []  # always empty, or 0: the steps undo each other
    # Inputs that give the same result tell little apart: first one of each result, then the rest.
    texts = [json.dumps(result) for result in results]
    others = sorted((i for i in range(len(distinct)) if i != example), key=lambda i: texts.index(texts[i]) != i)
    tests = others[: num_inputs - 1]
    if len(tests) < num_inputs - 1 or len({texts[index] for index in tests}) < MIN_RESULTS:
        return []
    inputs = [distinct[index] for index in tests]
    if not all(_shows(steps, without, inputs) for without in range(len(steps))):
        return []
    return [distinct[example], *inputs]


def _shows(steps: Sequence[Step], without: int, inputs: Sequence[Any]) -> bool:
    """Whether the tests refuse a solution that leaves a step out, where it can be left out."""
    if steps[without].block.takes != steps[without].block.gives:
        return True
    rest = [*steps[:without], *steps[without + 1 :]]
    return any(_run(rest, x) != _run(steps, x) for x in inputs)


def _key(steps: Sequence[Step]) -> str:
    return " | ".join(f"{step.block.takes} {step.words}" for step in steps)


def _is_held_out(steps: Sequence[Step]) -> bool:
    """Whether the test split owns these steps, in whatever order they come: many orders give the same function."""
    key = "\n".join([steps[0].block.takes, *sorted(step.words for step in steps)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < TEST_SHARE_PERCENT
