"""Every shipped task withstands its self-check, and a verifier that can be fooled does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aha.errors import DataError
from aha.tasks import TASKS, Arithmetic, Split, Task, get_task
from aha.tasks.base import Cheat
from aha.tasks.cheats import completion_of
from aha.tasks.selfcheck import Kind, Row, SelfCheck, Verdict, check_gold, floor_of, self_check
from aha.types import Completion, Outcome, Problem, Score
from tests.tasks.test_code import lcb_row, write_jsonl


def write_livecodebench(folder: Path) -> str:
    rows = [
        lcb_row(question_id=str(n), question_content=f"Read n numbers and print their sum times {n}.")
        for n in range(1, 5)
    ]
    return f"path={write_jsonl(folder / 'test6.jsonl', rows)}"


def write_gsm8k(folder: Path) -> str:
    sums = [
        {"question": f"Tom has {n} plums and gets {n + 7}. How many?", "answer": f"#### {2 * n + 7}"} for n in range(60)
    ]
    write_jsonl(folder / "train.jsonl", sums[:40])
    write_jsonl(folder / "test.jsonl", sums[40:])
    return f"path={folder}"


def write_gpqa(folder: Path) -> str:
    columns = ["Record ID", "Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
    rows = [f"r{n},Which gas number {n}?,argon {n},neon {n},radon {n},xenon {n}" for n in range(30)]
    (folder / "gpqa_diamond.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    return f"path={folder / 'gpqa_diamond.csv'}"


def write_problems(folder: Path) -> str:
    rows = [{"problem": f"What is {n} + {2 * n}?", "answer": str(3 * n), "year": 2024} for n in range(10, 40)]
    return f"path={write_jsonl(folder / 'test.jsonl', rows)}"


def write_math(folder: Path) -> str:
    for split, numbers in (("train", range(10, 40)), ("test", range(50, 60))):
        rows = [{"problem": f"What is {n} + {2 * n}?", "solution": f"$\\boxed{{{3 * n}}}$"} for n in numbers]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return f"path={folder}"


NEEDED: dict[str, Callable[[Path], str]] = {
    "aime": write_problems,
    "gpqa": write_gpqa,
    "gsm8k": write_gsm8k,
    "livecodebench": write_livecodebench,
    "math": write_math,
    "math500": write_problems,
    "reasoning_gym": lambda folder: "dataset=chain_sum",
}
"""Task → what makes the options it cannot do without, such as a small file, in a folder of the test."""
NUM_PROBLEMS = {"code": 6}
"""Task → problems to check it on, where its verifier is too slow for the usual number."""
WITHOUT_GOLD = {"livecodebench"}
"""Tasks whose problems hold tests and no solution."""


def spec_of(name: str, *, folder: Path) -> str:
    return f"{name}:{NEEDED[name](folder)}" if name in NEEDED else name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "code" else ()) for name in sorted(TASKS)]
)
def test_shipped_task_pays_the_right_answer_and_no_cheat(name: str, tmp_path: Path) -> None:
    task = get_task(spec_of(name, folder=tmp_path))
    checked = self_check(task, num_problems=NUM_PROBLEMS.get(name, 32))
    assert checked.passes, checked.lines()
    kinds = [row.kind for row in checked.rows if row.num_tried and row.verdict is Verdict.OK]
    expected = {Kind.NOTHING, Kind.PROBLEMS} if name in WITHOUT_GOLD else set(Kind) - {Kind.CHEAT}
    assert expected <= set(kinds)
    assert kinds.count(Kind.CHEAT) >= 3
    assert checked.num_problems >= 3


@dataclass(frozen=True, kw_only=True)
class Judged(Arithmetic):
    """Arithmetic under a verifier of the test's own."""

    verify: Callable[[Problem, Completion], float] = lambda problem, completion: 0.0

    def score(self, problem: Problem, completion: Completion) -> Score:
        reward = self.verify(problem, completion)
        return Score(reward, reward == 1)


def contains(problem: Problem, completion: Completion) -> float:
    return float(problem.answer in completion.answer)


def first_number(problem: Problem, completion: Completion) -> float:
    found = re.search(r"-?[0-9]+", completion.answer)
    return float(found is not None and found[0] == problem.answer)


def form_only(problem: Problem, completion: Completion) -> float:
    return float(bool(completion.answer.strip()))


def anywhere_in_the_text(problem: Problem, completion: Completion) -> float:
    return float(completion.text.split()[-1:] == [problem.answer] or completion.reasoning == problem.answer)


def failing(checked: SelfCheck) -> dict[str, Row]:
    return {row.name: row for row in checked.failures}


