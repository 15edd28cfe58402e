"""Countdown: what counts as right, what never does, and that the splits are apart."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from itertools import combinations_with_replacement, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.errors import ConfigError
from aha.tasks import Countdown, HasBaselines, HasDemonstrations, Split
from aha.tasks.countdown import ExpressionError, combine, demonstrate, make_problem, parse_expression, plans
from aha.types import Completion, FinishReason, Outcome, Problem, Score

TASK = Countdown()
PROBLEM = make_problem([3, 7, 8], 24, answer="(7-3)*8-8")
SIX = make_problem([1, 2, 3], 6, answer="1+2+3")

VARIANTS = (
    TASK,
    Countdown(num_numbers=4),
    Countdown(max_number=12, max_target=40, division=False),
    Countdown(num_numbers=4, max_number=100, max_target=999),
    Countdown(max_number=4, max_target=1),
)


def completion(answer: str, *, reasoning: str = "", reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion((), (), reason, text=f"{reasoning}</think>{answer}", reasoning=reasoning, answer=answer)


def score(answer: str, *, problem: Problem = SIX) -> Score:
    return TASK.score(problem, completion(answer))


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_answer_scores_one(task: Countdown, split: Split) -> None:
    for problem in islice(task.problems(split, seed=3), 100):
        assert task.score(problem, completion(problem.answer)) == Score(1.0, True, "right"), problem


@pytest.mark.parametrize(
    "answer",
    ["1+2+3", " 3 + 2 + 1 ", "1*2*3", "1×2×3", "((1+2)+3)", "(1+2+3)\n", "1+2+3=6", "1+2+3 = ?", "2*3/1"],
)
def test_every_expression_that_makes_the_target_is_right(answer: str) -> None:
    assert score(answer).is_correct


HOSTILE = {
    "empty": "",
    "blank": " \n\t ",
    "power": "9**9**9",
    "power_caret": "1^2^3",
    "power_tower": "9" + "**9" * 60,
    "ten_megabytes_of_digits": "7" * 10_000_000,
    "ten_megabytes_of_signs": "1+" * 5_000_000,
    "ten_megabytes_of_equals": "=" * 10_000_000,
    "ten_megabytes_of_space": " " * 10_000_000,
    "deep_parentheses": "(" * 100_000 + "1+2+3" + ")" * 100_000,
    "deep_parentheses_within_the_limit": "(" * 97 + "1+2+4" + ")" * 97,
    "only_opening": "(" * 199,
    "other_scripts_digits": "١+٢+٣",
    "full_width_digits": "１+２+３",
    "superscript": "1+2+3²",
    "nul": "1+2+3\0",
    "import": "__import__('os').system('true')",
    "call": "sum([1,2,3])",
    "lambda": "(lambda: 6)()",
    "decimal": "1.5*2*3-3",
    "decimal_trick": "1.2+3",
    "exponent": "1e9",
    "exponent_trick": "1+2+3e0",
    "underscore": "1_2+3",
    "hexadecimal": "0x1+2+3",
    "huge_number": "9" * 150 + "+1",
    "seven_digits": "1000000+2+3",
    "division_by_zero": "1/(2-2)+3",
    "floor_division": "1+2+3//1",
    "modulo": "1%2+3",
    "unused_number": "2*3",
    "reused_number": "1+2+3+3-3",
    "target_alone": "6",
    "target_of_other_numbers": "5+1",
    "wrong_target": "1+2*3-1",
    "almost": "3*2-1",
    "sign_in_front": "-1+2+3",
    "echo_of_prompt": "1 2 3 > 6",
    "echo_as_equation": "1 2 3 = 6",
    "answer_first": "6=1+2+3",
    "claims_target": "1+2-3=6",
    "several_answers": "1+2-3, 1+2+3",
    "several_lines": "1+2-3\n1+2+3",
    "several_equations": "1+2+3=6=3+2+1",
    "prose": "The answer is 1+2+3",
    "boxed": "\\boxed{1+2+3}",
    "tags": "<think></think>1+2+3",
    "implicit_product": "2(1)3",
    "surrogate": "\ud800",
    "bidirectional": "1+2\u202e+3",
    "comment": "1+2+3#",
    "unbalanced": "(1+2+3",
    "unbalanced_end": "1+2+3)",
    "operators_only": "+-*/",
    "trailing_operator": "1+2+3+",
    "empty_parentheses": "()+1+2+3",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_malformed_and_hostile_answers_score_zero_at_once(answer: str) -> None:
    started = time.process_time()
    found = score(answer)
    assert (found.reward, found.is_correct) == (0.0, False)
    assert found.note
    assert len(found.note) < 300
    assert found.outcome in (Outcome.SCORED, Outcome.PARSE_FAILURE)
    assert time.process_time() - started < 0.5


def test_score_is_zero_when_the_answer_stands_in_the_thinking_only() -> None:
    assert TASK.score(SIX, completion("", reasoning="1+2+3")).outcome is Outcome.PARSE_FAILURE


def test_truncated_completion_without_answer_is_a_parse_failure_that_says_so() -> None:
    found = TASK.score(SIX, completion("", reasoning="1+2", reason=FinishReason.LENGTH))
    assert (found.reward, found.outcome, found.note) == (0.0, Outcome.PARSE_FAILURE, "ran out of tokens")


def test_score_tells_why_an_answer_is_wrong() -> None:
    assert "makes 0" in score("1+2-3").note
    assert "each number once" in score("2*3").note
    assert "division by zero" in score("1/(2-2)+3").note


@given(st.text(max_size=250))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_score_never_raises_on_any_text(answer: str) -> None:
    assert score(answer).reward in (0.0, 1.0)


@given(st.text(alphabet="0123456789+-*/() =.", max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_score_never_raises_on_near_expressions(answer: str) -> None:
    found = score(answer)
    assert found.reward == float(found.is_correct)


def _trees(depth: int) -> st.SearchStrategy[tuple[str, Fraction | None, tuple[int, ...]]]:
    """Expressions with the value that Fraction computes along the way; None where it divides by zero."""
    leaves = st.integers(0, 999).map(lambda n: (str(n), Fraction(n), (n,)))
    if depth == 0:
        return leaves

    def join(parts: tuple) -> tuple[str, Fraction | None, tuple[int, ...]]:  # type: ignore[type-arg]
        (a_text, a, a_numbers), operator, (b_text, b, b_numbers) = parts
        text, numbers = f"({a_text}{operator}{b_text})", a_numbers + b_numbers
        if a is None or b is None or (operator == "/" and b == 0):
            return text, None, numbers
        return text, {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[operator], numbers

    return leaves | st.tuples(_trees(depth - 1), st.sampled_from("+-*/"), _trees(depth - 1)).map(join)


@given(_trees(3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_parser_agrees_with_exact_arithmetic(tree: tuple[str, Fraction | None, tuple[int, ...]]) -> None:
    text, value, numbers = tree
    if value is None:
        with pytest.raises(ExpressionError, match="division by zero"):
            parse_expression(text)
    else:
        assert parse_expression(text) == (value, numbers)


def test_operators_bind_and_associate_as_in_school() -> None:
    values = {"2+3*4": 14, "2*3+4": 10, "9-3-2": 4, "8/4/2": 1, "8/4*2": 4, "9-(3-2)": 8, "1/3*3": 1}
    assert {text: parse_expression(text).value for text in values} == values


@pytest.mark.parametrize("task", VARIANTS[:4], ids=lambda task: task.name)
def test_splits_share_no_multiset_of_numbers_whatever_the_seed(task: Countdown) -> None:
    def multisets(split: Split) -> set[tuple[int, ...]]:
        draws = (p for seed in range(3) for p in islice(task.problems(split, seed=seed), 400))
        return {tuple(sorted(problem.data["numbers"])) for problem in draws}

    assert not multisets("train") & multisets("test")


def test_splits_agree_between_ranges_so_that_no_range_trains_on_anothers_test() -> None:
    wide = {tuple(sorted(p.data["numbers"])) for p in islice(Countdown(max_number=60).problems("test", seed=1), 3000)}
    narrow = {
        tuple(sorted(p.data["numbers"]))
        for p in islice(Countdown(max_number=12, division=False).problems("train", seed=2), 2000)
    }
    assert not wide & narrow


def test_default_range_has_fifty_thousand_distinct_problems() -> None:
    problems = set()
    for numbers in combinations_with_replacement(range(1, TASK.max_number + 1), 3):
        for index, last in enumerate(numbers):
            first, second = numbers[:index] + numbers[index + 1 :]
            values = {c.value for c in combine(first, second, division=True)}
            targets = {c.value for value in values for c in combine(value, last, division=True)}
            problems |= {(numbers, target) for target in targets if target <= TASK.max_target}
    assert len(problems) >= 50_000


def test_problems_are_the_same_for_the_same_seed_and_differ_for_another() -> None:
    first, again, other = (list(islice(TASK.problems("test", seed=seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert list(islice(TASK.problems("train", seed=1), 20)) != first


def test_problem_id_is_that_of_the_numbers_and_target_in_any_order() -> None:
    other = make_problem([8, 3, 7], 24, answer="8*(7-3)-8")
    assert other.problem_id == PROBLEM.problem_id
    assert PROBLEM.prompt == "3 7 8 > 24"


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
def test_problems_stay_in_their_range(task: Countdown) -> None:
    for problem in islice(task.problems("train", seed=5), 100):
        assert len(problem.data["numbers"]) == task.num_numbers
        assert all(1 <= number <= task.max_number for number in problem.data["numbers"])
        assert 1 <= problem.data["target"] <= task.max_target
        assert task.division or "/" not in problem.answer


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
def test_demonstrations_are_right_exactly_when_they_claim_it(task: Countdown) -> None:
    for demonstration in islice(task.demonstrations(seed=7), 300):
        assert demonstration.reasoning, demonstration
        assert demonstration.answer, demonstration
        claims = demonstration.reasoning.endswith("!")
        found = task.score(demonstration.problem, completion(demonstration.answer))
        assert found.is_correct == claims, demonstration
        assert found.outcome is Outcome.SCORED
        if not claims:
            assert found.note.startswith("makes"), f"a guess should still use every number once: {demonstration}"


def test_demonstrations_write_only_true_equations() -> None:
    for demonstration in islice(TASK.demonstrations(seed=8), 200):
        for equation in demonstration.reasoning.replace(":", " ").replace("!", " ").replace("?", " ").split():
            left, right = equation.split("=")
            assert parse_expression(left).value == int(right), demonstration.reasoning


def test_demonstrations_hold_no_held_out_numbers() -> None:
    held_out = {tuple(sorted(p.data["numbers"])) for p in islice(TASK.problems("test", seed=0), 2000)}
    shown = {tuple(sorted(d.problem.data["numbers"])) for d in islice(TASK.demonstrations(seed=0), 1000)}
    assert not held_out & shown


def test_patient_search_over_every_plan_always_finds_the_target() -> None:
    for problem in islice(TASK.problems("train", seed=9), 200):
        shown = demonstrate(problem, random.Random(0), num_lines=99, division=True)
        assert shown.reasoning.endswith("!"), problem


def test_plans_undo_one_operation() -> None:
    for plan in plans((3, 7, 8), 24, division=True):
        assert parse_expression(plan.expression(str(plan.need))).value == 24
        left, right = plan.text.split("=")
        assert parse_expression(left).value == int(right) == plan.need


def test_blind_search_solves_more_with_more_tries() -> None:
    problems = list(islice(TASK.problems("test", seed=0), 300))
    rates = [TASK.blind_pass_rate(problems, num_tries=tries, seed=0) for tries in (1, 8, 16)]
    assert 0.01 < rates[0] < 0.20 < rates[1] < rates[2] < 0.95
    assert rates[0] == TASK.blind_pass_rate(problems, num_tries=1, seed=0)
    assert TASK.blind_pass_rate([], num_tries=1, seed=0) == 0.0


def test_count_tries_counts_complete_candidates_and_the_answer() -> None:
    reasoning = "81-23=58: 17+4=21 17*4=68 17-4=13?\n81+4=85: 23+17=40!"
    assert TASK.count_tries(completion("23+17", reasoning=reasoning)) == 5
    assert TASK.count_tries(completion("1+2+3")) == 1
    assert TASK.count_tries(completion("x", reasoning="no lines, 1=1, ::=\n" * 10_000)) >= 1


def test_task_has_demonstrations_and_baselines() -> None:
    assert isinstance(TASK, HasDemonstrations)
    assert isinstance(TASK, HasBaselines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_numbers": 5}, "num_numbers must be 3 or 4, got 5"),
        ({"max_number": 3}, "max_number must be 4 to 999, got 3"),
        ({"max_target": 0}, "max_target must be 1 to 9999, got 0"),
    ],
)
def test_impossible_range_is_refused_with_its_limits(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Countdown(**options)  # type: ignore[arg-type]
