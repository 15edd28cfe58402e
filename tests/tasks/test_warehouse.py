"""Warehouse: the tool answers calls and nothing else, and only what it told counts as known."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aha.errors import ConfigError
from aha.tasks import HasDemonstrations, HasTurns, Split, Warehouse, get_task
from aha.tasks.warehouse import UNKNOWN, USAGE, make_problem
from aha.types import Completion, FinishReason, Observation, Outcome, Problem, Turn

TASK = Warehouse()
VARIANTS = (TASK, Warehouse(num_asked=1), Warehouse(num_asked=4, max_count=9999))
PROBLEM = make_problem(["7", "30"], counts={"7": 12, "30": 5, "9": 3})


def reply(answer: str) -> Observation | None:
    return TASK.respond(PROBLEM, (Turn("", answer),))


def test_call_is_answered_with_what_the_shelf_holds() -> None:
    assert reply("<tool>7</tool>") == Observation("12")
    assert reply(" <tool>9</tool>\n") == Observation("3")
    assert reply("<tool>8</tool>") == Observation(UNKNOWN)


@pytest.mark.parametrize(
    "answer",
    ["<tool>7</tool><tool>30</tool>", "<tool>7", "7</tool>", "<tool></tool>", "<tool>7</tool> 17", "<tool>777</tool>",
     "<tool>٧</tool>", "<tool>-7</tool>", "<tool>7+30</tool>", "<tool>" * 100_000],
)  # fmt: skip
def test_malformed_call_is_told_how_to_write_one(answer: str) -> None:
    assert reply(answer) == Observation(USAGE)


@pytest.mark.parametrize("answer", ["17", "", "tool", "I would ask for 7.", "<toll>7</toll>"])
def test_turn_without_a_call_ends_the_episode(answer: str) -> None:
    assert reply(answer) is None


def test_calls_in_the_thinking_are_not_calls() -> None:
    assert TASK.respond(PROBLEM, (Turn("<tool>7</tool>", "17"),)) is None


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_makes_the_tool_or_the_verifier_fail(reasoning: str, answer: str) -> None:
    turn = Turn(reasoning, answer)
    shown = TASK.respond(PROBLEM, (turn,))
    assert shown is None or len(shown.text) < 100
    completion = Completion((), (), FinishReason.STOP, answer, reasoning, answer, turns=(turn,))
    assert TASK.score(PROBLEM, completion).reward == 0.0


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_scores_one_and_cheats_score_nothing(task: Warehouse, split: Split) -> None:
    for problem in islice(task.problems(split, seed=1), 40):
        assert task.score(problem, task.gold(problem)).reward == 1.0
        cheats = list(task.cheats(problem))
        assert len(cheats) >= 3
        for cheat in cheats:
            assert task.score(problem, cheat.completion).reward == 0.0, (problem, cheat)


def test_guess_says_what_was_never_asked_for() -> None:
    turns = (Turn("", "<tool>7</tool>", Observation("12")), Turn("", "17"))
    guessed = Completion((), (), FinishReason.STOP, answer="17", turns=turns)
    assert TASK.score(PROBLEM, guessed).note == "guessed: never asked for 30"
    whole = replace(guessed, turns=(turns[0], Turn("", "<tool>30</tool>", Observation("5")), turns[1]))
    assert TASK.score(PROBLEM, whole).is_correct
    assert TASK.score(PROBLEM, replace(whole, answer="18")).note == "says 18"


def test_asking_without_answering_is_a_parse_failure() -> None:
    asking = Completion((), (), FinishReason.STOP, answer="<tool>7</tool>", turns=(Turn("", "<tool>7</tool>"),))
    assert TASK.score(PROBLEM, asking).outcome is Outcome.PARSE_FAILURE
    cut_off = Completion((), (), FinishReason.LENGTH)
    assert TASK.score(PROBLEM, cut_off).note == "ran out of tokens"


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
def test_demonstrations_are_what_the_tool_would_have_said(task: Warehouse) -> None:
    assert isinstance(task, HasTurns)
    assert isinstance(task, HasDemonstrations)
    for shown in islice(task.demonstrations(seed=2), 50):
        assert len(shown.turns) == task.num_asked < task.max_turns
        for end in range(1, len(shown.turns) + 1):
            assert task.respond(shown.problem, shown.turns[:end]) == shown.turns[end - 1].observation
        assert task.respond(shown.problem, (*shown.turns, Turn(shown.reasoning, shown.answer))) is None
        assert shown.answer == shown.problem.answer


def test_splits_share_no_problem() -> None:
    def keys(split: Split) -> set[frozenset[tuple[str, int]]]:
        problems: list[Problem] = list(islice(TASK.problems(split, seed=0), 500))
        return {frozenset((shelf, p.data["counts"][shelf]) for shelf in p.data["asked"]) for p in problems}

    assert not keys("train") & keys("test")


def test_options_are_checked_and_named() -> None:
    assert get_task("warehouse:num_asked=3").name == "warehouse:num_asked=3"
    with pytest.raises(ConfigError, match="num_asked must be 1 to 4, got 5"):
        Warehouse(num_asked=5)
    with pytest.raises(ConfigError, match="max_count must be 9 to 9999, got 2"):
        Warehouse(max_count=2)
