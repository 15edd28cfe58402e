"""evaluate: the numbers against slow formulas, the files, the protocol, and what it refuses."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost import custom_machine_price, custom_token_price
from aha.errors import AhaError, DataError, RequestError
from aha.evaluate import (
    EvalResult,
    Progress,
    bootstrap_interval,
    compare,
    consensus,
    evaluate,
    load_result,
    pass_at_k,
    select_problems,
)
from aha.tasks.base import Split
from aha.types import Completion, FinishReason, Message, Outcome, Problem, Rollout, SamplingParams, Score


@dataclass(frozen=True)
class Sums:
    """Sums of two numbers, endless like a generated task: a real task, small enough to check by hand."""

    system_prompt: str = "Add."
    num_distinct: int = 10_000

    @property
    def name(self) -> str:
        return "sums"

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        generator = random.Random(f"{split}{seed}")
        while True:
            a = generator.randrange(self.num_distinct)
            yield Problem(problem_id=f"{split}-{a}", prompt=f"{a} + 1", answer=str(a + 1))

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.answer == "crash":
            return Score(0.0, False, "the verifier ran out of memory", Outcome.ERROR)
        if completion.answer == "stall":
            return Score(0.0, False, "10 s were not enough", Outcome.TIMEOUT)
        if not completion.answer:
            return Score(0.0, False, "no answer", Outcome.PARSE_FAILURE)
        is_right = completion.answer == problem.answer
        return Score(float(is_right), is_right)


@dataclass(frozen=True)
class WordySums(Sums):
    """A task whose answers may stand in a sentence."""

    def score(self, problem: Problem, completion: Completion) -> Score:
        is_right = self.vote(problem, completion) == problem.answer
        return Score(float(is_right), is_right)

    def vote(self, problem: Problem, completion: Completion) -> str:
        return completion.answer.split()[-1]


@dataclass(frozen=True)
class ThreeRows(Sums):
    """A file's task: three problems, then the end."""

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        return itertools.islice(super().problems(split, seed=seed), 3)


def completion(answer: str, *, reasoning: str = "", truncated: bool = False) -> Completion:
    text = f"{reasoning}</think>{answer}"
    tokens = tuple(range(len(text)))
    reason = FinishReason.LENGTH if truncated else FinishReason.STOP
    return Completion(tokens, tuple(-0.5 for _ in tokens), reason, text, reasoning, answer, weight_version=3)


class Adder:
    """A respond that is right with a chance that depends on the problem, and remembers what it was asked."""

    def __init__(self, answers: Callable[[str], list[str]]) -> None:
        self.answers = answers
        self.calls: list[list[list[Message]]] = []
        self.sampling: list[SamplingParams] = []

    def __call__(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        self.calls.append(conversations)
        self.sampling.append(sampling)
        return [
            [completion(answer, reasoning="hm" * 3) for answer in self.answers(conversation[-1].content)]
            for conversation in conversations
        ]


def gold(prompt: str) -> str:
    return str(int(prompt.split()[0]) + 1)


def even_is_right(prompt: str) -> list[str]:
    return [gold(prompt) if int(prompt.split()[0]) % 2 == 0 else "wrong"]


def test_pass_at_1_is_the_share_of_right_answers() -> None:
    result = evaluate(Sums(), Adder(even_is_right), num_problems=200)
    problems = select_problems(Sums(), num_problems=200, seed=0)
    expected = sum(int(problem.prompt.split()[0]) % 2 == 0 for problem in problems) / 200
    assert result.pass_at_1 == pytest.approx(expected)
    assert result.interval_low < result.pass_at_1 < result.interval_high
    assert result.pass_at_k == {1: pytest.approx(expected)}


def test_problem_is_asked_with_the_system_prompt_first() -> None:
    respond = Adder(even_is_right)
    evaluate(Sums(), respond, num_problems=2)
    assert [message.role for message in respond.calls[0][0]] == ["system", "user"]
    bare = Adder(even_is_right)
    evaluate(Sums(system_prompt=""), bare, num_problems=2)
    assert [message.role for message in bare.calls[0][0]] == ["user"]


def test_two_evaluations_of_the_same_thing_are_equal() -> None:
    first, second = (evaluate(Sums(), Adder(even_is_right), num_problems=50) for _ in range(2))
    assert replace(first, wall_seconds=0) == replace(second, wall_seconds=0)


def test_sampling_is_seeded_and_written_into_the_manifest() -> None:
    respond = Adder(lambda prompt: [gold(prompt)] * 4)
    sampling = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=99)
    result = evaluate(
        Sums(), respond, num_problems=3, num_samples=4, sampling=sampling, seed=11, template="chatml-1a2b"
    )
    assert respond.sampling[0] == replace(sampling, num_samples=4, seed=11)
    expected = {
        "task": "sums",
        "split": "test",
        "num_problems": 3,
        "num_samples": 4,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "max_tokens": 99,
        "problem_seed": 11,
        "seed": 11,
        "template": "chatml-1a2b",
        "weight_version": 3,
    }
    assert expected.items() <= result.manifest.items()
    assert result.manifest["extractor"].endswith("Sums.score")


