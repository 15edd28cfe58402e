"""What rejection sampling leaves out: R1's filters and held-out problems."""

from __future__ import annotations

import pytest

from aha.train.filters import FILTERS, Contamination, FilterLimits, first_objection
from aha.types import Completion, FinishReason

LIMITS = FilterLimits(max_paragraph_chars=100)


def thinking(text: str) -> Completion:
    return Completion((), (), FinishReason.STOP, reasoning=text, answer="4")


HONEST = "First I add two and two.\n\nThat makes four, so the answer is four."
WORDS = ["so", "then", "we", "add", "three", "to", "the", "seven", "and", "get", "ten"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("code", "Let me write it.\n```python\nprint(2 + 2)\n```\nFour."),
        ("language", "First I add two. 然后 我们 得到 答案 四。 So it is four."),
        ("language", "Сначала я складываю два и два, потом получаю four"),
        ("paragraph", "I add. " * 20),
        ("repetition", " ".join(WORDS * 5)),
    ],
)
def test_filter_objects_to_what_it_is_named_for_and_to_nothing_else(name: str, text: str) -> None:
    objecting = [other for other in FILTERS if FILTERS[other](thinking(text), LIMITS)]
    assert name in objecting
    assert not [other for other in FILTERS if FILTERS[other](thinking(HONEST), LIMITS)]


@pytest.mark.parametrize("text", ["", "3+4=7\n7*8=56", "$x^2 = 4$, so x = 2", "naïve façade"])
def test_language_filter_lets_thinking_without_foreign_words_pass(text: str) -> None:
    assert not FILTERS["language"](thinking(text), LIMITS)


def test_language_filter_follows_the_language_it_is_given() -> None:
    chinese = thinking("首先 我们 把 二 加 二")
    assert FILTERS["language"](chinese, LIMITS)
    assert not FILTERS["language"](chinese, FilterLimits(language="zh"))


def test_short_paragraphs_are_not_one_long_one_because_of_single_line_breaks() -> None:
    line = "I add two and two.\n"
    assert FILTERS["paragraph"](thinking(line * 10), LIMITS)
    assert not FILTERS["paragraph"](thinking((line + "\n") * 10), LIMITS)


def test_repetition_needs_enough_words_to_say_anything() -> None:
    assert not FILTERS["repetition"](thinking(" ".join(WORDS * 2)), LIMITS)


def test_first_objection_is_the_first_in_the_order_given() -> None:
    bad = thinking("```x```\n" + " ".join(WORDS * 20))
    assert first_objection(bad, names=("repetition", "code"), limits=LIMITS) == "repetition"
    assert first_objection(bad, names=("code", "repetition"), limits=LIMITS) == "code"
    assert first_objection(bad, names=(), limits=LIMITS) == ""


PROMPT = "Tom has three apples and buys four more at the market on Monday, how many has he now?"


@pytest.mark.parametrize(
    ("prompt", "is_found"),
    [
        (PROMPT, True),
        (PROMPT.upper(), True),
        ("Listen. tom has three apples and buys four more at the market on monday! What then?", True),
        ("Tom has five apples and sells two of them on Friday, how many has he now?", False),
        ("how many has he now?", False),
    ],
)
def test_contamination_finds_runs_of_words_of_held_out_prompts(prompt: str, *, is_found: bool) -> None:
    assert Contamination([PROMPT], num_words=8).reaches(prompt) is is_found


def test_prompts_shorter_than_the_run_must_be_equal() -> None:
    held_out = Contamination(["3 7 8 > 24"], num_words=13)
    assert held_out.reaches("3  7 8 > 24")
    assert not held_out.reaches("3 7 8 > 25")
    assert not Contamination(["3 - 7"], num_words=13).reaches("3 + 7")


def test_zero_words_compare_whole_prompts_only() -> None:
    held_out = Contamination([PROMPT], num_words=0)
    assert held_out.reaches(PROMPT)
    assert not held_out.reaches(PROMPT + " Say it.")


@pytest.mark.parametrize("num_held_out", [2, 30, 400])
def test_wording_that_the_prompts_of_a_task_have_in_common_is_no_contamination(num_held_out: int) -> None:
    wording = "Here is a puzzle for you, think well and then give the answer as one whole number: {n} plus {n} + 1."
    held_out = Contamination([wording.format(n=n) for n in range(num_held_out)], num_words=13)
    assert not held_out.reaches(wording.format(n=1000))
    assert held_out.reaches(wording.format(n=1))


def test_held_out_prompt_that_stands_there_twice_still_counts() -> None:
    assert Contamination([PROMPT] * 40, num_words=8).reaches("Listen. " + PROMPT)
