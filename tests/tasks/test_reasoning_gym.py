"""reasoning-gym as tasks: every generator makes problems, takes its right answer, and pays nothing for cheats."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from aha.errors import ConfigError
from aha.tasks import ReasoningGym, get_task
from aha.tasks.jobs.gym_rules import MEANINGS, REVIEWED_VERSION, RULES
from aha.tasks.jobs.plain import decode, encode
from aha.tasks.worker import ask
from aha.types import Completion, FinishReason, Outcome, Problem

reasoning_gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (it needs a C compiler)")

PAGE = Path(__file__).parent.parent.parent / "docs" / "reasoning_gym.md"
GENERATORS = [name for name, rule in RULES.items() if rule.how != "refused"]
SLOW = {"knight_swap", "sokoban"}
"""Generators that take a second a problem; the everyday suite makes one problem of each other."""
EMPTY = ("I don't know", "?", "sdkfj 87 sdf! []", "nan", "[NaN]", "{}")
HOSTILE = ("__import__('os').system('exit 1')", "9**9**9**9", "(" * 15_000, "R999999999 A+999999999", "\0\ud800")
ADDITIONS = ("{gold}, {other}", "{other}, {gold}", "{gold}\n{other}", "{other}\n{gold}", "{gold} or {other}")
ACCEPTS_MORE = {
    "rush_hour": "moves after the exit change nothing",
    "sokoban": "moves after the end change nothing",
}
"""Generators where a right answer followed by something is right, with the reason."""


def completion(answer: str) -> Completion:
    return Completion((1,), (0.0,), FinishReason.STOP, answer=answer)


def some_problems(name: str, count: int, *, seed: int = 7) -> list[Problem]:
    """Straight from the worker that makes them, of both splits: looking for a split costs more."""
    question = {"dataset": name, "parameters": {}, "seed": seed}
    found: list[Problem] = []
    start = 0
    while len(found) < count:
        reply = ask("reasoning_gym_items", {**question, "start": start, "count": count})
        assert reply.outcome is Outcome.SCORED, reply.note
        found += [
            Problem("", item["question"], item["answer"], {"entry": item["entry"]}) for item in reply.value["items"]
        ]
        start = reply.value["next"]
    return found[:count]


def check_generator(name: str, count: int) -> None:
    task = ReasoningGym(dataset=name)
    asked = some_problems(name, count)
    assert asked == some_problems(name, count), "the same seed makes the same problems"
    assert json.loads(json.dumps([problem.data for problem in asked])) == [problem.data for problem in asked]
    for problem in asked:
        other = next((p.answer for p in asked if p.answer != problem.answer), "nothing of the kind")
        found = task.score(problem, completion(f"  {problem.answer}\n"))
        assert found.is_correct, found
        assert task.score(problem, completion("")).outcome is Outcome.PARSE_FAILURE
        additions = () if name in ACCEPTS_MORE else (a.format(gold=problem.answer, other=other) for a in ADDITIONS)
        cheats = {*EMPTY, *HOSTILE, problem.prompt, *additions} - {problem.answer}
        for text in cheats:
            found = task.score(problem, completion(text))
            assert (found.reward, found.is_correct) == (0.0, False), (problem.answer, text[:60], found)
            assert found.outcome in (Outcome.SCORED, Outcome.PARSE_FAILURE), (text[:60], found)


# Every eighth for every day; the slow test below asks all of them, and for more problems.
@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in SLOW][::8])
def test_generator_pays_for_its_right_answer_and_for_nothing_else(name: str) -> None:
    check_generator(name, 1)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gsm_symbolic", ("${gold}", "+{gold}"), ("-{gold}", "{gold},999", "9{gold}", "{gold}/1")),
        (
            "knights_knaves",
            ("{gold}\n",),
            ("not {gold}", "{gold} No, both lie.", "{gold} xyz", "It is false that {gold}", "{gold}0"),
        ),
    ],
)
def test_generator_reads_the_whole_answer(name: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    task = ReasoningGym(dataset=name)
    for problem in some_problems(name, 3):
        for text in right:
            assert task.score(problem, completion(text.format(gold=problem.answer))).is_correct, text
        for text in wrong:
            assert task.score(problem, completion(text.format(gold=problem.answer))).reward == 0.0, text


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_pays_for_its_right_answer_and_for_nothing_else_on_more_problems(name: str) -> None:
    check_generator(name, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_splits_of_every_generator_share_no_question(name: str) -> None:
    task = ReasoningGym(dataset=name)
    train, test = (list(itertools.islice(task.problems(split, seed=3), 4)) for split in ("train", "test"))
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert len({p.problem_id for p in train}) == 4


def test_table_knows_every_generator_of_the_installed_library() -> None:
    from importlib.metadata import version

    from reasoning_gym.factory import DATASETS

    assert version("reasoning-gym") == REVIEWED_VERSION
    assert RULES.keys() == DATASETS.keys()
    own = {name for name, (cls, _) in DATASETS.items() if "score_answer" in vars(cls)}
    assert {name for name, rule in RULES.items() if rule.how == "exact"} == DATASETS.keys() - own


def test_page_shows_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, rule in RULES.items():
        assert f"| `{name}` | {rule.how} | {rule.why} |\n" in text
    for how, meaning in MEANINGS.items():
        count = sum(rule.how == how for rule in RULES.values())
        assert f"| {how} | {count} | {meaning} |\n" in text


def test_problems_are_the_same_for_a_seed_and_others_for_another() -> None:
    task = get_task("rg:chain_sum")
    first, again, other = (list(itertools.islice(task.problems("train", seed=s), 8)) for s in (1, 1, 2))
    assert first == again != other
    assert get_task("rg:chain_sum,seed=5") != task


def test_splits_share_no_question_whatever_the_seeds() -> None:
    task = get_task("reasoning_gym:dataset=gcd,max_numbers=2,max_value=12")
    train, test = (
        {p.prompt for seed in range(3) for p in itertools.islice(task.problems(split, seed=seed), 60)}
        for split in ("train", "test")
    )
    assert len(train) > 20 < len(test)
    assert not train & test


def test_generator_with_few_questions_repeats_them_and_one_with_a_single_question_is_refused() -> None:
    task = get_task("rg:gcd,min_numbers=2,max_numbers=2,min_value=1,max_value=2")
    train, test = ({p.prompt for p in itertools.islice(task.problems(s, seed=0), 40)} for s in ("train", "test"))
    assert train
    assert test
    assert not train & test
    assert len(train | test) <= 4
    with pytest.raises(ConfigError, match="count_primes: makes a single question"):
        next(iter(get_task("rg:count_primes,max_n=1").problems("train", seed=0)))


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        ("rg:chain_sum,max_terms=5,allow_negation=true", {"max_terms": 5, "allow_negation": True}),
        ("rg:countdown,operators=+|-", {"operators": ["+", "-"]}),
        ("rg:countdown,operators=[+,-],min_numbers=3", {"operators": ["+", "-"], "min_numbers": 3}),
        ("rg:advanced_geometry,task_types=[orthocenter]", {"task_types": ["orthocenter"]}),
        ("rg:aiw,task_type_weights=[0.5,0.25,0.25]", {"task_type_weights": [0.5, 0.25, 0.25]}),
        ("rg:figlet_font,static_word=123", {"static_word": "123"}),
        ("rg:time_intervals,min_date=1990-01-01", {"min_date": "1990-01-01"}),
        ("rg:word_sorting,transformation=lowercase", {"transformation": "lowercase"}),
    ],
)
def test_parameters_are_read_by_the_generators_own_types(spec: str, parameters: dict[str, object]) -> None:
    task = get_task(spec)
    assert isinstance(task, ReasoningGym)
    assert task.parameters == parameters
    assert get_task(task.name) == task
    assert next(iter(task.problems("test", seed=0))).answer


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reasoning_gym", "name a generator, such as reasoning_gym:dataset=chain_sum"),
        ("rg:chainsum", "unknown generator 'chainsum'; did you mean 'chain_sum'?"),
        ("rg:chain_sum,max_term=3", "chain_sum: unknown parameter 'max_term'; did you mean 'max_terms'?"),
        ("rg:chain_sum,max_terms=many", "chain_sum: max_terms must be a whole number, got 'many'"),
        ("rg:chain_sum,min_terms=9,max_terms=2", "chain_sum: max_terms must be >= min_terms"),
        ("rg:chain_sum,partial=yes", "partial must be true or false, got 'yes'"),
        ("rg:basic_arithmetic,format_style=naturl", "unknown value 'naturl'; did you mean 'natural'?"),
        ("rg:composite", "composite: mixes other generators"),
    ],
)
def test_wrong_spec_is_refused_with_the_choices(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_task(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_part_credit_is_off_unless_asked_for_and_never_pays_for_an_empty_answer() -> None:
    (problem,) = some_problems("word_sorting", 1)
    words = problem.answer.split(", ")
    nearly = ", ".join([words[1], words[0], *words[2:]])
    assert ReasoningGym(dataset="word_sorting").score(problem, completion(nearly)).reward == 0.0
    task = ReasoningGym(dataset="word_sorting", partial=True)
    found = task.score(problem, completion(nearly))
    assert 0 < found.reward <= 0.5
    assert not found.is_correct
    assert task.score(problem, completion("I don't know")).reward == 0.0
    (cipher,) = some_problems("color_cube_rotation", 1)  # its scorer gives 0.01 to any answer
    assert ReasoningGym(dataset="color_cube_rotation", partial=True).score(cipher, completion("mauve")).reward == 0.0


def test_answer_may_stand_between_tags_or_in_a_fence_but_only_one_counts() -> None:
    task = get_task("rg:chain_sum")
    (problem,) = some_problems("chain_sum", 1)
    assert task.score(problem, completion(f"It is <answer>{problem.answer}</answer>")).is_correct
    assert task.score(problem, completion(f"```\n{problem.answer}\n```")).is_correct
    several = f"<answer>{problem.answer}</answer><answer>1</answer>"
    assert task.score(problem, completion(several)).outcome is Outcome.PARSE_FAILURE


def test_metadata_of_any_kind_goes_to_json_and_back() -> None:
    from datetime import date, timedelta
    from fractions import Fraction

    import numpy as np

    value = {1: (2, {3}), "~": [Fraction(1, 3), date(2025, 1, 20), timedelta(1)], "x": {"y": frozenset({4}), "z": 1j}}
    assert decode(json.loads(json.dumps(encode(value)))) == value
    assert decode(encode({"a": np.arange(3), "b": np.float64(0.5), "c": np.str_("s")})) == {
        "a": [0, 1, 2],
        "b": 0.5,
        "c": "s",
    }
    assert str(decode(encode(float("nan")))) == "nan"
