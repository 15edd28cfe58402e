"""Several tasks as one: a fixed order by weight, each problem judged and asked by its own task."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from aha.errors import ConfigError, DataError
from aha.evaluate import conversation, select_problems
from aha.tasks import Arithmetic, Countdown, HasDemonstrations, Mixture, get_task
from aha.tasks.base import HasCheats, HasGold
from aha.tasks.cheats import completion_of
from aha.tasks.mixture import interleave, split_mixture
from aha.types import Message, Problem

SPEC = "2*countdown + arithmetic:max_terms=3"


def table(path: Path, *, num_rows: int) -> str:
    rows = [{"prompt": f"{n}?", "answer": f"w{n}", "split": "test" if n % 5 == 0 else "train"} for n in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_problems_come_by_weight_in_a_fixed_order() -> None:
    task = get_task(SPEC)
    kinds = [problem.problem_id.split("/")[0] for problem in islice(task.problems("train", seed=1), 9)]
    assert kinds == ["countdown", "arithmetic:max_terms=3", "countdown"] * 3
    assert list(islice(task.problems("train", seed=1), 20)) == list(islice(task.problems("train", seed=1), 20))
    own = islice(Countdown().problems("train", seed=1), 6)
    assert [p.prompt for p in islice(task.problems("train", seed=1), 9) if "countdown" in p.problem_id] == [
        problem.prompt for problem in own
    ]


def test_each_problem_is_asked_and_judged_by_its_own_task() -> None:
    task = get_task(SPEC)
    first, second = islice(task.problems("test", seed=0), 2)
    assert conversation(task, problem=first)[0] == Message("system", Countdown().system_prompt)
    assert conversation(task, problem=second)[0] == Message("system", Arithmetic().system_prompt)
    for problem in (first, second):
        assert task.score(problem, completion_of(problem.answer)).is_correct
        assert not task.score(problem, completion_of("7")).is_correct
    assert task.score(first, completion_of(second.answer)).note != "right"


def test_sub_task_gets_its_problem_back_as_it_made_it() -> None:
    task = get_task(SPEC)
    assert isinstance(task, Mixture)
    outer = next(task.problems("train", seed=4))
    original = next(Countdown().problems("train", seed=4))
    inner = task.unwrap(outer)
    assert (inner.problem_id, inner.prompt, inner.answer, inner.data) == (
        original.problem_id, original.prompt, original.answer, original.data,
    )  # fmt: skip


@pytest.mark.parametrize(
    "spec", [SPEC, "countdown + arithmetic", "arithmetic + 3*countdown:max_number=50", "2*countdown"]
)
def test_name_makes_the_mixture_again(spec: str) -> None:
    task = get_task(spec)
    assert task.name == spec
    assert list(islice(get_task(task.name).problems("train", seed=2), 8)) == list(
        islice(task.problems("train", seed=2), 8)
    )


def test_splits_do_not_share_problems() -> None:
    task = get_task(SPEC)
    train, test = ({p.problem_id for p in islice(task.problems(split, seed=0), 300)} for split in ("train", "test"))  # type: ignore[arg-type]
    assert not train & test


def test_demonstrations_are_mixed_and_carry_their_task(tmp_path: Path) -> None:
    task = get_task(f"2*countdown + {table(tmp_path / 'a.jsonl', num_rows=20)} + arithmetic")
    assert isinstance(task, HasDemonstrations)
    shown = list(islice(task.demonstrations(seed=0), 6))
    names = [worked.problem.problem_id.split("/")[0] for worked in shown]
    assert names == ["countdown", "arithmetic", "countdown"] * 2
    assert all(worked.problem.system for worked in shown)
    assert task.score(shown[1].problem, completion_of(shown[1].answer)).is_correct
    only_tables = get_task(f"2*{table(tmp_path / 'b.jsonl', num_rows=20)}")
    assert not isinstance(only_tables, HasDemonstrations)
    assert isinstance(task, HasGold)
    assert isinstance(task, HasCheats)


def test_short_file_is_repeated_until_the_long_one_has_ended(tmp_path: Path) -> None:
    short, long = (table(tmp_path / f"{n}.jsonl", num_rows=n) for n in (5, 25))
    task = get_task(f"{short} + {long}")
    train = list(task.problems("train", seed=0))
    assert {p.prompt for p in train if "/25.jsonl" in p.problem_id} == {f"{n}?" for n in range(25) if n % 5}
    num_short = sum("/5.jsonl" in problem.problem_id for problem in train)
    assert num_short in (20, 21)
    assert len(select_problems(task, num_problems=100, seed=0)) == 1 + 5
    endless = get_task(f"{short} + countdown")
    assert len(list(islice(endless.problems("train", seed=0), 100))) == 100


def test_rows_of_two_files_with_equal_ids_stay_apart(tmp_path: Path) -> None:
    for name, answer in (("a", "x"), ("b", "y")):
        text = "from aha.types import Problem\ndef problems(split, seed):\n    "
        text += f"yield Problem('1', '{name}?', '{answer}')\n"
        (tmp_path / f"{name}.py").write_text(
            text + "def score(problem, completion):\n    return completion.answer == problem.answer\n"
        )
    task = get_task(f"{tmp_path}/a.py + {tmp_path}/b.py")
    problems = select_problems(task, num_problems=10, seed=0)
    assert len(problems) == 2
    for problem, answer in zip(problems, "xy", strict=True):
        assert task.score(problem, completion_of(answer)).is_correct


def test_tasks_with_turns_answer_their_own_problems_only() -> None:
    class Tool(Arithmetic):
        max_turns = 3
        stop_strings = ("</tool>",)

        def respond(self, problem: Problem, transcript: list[str]) -> str:
            return f"{problem.problem_id} {len(transcript)}"

    task = Mixture(((1, Countdown()), (1, Tool())))
    plain, tool = islice(task.problems("train", seed=0), 2)
    respond: Any = task.respond
    assert respond(plain, ["turn"]) is None
    assert respond(tool, ["turn"]) == f"{tool.problem_id.partition('/')[2]} 1"
    assert respond(tool, ["turn"] * 3) is None
    assert (task.max_turns, task.stop_strings) == (3, ("</tool>",))
    assert not hasattr(get_task(SPEC), "respond")


def test_notices_of_the_parts_are_passed_on(tmp_path: Path) -> None:
    task = get_task(f"countdown + {table(tmp_path / 'a.jsonl', num_rows=20)}")
    assert "guessed from the answers" in task.notices[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("countdown + ", "'' is no part of a mixture; write TASK + TASK"),
        ("0*countdown + arithmetic", "'0*countdown' is no part of a mixture"),
        ("100*countdown + arithmetic", "whole weights from 1 to 99"),
        ("countdown + arithmetik", "unknown task 'arithmetik'; did you mean 'arithmetic'?"),
        ("countdown + countdown", "'countdown' stands twice; give it a weight instead, as in 2*countdown"),
        ("1.5*countdown + arithmetic", "unknown task '1.5*countdown'"),
    ],
)
def test_wrong_mixture_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_task(spec)
    assert message in str(caught.value)


def test_part_without_problems_is_said_and_no_endless_loop() -> None:
    with pytest.raises(DataError, match="a task of the mixture has no problems"):
        list(islice(interleave([lambda epoch: iter("ab"), lambda epoch: iter("")], weights=[1, 1]), 10))


def test_file_whose_name_looks_like_a_mixture_is_a_file(tmp_path: Path) -> None:
    path = table(tmp_path / "a + b.jsonl", num_rows=20)
    assert split_mixture(path) == []
    assert not isinstance(get_task(path), Mixture)
