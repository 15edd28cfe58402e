# ruff: noqa: E501 - the programs are text
"""Code under judgement: what is right, what is wrong, what cannot be had by cheating, and the tasks built on it."""

from __future__ import annotations

import base64
import json
import random
import re
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from aha.errors import ConfigError, DataError, SandboxError
from aha.sandbox import Limits, Sandbox
from aha.tasks import Split, Table, get_task
from aha.tasks.code import Code, make_problem
from aha.tasks.code_blocks import BLOCKS, Step, draw_input
from aha.tasks.code_judge import code, find_code, judge
from aha.tasks.code_tests import TestsError, read_call, read_tests, same_output, same_value
from aha.tasks.livecodebench import LiveCodeBench
from aha.types import Completion, FinishReason, Outcome, Score

SPLITS: tuple[Split, ...] = ("train", "test")
DOUBLE = read_tests(
    '[{"call": "f(2)", "returns": 4}, {"call": "f(-3)", "returns": -6}, {"call": "f(0)", "returns": 0}]'
)
QUICK = Limits(cpu_seconds=1, wall_seconds=10)


def verdict(answer: str, *, tests: Any = DOUBLE, limits: Limits = QUICK) -> Score:
    return judge(tests if isinstance(tests, tuple) else read_tests(json.dumps(tests)), answer, limits=limits)


def done(answer: str, *, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion((), (), reason, answer=answer)


@pytest.mark.parametrize(
    "answer",
    [
        "def f(x): return 2 * x",
        "Here:\n```python\ndef f(x):\n    return 2 * x\n```\nDone.",
        "```python\ndef f(x): return 0\n```\nNo:\n```py\ndef f(x): return x + x\n```",
        "```Python3\r\ndef f(x): return 2 * x\r\n```",
        "```python\ndef f(x): return 2 * x",
        "text before ```python\ndef f(x): return 2 * x\n```.",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef f(x): return A(2 * x).x",
        "print('noise')\nf = lambda x: x * 2\nif __name__ == '__main__': 1 / 0",
        "class I(int): pass\ndef f(x): return I(2 * x)",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x): return 2 * x",
    ],
)
def test_right_code_is_right_wherever_it_stands(answer: str) -> None:
    assert verdict(answer) == Score(1.0, True, "passes all 3 tests")