def test_problems_are_distinct_and_a_short_file_gives_what_it_has() -> None:
    problems = select_problems(Sums(num_distinct=30), num_problems=25, seed=1)
    assert len({problem.problem_id for problem in problems}) == 25
    assert len(select_problems(Sums(num_distinct=5), num_problems=100, seed=1)) == 5
    result = evaluate(ThreeRows(), Adder(even_is_right), num_problems=500)
    assert (result.num_problems, result.manifest["num_problems_requested"]) == (3, 500)


def test_progress_counts_up_to_all_problems() -> None:
    seen: list[Progress] = []
    evaluate(Sums(), Adder(even_is_right), num_problems=300, on_progress=seen.append)
    assert [progress.num_done for progress in seen] == [128, 256, 300]


def test_verifier_errors_are_counted_and_masked() -> None:
    result = evaluate(
        Sums(), Adder(lambda prompt: [gold(prompt), "crash", "crash", "wrong"]), num_problems=20, num_samples=4
    )
    assert result.pass_at_1 == pytest.approx(0.5)
    assert (result.error_fraction, result.timeout_fraction) == (pytest.approx(0.5), 0.0)
    assert result.pass_at_k == {1: pytest.approx(0.5), 2: pytest.approx(1.0)}, "no problem has 4 scored completions"


def test_verifier_timeouts_are_counted_apart_and_masked() -> None:
    result = evaluate(
        Sums(), Adder(lambda prompt: [gold(prompt), "stall", "crash", "wrong"]), num_problems=20, num_samples=4
    )
    assert (result.pass_at_1, result.error_fraction, result.timeout_fraction) == (0.5, 0.25, 0.25)
    assert set(result.problem_scores.values()) == {(1, 2)}


def test_problem_whose_every_verification_failed_is_left_out() -> None:
    respond = Adder(lambda prompt: ["crash"] if int(prompt.split()[0]) % 2 else [gold(prompt)])
    assert evaluate(Sums(), respond, num_problems=40).pass_at_1 == 1.0


def test_verifier_that_always_fails_is_an_error_and_not_a_score() -> None:
    with pytest.raises(DataError, match="failed on all 5 completions: the verifier ran out of memory"):
        evaluate(Sums(), Adder(lambda _: ["crash"]), num_problems=5)


def test_truncation_and_parse_failures_are_shares_of_all_completions() -> None:
    def respond(conversations: list[list[Message]], _: SamplingParams) -> list[list[Completion]]:
        return [[completion("", reasoning="aaa", truncated=True), completion("x")] for _ in conversations]

    result = evaluate(Sums(), respond, num_problems=10, num_samples=2)
    assert (result.truncated_fraction, result.parse_failure_fraction) == (0.5, 0.5)
    assert result.pass_at_1 == 0.0
    assert result.mean_tokens == pytest.approx((len("aaa</think>") + len("</think>x")) / 2)
    assert result.completion_tokens == 10 * (len("aaa</think>") + len("</think>x"))


