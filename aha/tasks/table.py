"""Bring your own task: a JSONL or CSV file with a prompt and an answer in each row, and a verifier's name.

Everything that could spoil a run later is refused when the file is opened, with its line: a row without an answer, a
gold answer that its own verifier does not accept, a prompt that stands in both splits.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aha.errors import ConfigError, DataError, unknown_name
from aha.sandbox import require
from aha.tasks.base import Split
from aha.tasks.code_tests import TestsError, read_tests
from aha.tasks.table_file import Record, read_records
from aha.tasks.verifiers import LETTERS, VERIFIERS, full_match, require_math, vote
from aha.types import Completion, FinishReason, Outcome, Problem, Score

Verify = Literal["auto", "number", "exact", "choice", "json", "math", "regex", "code"]

_ANSWER_FORMS = {
    "number": "the number",
    "exact": "the answer",
    "choice": "the letter of the right choice",
    "json": "the answer as JSON",
    "math": "the final answer in \\boxed{}",
    "regex": "the answer",
    "code": "the Python code, in one block that starts with ```python and ends with ```",
}
_PLAIN_NUMBER = re.compile(r"[-+−]?[$€£¥]?[0-9][0-9,]*(\.[0-9]+)?(e[-+]?[0-9]+)?%?|-?[0-9]+/[0-9]+", re.IGNORECASE)


class Row(NamedTuple):
    """One usable row of the file."""

    place: str
    """Where it stands, for messages: "tickets.jsonl line 3"."""
    problem: Problem
    split: str
    """ "train", "test", or "" when the file leaves it to us."""
    system: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A task from a data file."""

    path: str
    """The file, ending in .jsonl or .csv, UTF-8."""
    verify: Verify = "auto"
    """How answers are judged: a name in VERIFIERS, or "auto" to guess from the answers (`notices` says what)."""
    prompt_field: str = "prompt"
    """The column with the question."""
    answer_field: str = "answer"
    """The column with the right answer; with verify=regex the pattern, with verify=code the tests."""
    test_fraction: float = 0.1
    """Share of prompts held out, chosen by a hash of each prompt; a column `split` (train, test) decides instead."""
    tolerance: float = 0.0
    """Largest absolute difference between equal numbers (verify=number and json); 0 is exact."""
    case: Literal["match", "ignore"] = "match"
    """Whether capitals matter (verify=exact)."""

    def __post_init__(self) -> None:
        if self.verify != "auto" and self.verify not in VERIFIERS:
            raise ConfigError(f"{self.path}: {unknown_name('verify', self.verify, VERIFIERS)}")
        if self.verify == "math":
            require_math()
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"{self.path}: test_fraction must be between 0 and 1, got {self.test_fraction}")
        if not 0 <= self.tolerance < float("inf"):
            raise ConfigError(f"{self.path}: tolerance must be 0 or more, got {self.tolerance}")
        if self.tolerance and self.verifier not in ("number", "json"):
            raise ConfigError(f"{self.path}: tolerance works with verify=number and json, not {self.verifier}")
        if self.case == "ignore" and self.verifier != "exact":
            raise ConfigError(f"{self.path}: case works with verify=exact, not {self.verifier}")
        self._check_gold_answers()
        for split in ("train", "test"):
            if not any(split == self._split_of(row) for row in self._rows):
                raise DataError(self._empty_split(split))

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "tickets.jsonl:verify=choice"."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        options = {**changed, "verify": self.verifier}
        return f"{self.path}:" + ",".join(f"{key}={options[key]}" for key in sorted(options) if key != "path")

    @cached_property
    def verifier(self) -> str:
        """The name in VERIFIERS that judges: `verify`, or the guess."""
        return _guess_verifier(self._records, answer_field=self.answer_field) if self.verify == "auto" else self.verify

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """What a user should know before training on this file: the guess, rows left out."""
        found = []
        if self.verify == "auto":
            found.append(f"{self.path}: answers are judged as verify={self.verifier} (guessed from the answers)")
        num_left_out = len(self._records) - len(self._rows)
        if num_left_out:
            found.append(f"{self.path}: duplicate prompts left out: {num_left_out}; the first answer of each is kept")
        num_test = sum(self._split_of(row) == "test" for row in self._rows)
        if num_test < 50:
            found.append(f"{self.path}: problems held out: {num_test}; scores on so few are coarse")
        return tuple(found)

    @cached_property
    def system_prompt(self) -> str:
        """The `system` column where every row has the same text; else how to think and answer."""
        if self._has_one_system:
            return self._rows[0].system
        return f"Think step by step inside <think> and </think>, then write only {_ANSWER_FORMS[self.verifier]}."

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        rows = [row for row in self._rows if self._split_of(row) == split]
        random.Random(f"table {split} {seed}").shuffle(rows)
        for row in rows:
            yield self._with_system(row)

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        return self._judge(problem, completion.answer)

    def vote(self, problem: Problem, completion: Completion) -> str:
        return vote(self.verifier, completion.answer, choices=problem.data.get("choices", ()))

    def _judge(self, problem: Problem, answer: str) -> Score:
        verify = VERIFIERS[self.verifier]
        match self.verifier:
            case "number" | "json":
                return verify(problem.answer, answer, tolerance=self.tolerance)
            case "exact":
                return verify(problem.answer, answer, case=self.case)
            case "choice":
                return verify(problem.answer, answer, choices=problem.data.get("choices", ()))
            case _:
                return verify(problem.answer, answer)

    def gold(self, problem: Problem) -> str | None:
        """The answer; with verify=regex the row's `example`, or the pattern where it matches itself.

        With verify=code the answer is tests, which are no program: only an `example` is one.
        """
        if self.verifier == "code":
            return problem.data.get("example")
        if self.verifier != "regex":
            return problem.answer
        for text in (problem.data.get("example", ""), problem.answer):
            if text and self._judge(problem, text).is_correct:
                return str(text)
        return None

    @cached_property
    def _records(self) -> list[Record]:
        return read_records(self.path)

    @cached_property
    def _rows(self) -> list[Row]:
        """The usable rows, each prompt once."""
        first_of: dict[str, Row] = {}
        for record in self._records:
            row = self._read_row(record)
            first = first_of.setdefault(" ".join([row.system, *row.problem.prompt.split()]), row)
            if first.split != row.split:
                raise DataError(
                    f"{row.place}: this prompt is in split {row.split!r} here and in {first.split!r} at {first.place}; "
                    "a held-out problem must not be trained on"
                )
        return list(first_of.values())

    def _read_row(self, record: Record) -> Row:
        prompt = record.text(self.prompt_field, option="prompt_field")
        answer = record.text(self.answer_field, option="answer_field")
        choices = _read_choices(record)
        split = record.optional_text("split")
        if split not in ("", "train", "test"):
            raise DataError(f"{record.place}: unknown split {split!r}; choose from: test, train")
        if self.verifier == "number":
            answer = answer.rpartition("####")[2].strip()  # GSM8K writes its solution before these marks
        if choices and not all(choice in prompt for choice in choices):
            prompt += "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        system = record.optional_text("system")
        digest = hashlib.sha256(f"{system}\0{prompt}\0{answer}".encode()).hexdigest()[:16]
        found: dict[str, Any] = {"choices": choices, "example": record.optional_text("example")}
        data = {
            key: value
            for key, value in found.items()
            if value and (key == "choices" or self.verifier in ("regex", "code"))
        }
        problem = Problem(f"{Path(self.path).stem}-{digest}", prompt, answer, data)
        return Row(record.place, problem, split, system)

    @cached_property
    def _has_one_system(self) -> bool:
        return bool(self._rows[0].system) and len({row.system for row in self._rows}) == 1

    def _with_system(self, row: Row) -> Problem:
        """The row's problem; a `system` text that differs between rows is put before the prompt."""
        problem = row.problem
        if not row.system or self._has_one_system:
            return problem
        return Problem(problem.problem_id, f"{row.system}\n\n{problem.prompt}", problem.answer, problem.data)

    def _split_of(self, row: Row) -> str:
        if self._has_splits:
            return row.split
        digest = hashlib.sha256(" ".join(row.problem.prompt.split()).encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") < self.test_fraction * 2**64 else "train"

    @cached_property
    def _has_splits(self) -> bool:
        """Whether the file says which rows are held out; then every row must."""
        without = [row for row in self._rows if not row.split]
        if without and len(without) < len(self._rows):
            raise DataError(f"{without[0].place}: has no split, other rows do; write train or test in every row")
        return not without

    def _empty_split(self, split: str) -> str:
        if self._has_splits:
            return f"{self.path}: no row has split {split!r}; training needs rows of both, train and test"
        return (
            f"{self.path}: test_fraction={self.test_fraction} of {len(self._rows)} row(s) leaves none to "
            f"{'hold out' if split == 'test' else 'train on'}; add rows, change test_fraction, or add a column "
            "'split' with train and test"
        )

    def _check_gold_answers(self) -> None:
        if self.verifier == "code":
            require()  # raises here, not in the middle of a run
        for row in self._rows:
            if self.verifier == "regex":
                reply = full_match(row.problem.answer, text="")
                if reply.value is not None and reply.value["invalid"]:
                    wrong = reply.value["invalid"]
                    raise DataError(f"{row.place}: the pattern {row.problem.answer[:60]!r} is wrong: {wrong}")
                if (example := row.problem.data.get("example")) and not self._judge(row.problem, example).is_correct:
                    raise DataError(f"{row.place}: the example {example[:60]!r} does not match its pattern")
                continue
            if self.verifier == "code":
                _check_tests(row)
                continue
            score = self._judge(row.problem, row.problem.answer)
            if not score.is_correct:
                raise DataError(
                    f"{row.place}: the answer {row.problem.answer[:60]!r} does not pass verify={self.verifier} "
                    f"({score.note}); correct the row or choose another verify: {', '.join(sorted(VERIFIERS))}"
                )


def _check_tests(row: Row) -> None:
    try:
        read_tests(row.problem.answer)
    except TestsError as error:
        raise DataError(f"{row.place}: the answer must be tests for verify=code: {error}") from None


def _read_choices(record: Record) -> list[str]:
    choices = record.texts("choices")
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{record.place}: choices must be 2 to {len(LETTERS)} texts, got {len(choices)}")
    for letter, choice in zip(LETTERS, choices, strict=False):
        if len(choice) == 1 and choice.upper() in LETTERS[: len(choices)] and choice.upper() != letter:
            raise DataError(f"{record.place}: choice {letter} reads {choice!r}, which is the letter of another choice")
    return choices


def _guess_verifier(records: list[Record], *, answer_field: str) -> str:
    """choice where rows have choices, number, code or json where every answer is one, else exact."""
    answers = [record.optional_text(answer_field).rpartition("####")[2].strip() for record in records]
    if all(record.texts("choices") for record in records) or all(
        len(answer) == 1 and answer in LETTERS for answer in answers
    ):
        return "choice"
    if all(_PLAIN_NUMBER.fullmatch(answer) for answer in answers):
        return "number"
    if all(_are_tests(answer) for answer in answers):
        return "code"
    if all(_is_json_container(answer) for answer in answers):
        return "json"
    return "exact"


def _are_tests(text: str) -> bool:
    try:
        return len(read_tests(text)) > 0
    except TestsError:
        return False


def _is_json_container(text: str) -> bool:
    try:
        return text[:1] in ("{", "[") and isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
