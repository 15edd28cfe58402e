"""The verifiers of data-file tasks: what is right, what is wrong, what cannot be read, and that nothing hangs."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.sandbox import Limits
from aha.tasks import code_judge, verifiers
from aha.tasks.verifiers import VERIFIERS, choice, exact, json_value, last_number, number, regex
from aha.types import Outcome, Score

CITIES = ("Paris", "Rome", "New York")
GOLDS = {
    "number": "12",
    "exact": "twelve",
    "choice": "B",
    "json": '{"a": [1, 2]}',
    "math": "\\frac{1}{2}",
    "regex": "a+b",
}
GOLDS["code"] = '[{"call": "f(1)", "returns": 2}, {"call": "f(2)", "returns": 3}]'


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("12", "12"),
        ("12", "The answer is 12."),
        ("12", "**12**"),
        ("12", "12.0"),
        ("12", "12 apples"),
        ("12", "12kg"),
        ("12", "first 13, then 12"),
        ("12", "\\boxed{12}"),
        ("12", "so \\boxed{12\\text{ cm}^2} and not 7"),
        ("12", "$12$"),
        ("12", "x=12"),
        ("12", "答えは12です"),
        ("1234", "1,234"),
        ("1234567", "$1,234,567.00"),
        ("1234", "1{,}234"),
        ("$5", "5 dollars"),
        ("50", "50%"),
        ("50", "50\\%"),
        ("-5", "-5"),
        ("-5", "−5"),
        ("-5", "-$5"),
        ("-5", "-(5)"),
        ("5", "(5)"),
        ("-5", "x=-5"),
        ("5", "10-5"),
        ("5", "10 - 5"),
        ("1/2", "0.5"),
        ("0.5", "1/2"),
        ("0.5", ".5"),
        ("1/2", "\\frac{1}{2}"),
        ("-1/2", "$-\\dfrac{1}{2}$"),
        ("3/2", "1 1/2"),
        ("3/2", "1\\frac{1}{2}"),
        ("1000", "1e3"),
        ("0.1", "1E-1"),
    ],
)
def test_number_accepts_the_same_value_in_another_spelling(gold: str, answer: str) -> None:
    assert number(gold, answer) == Score(1.0, True, "right")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("12", "13"),
        ("12", "-12"),
        ("12", "-(12)"),
        ("12", "−$(12)"),
        ("12", "12 or 13"),
        ("12", "\\boxed{13} 12"),
        ("12", "12.000001"),
        ("1/3", "0.3333333333333333333333"),
        ("1/2", "1 1/2"),
        ("4", "1,234"),
        ("2", "H2O is 3"),
        ("9", "8 cm^9"),
        ("3", "10^{3}"),
        ("12", "0x12"),
        ("12", "twelve"),
        ("12", "x12"),
        ("12", "١٢"),
        ("12", "１２"),
        ("12", "12/0"),
        ("12", "12e999999999"),
        ("12", "nan"),
        ("12", "inf"),
    ],
)
def test_number_refuses_another_value(gold: str, answer: str) -> None:
    found = number(gold, answer)
    assert (found.reward, found.is_correct) == (0.0, False)
    assert found.note


def test_number_tolerance_is_absolute_and_exact_at_its_edge() -> None:
    assert number("10", "10.3", tolerance=0.3).is_correct
    assert not number("10", "10.300001", tolerance=0.3).is_correct
    assert number("10", "9.7", tolerance=0.3).is_correct


def test_number_says_what_was_read() -> None:
    assert number("12", "so 13.5").note == "says 13.5"
    assert number("12", "no idea") == Score(0.0, False, "no number", Outcome.PARSE_FAILURE)
    assert number("12", "1/0").note == "division by zero"


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", "it is {}.", "\\boxed{{{}}}", "**{}**"]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_number_reads_every_fraction_it_can_be_given(value: Fraction, frame: str) -> None:
    assert last_number(frame.format(value)) == value


@pytest.mark.parametrize(
    ("gold", "answer", "case", "is_right"),
    [
        ("New York", " New \n York ", "match", True),
        ("New York", "new york", "match", False),
        ("New York", "NEW YORK", "ignore", True),
        ("Straße", "STRASSE", "ignore", True),
        ("caf\u00e9", "cafe\u0301", "match", True),
        ("New York", "New York.", "match", False),
        ("New York", "York", "match", False),
        ("New York", "It is New York", "match", False),
    ],
)
def test_exact_compares_text_but_not_white_space(gold: str, answer: str, case: str, is_right: bool) -> None:
    assert exact(gold, answer, case=case).is_correct == is_right  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "(B)", "B.", "**B**", "B) Rome", "The answer is B.", "Answer: (B)", "\\boxed{B}", "rome", "Rome.",
     "I think it is Rome", "I choose B", "(b) Rome", "Rome (B)", "B, Rome", "B or B",
     "Not A. The answer is B.", '"B"', "B because it is the capital"],
)  # fmt: skip
def test_choice_accepts_letter_or_text(answer: str) -> None:
    assert choice("B", answer, choices=CITIES).is_correct
    assert choice("Rome", answer, choices=CITIES).is_correct


@pytest.mark.parametrize(
    "answer",
    ["A", "C", "D", "A or B", "A, B, C", "B and C", "A. Paris\nB. Rome\nC. New York", "Paris or Rome", "None", "",
     "Romeo", "The answer is A, B", "ABC", "\\boxed{A} B", "Paris B", "B or paris", "B and a", "B or (c)",
     "Paris, or B", "New York. B", "B/c", "The answer is B or (a)", "a, b, c"],
)  # fmt: skip
def test_choice_refuses_other_none_or_several(answer: str) -> None:
    assert choice("B", answer, choices=CITIES).reward == 0.0


def test_choice_takes_english_a_and_i_for_words() -> None:
    assert choice("B", "A dog, I think: B").is_correct
    assert choice("A", "A dog barks").outcome is Outcome.PARSE_FAILURE
    assert choice("A", "A is right").is_correct
    assert choice("A", "A").is_correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b": [1, 2.0], "a": 1}'),
        ('{"a": 1}', '```json\n{"a": 1}\n```'),
        ('{"a": 1}', 'Here it is: {"a": 1}. Done'),
        ('"x [y]"', '"x [y]"'),
        ("12", "12"),
        ("null", "null"),
        ('{"a": "{"}', '{"a": "{"}'),
    ],
)
def test_json_accepts_the_same_value(gold: str, answer: str) -> None:
    assert json_value(gold, answer).is_correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 0}', '{"a": null}'),
        ('{"a": 1}', '{"a": "1"}'),
        ("[1, 2]", "[2, 1]"),
        ("[1, 2]", "[1]"),
        ('{"a": 1}', '{"a": 1}{"a": 2}'),
        ('{"a": 1}', '{"a": 2, "a": 1}'),
        ('{"a": 1}', "{'a': 1}"),
        ('{"a": 1}', '{"a": NaN}'),
        ('{"a": 1}', '{"a": 1'),
        ('{"a": 1}', '```{"a": 1}``` or ```{"a": 2}```'),
        ("1", "1" * 5000),
        ("1", "1e999"),
        ('{"a": 1e308}', '{"a": 1e309}'),
        ("9007199254740993", "9007199254740992.0"),
        ("9007199254740992", "9007199254740993"),
        ("[100000000000000000000.0]", "[100000000000000000001]"),
        ("[1]", "[" * 4000 + "1" + "]" * 4000),
    ],
)
def test_json_refuses_another_value(gold: str, answer: str) -> None:
    assert json_value(gold, answer).reward == 0.0


def test_json_tolerance_reaches_into_nested_numbers() -> None:
    assert json_value('{"a": [1.0]}', '{"a": [1.05]}', tolerance=0.1).is_correct
    assert not json_value('{"a": [1.0]}', '{"a": [1.05]}', tolerance=0.01).is_correct
    assert json_value("[0.1]", "[0.4]", tolerance=0.3).is_correct
    assert not json_value("[9007199254740993]", "[9007199254740992]", tolerance=0.5).is_correct


def test_gold_number_beyond_every_float_is_an_error() -> None:
    assert json_value("[1e400]", "[1e500]").outcome is Outcome.ERROR


def test_regex_must_match_the_whole_answer() -> None:
    assert regex(r"\d{4}-\d{2}", " 2025-01\n").is_correct
    assert regex("(?i)yes|no", "YES").is_correct
    assert not regex("yes", "yes and no").is_correct
    assert not regex("yes", "oh yes").is_correct


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(.*)*x", "(a?){25}a{25}b", r"(\w+\s?)*\$"])
def test_catastrophic_pattern_is_masked_within_its_time_limit(pattern: str) -> None:
    assert regex("a", "a").is_correct  # the worker is running before the clock is read
    started = time.monotonic()
    found = regex(pattern, "a" * 9_000)
    assert time.monotonic() - started < 5
    assert found.reward == 0.0
    assert found.outcome is Outcome.TIMEOUT or found.note == "does not match"
    assert regex("a+b", "aab").is_correct  # and the next answer is judged as if nothing had happened


def test_wrong_pattern_is_an_error_of_the_verifier_not_of_the_model() -> None:
    found = regex("(unclosed", "anything")
    assert found.outcome is Outcome.ERROR
    assert "missing )" in found.note


HOSTILE = {
    "empty": "",
    "blank": " \n\t",
    "ten_megabytes_of_digits": "7" * 10_000_000,
    "ten_megabytes_of_commas": "1,111" * 2_000_000,
    "ten_megabytes_of_words": "word " * 2_000_000,
    "ten_megabytes_of_brackets": "[" * 10_000_000,
    "ten_megabytes_of_space": " " * 10_000_000,
    "digits_at_the_limit": "7" * 10_000,
    "fractions_at_the_limit": "1/" * 5_000,
    "frac_at_the_limit": "\\frac{1" * 1_400,
    "boxes_at_the_limit": "\\boxed{" * 1_400,
    "quotes_at_the_limit": '"\\' * 5_000,
    "fences": "```" * 3_000,
    "letters": "A B " * 2_000,
    "power_tower": "9**9**9**9",
    "huge_exponent": "1e" + "9" * 5_000,
    "nul": "\0" * 100,
    "surrogates": "\ud800\udfff",
    "import": "__import__('os').system('true')",
    "echo": "What is 3 plus 4? A. 1 B. 2 C. 3",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("kind", sorted(VERIFIERS))
def test_hostile_answers_score_zero_at_once(kind: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_judge, "LIMITS", Limits(cpu_seconds=1))
    started = time.process_time()
    found = VERIFIERS[kind](GOLDS[kind], answer)
    assert (found.reward, found.is_correct) == (0.0, False)
    assert found.outcome is not Outcome.ERROR
    assert found.note
    assert len(found.note) < 200
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("kind", ["number", "exact", "choice", "json"])
@given(answer=st.text(max_size=80))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_verifiers_never_raise_on_any_text(kind: str, answer: str) -> None:
    assert VERIFIERS[kind](GOLDS[kind], answer).reward in (0.0, 1.0)


@pytest.mark.parametrize("kind", sorted(VERIFIERS))
def test_empty_answer_is_a_parse_failure(kind: str) -> None:
    assert VERIFIERS[kind](GOLDS[kind], "  ").outcome is Outcome.PARSE_FAILURE


@pytest.mark.parametrize(
    ("kind", "gold"),
    [("number", "many"), ("number", "3,14"), ("choice", "Z"), ("json", "{'a': 1}"), ("regex", "("), ("code", "12")],
)
def test_unusable_gold_answer_is_an_error_not_a_score(kind: str, gold: str) -> None:
    assert VERIFIERS[kind](gold, "12").outcome is Outcome.ERROR


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("number", ["12", "The answer is 12.", "\\boxed{12}", "12.0", "24/2"]),
        ("choice", ["B", "(b)", "The answer is B", "Paris"]),
        ("exact", ["a  b", "ab", "so: \\boxed{a b}"]),
    ],
)
def test_answers_that_say_the_same_have_the_same_vote(kind: str, answers: list[str]) -> None:
    votes = {verifiers.vote(kind, answer, choices=("Rome", "Paris")) for answer in answers}
    assert len(votes) == 1
    assert verifiers.vote(kind, "13 or Rome", choices=("Rome", "Paris")) not in votes


def test_vote_of_any_text_is_a_text() -> None:
    for hostile in ("", "\ud800", "\\boxed{" * 5000, "9" * 100_000, "no number"):
        assert isinstance(verifiers.vote("number", hostile), str)
