"""Judges code: runs it in the sandbox, and compares here, in a process that the code never enters.

The expected values stay here. What comes out of the sandbox is taken for what it is: something that the code under
judgement could have written itself, which helps only who knows the right values.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aha.errors import SandboxError
from aha.sandbox import Limits, Result, Sandbox, StoppedBy, require
from aha.tasks import code_driver
from aha.tasks.code_driver import CALLS_FILE, SOLUTION_FILE
from aha.tasks.code_tests import (
    CallTest,
    InputTest,
    Test,
    TestsError,
    count_expected_bytes,
    read_strict_json,
    read_tests,
    same_output,
    same_value,
)
from aha.types import Outcome, Score

MAX_CODE_CHARS = 64_000
MAX_ANSWER_CHARS = 400_000
LIMITS = Limits()
"""Of the verifier `code`; a busy loop ends after 5 s of processor time."""
_FENCE = re.compile(
    r"```(?:python|py|python3)[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)


def code(gold: str, answer: str) -> Score:
    """Whether the code in an answer passes every test; fewer than all are worth nothing.

    Args:
        gold: tests as JSON, see `aha.tasks.code_tests`.
        answer: code in its last fenced ```python block, or nothing but code.
    """
    try:
        tests = _tests_of(gold)
    except TestsError as error:
        return Score(0.0, False, f"tests: {error}"[:199], Outcome.ERROR)
    return judge(tests, answer, limits=LIMITS)


_tests_of = functools.lru_cache(maxsize=256)(read_tests)


def judge(
    tests: Sequence[Test], answer: str, *, sandbox: Sandbox | None = None, limits: Limits, preamble: str = ""
) -> Score:
    """As `code`, on tests that have been read.

    Args:
        sandbox: where the code runs; None is the one that `aha.sandbox.require` gives.
        limits: of one run: all calls together, or one input.
        preamble: code that is put before it, unless it imports from __future__, which must stand first.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return _unread(f"answer of {len(answer):,} characters; at most {MAX_ANSWER_CHARS:,} are read")
    text = find_code(answer)
    if not text.strip():
        return _unread("no code")
    if len(text) > MAX_CODE_CHARS:
        return _unread(f"code of {len(text):,} characters; at most {MAX_CODE_CHARS:,} are run")
    if "from __future__" not in text:
        text = preamble + text
    try:
        failure = _first_failure(tests, text, sandbox=sandbox or require(), limits=limits)
    except SandboxError as error:
        return Score(0.0, False, str(error)[:199], Outcome.ERROR)
    return Score(0.0, False, _printable(failure)) if failure else Score(1.0, True, f"passes all {len(tests)} tests")


def find_code(answer: str) -> str:
    """The last fenced ```python block of an answer, to its end where it is not closed; else the whole answer."""
    blocks = _FENCE.findall(answer)
    return str(blocks[-1]) if blocks else answer


def _first_failure(tests: Sequence[Test], text: str, *, sandbox: Sandbox, limits: Limits) -> str:
    """What went wrong first, "" when nothing did."""
    limits = replace(limits, output_bytes=limits.output_bytes + 2 * count_expected_bytes(tests))
    calls = [test for test in tests if isinstance(test, CallTest)]
    failure = _failed_call(calls, text, sandbox=sandbox, limits=limits) if calls else ""
    inputs = [test for test in tests if isinstance(test, InputTest)]
    for number, test in enumerate(inputs, start=1):
        if failure:
            break
        result = sandbox.run_python(text, stdin=test.stdin.encode("utf-8", "replace"), limits=limits)
        failure = _wrong_output(test, result)
        failure = failure and f"input {number} of {len(inputs)}: {failure}"
    return failure


def _wrong_output(test: InputTest, result: Result) -> str:
    if not result.is_ok:
        return _how_it_ended(result)
    try:
        output = result.stdout.decode("utf-8")
    except UnicodeDecodeError:
        return "prints what is no UTF-8"
    return "" if same_output(test.stdout, output, tolerance=test.tolerance) else f"prints {output.strip()[:60]!r}"


def _failed_call(tests: Sequence[CallTest], text: str, *, sandbox: Sandbox, limits: Limits) -> str:
    nonce = secrets.token_hex(16)
    calls = json.dumps({"nonce": nonce, "calls": [test.steps for test in tests]}).encode()
    files = {CALLS_FILE: calls, SOLUTION_FILE: text.encode("utf-8", "replace")}
    result = sandbox.run_python(_driver(), files=files, limits=limits)
    # Split at most once more than there may be lines: a flood of line breaks is no list of a million texts.
    lines = result.channel.split(b"\n", len(tests) + 1)
    for number, test in enumerate(tests, start=1):
        where = f"test {number} of {len(tests)}: {test.text[:60]}"
        if number >= len(lines):  # the last piece has no line break after it
            return f"{where}: no answer, {_how_it_ended(result)}"
        failure = _wrong_answer(test, lines[number - 1], nonce=nonce, index=number - 1)
        if failure:
            return f"{where} {failure}"
    if lines[len(tests) :] != [b""]:
        return "writes more than it was asked"
    return "" if result.is_ok else _how_it_ended(result)


def _wrong_answer(test: CallTest, line: bytes, *, nonce: str, index: int) -> str:
    """Why a line of the channel is no right answer; "" when it is one."""
    try:
        answer = read_strict_json(line.decode("utf-8"))
    except ValueError:
        return "gives no JSON"
    if not isinstance(answer, dict) or answer.get("nonce") != nonce or type(answer.get("index")) is not int:
        return "gives an answer of its own making"
    if answer["index"] != index or len(answer) != 3:
        return "gives an answer of its own making"
    if "error" in answer:
        return f"raises {str(answer['error'])[:80]}"
    if "value" not in answer:
        return "gives an answer of its own making"
    if same_value(test.returns, answer["value"], tolerance=test.tolerance):
        return ""
    return f"returns {json.dumps(answer['value'])[:60]}"


@functools.cache
def _driver() -> str:
    return Path(code_driver.__file__).read_text(encoding="utf-8")


def _how_it_ended(result: Result) -> str:
    if result.stopped_by is not StoppedBy.NOTHING:
        return f"stopped by the limit on {result.stopped_by}"
    if result.signal:
        return f"killed by signal {result.signal}"
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"exit code {result.exit_code}" + (f", {lines[-1][:80]}" if lines else "")


def _printable(text: str) -> str:
    """A note of one line: the code under judgement may have written parts of it."""
    return "".join(character if character.isprintable() else "?" for character in text)[:199]


def _unread(note: str) -> Score:
    return Score(0.0, False, note, Outcome.PARSE_FAILURE)