@pytest.mark.parametrize(
    ("verify", "row", "kind"),
    [
        (contains, "hides the answer in a list", Kind.CHEAT),
        (contains, "lists every candidate", Kind.CHEAT),
        (first_number, "takes its answer back", Kind.CHEAT),
        (form_only, "another problem's answer", Kind.RANDOM),
        (form_only, "says it does not know", Kind.NOTHING),
        (form_only, "a form without an answer", Kind.CHEAT),
        (anywhere_in_the_text, "answers inside the thinking only", Kind.CHEAT),
        (lambda problem, completion: 1.0, "no text at all", Kind.NOTHING),
    ],
)
def test_verifier_that_can_be_fooled_fails_in_its_row(
    verify: Callable[[Problem, Completion], float], row: str, kind: Kind
) -> None:
    checked = self_check(Judged(verify=verify), num_problems=6)
    found = failing(checked)[row]
    assert (found.kind, found.mean_reward) == (kind, 1.0)
    with pytest.raises(DataError, match=r"the self-check fails: \".*see docs/tasks.md") as caught:
        checked.refuse_if_failing()
    assert "\n" not in str(caught.value)


def test_right_answers_that_are_not_paid_in_full_fail() -> None:
    checked = self_check(
        Judged(verify=lambda problem, completion: 0.5 * (completion.answer == problem.answer)), num_problems=6
    )
    assert failing(checked)["the right answer"].mean_reward == 0.5
    with pytest.raises(DataError, match=r"arithmetic.*: the right answer '.*' to '.*' scores 0.5, not 1"):
        check_gold(Judged(verify=lambda problem, completion: 0.5))
    check_gold(Arithmetic())


def test_verifier_that_raises_fails_with_what_it_said() -> None:
    checked = self_check(Judged(verify=lambda problem, completion: float(int(completion.answer) == 0)))
    assert "score raised ValueError: invalid literal" in failing(checked)["echoes the question"].note


def test_cheat_that_is_counted_as_right_fails_even_unpaid() -> None:
    class Unpaid(Arithmetic):
        def score(self, problem: Problem, completion: Completion) -> Score:
            is_right = problem.answer in completion.answer
            return Score(float(completion.answer == problem.answer), is_right)

    assert failing(self_check(Unpaid(), num_problems=6))["hides the answer in a list"].mean_reward == 1.0


def test_cheats_of_the_task_itself_are_tried() -> None:
    class WithBackDoor(Arithmetic):
        def score(self, problem: Problem, completion: Completion) -> Score:
            return Score(1.0, True) if completion.answer == "xyzzy" else super().score(problem, completion)

        def cheats(self, problem: Problem) -> Iterator[Cheat]:
            yield Cheat("the magic word", completion_of("xyzzy"))

    assert list(failing(self_check(WithBackDoor(), num_problems=6))) == ["the magic word"]


def test_task_says_what_a_model_would_write_and_what_is_deserved_without_thought() -> None:
    class Worded(Arithmetic):
        floor = 0.2

        def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
            for problem in super().problems(split, seed=seed):
                yield Problem(problem.problem_id, problem.prompt, f"The answer is {problem.answer}", problem.data)

        def gold(self, problem: Problem) -> str:
            return problem.answer.split()[-1]

        def score(self, problem: Problem, completion: Completion) -> Score:
            is_right = completion.answer == self.gold(problem)
            return Score(1.0 if is_right else 0.2, is_right)

    checked = self_check(Worded(), num_problems=6)
    assert checked.passes, checked.lines()
    assert checked.floor == 0.2


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(path: Path, *, answers: list[object], **columns: object) -> str:
    return write(
        path, [{"prompt": f"Question {n}?", "answer": answers[n % len(answers)], **columns} for n in range(90)]
    )


@pytest.mark.parametrize(
    ("answers", "columns", "options", "floor"),
    [
        (list(range(100, 190)), {}, "verify=number", 0.0),
        (["yes", "no"], {}, "verify=exact", 0.5),
        ([f"word {n}" for n in range(90)], {}, "verify=exact,case=ignore", 0.0),
        (["Rome", "A", "Oslo"], {"choices": ["Paris", "Rome", "Oslo"]}, "verify=choice", 1 / 3),
        (["A", "B", "C", "D"], {}, "verify=choice", 0.25),
        ([{"city": f"c{n}", "n": n} for n in range(90)], {}, "verify=json", 0.0),
        ([rf"{n} (cats|dogs)" for n in range(90)], {}, "verify=regex", 0.0),
        ([r"\d+ cats"], {"example": "12 cats"}, "verify=regex", 1.0),
    ],
)
def test_own_table_passes_with_the_floor_of_its_best_constant_answer(
    tmp_path: Path, answers: list[object], columns: dict[str, object], options: str, floor: float
) -> None:
    task = get_task(f"{table(tmp_path / 'a.jsonl', answers=answers, **columns)}:{options}")
    checked = self_check(task)
    assert checked.passes, checked.lines()
    assert checked.floor == pytest.approx(floor, abs=0.06)