def test_thinking_is_counted_by_the_caller_or_not_claimed() -> None:
    assert evaluate(Sums(), Adder(even_is_right), num_problems=4).mean_thinking_tokens is None
    counted = evaluate(Sums(), Adder(even_is_right), num_problems=4, count_tokens=len)
    assert counted.mean_thinking_tokens == 6.0


def test_outputs_are_kept_and_the_result_reads_back(tmp_path: Path) -> None:
    hostile = "\ud800<script>\x00\u2028é"
    respond = Adder(lambda prompt: [gold(prompt), hostile])
    result = evaluate(Sums(), respond, num_problems=30, num_samples=2, out=tmp_path / "eval", name="before")
    assert load_result(tmp_path / "eval/before.json") == result
    rows = [json.loads(line) for line in (tmp_path / "eval/before.jsonl").read_text().split("\n") if line]
    assert len(rows) == 30
    assert rows[0].keys() == {"problem_id", "prompt", "gold", "samples"}
    assert rows[0]["samples"][1]["answer"] == hostile
    assert rows[0]["samples"][0]["is_correct"] is True
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["before.json", "before.jsonl"]


def test_interrupted_evaluation_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "after.jsonl").write_text("the old one\n")

    def respond(_: list[list[Message]], __: SamplingParams) -> list[list[Completion]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Sums(), respond, num_problems=3, out=tmp_path, name="after")
    assert [path.name for path in tmp_path.iterdir()] == ["after.jsonl"]
    assert (tmp_path / "after.jsonl").read_text() == "the old one\n"


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write .*eval"):
        evaluate(Sums(), Adder(even_is_right), num_problems=3, out=tmp_path / "eval")


def test_no_problems_asked_for_is_refused() -> None:
    with pytest.raises(RequestError, match="num_problems must be at least 1, got 0"):
        evaluate(Sums(), Adder(even_is_right), num_problems=0)


def test_unknown_task_lists_choices() -> None:
    with pytest.raises(AhaError, match="countdown"):
        evaluate("cuontdown", Adder(even_is_right))


