"""LiveCodeBench from its own JSONL file: contest problems with tests that read input, or that call a function.

Source: LiveCodeBench (arXiv:2403.07974); the fields and prompts are those of its code generation benchmark.
"""

from __future__ import annotations

import base64
import binascii
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from aha.errors import ConfigError, DataError
from aha.sandbox import Limits, require
from aha.tasks.base import Split
from aha.tasks.code_judge import judge
from aha.tasks.code_tests import CallTest, InputTest, Test, encode_argument, read_strict_json
from aha.tasks.table_file import Record, read_records
from aha.types import Completion, FinishReason, Outcome, Problem, Score

LIMITS = Limits(cpu_seconds=6, wall_seconds=30.0, memory_bytes=1024 * 2**20)
"""6 s: the benchmark's own time limit, there by the clock, here by processor time."""
MAX_TESTS_BYTES = 512 * 2**20
"""Largest private tests of one problem, decompressed."""
_SUPPORTED = (
    "must be a JSON list of tests, such a list as base64 of zlib, or the benchmark's own base64 of zlib of one pickled "
    "string (nothing else that is pickled is read, since loading it could run code)"
)
_EMPTY_PROGRAM = "```python\n# YOUR CODE HERE\n```"
_PREAMBLE = """import sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
sys.setrecursionlimit(50_000)
"""
_ASK = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests."
)
_ASK_FOR_FUNCTION = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_ASK_FOR_PROGRAM = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)


@dataclass(frozen=True, kw_only=True)
class LiveCodeBench:
    """LiveCodeBench's contest problems from a local file: livecodebench:path=test6.jsonl."""

    path: str = ""
    """A file of the benchmark in its own format, one problem a line."""
    start_date: str = ""
    """First contest date that is used, e.g. "2024-08-01": problems older than a model's data tell little."""
    end_date: str = ""
    """Last contest date that is used."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("livecodebench needs its file: write livecodebench:path=test6.jsonl")
        for name in ("start_date", "end_date"):
            date = getattr(self, name)
            if date and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date):
                raise ConfigError(f"livecodebench: {name} must be a date such as 2024-08-01, got {date!r}")
        require()
        if not self._problems:
            raise DataError(
                f"{self.path}: no problem from {self.start_date or 'the first'} to {self.end_date or 'the last'}"
            )

    @property
    def name(self) -> str:
        """The spec that makes this task again."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return "livecodebench:" + ",".join(changed)

    @property
    def system_prompt(self) -> str:
        return "Think step by step inside <think> and </think>, then write the program in one ```python block."

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        """All problems are held out: it is a benchmark, and nothing is to be trained on it."""
        problems = list(self._problems) if split == "test" else []
        random.Random(f"livecodebench {seed}").shuffle(problems)
        yield from problems

    def gold(self, problem: Problem) -> None:
        """The file holds no solutions."""

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        try:
            tests = self._read_tests(problem.problem_id)
        except DataError as error:
            return Score(0.0, False, str(error)[:199], Outcome.ERROR)
        return judge(tests, completion.answer, limits=LIMITS, preamble=_PREAMBLE)

    def _read_tests(self, problem_id: str) -> tuple[Test, ...]:
        """Read anew for each score: the tests of one problem can be megabytes, those of all a gigabyte."""
        return _tests_of(self._records[problem_id])

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        return tuple(_make_problem(problem_id, record) for problem_id, record in self._records.items())

    @cached_property
    def _records(self) -> dict[str, Record]:
        """By problem id. Tests that cannot be used are found now, by their first characters; not read."""
        records = {}
        for record in read_records(self.path):
            date = record.optional_text("contest_date")[:10]
            if date < self.start_date or (self.end_date and date > self.end_date):
                continue
            question_id = record.text("question_id", option="question_id")
            platform = record.optional_text("platform") or "unknown"
            _check_private_tests(record)
            records[f"livecodebench-{platform}-{question_id}"] = record
        return records