def test_pattern_without_an_example_is_said_to_be_unchecked(tmp_path: Path) -> None:
    task = get_task(table(tmp_path / "a.jsonl", answers=[rf"{n}\d+" for n in range(90)]) + ":verify=regex")
    (gold,) = (row for row in self_check(task).rows if row.kind is Kind.GOLD)
    assert (gold.verdict, gold.num_tried) == (Verdict.NOT_CHECKED, 0)
    path = table(tmp_path / "b.jsonl", answers=[r"\d+ cats"], example="no cats")
    with pytest.raises(DataError, match=r"b\.jsonl line 1: the example 'no cats' does not match its pattern"):
        get_task(f"{path}:verify=regex")


def test_pattern_that_lets_anything_through_fails(tmp_path: Path) -> None:
    task = get_task(table(tmp_path / "a.jsonl", answers=[f"(?s).*{n}.*" for n in range(90)]) + ":verify=regex")
    assert "lists every candidate" in failing(self_check(task)) or "thousands of answers" in failing(self_check(task))


def test_leaking_and_unsteady_problems_fail() -> None:
    class Leaky(Arithmetic):
        def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
            return super().problems("train", seed=seed)

    class Unsteady(Arithmetic):
        def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
            return super().problems(split, seed=id(object()) + next(counter))

    counter = iter(range(10))
    assert list(failing(self_check(Leaky(), num_problems=6))) == ["problems in both splits"]
    assert "the same seed gives other problems" in failing(self_check(Unsteady(), num_problems=6))


def test_floor_counts_a_repeated_problem_once() -> None:
    problems = [Problem("1", "a", "x")] * 9 + [Problem("2", "b", "y")]
    assert floor_of(Arithmetic(), problems) == 0.0


def test_mixture_is_checked_task_by_task(tmp_path: Path) -> None:
    path = table(tmp_path / "a.jsonl", answers=["yes", "no"])
    checked = self_check(get_task(f"countdown + 2*{path}"), num_problems=8)
    assert checked.passes, checked.lines()
    assert checked.num_problems == 16
    assert {"countdown: the right answer", f"{path}:verify=exact: the right answer"} <= {r.name for r in checked.rows}


def test_slow_verifier_is_tried_on_fewer_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aha.tasks.selfcheck.MAX_SECONDS", 0.0)
    assert self_check(Arithmetic()).num_problems == 3


def test_task_without_problems_is_refused() -> None:
    class Empty(Arithmetic):
        def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
            return iter(())

    task: Task = Empty()
    with pytest.raises(DataError, match="arithmetic has no problems to check it with"):
        self_check(task)


def test_masked_cheats_fail_since_a_model_could_hide_behind_them() -> None:
    class Fragile(Arithmetic):
        def score(self, problem: Problem, completion: Completion) -> Score:
            if "[" in completion.answer:
                return Score(0.0, False, "parser died", Outcome.ERROR)
            return super().score(problem, completion)

    assert (
        failing(self_check(Fragile(), num_problems=6))["brackets without end"].note == "the verifier fails: parser died"
    )


def test_verifier_that_fails_on_the_right_answer_is_tried_once_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "slip.py"
    path.write_text(
        "def problems(split, seed):\n"
        "    for number in range(100):\n"
        "        yield f'{split} {number}', str(number)\n"
        "def score(problem, completion):\n"
        "    return completion.anser == problem.answer\n"
    )
    found = self_check(get_task(str(path)))
    assert (found.num_problems, sum(row.num_tried for row in found.rows if row.kind is not Kind.PROBLEMS)) == (1, 1)
    with pytest.raises(DataError, match=r"must be 1: .*slip.py line 5: AttributeError"):
        found.refuse_if_failing()


def test_problems_in_both_splits_are_not_blamed_on_the_score(tmp_path: Path) -> None:
    path = tmp_path / "leak.py"
    path.write_text(
        "def problems(split, seed):\n"
        "    for number in range(100):\n"
        "        yield f'Write {number}', str(number)\n"
        "def score(problem, completion):\n"
        "    return completion.answer.strip() == problem.answer\n"
    )
    with pytest.raises(DataError, match=r"problems in both splits \(100%\); mend its problems"):
        self_check(get_task(str(path))).refuse_if_failing()


@pytest.mark.slow
def test_tests_of_a_program_are_no_right_answer_to_it(tmp_path: Path) -> None:
    tests = [{"call": "add(1, 2)", "returns": 3}, {"call": "add(2, 2)", "returns": 4}]
    rows = [{"prompt": f"Add {split}.", "answer": tests, "split": split} for split in ("train", "test")]
    task = get_task(f"{write_jsonl(tmp_path / 'bare.jsonl', rows)}:verify=code")
    check_gold(task)
    found = self_check(task)
    assert found.passes
    assert [row.verdict for row in found.rows if row.kind is Kind.GOLD] == [Verdict.NOT_CHECKED]
    for program, passes in (("def add(a, b): return a + b", True), ("def add(a, b): return 3", False)):
        shown = [{**row, "example": program} for row in rows]
        task = get_task(f"{write_jsonl(tmp_path / f'{passes}.jsonl', shown)}:verify=code")
        assert self_check(task).passes == passes
