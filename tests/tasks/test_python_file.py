"""Bring your own Python file: what is found in it, what its mistakes cost, and that they never end a run."""

from __future__ import annotations

import copy
import threading
import time
from itertools import islice
from pathlib import Path

import pytest

from aha.errors import AhaError, ConfigError, DataError
from aha.tasks import HasBaselines, HasDemonstrations, PythonTask, get_task
from aha.tasks.base import HasFloor, HasGold
from aha.tasks.cheats import completion_of
from aha.types import Completion, FinishReason, Outcome, Problem

FUNCTIONS = """
import random

def problems(split, seed):
    rng = random.Random(f"{split} {seed}")
    while True:
        number = 2 * rng.randint(0, 4000) + (split == "test")
        yield f"Double {number}", str(2 * number)

def score(problem, completion):
    return completion.answer.strip() == problem.answer
"""
CLASS = """
from __future__ import annotations
from dataclasses import dataclass
from aha.tasks import Demonstration
from aha.types import Problem, Score

@dataclass(frozen=True, kw_only=True)
class Times:
    factor: int = 2
    system_prompt = "Write the number."
    floor = 0.0

    def problems(self, split, *, seed):
        for n in range(seed, seed + 1000):
            number = 2 * n + (split == "test")
            yield Problem(f"times-{number}", f"{self.factor} * {number}", str(self.factor * number))

    def score(self, problem, completion):
        is_right = completion.answer.strip() == problem.answer
        return Score(float(is_right), is_right, "fine" if is_right else "no")

    def demonstrations(self, *, seed):
        for problem in self.problems("train", seed=seed):
            yield Demonstration(problem, "", problem.answer)

    def gold(self, problem):
        return problem.answer
"""
PROBLEM = Problem("1", "Double 2", "4")


def write(folder: Path, text: str, *, name: str = "task.py") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def scoring(folder: Path, body: str) -> PythonTask:
    head = "import sys, time\ndef problems(split, seed):\n    yield 'q', 'a'\ndef score(problem, completion):\n    "
    text = f"{head}{body}\n"
    task = get_task(write(folder, text))
    assert isinstance(task, PythonTask)
    return task


