"""How a task is named on the command line and in a recipe."""

from __future__ import annotations

from itertools import islice

import pytest

from aha.errors import ConfigError
from aha.tasks import TASKS, Arithmetic, Countdown, get_task
from aha.tasks.benchmarks import BENCHMARKS
from aha.types import Completion, FinishReason


def test_name_alone_gives_the_defaults() -> None:
    assert get_task("countdown") == Countdown()
    assert get_task("arithmetic:") == Arithmetic()


def test_options_are_read_with_the_types_of_their_fields() -> None:
    assert get_task("countdown:max_number=50,division=false") == Countdown(max_number=50, division=False)
    assert get_task("arithmetic:products=True,max_terms=4") == Arithmetic(max_terms=4)


@pytest.mark.parametrize("spec", ["countdown:num_numbers=4,division=false", "arithmetic:max_terms=4,products=false"])
def test_name_of_a_task_makes_it_again(spec: str) -> None:
    assert get_task(get_task(spec).name) == get_task(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sudoku", "unknown task 'sudoku'; choose from: aime, arithmetic, code, countdown, "),
        ("sudoku", ", or a data file ending in .jsonl or .csv"),
        ("gsm9k", "unknown task 'gsm9k'; did you mean 'gsm8k'?"),
        ("countdwon", "unknown task 'countdwon'; did you mean 'countdown'?"),
        ("", "unknown task ''; choose from"),
        (
            "countdown:max_numbr=5",
            "unknown option of countdown 'max_numbr'; did you mean 'max_number'? Choose from: div",
        ),
        ("countdown:max_number=ten", "countdown: max_number must be a whole number, got 'ten'"),
        ("countdown:max_number=1.5", "countdown: max_number must be a whole number, got '1.5'"),
        ("countdown:max_number=٣٠", "must be a whole number"),
        ("countdown:division=maybe", "countdown: division must be true or false, got 'maybe'"),
        ("countdown:max_number", "'max_number' is no option; write NAME:option=value,option=value"),
        ("countdown:max_number=5,max_number=6", "option 'max_number' stands twice"),
        ("countdown:max_number=1", "countdown: max_number must be 4 to 999, got 1"),
    ],
)
def test_wrong_spec_is_refused_with_choices_or_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_task(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(TASKS.keys() - BENCHMARKS.keys() - {"reasoning_gym", "livecodebench"}))
def test_every_task_has_solvable_problems_with_stable_distinct_ids(name: str) -> None:
    task = get_task(name)
    problems = list(islice(task.problems("test", seed=0), 200))
    assert len({problem.problem_id for problem in problems}) > 150
    assert {p.problem_id: p for p in problems} == {p.problem_id: p for p in islice(task.problems("test", seed=0), 200)}
    for problem in problems[:20]:
        gold = Completion((), (), FinishReason.STOP, answer=problem.answer)
        thought_only = Completion((), (), FinishReason.STOP, reasoning=problem.answer)
        assert task.score(problem, gold).reward == 1.0
        assert task.score(problem, thought_only).reward == 0.0
