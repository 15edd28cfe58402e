"""Rewards of a recipe: gates multiply, shaping is added, and the promises of aha/tasks/rewards.py hold for any text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.errors import ConfigError
from aha.tasks import Arithmetic, Countdown, HasBaselines, HasDemonstrations, get_task
from aha.tasks.cheats import completion_of, idle_completions
from aha.tasks.rewards import REWARDS, Rewarded, read_rewards, with_rewards
from aha.types import Completion, FinishReason, Outcome, Problem, Score

PROBLEM = next(Arithmetic().problems("train", seed=0))
RIGHT, WRONG = PROBLEM.answer, str(int(PROBLEM.answer) + 1)
ENGLISH, CHINESE = "We need to add the numbers, and then it is done.", "我们把数字相加，然后就完成了。"
EVERYTHING = ("accuracy", "format:bonus=0.1", "language:weight=0.2", "length:weight=0.2,target=20",
              "overlong:max_tokens=60,cache=20,weight=0.2", "repetition:weight=0.1,ngram=3")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Partial(Arithmetic):
    """Arithmetic that pays wrong answers a little, or takes something from them."""

    wrong: float = 0.0

    def score(self, problem: Problem, completion: Completion) -> Score:
        found = super().score(problem, completion)
        return found if found.is_correct else replace(found, reward=self.wrong)


def score(specs: tuple[str, ...], completion: Completion, *, wrong: float = 0.0) -> Score:
    return with_rewards(Partial(wrong=wrong), specs).score(PROBLEM, completion)


def long(completion: Completion, *, num_tokens: int) -> Completion:
    return replace(completion, reported_tokens=num_tokens)


def test_accuracy_alone_is_the_task_itself() -> None:
    task = Countdown()
    assert with_rewards(task, ("accuracy",)) is task


def test_everything_else_stays_the_tasks() -> None:
    task = with_rewards(Countdown(), ("accuracy", "format"))
    assert task.name == "countdown"
    assert task.system_prompt == Countdown().system_prompt
    assert next(task.problems("test", seed=1)) == next(Countdown().problems("test", seed=1))
    assert isinstance(task, HasDemonstrations)
    assert isinstance(task, HasBaselines)
    assert next(task.demonstrations(seed=1)) == next(Countdown().demonstrations(seed=1))
    assert not isinstance(with_rewards(Arithmetic(), ("accuracy", "format")), HasBaselines)


def test_mixture_is_paid_by_the_rewards_too() -> None:
    task = with_rewards(get_task("countdown + arithmetic"), ("accuracy", "format"))
    assert task.name == "countdown + arithmetic"
    for problem in islice(task.problems("train", seed=0), 4):
        assert task.score(problem, completion_of(problem.answer)).reward == 1.0
        assert task.score(problem, completion_of(problem.answer, reasoning="")).reward == 0.0
    assert isinstance(task, HasDemonstrations)


def test_wrapper_of_a_task_with_a_method_of_its_own_names_keeps_its_own() -> None:
    class Awkward(Arithmetic):
        def inner(self) -> str:
            return "mine"

    task = with_rewards(Awkward(), ("accuracy", "format"))
    assert next(task.problems("train", seed=0)) == PROBLEM


def test_format_gates_a_right_answer_and_pays_nothing_by_itself() -> None:
    specs = ("accuracy", "format")
    assert score(specs, completion_of(RIGHT)).reward == 1.0
    bare = score(specs, completion_of(RIGHT, reasoning=""))
    assert (bare.reward, bare.is_correct, bare.parts) == (0.0, True, {"accuracy": 1.0, "format": 0.0})
    assert bare.note.startswith("no thinking block and answer")
    assert score(specs, completion_of(WRONG)).reward == 0.0


@pytest.mark.parametrize(
    ("reasoning", "answer"),
    [("", RIGHT), ("  ", RIGHT), ("thinks", ""), ("thinks", " \n"), ("a <think> b", RIGHT),
     ("thinks", f"{WRONG}</think>{RIGHT}"), ("thinks", f"<think>again</think>{RIGHT}")],
)  # fmt: skip
def test_other_forms_than_one_thinking_block_and_an_answer_are_paid_nothing(reasoning: str, answer: str) -> None:
    for specs in (("accuracy", "format"), EVERYTHING):
        assert score(specs, completion_of(answer, reasoning=reasoning)).reward <= 0.0


def test_bonus_pays_the_form_at_most_a_tenth() -> None:
    specs = ("accuracy", "format:bonus=0.1")
    assert score(specs, completion_of(WRONG)).reward == pytest.approx(0.1 / 1.1)
    assert score(specs, completion_of(RIGHT)).reward == pytest.approx(1.0)
    assert score(specs, completion_of("")).reward == 0.0
    with pytest.raises(ConfigError, match="bonus must be 0 to 0.1, got 0.2; a form that pays more"):
        read_rewards(("accuracy", "format:bonus=0.2"))


def test_language_is_paid_in_proportion_for_thinking_in_words() -> None:
    specs = ("accuracy", "language:weight=0.1,language=en")
    english, mixed, chinese, none = (
        score(specs, completion_of(RIGHT, reasoning=text)).parts["language"]
        for text in (ENGLISH, f"{ENGLISH} {CHINESE}", CHINESE, "3+4=7")
    )
    assert english == pytest.approx(0.1)
    assert 0.03 < mixed < 0.07
    assert chinese == none == 0.0
    farmed = score(specs, completion_of(RIGHT, reasoning=ENGLISH * 300))
    assert farmed.parts["language"] <= english
    assert score(specs, completion_of("", reasoning=ENGLISH)).reward == 0.0


def test_length_costs_beyond_the_target_and_never_more_than_its_weight() -> None:
    specs = ("accuracy", "length:weight=0.2,target=100")
    rewards = [score(specs, long(completion_of(RIGHT), num_tokens=n)).reward for n in (1, 100, 150, 200, 10_000)]
    assert rewards == pytest.approx([1.0, 1.0, 0.9, 0.8, 0.8])
    assert score(specs, long(completion_of(WRONG), num_tokens=1)).reward == 0.0
    assert score(specs, long(completion_of(""), num_tokens=150)).reward == pytest.approx(-0.1)


def test_overlong_grows_over_the_last_tokens() -> None:
    specs = ("accuracy", "overlong:max_tokens=100,cache=20,weight=0.5")
    rewards = [score(specs, long(completion_of(RIGHT), num_tokens=n)).reward for n in (80, 90, 100, 200)]
    assert rewards == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_repetition_costs_the_share_of_repeated_ngrams() -> None:
    specs = ("accuracy", "repetition:weight=0.2,ngram=2")
    fresh = score(specs, completion_of(RIGHT, reasoning="one two three four five"))
    # Words: a a a a and the answer: 4 bigrams, 2 of them different.
    stuck = score(specs, completion_of(RIGHT, reasoning="a a a a"))
    assert (fresh.reward, stuck.reward) == (1.0, pytest.approx(0.9))


def test_masked_scores_stay_masked() -> None:
    class Broken(Arithmetic):
        def score(self, problem: Problem, completion: Completion) -> Score:
            return Score(0.0, False, "broken", Outcome.ERROR)

    assert with_rewards(Broken(), EVERYTHING).score(PROBLEM, completion_of(RIGHT)).outcome is Outcome.ERROR


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("acuracy",), "unknown reward 'acuracy'; did you mean 'accuracy'?"),
        (("accuracy", "length:weight=0.1", "target=64"), "write a reward with several options in quotes"),
        (("format",), "has nothing that says what is right; add accuracy"),
        ((), "has nothing that says what is right"),
        (("accuracy", "accuracy"), "'accuracy' stands twice"),
        (("accuracy:weight=2",), "unknown option of reward accuracy 'weight'"),
        (("accuracy", "length:weight=1.5"), "length: weight must be above 0 and below 1, got 1.5"),
        (("accuracy", "length:sign=1"), "unknown option of reward length 'sign'; choose from: target, weight"),
        (("accuracy", "length:target=0"), "length: target must be at least 1 token, got 0"),
        (("accuracy", "language:language=xx"), "unknown value 'xx'"),
        (("accuracy", "language:weight=nan"), "weight must be a number"),
        (("accuracy", "overlong"), "reward overlong needs max_tokens, cache; write overlong:max_tokens=…,cache=…"),
        (("accuracy", "overlong:max_tokens=10,cache=20"), "overlong: cache must be 1 to max_tokens=10, got 20"),
        (("accuracy", "repetition:ngram=1"), "repetition: ngram must be 2 to 100 words, got 1"),
        (("accuracy", "language:weight=0.5", "length:weight=0.5"), "sum to 1 (language 0.5, length 0.5) and must stay"),
        (("accuracy", "judge:model=m"), "reward judge needs base_url; write judge:base_url=…"),
    ],
)  # fmt: skip
def test_wrong_rewards_are_refused(specs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rewards(specs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [RIGHT, WRONG, f" {RIGHT}\n", ENGLISH, CHINESE, "", " ", "<think>", "</think>", "a " * 60, "\ud800"]
    ),
)
COMPLETIONS = st.builds(
    lambda reasoning, answer, reason, tokens: Completion(
        (), (), reason, reasoning + answer, reasoning, answer, reported_tokens=tokens
    ),
    TEXTS, TEXTS, st.sampled_from(list(FinishReason)), st.integers(0, 200),
)  # fmt: skip
SPECS = st.sets(st.sampled_from(EVERYTHING[1:]), min_size=1).map(lambda found: ("accuracy", *sorted(found)))


@given(specs=SPECS, right=COMPLETIONS, wrong=COMPLETIONS, wrong_reward=st.sampled_from([-1.0, 0.0, 0.3, 1.0]))
@settings(max_examples=150, deadline=None)
def test_no_wrong_answer_is_paid_more_than_a_right_and_well_formed_one(
    specs: tuple[str, ...], right: Completion, wrong: Completion, wrong_reward: float
) -> None:
    right = replace(right, answer=RIGHT, reasoning=right.reasoning.replace("think>", "") + " thought")
    best, other = (score(specs, completion, wrong=wrong_reward) for completion in (right, wrong))
    assert best.is_correct
    assert -1.0 <= other.reward <= 1.0
    assert -1.0 <= best.reward <= 1.0
    if not other.is_correct:
        assert other.reward < best.reward


def test_part_credit_and_shaping_stay_below_the_least_right_answer() -> None:
    specs = ("accuracy", "language:weight=0.5")
    least = score(specs, completion_of(RIGHT, reasoning=CHINESE))
    most = score(specs, completion_of(WRONG, reasoning=ENGLISH), wrong=0.99)
    assert (least.is_correct, most.is_correct) == (True, False)
    assert most.reward < least.reward


@given(specs=SPECS, num_tokens=st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_doing_nothing_is_paid_nothing(specs: tuple[str, ...], num_tokens: int) -> None:
    for idle in idle_completions(PROBLEM):
        if idle.name != "says it does not know":  # that is an answer, whose form a bonus pays
            assert score(specs, long(idle.completion, num_tokens=num_tokens)).reward <= 0.0


def test_every_reward_is_explained() -> None:
    assert all((kind.__doc__ or "").strip() for kind in REWARDS.values())
    with_everything: Any = with_rewards(Arithmetic(), EVERYTHING)
    assert isinstance(with_everything, Rewarded)
    assert set(with_everything.score(PROBLEM, completion_of(RIGHT)).parts) == {
        "accuracy", "format", "language", "length", "overlong", "repetition",
    }  # fmt: skip