def test_two_functions_are_a_task(tmp_path: Path) -> None:
    path = write(tmp_path, FUNCTIONS)
    task = get_task(path)
    assert task.name == path
    assert "<think>" in task.system_prompt
    train, test = (list(islice(task.problems(split, seed=1), 50)) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train == list(islice(get_task(path).problems("train", seed=1), 50))
    assert not {p.problem_id for p in train} & {p.problem_id for p in test}
    assert train[0].problem_id.startswith("task-")
    right = task.score(train[0], completion_of(train[0].answer))
    assert (right.reward, right.is_correct) == (1.0, True)
    assert task.score(train[0], completion_of("")).reward == 0.0
    assert not isinstance(task, HasDemonstrations | HasBaselines | HasGold | HasFloor)


def test_class_is_a_task_with_its_options_and_optional_methods(tmp_path: Path) -> None:
    path = write(tmp_path, CLASS)
    task = get_task(f"{path}:factor=7")
    assert task.name == f"{path}:factor=7"
    assert task.system_prompt == "Write the number."
    (problem,) = islice(task.problems("train", seed=3), 1)
    assert (problem.prompt, problem.answer) == ("7 * 6", "42")
    assert task.score(problem, completion_of("42")).note == "fine"
    assert isinstance(task, HasDemonstrations)
    assert next(task.demonstrations(seed=0)).answer == "0"
    assert isinstance(task, HasGold)
    assert isinstance(task, HasFloor)
    assert not isinstance(task, HasBaselines)
    assert list(get_task(task.name).problems("test", seed=0)) == list(task.problems("test", seed=0))
    assert copy.copy(task).name == task.name


@pytest.mark.parametrize("line", ["task = Times(factor=3)", "task = Times"])
def test_object_named_task_is_the_task_and_takes_options_too(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"{CLASS}\nclass Other(Times): pass\n{line}\n")
    factor = 3 if "3" in line else 2
    assert next(get_task(path).problems("train", seed=2)).answer == str(4 * factor)
    assert next(get_task(f"{path}:factor=5").problems("train", seed=2)).answer == "20"


def test_file_may_import_its_neighbours_and_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "words_of_this_test.py").write_text("ANSWER = 'blue'\n", encoding="utf-8")
    text = "from words_of_this_test import ANSWER\ndef problems(split, seed):\n    yield 'Sky?', ANSWER\n"
    path = write(tmp_path, text + "def score(problem, completion):\n    return 0\n")
    problem = next(get_task(path).problems("train", seed=0))
    assert problem.answer == "blue"
    assert get_task(path).score(problem, completion_of("blue")).reward == 0.0
    time.sleep(0.02)
    write(tmp_path, text + "def score(problem, completion):\n    return 1\n")
    assert get_task(path).score(problem, completion_of("blue")).reward == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def problems(:\n", "task.py line 1: invalid syntax"),
        ("import math\n\nx = 1 / 0\n", "task.py line 3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('bye')\n", "task.py line 2: SystemExit: bye"),
        ("import nowhere_to_be_found\n", "task.py line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = 1\n", "task.py: defines no task; it needs a class with problems and score, `task = …`, or two functions"),
        ("task = 3\n", "task.py: defines no task"),
        (f"{CLASS}\nclass Other(Times): pass\n", "defines several tasks (Times, Other); choose one by writing task ="),
        ("def problems(split, seed): yield 'a', 'b'\n", "task.py: defines no task"),
        (CLASS.replace("factor: int = 2", "factor: int"), "TypeError: Times.__init__() missing 1 required"),
    ],
)
def test_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        get_task(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.py: cannot be read: No such file or directory"):
        get_task(str(tmp_path / "none.py"))
    path = write(tmp_path, CLASS)
    with pytest.raises(ConfigError, match="unknown option of .* 'facter'; did you mean 'factor'"):
        get_task(f"{path}:facter=2")
    with pytest.raises(ConfigError, match="factor must be a whole number, got 'two'"):
        get_task(f"{path}:factor=two")
    path = write(tmp_path, FUNCTIONS, name="functions.py")
    with pytest.raises(ConfigError, match=r"functions\.py: takes no options, got level; write its task as a class"):
        get_task(f"{path}:level=3")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("yield 'q', 'a'\n    raise KeyError('n')", "task.py line 3: KeyError: 'n'"),
        ("yield 3", "must yield Problem objects or (prompt, answer) pairs of text, got 3"),
        ("yield 'q', 4", "got ('q', 4)"),
        ("return None", "TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_mistake_in_problems_is_one_line(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, f"def problems(split, seed):\n    {body}\ndef score(problem, completion):\n    return 1\n")
    task = get_task(path)
    with pytest.raises(DataError) as caught:
        list(task.problems("train", seed=0))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "note"),
    [
        ("return int(completion.answer)", "task.py line 5: ValueError: invalid literal"),
        ("sys.exit(1)", "task.py line 5: SystemExit: 1"),
        ("return None", "score returned NoneType, not a Score or a number"),
        ("return 'right'", "score returned str, not a Score or a number"),
        ("return float('nan')", "score returned the reward nan, not a number from -1 to 1"),
        ("return 100", "score returned the reward 100, not a number from -1 to 1"),
        ("return score(problem, completion)", "task.py line 5: RecursionError"),
    ],
)
def test_score_that_fails_masks_the_rollout_with_its_line(tmp_path: Path, body: str, note: str) -> None:
    found = scoring(tmp_path, body).score(PROBLEM, completion_of("x"))
    assert found.outcome is Outcome.ERROR
    assert found.reward == 0.0
    assert note in found.note


@pytest.mark.parametrize(("value", "is_correct"), [("True", True), ("1", True), ("0.5", False), ("-1", False)])
def test_number_stands_for_a_reward_that_is_right_when_it_is_one(tmp_path: Path, value: str, is_correct: bool) -> None:
    found = scoring(tmp_path, f"return {value}").score(PROBLEM, completion_of("x"))
    assert (found.reward, found.is_correct, found.outcome) == (float(value == "True" or value), is_correct, "scored")


@pytest.mark.parametrize(
    "body",
    ["time.sleep(60)", "while True: pass", "import re; return re.fullmatch('(a+)+b', 'a' * 60) is not None",
     "try:\n        time.sleep(60)\n    except Exception:\n        return 1",
     "while True:\n        try: time.sleep(60)\n        except: pass"],
)  # fmt: skip
def test_score_that_hangs_is_stopped_and_masked(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aha.tasks.python_file.SCORE_SECONDS", 0.1)
    started = time.monotonic()
    found = scoring(tmp_path, body).score(PROBLEM, completion_of("x"))
    assert found.outcome is Outcome.TIMEOUT
    assert "score took over 0.1 s" in found.note
    assert time.monotonic() - started < 5


def test_score_that_ends_its_process_is_masked_and_the_next_one_works(tmp_path: Path) -> None:
    task = scoring(tmp_path, "import os; return 1 if completion.answer == 'x' else os._exit(3)")
    dead = task.score(PROBLEM, completion_of("y"))
    assert (dead.outcome, "ended its process" in dead.note) == (Outcome.ERROR, True)
    assert task.score(PROBLEM, completion_of("x")).reward == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.fork(); return float(completion.answer == 'x')",
        "import os\n    if os.fork() == 0: raise RuntimeError('fork')\n    return float(completion.answer == 'x')",
        "import os\n    if os.fork() == 0: time.sleep(60)\n    return float(completion.answer == 'x')",
    ],
    ids=["both return", "fork raises", "fork sleeps"],
)
def test_score_that_forks_answers_each_question_once(tmp_path: Path, body: str) -> None:
    task = scoring(tmp_path, body)
    for answer in "xyxxyyxy":  # the answer of a fork must not become that of the next question
        found = task.score(PROBLEM, completion_of(answer))
        assert (found.reward, found.outcome) == (float(answer == "x"), Outcome.SCORED)


