"""Arithmetic: its wording, its worked examples, and that the splits are apart."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from aha.errors import ConfigError
from aha.tasks import Arithmetic, HasDemonstrations, Split
from aha.tasks.arithmetic import PHRASINGS, Term, make_problem, work_out
from aha.tasks.countdown import parse_expression
from aha.types import Completion, FinishReason, Outcome

TASK = Arithmetic()
VARIANTS = (
    TASK,
    Arithmetic(products=False),
    Arithmetic(min_terms=2, max_terms=2, max_number=9),
    Arithmetic(min_terms=6, max_terms=8, max_number=999),
)


def completion(answer: str, *, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion((), (), reason, answer=answer)


def terms_key(data: dict[str, list[list[str | int]]]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The multiset of numbers and of operators, written independently of the task."""
    terms = data["terms"]
    numbers = [int(n) for _, first, factor in terms for n in (first, factor) if n != 1]
    operators = [str(sign) for sign, _, _ in terms[1:]] + ["*" for *_, factor in terms if factor != 1]
    return tuple(sorted(numbers)), tuple(sorted(operators))


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_answer_scores_one_and_cheats_score_zero(task: Arithmetic, split: Split) -> None:
    for problem in islice(task.problems(split, seed=1), 40):
        assert task.score(problem, completion(problem.answer)).is_correct
        assert task.score(problem, completion(f"The answer is {problem.answer}.")).is_correct
        numbers_in_prompt = " ".join(re.findall("[0-9]+", problem.prompt))
        every_number = " ".join(str(n) for n in range(10_000))
        for cheat in (problem.prompt, numbers_in_prompt, every_number, f"{problem.answer} or {problem.answer}1"):
            assert task.score(problem, completion(cheat)).reward == 0.0, (problem, cheat[:80])


@pytest.mark.parametrize("answer", ["", " ", "9**9**9", "7" * 1_000_000, "forty", "\0", "٤٧", "(" * 100_000, "4 7"])
def test_hostile_answers_score_zero(answer: str) -> None:
    problem = make_problem([Term("+", 23, 1), Term("+", 41, 1), Term("-", 17, 1)], prompt="Compute 23 + 41 - 17.")
    assert problem.answer == "47"
    assert TASK.score(problem, completion(answer)).reward == 0.0


def test_truncated_completion_without_answer_says_so() -> None:
    problem = next(TASK.problems("train", seed=0))
    found = TASK.score(problem, completion("", reason=FinishReason.LENGTH))
    assert (found.outcome, found.note) == (Outcome.PARSE_FAILURE, "ran out of tokens")


def test_steps_are_written_digit_by_digit() -> None:
    terms = [Term("+", 14, 6), Term("-", 20, 1)]
    assert work_out(terms) == "14 * 6 = 10*6 + 4*6 = 60 + 24 = 84. 84 - 20 = 64."
    assert work_out([Term("+", 23, 1), Term("+", 41, 1), Term("-", 17, 1)]) == "23 + 41 = 64. 64 - 17 = 47."
    assert work_out([Term("+", 5, 1), Term("+", 30, 4)]) == "30 * 4 = 120. 5 + 120 = 125."
    assert work_out([Term("+", 305, 2)]) == "305 * 2 = 300*2 + 5*2 = 600 + 10 = 610."


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
def test_every_step_of_a_demonstration_is_true_and_the_last_gives_the_answer(task: Arithmetic) -> None:
    for demonstration in islice(task.demonstrations(seed=2), 200):
        assert task.score(demonstration.problem, completion(demonstration.answer)).is_correct
        sentences = [sentence for sentence in demonstration.reasoning.rstrip(".").split(". ") if sentence]
        for sentence in sentences:
            values = {parse_expression(side).value for side in sentence.split(" = ")}
            assert len(values) == 1, sentence
        assert sentences[-1].rpartition(" = ")[2] == demonstration.answer


def test_demonstrations_are_short_for_a_tokenizer_of_single_digits() -> None:
    # Digits one by one; a sign or word with its space, or a space before a digit, is one token: SmolLM2's rule.
    lengths = [len(re.findall(r"[0-9]| ?[^0-9\s]+| ", d.reasoning)) for d in islice(TASK.demonstrations(seed=3), 500)]
    assert min(lengths) >= 15
    assert max(lengths) <= 95
    assert 30 <= sum(lengths) / len(lengths) <= 80


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
def test_splits_share_no_multiset_of_numbers_and_operators(task: Arithmetic) -> None:
    def keys(split: Split) -> set[tuple[tuple[int, ...], tuple[str, ...]]]:
        draws = (p for seed in range(3) for p in islice(task.problems(split, seed=seed), 300))
        return {terms_key(dict(problem.data)) for problem in draws}

    shown = {terms_key(dict(d.problem.data)) for d in islice(task.demonstrations(seed=4), 500)}
    assert not keys("train") & keys("test")
    assert not shown & keys("test")


def test_problems_stay_in_their_range_and_never_go_below_zero() -> None:
    for problem in islice(TASK.problems("train", seed=6), 300):
        numbers, _ = terms_key(dict(problem.data))
        assert 3 <= len(numbers) <= 5
        assert all(2 <= n <= 99 for n in numbers)
        assert int(problem.answer) >= 0
        assert int(problem.answer) not in numbers
        assert [int(n) for n in re.findall("[0-9]+", problem.prompt)] == [
            n for _, first, factor in problem.data["terms"] for n in (first, factor) if n != 1
        ]


def test_products_can_be_switched_off() -> None:
    prompts = [p.prompt for p in islice(Arithmetic(products=False).problems("train", seed=0), 200)]
    assert not any(re.search(r"\*|times|boxes of|bags of|packs of", prompt) for prompt in prompts)
    assert any("times" in p.prompt for p in islice(TASK.problems("train", seed=0), 200))


def test_problems_are_asked_in_every_way() -> None:
    prompts = [problem.prompt for problem in islice(TASK.problems("test", seed=0), 200)]
    for start in ("Compute", "What is", "How much is", "Work out", "Start with", "Tom has"):
        assert any(prompt.startswith(start) for prompt in prompts), start
    assert len(PHRASINGS) == 4


def test_problems_repeat_with_their_seed() -> None:
    first, again, other = (list(islice(TASK.problems("test", seed=seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_task_has_demonstrations_and_a_short_system_prompt() -> None:
    assert isinstance(TASK, HasDemonstrations)
    assert "<think>" in TASK.system_prompt
    assert len(TASK.system_prompt) < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_terms": 1}, "min_terms must be 2 to 12, got 1"),
        ({"min_terms": 5, "max_terms": 4}, r"max_terms must be min_terms \(5\) to 12, got 4"),
        ({"max_number": 8}, "max_number must be 9 to 9999, got 8"),
    ],
)
def test_impossible_options_are_refused_with_their_limits(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arithmetic(**options)  # type: ignore[arg-type]