CHEATS = {
    "nothing defined": "pass",
    "syntax error": "def f(x: return 2",
    "right but for one test": "def f(x): return 2 * x if x else 1",
    "float for int": "def f(x): return 2.0 * x",
    "text for int": "def f(x): return str(2 * x)",
    "bool for int": "def f(x): return bool(x) if x == 0 else 2 * x",
    "always equal": "class E:\n  def __eq__(s, o): return True\n  def __hash__(s): return 0\ndef f(x): return E()",
    "int that is always equal": "class E(int):\n  def __eq__(s, o): return True\ndef f(x): return E(7)",
    "int that prints as another": "class E(int):\n  def __repr__(s): return '4'\n  __str__ = __repr__\ndef f(x): return E(7)",
    "text that hides": "class S(str):\n  def __str__(s): return '4'\ndef f(x): return S('4')",
    "leaves with 0": "import os; os._exit(0)",
    "leaves in the first call": "import os\ndef f(x): os._exit(0)",
    "sys.exit at import": "import sys; sys.exit(0)",
    "SystemExit in a call": "def f(x): raise SystemExit(0)",
    "exit code 0 at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 1",
    "verdict on stdout": "print('passed', 'OK', 1.0)\nprint('{\"reward\": 1}')\ndef f(x): return None",
    "forged answers": """
import json, os
for i in range(3): os.write(3, json.dumps({"nonce": "", "index": i, "value": 4}).encode() + b"\\n")
os._exit(0)
""",
    "forged answers with the nonce": """
import json, os
nonce = json.load(open("calls.json"))["nonce"]
for i in range(3): os.write(3, json.dumps({"nonce": nonce, "index": i, "value": 4}).encode() + b"\\n")
os._exit(0)
""",
    "answers before the question": """
import json, os
nonce = json.load(open("calls.json"))["nonce"]
for i, v in ((0, 4), (1, -6)): os.write(3, json.dumps({"nonce": nonce, "index": i, "value": v}).encode() + b"\\n")
os._exit(0)
""",
    "more answers than questions": """
import json, os
nonce = json.load(open("calls.json"))["nonce"]
def f(x):
    if x == 0:
        for i, v in ((3, 0), (2, 0)): os.write(3, json.dumps({"nonce": nonce, "index": i, "value": v}).encode() + b"\\n")
    return 2 * x
""",
    "two values in one answer": """
import os, json
nonce = json.load(open("calls.json"))["nonce"]
for i in range(3): os.write(3, ('{"nonce": "%s", "index": %d, "value": 7, "value": 4}\\n' % (nonce, i)).encode())
os._exit(0)
""",
    "an answer that is no text": "import os\nos.write(3, b'\\xff\\xfe\\n' * 3)\nos._exit(0)",
    "an answer of brackets": "import os\nos.write(3, b'[' * 20000 + b'\\n')\nos._exit(0)",
    "line breaks without end": "import os\nos.write(3, b'\\n' * 60000)\nos._exit(0)",
    "json replaced": "import json\njson.dumps = lambda *a, **k: '4'\ndef f(x): return 7",
    "builtins replaced": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.len = lambda x: 0\ndef f(x): return {}",
    "modules replaced": "import sys\nsys.modules.clear()\ndef f(x): return 4",
    "os.write replaced": "import os\nreal = os.write\nos.write = lambda fd, b: real(fd, b.replace(b'7', b'4'))\ndef f(x): return 7",
    "looks for expected values in frames": """
import sys, gc
def f(x):
    frame, found = sys._getframe(), []
    while frame:
        found += [v for scope in (frame.f_locals, frame.f_globals) for k, v in scope.items() if "expect" in k or k == "returns"]
        frame = frame.f_back
    for o in gc.get_objects():
        if isinstance(o, dict): found += [o[k] for k in ("returns", "expected", "stdout") if k in o]
    return found[0]
""",
    "looks for the tests in files": """
import os
def f(x):
    for folder, _, names in os.walk("/box"):
        for name in names:
            if "returns" in open(os.path.join(folder, name)).read().split("return 'no'")[0].replace('"returns" in', ''): return 'found'
    return 'no'
""",
    "generator": "def f(x): yield 2 * x",
    "iterator without end": "import itertools\ndef f(x): return itertools.count(4)",
    "set": "def f(x): return {4}",
    "bytes": "def f(x): return b'4'",
    "NaN": "def f(x): return float('nan')",
    "infinity": "def f(x): return float('inf')",
    "huge int": "def f(x): return 10 ** 100_000",
    "list in itself": "def f(x):\n  a = []; a.append(a); return a",
    "deep list": "def f(x):\n  a = []\n  for _ in range(100_000): a = [a]\n  return a",
    "wide list of lists": "def f(x):\n  a = [1]\n  for _ in range(50): a = [a, a]\n  return a",
    "exception with an evil text": "class E(Exception):\n  def __str__(s): raise s\n  __repr__ = __str__\ndef f(x): raise E",
    "exception with a long text": "def f(x): raise ValueError('x' * 10**6)",
    "recursion": "def f(x): return f(x)",
    "busy loop": "def f(x):\n  while True: pass",
    "memory": "def f(x): return len('x' * 10**10)",
    "output without end": "while True: print('spam' * 1000)",
    "look-alike letters": "def f(х): return 2 * x",
    "fullwidth digits": "def f(x): return '４'",
    "nothing but a comment": "# 4 -6 0",
    "class with hooks": "class F:\n  def __call__(s, x): return s\n  def __getattr__(s, n): return s\n  __int__ = lambda s: 4\nf = F()",
    "both sides of a fork answer": "import os\ndef f(x):\n  os.fork(); return 2 * x",
    "channel closed and opened anew": "import os\ndef f(x):\n  os.close(3); os.pipe(); return 2 * x",
    "channel is standard output": "import os\nos.dup2(1, 3)\ndef f(x): return 2 * x",
    "a thread that writes beside the driver": "import threading, os, time\ndef w():\n  while True: os.write(3, b'\\n'); time.sleep(.001)\nthreading.Thread(target=w, daemon=True).start()\ndef f(x): time.sleep(.05); return 2 * x",
    "driver's functions replaced": "import sys\nmain = sys.modules['__main__']\nmain.plain = lambda value, depth=0: 4\nmain.follow = lambda *a: 4",
    "type that lies": "class A:\n  __class__ = int\n  __int__ = __index__ = lambda s: 4\ndef f(x): return A()",
    "pickles as another": "class A(dict):\n  def __reduce__(s): return int, (4,)\n  def items(s): return [('a', 4)]\ndef f(x): return A()",
    "list without end": "class A(list):\n  def __iter__(s):\n    while True: yield 4\ndef f(x): return A()",
    "true for an index": """
import json, os
nonce = json.load(open("calls.json"))["nonce"]
for i, v in ((False, 4), (True, -6), (2, 0)): os.write(3, json.dumps({"nonce": nonce, "index": i, "value": v}).encode() + b"\\n")
os._exit(0)
""",
    "not even an exception": "class B(BaseException): pass\ndef f(x): raise B",
    "coroutine": "async def f(x): return 2 * x",
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_scores_nothing_and_is_a_verdict(name: str) -> None:
    found = verdict(CHEATS[name])
    assert (found.reward, found.is_correct, found.outcome) == (0.0, False, Outcome.SCORED), found
    assert found.note
    assert found.note.isprintable()
    assert len(found.note) < 200


def test_expected_values_do_not_enter_the_sandbox() -> None:
    secret = "only-the-judge-knows"
    program = (
        "import os, gc\ndef f(x):\n"
        "  texts = [open(n).read() for n in os.listdir('.')]\n"
        "  texts += [repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple) and len(o) < 20]\n"
        f"  return any({secret[::-1]!r} in t[::-1] for t in texts)\n"
    )
    found = verdict(program, tests=[{"call": "f(1)", "returns": secret}], limits=Limits(cpu_seconds=10))
    assert found.note == "test 1 of 1: f(1) returns false"


def test_failing_sandbox_is_an_error_and_never_a_score() -> None:
    broken = Sandbox(backend="native", readable=("/nowhere/at/all",))
    found = judge(DOUBLE, "def f(x): return 2 * x", sandbox=broken, limits=QUICK)
    assert (found.reward, found.outcome) == (0.0, Outcome.ERROR)
    assert "native" in found.note


def test_missing_sandbox_stops_a_task_when_it_is_made_and_masks_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Sandbox:
        raise SandboxError("code cannot be confined here")

    for module in ("code", "code_judge", "table", "livecodebench"):
        monkeypatch.setattr(f"aha.tasks.{module}.require", refuse)
    with pytest.raises(SandboxError):
        Code()
    assert code('[{"call": "f(1)", "returns": 1}]', "f = abs").outcome is Outcome.ERROR


@pytest.mark.parametrize("answer", ["", "  \n", "```python\n```", "```python\n\n```", "x" * 70_000, " " * 500_000])
def test_no_code_or_too_much_is_a_parse_failure(answer: str) -> None:
    assert verdict(answer).outcome is Outcome.PARSE_FAILURE


def test_last_python_block_counts() -> None:
    assert find_code("```python\na\n```\n```python\nb\n```\n```text\nc\n```") == "b\n"
    assert find_code("a = '```'") == "a = '```'"


@pytest.mark.parametrize(
    ("call", "program", "returns", "is_right"),
    [
        ("f([1, (2, 3)], k={'a': {1}})", "def f(x, k): return [str(x), str(k)]", ["[1, (2, 3)]", "{'a': {1}}"], True),
        ("Stack(3).push(4).items", "", None, None),
        ("S(3).push(4).size()", "class S:\n  def __init__(s, n): s.n = n\n  def push(s, x): return s\n  def size(s): return s.n", 3, True),
        ("Box.make(2)", "class Box:\n  @staticmethod\n  def make(x): return {'x': x}", {"x": 2}, True),
        ("f()", "def f(): return (1, 2)", [1, 2], True),
        ("f()", "def f(): return {1: 2}", {"1": 2}, False),
        ("f()", "def f(): return None", None, True),
        ("f()", "def f(): return 0", False, False),
        ("f()", "def f(): return -0.0", 0.0, True),
        ("f()", "def f(): return 2 ** 100", 2**100, True),
        ("f()", "def f(): return '\\ud800'", "\ud800", True),
        ("f()", "def f(): return 'e\\u0301'", "\u00e9", False),
        ("f()", "import collections\ndef f(): return collections.Counter('aab')", {"a": 2, "b": 1}, True),
    ],
)  # fmt: skip
def test_calls_and_values(call: str, program: str, returns: Any, is_right: bool | None) -> None:
    if is_right is None:
        with pytest.raises(TestsError, match="must be a call"):
            read_call(call)
        return
    assert verdict(program, tests=[{"call": call, "returns": returns}]).is_correct == is_right


@pytest.mark.parametrize(
    ("expected", "given", "tolerance", "is_same"),
    [
        (1, 1, None, True), (1, 1.0, None, False), (1, 1.0, 0, True), (1, True, None, False), (1, True, 0, False),
        (0.1, 0.1 + 1e-9, None, False), (0.1, 0.1 + 1e-9, 1e-6, True), (10**400, 1.5, 1e-6, False),
        ([1, [2]], [1, [2]], None, True), ([1], [1, 1], None, False), ({"a": 1}, {"a": 1, "b": 2}, 0, False),
        ({"a": [1.0]}, {"a": [1]}, 0.5, True), ("1", 1, 0, False), (None, False, None, False), ([], {}, None, False),
        (10**4000, 10**4000 + 1, None, False), (2.0, 2, None, False),
    ],
)  # fmt: skip
def test_values_are_the_same_only_with_their_types(expected: Any, given: Any, tolerance: Any, is_same: bool) -> None:
    assert same_value(expected, given, tolerance=tolerance) == is_same


@pytest.mark.parametrize(
    ("expected", "given", "tolerance", "is_same"),
    [
        ("a\nb\n", "a  \nb\n\n", None, True), ("a\nb", "a\n\nb", None, False), ("1 2", "1  2", None, False),
        ("1.0", "1", None, False), ("1.0", "1", 0.0, True), ("0.3333", "0.33334", 1e-3, True), ("yes", "YES", 1.0, False),
        ("1e3", "1000", 0.0, True), ("12", "１２", 0.0, False), ("nan", "nan", 0.0, True), ("1", "nan", 1.0, False),
        ("1", "1/1", 0.0, False), ("1 1", "1", 5.0, False), ("", "", None, True), ("-2", "-2.0", 0.0, True),
        ("1", "1e999999999", 0.0, False),
    ],
)  # fmt: skip
def test_outputs_are_compared_by_lines(expected: str, given: str, tolerance: float | None, is_same: bool) -> None:
    assert same_output(expected, given, tolerance=tolerance) == is_same


INPUTS = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "-1 1\n", "stdout": "0\n"}]