def test_child_that_says_something_else_is_masked_and_replaced(tmp_path: Path) -> None:
    write_all = "for fd in range(3, 12):\n        try: os.write(fd, b'{}\\n')\n        except OSError: pass"
    body = f"import os\n    {write_all}\n    return 1"
    assert scoring(tmp_path, body).score(PROBLEM, completion_of("x")).outcome is Outcome.ERROR
    (tmp_path / "other").mkdir()
    assert scoring(tmp_path / "other", "return 1").score(PROBLEM, completion_of("x")).reward == 1.0


@pytest.mark.parametrize(
    ("score", "note"),
    [
        ("Score(1.0, True, 'x', 'weird')", "score returned the outcome 'weird'"),
        ("Score(1.0, True, None)", "score returned the note None"),
        ("Score(1.0, True, 'x', parts={'a': object()})", "score returned the parts {'a': <object"),
        ("Score(1.0, True, 'x', parts={'a': float('nan')})", "score returned the parts {'a': nan}"),
        ("10 ** 400", "score returned the reward 1000"),
    ],
)
def test_score_with_a_wrong_field_masks_the_rollout(tmp_path: Path, score: str, note: str) -> None:
    found = scoring(tmp_path, f"from aha.types import Score; return {score}").score(PROBLEM, completion_of("x"))
    assert (found.reward, found.outcome) == (0.0, Outcome.ERROR)
    assert note in found.note


def test_score_sees_the_whole_completion_and_problem_and_may_print(tmp_path: Path) -> None:
    body = (
        "print('seen'); got = (problem.data['n'], completion.token_ids, completion.finish_reason.name, "
        "completion.reasoning, completion.num_tokens); "
        "return float(got == ([1, None], (7, 8), 'LENGTH', 'r\\ud800', 2))"
    )
    completion = Completion(
        (7, 8), (-0.5, float("nan")), FinishReason.LENGTH, reasoning="r\ud800", answer="x" * 100_000
    )
    problem = Problem("1", "q", "a", {"n": [1, None]})
    found = scoring(tmp_path, body).score(problem, completion)
    assert (found.reward, found.note) == (1.0, "right")


def test_data_that_another_process_would_see_differently_is_refused(tmp_path: Path) -> None:
    for data in ("{'n': (1, 2)}", "{1: 'a'}", "{'n': {1, 2}}", "{'n': object()}"):
        text = f"from aha.types import Problem\ndef problems(split, seed):\n    yield Problem('1', 'q', 'a', {data})\n"
        task = get_task(write(tmp_path, text + "def score(problem, completion): return 1\n"))
        with pytest.raises(DataError, match="Problem.data must hold plain JSON values"):
            next(task.problems("train", seed=0))
        time.sleep(0.01)


def test_relative_path_is_followed_to_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("one", 1), ("two", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "value.txt").write_text(str(value))
        body = "return int(open('value.txt').read())"
        write(
            tmp_path / name,
            f"def problems(split, seed):\n    yield 'q', 'a'\ndef score(problem, completion):\n    {body}\n",
        )
        monkeypatch.chdir(tmp_path / name)
        task = get_task("task.py")
        assert task.name == "task.py"
        assert task.score(PROBLEM, completion_of("x")).reward == value


def test_score_works_outside_the_main_thread_too(tmp_path: Path) -> None:
    task = scoring(tmp_path, "return 1")
    found = []
    thread = threading.Thread(target=lambda: found.append(task.score(PROBLEM, completion_of("x"))))
    thread.start()
    thread.join()
    assert found[0].reward == 1.0


def test_demonstrations_that_fail_are_one_line(tmp_path: Path) -> None:
    text = f"{FUNCTIONS}\ndef demonstrations(seed):\n    raise ValueError('none yet')\n    yield\n"
    task = get_task(write(tmp_path, text))
    assert isinstance(task, HasDemonstrations)
    with pytest.raises(AhaError, match=r"task\.py line 14: ValueError: none yet"):
        next(task.demonstrations(seed=0))


def test_system_prompt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text("SYSTEM_PROMPT = 3\ndef problems(split, seed): yield 'a', 'b'\ndef score(p, c): return True\n")
    with pytest.raises(DataError, match="the system prompt must be a text, got 3"):
        get_task(str(path))