def test_pass_at_k_equals_counting_every_subset() -> None:
    for num_samples, num_correct, k in [(5, 2, 3), (8, 1, 4), (6, 6, 2), (6, 0, 6), (4, 3, 4), (7, 4, 1)]:
        results = [True] * num_correct + [False] * (num_samples - num_correct)
        subsets = list(itertools.combinations(results, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(num_samples, num_correct=num_correct, k=k) == pytest.approx(expected)


def test_pass_at_k_is_reported_for_powers_of_two_and_all_samples() -> None:
    result = evaluate(Sums(), Adder(lambda p: [gold(p), *["wrong"] * 11]), num_problems=5, num_samples=12)
    assert list(result.pass_at_k) == list(result.consensus_at_k) == [1, 2, 4, 8, 12]
    assert result.pass_at_k[8] == pytest.approx(8 / 12)
    assert result.pass_at_k.keys() == result.pass_at_k_intervals.keys() == result.consensus_intervals.keys()
    assert result.consensus_at_k[1] == result.pass_at_1, "a vote of one is one answer"
    assert result.consensus_at_k[12] == result.cons_at_k == 0.0, "eleven say the same wrong thing"


def test_every_rate_has_an_interval_around_it() -> None:
    result = evaluate(
        Sums(),
        Adder(lambda p: [gold(p), gold(p), "a", "b"] if int(p.split()[0]) % 3 else ["a", gold(p), "a", "b"]),
        num_problems=60,
        num_samples=4,
    )
    for k, (low, high) in {**result.pass_at_k_intervals}.items():
        assert low <= result.pass_at_k[k] <= high
    for k, (low, high) in result.consensus_intervals.items():
        assert low <= result.consensus_at_k[k] <= high
        assert low < high


def vote(*answers: tuple[str, bool, Outcome]) -> float:
    return consensus([Rollout(completion(text), Score(0.0, is_right, "", kind)) for text, is_right, kind in answers])


def test_consensus_is_the_most_frequent_answer() -> None:
    scored = Outcome.SCORED
    assert vote(("7", True, scored), ("8", False, scored), (" 7 ", True, scored)) == 1.0
    assert vote(("8", False, scored), ("8", False, scored), ("7", True, scored)) == 0.0
    assert vote(("8", False, scored), ("7", True, scored)) == 0.5, "a tie is worth what a coin would win"
    assert vote(("", False, Outcome.PARSE_FAILURE), ("", False, Outcome.PARSE_FAILURE), ("7", True, scored)) == 1.0
    assert vote(("", False, Outcome.PARSE_FAILURE)) == 0.0


def test_consensus_counts_what_the_task_says_is_the_same_answer() -> None:
    wordy = Adder(lambda prompt: [gold(prompt), f"it is {gold(prompt)}", "0", "0"])
    assert evaluate(WordySums(), wordy, num_problems=4, num_samples=4).cons_at_k == 0.5, "a tie"
    assert evaluate(Sums(), wordy, num_problems=4, num_samples=4).cons_at_k == 0.0, "texts that differ"
    boxed = Adder(lambda prompt: ["\\boxed{1}", "I get \\boxed{ 1 }.", "2"])
    result = evaluate(Sums(), boxed, num_problems=1, num_samples=3)
    assert result.consensus_at_k[3] == 0.0


def test_dollars_come_from_the_machine_or_from_the_completions() -> None:
    price = custom_machine_price("3600", on=date(2026, 1, 1))  # a dollar a second
    result = evaluate(Sums(), Adder(even_is_right), num_problems=20, price=price)
    assert result.cost_usd == pytest.approx(result.wall_seconds, abs=0.001)
    assert result.usd_per_solved == pytest.approx(result.cost_usd / result.num_correct)
    assert result.manifest["price"] == price.price_id

    def paid(conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        group = [replace(completion(answer), cost_nano_usd=2_000_000) for answer in ("crash", "wrong")]
        return [[replace(completion(gold(c[-1].content)), cost_nano_usd=6_000_000), *group] for c in conversations]

    charged = evaluate(Sums(), paid, num_problems=10, num_samples=3)
    assert charged.cost_usd == pytest.approx(10 * 0.010), "failed verifications were paid for too"
    assert charged.usd_per_solved == pytest.approx(0.010)


def test_dollars_that_are_not_known_are_not_claimed() -> None:
    unpriced = evaluate(Sums(), Adder(even_is_right), num_problems=4)
    assert (unpriced.cost_usd, unpriced.usd_per_solved) == (None, None)
    free = evaluate(
        Sums(),
        Adder(lambda _: ["wrong"]),
        num_problems=4,
        price=custom_token_price("0", usd_per_million_output="0", on=date(2026, 1, 1)),
    )
    assert (free.cost_usd, free.usd_per_solved) == (0.0, None), "nothing was solved"


def test_result_of_an_older_version_loads(tmp_path: Path) -> None:
    result = evaluate(Sums(), Adder(even_is_right), num_problems=3)
    fields = json.loads(result.to_json())
    newer = ("timeout_fraction", "pass_at_k_intervals", "consensus_at_k", "consensus_intervals", "cost_usd")
    for name in (*newer, "usd_per_solved"):
        del fields[name]
    (tmp_path / "old.json").write_text(json.dumps(fields))
    loaded = load_result(tmp_path / "old.json")
    assert (loaded.pass_at_1, loaded.cost_usd, loaded.consensus_at_k) == (result.pass_at_1, None, {})


def test_protocol_is_named_in_the_manifest_when_it_was_kept() -> None:
    sampling = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=32_768)
    by_r1 = evaluate(Sums(), Adder(even_is_right), num_problems=2, sampling=sampling, max_tokens_cap=1000)
    assert (by_r1.manifest["protocol"], by_r1.manifest["max_tokens_cap"]) == ("r1", 1000)
    warmer = evaluate(Sums(), Adder(even_is_right), num_problems=2, sampling=replace(sampling, temperature=0.7))
    assert warmer.manifest["protocol"] == ""


def test_memory_is_bounded_by_calls_of_a_limited_size() -> None:
    def sizes(num_problems: int, num_samples: int, max_tokens: int) -> list[int]:
        respond = Adder(lambda prompt: [gold(prompt)] * respond.sampling[-1].num_samples)
        sampling = SamplingParams(max_tokens=max_tokens)
        evaluate(Sums(), respond, num_problems=num_problems, num_samples=num_samples, sampling=sampling)
        return [len(call) * s.num_samples for call, s in zip(respond.calls, respond.sampling, strict=True)]

    assert sizes(20, 64, 512) == [512, 512, 256], "whole groups, an engine's largest batch"
    assert sizes(4, 64, 32_768) == [128, 128], "long answers, fewer at a time"
    assert sizes(2, 600, 512) == [512, 88] * 2, "a group too large for a call is cut"


def test_bootstrap_interval_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 180 + [0.0] * 320
    low, high = bootstrap_interval(values, seed=3)
    margin = 1.96 * np.sqrt(0.36 * 0.64 / 500)
    assert low == pytest.approx(0.36 - margin, abs=0.006)
    assert high == pytest.approx(0.36 + margin, abs=0.006)


def test_bootstrap_interval_covers_the_truth_95_times_in_100() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(40):
        low, high = bootstrap_interval(generator.binomial(4, 0.4, size=80) / 4, seed=trial)
        covered += low <= 0.4 <= high
    assert covered >= 34  # 38 expected; fewer than 34 of 40 has a chance under 1 %


def test_interval_of_equal_values_is_not_a_point() -> None:
    low, high = bootstrap_interval([0.0] * 20)
    assert low == 0.0
    assert high == pytest.approx(0.1684, abs=1e-4)  # Clopper-Pearson for 0 of 20
    assert bootstrap_interval([1.0] * 20) == (pytest.approx(1 - 0.1684, abs=1e-4), 1.0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_lies_in_range_and_around_the_mean(values: list[float]) -> None:
    low, high = bootstrap_interval(values)
    assert -1e-9 <= low <= float(np.mean(values)) + 1e-9
    assert float(np.mean(values)) - 1e-9 <= high <= 1 + 1e-9


def result_of(right: dict[str, tuple[int, int]]) -> EvalResult:
    base = evaluate(Sums(), Adder(even_is_right), num_problems=3)
    return replace(base, problem_scores=right)


def test_compare_pairs_the_problems() -> None:
    before = result_of({f"p{i}": (int(i < 40), 1) for i in range(100)})
    after = result_of({f"p{i}": (int(i < 60), 1) for i in range(100)})
    difference = compare(before, after)
    assert difference.pass_at_1 == pytest.approx(0.2)
    assert (difference.num_improved, difference.num_worsened) == (20, 0)
    # Paired: the spread is that of 20 changed problems, not of two independent scores (which would reach below 0.07).
    assert 0.1 < difference.interval_low < 0.2 < difference.interval_high < 0.3
    assert difference.is_certain


def test_compare_of_equal_results_is_uncertain() -> None:
    same = result_of({f"p{i}": (i % 2, 1) for i in range(50)})
    difference = compare(same, same)
    assert difference.pass_at_1 == 0.0
    assert not difference.is_certain


def test_compare_refuses_different_problems() -> None:
    with pytest.raises(DataError, match="asked different problems"):
        compare(result_of({"a": (1, 1)}), result_of({"b": (1, 1)}))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot read an evaluation"),
        ("[1]", "not an evaluation of format 1"),
        ('{"format": 9}', "found 9"),
        ('{"format": 1}', "lacks parts"),
        ('{"format": 1, "pass_at_k": {}, "problem_scores": {"a": 3}}', "lacks parts"),
    ],
)
def test_load_result_names_a_bad_file(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        load_result(path)


def test_load_result_of_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_result(tmp_path / "none.json")