@pytest.mark.parametrize(
    ("program", "note"),
    [
        ("print(sum(map(int, input().split())))", "passes all 2 tests"),
        ("if __name__ == '__main__': print(sum(map(int, open(0).read().split())))", "passes all 2 tests"),
        ("print(5)", "input 2 of 2: prints '5'"),
        ("print(5); print('OK')", "input 1 of 2: prints '5\\nOK'"),
        ("import sys; print(5); sys.exit(1)", "input 1 of 2: exit code 1"),
        ("print(5); 1/0", "input 1 of 2: exit code 1, ZeroDivisionError: division by zero"),
        ("print('５')", "input 1 of 2: prints '５'"),
        ("import os; os.write(1, b'\\xff5')", "input 1 of 2: prints what is no UTF-8"),
        ("import sys; sys.stdout = None; print(5)", "input 1 of 2: prints ''"),
        pytest.param(
            "import time; print(5, flush=True); time.sleep(99)",
            "input 1 of 2: stopped by the limit on wall time",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_programs_that_read_input(program: str, note: str) -> None:
    found = verdict(program, tests=INPUTS, limits=Limits(cpu_seconds=1, wall_seconds=1.5))
    assert found.note == note
    assert found.is_correct == (note == "passes all 2 tests")


def test_long_expected_output_may_be_printed() -> None:
    tests = [{"stdin": "", "stdout": "x" * 300_000}]
    assert verdict("print('x' * 300_000)", tests=tests).is_correct
    assert "limit on output" in verdict("print('x' * 3_000_000)", tests=tests).note


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("", "no JSON"),
        ("[]", "1 to 1,000 objects"),
        ('{"call": "f()", "returns": 1}', "must be a list"),
        ('[{"call": "f()"}]', "test 1: needs call and returns, or stdin and stdout (and may have tolerance); has call"),
        (
            '[{"call": "f() == 3", "returns": true}]',
            "must be a call, such as f(1, 2); what it gives belongs into returns",
        ),
        ('[{"call": "f(2).__eq__(4)", "returns": true}]', "must be a chain of names and calls"),
        ('[{"call": "f(g(2))", "returns": 4}]', "arguments must be literals"),
        ('[{"call": "f(**{})", "returns": 4}]', "write every argument out"),
        ('[{"call": "f(*[1])", "returns": 4}]', "arguments must be literals"),
        ('[{"call": "f(b\'\')", "returns": 4}]', "arguments must be literals"),
        ('[{"call": "f(", "returns": 4}]', "is no Python: SyntaxError"),
        ('[{"call": "lambda: 1", "returns": 4}]', "must be a call"),
        ('[{"call": "(lambda: 1)()", "returns": 4}]', "must be a chain"),
        ('[{"call": 3, "returns": 4}]', "call must be a text"),
        ('[{"call": "f()", "returns": NaN}]', "NaN is not JSON"),
        ('[{"call": "f()", "returns": 1e999}]', "a number too large"),
        ('[{"call": "f()", "returns": 1, "returns": 2}]', "a key stands twice"),
        ('[{"call": "f()", "returns": 1, "tolerance": true}]', "tolerance must be a number"),
        ('[{"call": "f()", "returns": 1, "tolerance": -1}]', "tolerance must be a number"),
        ('[{"stdin": "", "stdout": 3}]', "stdin and stdout must be texts"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_unusable_tests_say_what_is_wrong(gold: str, message: str) -> None:
    with pytest.raises(TestsError) as caught:
        read_tests(gold)
    assert message in str(caught.value)
    assert code(gold, "def f(): return 1").outcome is Outcome.ERROR


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_data_file_with_tests_is_a_task(tmp_path: Path) -> None:
    calls = [{"call": "f(1)", "returns": 2}, {"call": "f(5)", "returns": 6}]
    rows = [
        {"prompt": "Write f(x) that adds 1.", "answer": calls, "split": "train"},
        {"prompt": "Read two numbers, print their sum.", "answer": json.dumps(INPUTS), "split": "test"},
    ]
    path = write_jsonl(tmp_path / "code.jsonl", rows)
    for spec in (f"{path}:verify=code", path):  # said, and guessed
        task = get_task(spec)
        assert isinstance(task, Table)
        assert task.verifier == "code"
        (train,), (test,) = (list(task.problems(split, seed=0)) for split in SPLITS)
        assert task.score(train, done("```python\ndef f(x): return x + 1\n```")).reward == 1.0
        assert task.score(train, done("def f(x): return 2")).reward == 0.0
        assert task.score(test, done("print(sum(map(int, input().split())))")).reward == 1.0
    assert "```python" in task.system_prompt


def test_data_file_of_the_guide_is_a_task(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    block = next(
        text for text in re.findall(r"^```jsonl\n(.*?)^```", guide, re.DOTALL | re.MULTILINE) if "call" in text
    )
    (tmp_path / "code.jsonl").write_text(block, encoding="utf-8")
    task = get_task(f"{tmp_path / 'code.jsonl'}:verify=code")
    solutions = {
        "Write add(a, b).": "def add(a, b): return a + b",
        "Write mean(x).": "def mean(x): return sum(x) / len(x)",
        "Read two numbers, print their sum.": "print(sum(map(int, input().split())))",
    }
    problems = [problem for split in SPLITS for problem in task.problems(split, seed=0)]
    assert {problem.prompt for problem in problems} == solutions.keys()
    for problem in problems:
        assert task.score(problem, done(solutions[problem.prompt])).reward == 1.0
        assert task.score(problem, done("print(3)")).reward == 0.0


def test_data_file_with_unusable_tests_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "answer": [{"call": "f()", "returns": n}]} for n in range(20)]
    path = write_jsonl(
        tmp_path / "code.jsonl", [*rows, {"prompt": "x", "answer": [{"call": "f() == 1", "returns": 1}]}]
    )
    with pytest.raises(DataError, match="line 21: the answer must be tests for verify=code: test 1: call"):
        get_task(f"{path}:verify=code")


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda number: BLOCKS[number].code)
def test_block_means_the_same_in_words_that_run_and_in_code(number: int) -> None:
    block = BLOCKS[number]
    rng = random.Random(number)
    steps = [Step(block, rng.randint(block.low, block.high), "e")]
    problem = make_problem(steps, [draw_input(rng, block.takes) for _ in range(13)])
    assert judge(read_tests(json.dumps(problem.data["tests"])), problem.answer, limits=QUICK).is_correct


def steps_of(prompt: str) -> tuple[str, ...]:
    """What a function takes, and its steps without their order."""
    head, *lines = prompt.splitlines()
    return head.partition(" and returns")[0], *sorted(line[3:] for line in lines[:-1])


def test_generated_problems_are_disjoint_repeatable_and_need_every_step() -> None:
    task = Code()
    train, test = ({p.prompt: p for p in islice(task.problems(split, seed=3), 400)} for split in SPLITS)
    assert not train.keys() & test.keys()
    keys = [{steps_of(prompt) for prompt in split} for split in (train, test)]
    assert not keys[0] & keys[1]
    assert list(islice(task.problems("train", seed=3), 5)) == list(train.values())[:5]
    for problem in islice(train.values(), 100):
        results = [json.dumps(t["returns"]) for t in problem.data["tests"]]
        assert len(results) == 8
        assert len(set(results)) >= 3
        assert problem.prompt.split("returns ")[-1] not in ("[].", "''.", "0.")


def test_lazy_solutions_of_generated_problems_fail() -> None:
    task = Code()
    for problem in islice(task.problems("test", seed=1), 6):
        assert task.score(problem, done(problem.answer)).reward == 1.0
        first = problem.data["tests"][0]["returns"]
        for lazy in ("x", repr(first), repr(problem.data["example"])):
            assert task.score(problem, done(f"def solve(x): return {lazy}")).reward == 0.0
        assert task.score(problem, done("", reason=FinishReason.LENGTH)).outcome is Outcome.PARSE_FAILURE


def test_demonstrations_are_right_and_show_their_steps() -> None:
    task = Code(min_steps=1, max_steps=2)
    for shown in islice(task.demonstrations(seed=0), 5):
        assert task.score(shown.problem, done(shown.answer)).reward == 1.0
        assert shown.reasoning.startswith("Step 1: ")


@pytest.mark.parametrize("options", [{"min_steps": 0}, {"max_steps": 1}, {"num_tests": 2}])
def test_code_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"code: {next(iter(options))} must be"):
        Code(**options)


def packed(text: str, *, protocol: int = 4) -> str:
    """As the benchmark packs its private tests; the frame is written by hand, the way its tool would."""
    data = text.encode()
    opcode = b"X" + len(data).to_bytes(4, "little") if len(data) > 255 else b"\x8c" + bytes([len(data)])
    content = b"\x80\x04\x95" + (len(data) + 9).to_bytes(8, "little") + opcode + data + b"\x94."
    if protocol == 3:
        content = b"\x80\x03X" + len(data).to_bytes(4, "little") + data + b"q\x00."
    return base64.b64encode(zlib.compress(content)).decode()


def lcb_row(**changes: Any) -> dict[str, Any]:
    row = {
        "question_title": "Sum", "question_content": "Read n numbers and print their sum.", "platform": "atcoder",
        "question_id": "abc1_a", "contest_id": "abc1", "contest_date": "2024-09-01T00:00:00", "starter_code": "",
        "difficulty": "easy", "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "2\n1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": json.dumps([{"input": "1\n7\n", "output": "7", "testtype": "stdin"}]),
    }  # fmt: skip
    return {**row, **changes}


def functional_row(pack: Callable[[str], str]) -> dict[str, Any]:
    return lcb_row(
        question_id="3000", platform="leetcode", metadata='{"func_name": "twoSum"}',
        starter_code="class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        ",
        public_test_cases=json.dumps([{"input": "[2, 7]\n9", "output": "[0, 1]", "testtype": "functional"}]),
        private_test_cases=pack(json.dumps([{"input": "[3, 2, 4]\n6", "output": "[1, 2]", "testtype": "functional"}] * 9)),
    )  # fmt: skip


TWO_SUM = """class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        return next((i, j) for i, j in combinations(range(len(nums)), 2) if nums[i] + nums[j] == target)
"""


@pytest.mark.parametrize("pack", [str, packed, lambda text: packed(text, protocol=3),
                                  lambda text: base64.b64encode(zlib.compress(text.encode())).decode()])  # fmt: skip
def test_livecodebench_file_is_a_task(pack: Callable[[str], str], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test6.jsonl", [lcb_row(), functional_row(pack)])
    task = get_task(f"livecodebench:path={path}")
    assert get_task(task.name) == task
    assert list(task.problems("train", seed=0)) == []
    stdin, function = sorted(task.problems("test", seed=0), key=lambda p: p.problem_id)
    assert (stdin.problem_id, function.problem_id) == ("livecodebench-atcoder-abc1_a", "livecodebench-leetcode-3000")
    assert "Read the inputs from stdin" in stdin.prompt
    assert "class Solution" in function.prompt
    assert "7" not in json.dumps(dict(stdin.data))
    assert task.score(stdin, done("input(); print(sum(map(int, input().split())))")).reward == 1.0
    assert task.score(stdin, done("print(3)")).note == "input 2 of 2: prints '3'"
    assert task.score(function, done(f"```python\n{TWO_SUM}```")).reward == 1.0
    assert task.score(function, done("class Solution:\n def twoSum(self, a, b): return [0, 1]")).reward == 0.0


def test_livecodebench_selects_by_contest_date(tmp_path: Path) -> None:
    rows = [lcb_row(question_id=str(n), contest_date=f"2024-0{n}-15T00:00:00") for n in range(1, 6)]
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    task = LiveCodeBench(path=path, start_date="2024-02-01", end_date="2024-04-15")
    assert {p.problem_id[-1] for p in task.problems("test", seed=0)} == {"2", "3", "4"}
    with pytest.raises(DataError, match="no problem from 2025-01-01 to the last"):
        LiveCodeBench(path=path, start_date="2025-01-01")
    with pytest.raises(ConfigError, match="start_date must be a date such as 2024-08-01, got '2024'"):
        LiveCodeBench(path=path, start_date="2024")
    with pytest.raises(ConfigError, match="livecodebench needs its file"):
        LiveCodeBench()


HOSTILE_PICKLE = base64.b64encode(zlib.compress(b"cos\nsystem\n(S'touch /x'\ntR.")).decode()


def test_livecodebench_never_loads_a_pickle(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [lcb_row(private_test_cases=HOSTILE_PICKLE)])
    task = LiveCodeBench(path=path)
    (problem,) = task.problems("test", seed=0)
    found = task.score(problem, done("print(3)"))
    assert found.outcome is Outcome.ERROR
    assert "line 1: tests cannot be read" in found.note
    path = write_jsonl(tmp_path / "other.jsonl", [lcb_row(private_test_cases="gASVDAAAAA==")])
    with pytest.raises(DataError, match="nothing else that is pickled is read, since loading it could run code"):
        LiveCodeBench(path=path)