def _make_problem(problem_id: str, record: Record) -> Problem:
    question = record.text("question_content", option="question_content")
    starter = record.optional_text("starter_code")
    form = f"{_ASK_FOR_FUNCTION}\n```python\n{starter}\n```" if starter else f"{_ASK_FOR_PROGRAM}\n{_EMPTY_PROGRAM}"
    end = "### Answer: (use the provided format with backticks)"
    prompt = f"{_ASK}\n\n### Question:\n{question}\n\n### Format: {form}\n\n{end}"
    data = {key: record.optional_text(key) for key in ("difficulty", "platform", "contest_date")}
    return Problem(problem_id, prompt, "", data)


def _tests_of(record: Record) -> tuple[Test, ...]:
    """Public and private tests.

    Raises:
        DataError: when they cannot be used.
    """
    try:
        metadata = read_strict_json(record.optional_text("metadata") or "{}")
        name = metadata.get("func_name") if isinstance(metadata, dict) else None
        rows = [
            row
            for column in ("public_test_cases", "private_test_cases")
            for row in read_strict_json(_plain_text(record.optional_text(column) or "[]"))
        ]
        tests = tuple(_as_test(row, function_name=name) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{record.place}: tests cannot be read: {error or type(error).__name__}") from None
    if not tests:
        raise DataError(f"{record.place}: has no tests in public_test_cases or private_test_cases")
    return tests


def _as_test(row: Mapping[str, Any], *, function_name: str | None) -> Test:
    if row["testtype"] == "stdin":
        # The benchmark compares lines, and where they differ, their words as exact decimal numbers.
        return InputTest(row["input"], row["output"], tolerance=0.0)
    if row["testtype"] != "functional" or not function_name:
        raise ValueError(f"testtype {row['testtype']!r}; known are stdin, and functional with a func_name in metadata")
    arguments = [encode_argument(read_strict_json(line)) for line in row["input"].split("\n") if line.strip()]
    steps = ({"name": "Solution", "args": [], "kwargs": {}}, {"name": function_name, "args": arguments, "kwargs": {}})
    text = f"{function_name}({', '.join(row['input'].split())})"
    return CallTest(text, steps, read_strict_json(row["output"]), tolerance=0.0)


def _check_private_tests(record: Record) -> None:
    text = record.optional_text("private_test_cases")
    if text and text[0] != "[" and not text.startswith(("eJ", "eA", "eF", "eN")):  # base64 of zlib's header
        raise DataError(f"{record.place}: private_test_cases {_SUPPORTED}; it begins with {text[:20]!r}")


def _plain_text(text: str) -> str:
    """The JSON text of a column: as it stands, or packed as the benchmark packs it.

    The benchmark writes base64(zlib(pickle(text))). Pickles are programs and are never loaded here; of their opcodes
    only those of one string are read, and anything else is refused.

    Raises:
        ValueError: when it is neither.
    """
    if text.startswith("["):
        return text
    try:
        packed = base64.b64decode(text, validate=True)
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, MAX_TESTS_BYTES)
    except (binascii.Error, zlib.error):
        raise ValueError(_SUPPORTED) from None
    if unpacker.unconsumed_tail:
        raise ValueError(f"private_test_cases are larger than {MAX_TESTS_BYTES:,} bytes")
    return content.decode("utf-8") if content.startswith(b"[") else _only_string(content)


def _only_string(content: bytes) -> str:
    """The text in a serialised string, by the opcodes of one string alone.

    Raises:
        ValueError: for any other opcode.
    """
    start = 2 if content[:1] == b"\x80" else 0  # PROTO and its version
    if content[start : start + 1] == b"\x95":  # FRAME and its length
        start += 9
    sizes = {b"\x8c": 1, b"X": 4, b"\x8d": 8}  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8: bytes of the length
    size = sizes.get(content[start : start + 1], 0)
    length = int.from_bytes(content[start + 1 : start + 1 + size], "little")
    end = start + 1 + size + length
    # MEMOIZE or BINPUT 0, FRAME or nothing, then STOP
    if not size or content[end:] not in (b".", b"\x94.", b"q\x00."):
        raise ValueError(_SUPPORTED)
    return content[end - length : end].decode("utf-8")
