"""Statistics of an evaluation against enumeration, hand-computed numbers and simulation."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.evaluate import (
    Vote,
    bootstrap_interval,
    consensus_at_k,
    mcnemar_p_value,
    paired_test,
    sign_flip_p_value,
    statistics,
)

# "7" is right, "8" and "9" are wrong, None could not be read.
some_votes = st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=7).map(
    lambda answers: [Vote(answer, answer == "7") for answer in answers]
)


def share_won(votes: tuple[Vote, ...]) -> float:
    """By the definition: 1 when "7" has the most votes, shared among those that tie."""
    counts = Counter(vote.answer for vote in votes if vote.answer is not None)
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    return winners.count("7") / len(winners) if winners else 0.0


@settings(max_examples=60, deadline=None)
@given(some_votes, st.integers(1, 7))
def test_consensus_equals_the_mean_over_every_choice_of_k(votes: list[Vote], k: int) -> None:
    choices = list(itertools.combinations(votes, min(k, len(votes))))
    expected = sum(map(share_won, choices)) / len(choices)
    assert consensus_at_k(votes, k=k) == pytest.approx(expected, abs=1e-12)


def test_consensus_of_one_is_the_share_of_right_answers() -> None:
    votes = [Vote("7", True)] * 3 + [Vote("8", False)] * 4 + [Vote(None, False)]
    assert consensus_at_k(votes, k=1) == pytest.approx(3 / 8)


def test_consensus_by_hand() -> None:
    votes = [Vote("7", True), Vote("7", True), Vote("8", False)]
    # Of the three pairs one is 7 7 (won), two are 7 8 (a tie, half won).
    assert consensus_at_k(votes, k=2) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert consensus_at_k(votes, k=3) == 1.0
    assert consensus_at_k(votes, k=99) == 1.0, "all of them vote where there are fewer than k"


def test_consensus_takes_the_worth_of_an_answer_judged_in_two_ways() -> None:
    assert consensus_at_k([Vote("7", True), Vote("7", False), Vote("8", False)], k=3) == pytest.approx(0.5)
    assert consensus_at_k([Vote(None, False)] * 4, k=2) == 0.0


def test_consensus_of_64_samples_agrees_with_a_simulation() -> None:
    votes = [Vote("7", True)] * 20 + [Vote("8", False)] * 16 + [Vote(f"{i}", False) for i in range(100, 120)]
    votes += [Vote(None, False)] * 8
    generator = np.random.default_rng(3)
    drawn = [share_won(tuple(votes[i] for i in generator.permutation(64)[:16])) for _ in range(4000)]
    assert consensus_at_k(votes, k=16) == pytest.approx(float(np.mean(drawn)), abs=0.025)  # 3 standard errors
    assert consensus_at_k(votes, k=64) == pytest.approx(1.0, abs=1e-9), "float64 keeps what C(64, 32) needs"


def test_consensus_of_very_many_samples_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = [Vote("7", True)] * 35 + [Vote("8", False)] * 30 + [Vote("9", False)] * 20 + [Vote(None, False)] * 10
    exact = [consensus_at_k(votes, k=k) for k in (1, 8, 64, 95)]
    monkeypatch.setattr(statistics, "MAX_EXACT_VOTES", 10)
    estimated = [consensus_at_k(votes, k=k) for k in (1, 8, 64, 95)]
    assert estimated == pytest.approx(exact, abs=0.04)
    assert estimated == [consensus_at_k(votes, k=k) for k in (1, 8, 64, 95)], "seeded"
    assert 0.0 < consensus_at_k(votes * 30, k=1000) <= 1.0, "C(2850, 1000) is beyond float64"


@pytest.mark.parametrize(
    ("num_only_first", "num_only_second", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (9, 1, 2 * (1 + 10) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_by_hand(num_only_first: int, num_only_second: int, expected: float) -> None:
    assert mcnemar_p_value(num_only_first, num_only_second) == pytest.approx(expected)


def test_mcnemar_of_thousands_of_problems_does_not_overflow() -> None:
    assert mcnemar_p_value(1000, 1000) == 1.0
    assert 0.0 <= mcnemar_p_value(0, 5000) < 1e-300


def by_enumeration(differences: list[int]) -> float:
    seen = abs(sum(differences))
    flips = list(itertools.product((-1, 1), repeat=len(differences)))
    as_far = sum(abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) >= seen for signs in flips)
    return as_far / len(flips)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=0, max_size=9))
def test_sign_flips_equal_enumerating_all_of_them(differences: list[int]) -> None:
    assert sign_flip_p_value(differences) == pytest.approx(by_enumeration(differences), abs=1e-12)


def test_sign_flips_by_hand() -> None:
    # Sums of ±3 ±2 ±1: 6, 4, 2, 0, 0, -2, -4, -6. At least 4 away from 0: 4 of 8.
    assert sign_flip_p_value([3, 2, -1]) == pytest.approx(4 / 8)


def test_paired_test_of_one_sample_is_mcnemar() -> None:
    pairs = [((0, 1), (1, 1))] * 9 + [((1, 1), (0, 1))] + [((1, 1), (1, 1))] * 40
    found = paired_test(pairs)
    assert (found.name, found.p_value) == ("exact McNemar", pytest.approx(22 / 1024))
    assert sign_flip_p_value([1] * 9 + [-1]) == pytest.approx(22 / 1024), "the same test in other words"


def test_paired_test_of_several_samples_flips_signs_exactly() -> None:
    pairs = [((1, 4), (3, 4)), ((0, 4), (3, 4)), ((2, 4), (1, 4)), ((4, 4), (4, 4))]
    found = paired_test(pairs)
    assert (found.name, found.p_value) == ("exact sign flips", pytest.approx(by_enumeration([2, 3, -1])))


def test_paired_test_weighs_problems_with_failed_verifications_by_their_shares() -> None:
    found = paired_test([((1, 3), (2, 2)), ((0, 4), (1, 4)), ((1, 2), (1, 3))])
    # In twelfths: 12 - 4 = 8, 3 - 0 = 3, 4 - 6 = -2.
    assert found.p_value == pytest.approx(by_enumeration([8, 3, -2]))


def test_paired_test_draws_flips_where_the_exact_table_would_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [((i % 3, 7), ((2 * i) % 5, 7)) for i in range(40)]
    exact = paired_test(pairs)
    monkeypatch.setattr(statistics, "MAX_EXACT_TOTAL", 10)
    drawn = paired_test(pairs)
    assert drawn.name == "20,000 random sign flips"
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.015)
    assert paired_test(pairs) == drawn, "seeded"
    certain = paired_test([((0, 7), (5, 7))] * 60)
    assert 0 < certain.p_value < 0.001, "20,000 draws cannot show that a p-value is 0"


def test_equal_models_have_a_p_value_of_1() -> None:
    assert paired_test([((1, 4), (1, 4))] * 8).p_value == 1.0
    assert paired_test([((1, 1), (1, 1))] * 8).p_value == 1.0


def test_paired_test_rejects_a_true_hypothesis_no_more_often_than_it_says() -> None:
    generator = np.random.default_rng(11)
    num_rejected = 0
    for _ in range(300):
        chances = generator.beta(0.7, 0.7, size=40)
        pairs = [
            ((int(a), 4), (int(b), 4))
            for a, b in zip(generator.binomial(4, chances), generator.binomial(4, chances), strict=True)
        ]
        num_rejected += paired_test(pairs).p_value < 0.05
    assert num_rejected <= 25  # 15 expected at most; above 25 of 300 has a chance under 1 %


@pytest.mark.parametrize("num_problems", [30, 100])
def test_interval_of_clustered_samples_covers_the_truth(num_problems: int) -> None:
    """8 samples a problem, most problems nearly always or nearly never solved: the bootstrap draws whole problems."""
    generator = np.random.default_rng(7)
    covered = too_narrow = 0
    for trial in range(100):
        right = generator.binomial(8, generator.beta(0.5, 0.5, size=num_problems))
        low, high = bootstrap_interval(right / 8, seed=trial)
        covered += low <= 0.5 <= high
        # What one would get who took all samples for independent.
        mean = right.mean() / 8
        half = 1.96 * np.sqrt(mean * (1 - mean) / (8 * num_problems))
        too_narrow += mean - half <= 0.5 <= mean + half
    assert covered >= 89  # 95 expected; fewer than 89 of 100 has a chance under 1 %
    assert too_narrow < 75, "this simulation would show an interval that ignores the clusters"
