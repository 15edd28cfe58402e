"""The numbers of an evaluation from counts alone: pass@k, cons@k, bootstrap intervals, paired tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
MAX_DRAWN_AT_ONCE = 2**20  # indices of a bootstrap, 8 MB
MAX_EXACT_TOTAL = 1_000_000  # of a sign-flip test's table, in steps of the common unit: some 10 ms a problem
NUM_FLIPS = 20_000
MAX_EXACT_VOTES = 128  # of a problem; the exact count takes some 50 ms for so many


class Vote(NamedTuple):
    """One judged sample as the majority vote sees it."""

    answer: str | None
    """None: no answer could be read, so that the sample has no vote."""
    is_correct: bool


class PairedTest(NamedTuple):
    """A two-sided test that neither of two models is better on the problems they share."""

    p_value: float
    name: str
    """How it was computed, for people to read."""


def bootstrap_interval(
    values_N: Sequence[float] | npt.NDArray[np.float64],
    *,
    seed: int = 0,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> tuple[float, float]:
    """95 % interval of the mean of N values in [lowest, highest]: percentile bootstrap, 2,000 resamples.

    One value stands for one problem, so that the samples of a problem, which resemble each other, are drawn together.

    Where all values are equal, a bootstrap would claim certainty (0 of 20 right: "0 to 0 %"). Then the interval is
    what N draws can exclude: with probability 0.95 (two-sided) at most q = 1 - 0.025^(1/N) of all problems differ.
    For shares of 0 or 1 that is the exact Clopper-Pearson bound.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if np.ptp(values) == 0.0:
        share_elsewhere = 1.0 - 0.025 ** (1.0 / len(values))
        value = float(values[0])
        return value - share_elsewhere * (value - lowest), value + share_elsewhere * (highest - value)
    generator = np.random.default_rng(seed)
    num_rows = max(1, MAX_DRAWN_AT_ONCE // len(values))
    means = []
    for start in range(0, NUM_RESAMPLES, num_rows):
        shape = (min(num_rows, NUM_RESAMPLES - start), len(values))
        means.append(values[generator.integers(len(values), size=shape)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def pass_at_k(num_samples: int, *, num_correct: int, k: int) -> float:
    """Chance that at least one of k <= num_samples completions drawn without replacement is right.

    Source: Chen et al. 2021 (arXiv:2107.03374) §2.1, 1 - C(n-c, k) / C(n, k), in exact integers.
    """
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def consensus_at_k(votes: Sequence[Vote], *, k: int) -> float:
    """Chance that the most frequent answer of k of these samples, drawn without replacement, is right.

    The exact expectation over every choice of k, or above 128 samples a seeded estimate of it from 2,000 choices. Tied
    answers share the win equally. With fewer than k samples all of them vote. 0 without any vote.
    """
    num_voters: Counter[str] = Counter(vote.answer for vote in votes if vote.answer is not None)
    num_right: Counter[str] = Counter(vote.answer for vote in votes if vote.answer is not None and vote.is_correct)
    ballots = tuple(sorted((count, num_right[answer] / count) for answer, count in num_voters.items()))
    if not any(worth for _, worth in ballots):
        return 0.0
    num_silent = len(votes) - sum(count for count, _ in ballots)
    if k >= len(votes):
        return _mean_worth([count for count, _ in ballots], ballots)
    if len(votes) <= MAX_EXACT_VOTES:
        return _expected_wins(ballots, num_silent)[k]
    colors = [*(count for count, _ in ballots), num_silent]
    drawn = np.random.default_rng(k).multivariate_hypergeometric(colors, k, size=NUM_RESAMPLES, method="marginals")
    return sum(_mean_worth(counts[:-1], ballots) for counts in drawn.tolist()) / NUM_RESAMPLES


def _mean_worth(counts: Sequence[int], ballots: Sequence[tuple[int, float]]) -> float:
    """Worth of the answers with the most votes, of those with this many votes each; 0 when nobody voted."""
    most = max(counts)
    winners = [worth for count, (_, worth) in zip(counts, ballots, strict=True) if count == most > 0]
    return sum(winners) / len(winners) if winners else 0.0


@lru_cache(maxsize=4096)  # problems of few samples have few different outcomes
def _expected_wins(ballots: tuple[tuple[int, float], ...], num_silent: int) -> tuple[float, ...]:
    """Expected worth of the winner among k drawn samples, for k from 0 to all.

    Sums over the winner's number of votes w. For each, a product over the answers of generating functions in x (samples
    drawn) and y (answers that reach w votes) counts the draws in which none has more than w; beside it goes the
    same count weighted with the worth of those that reach w. All terms are positive: nothing cancels in float64.

    Args:
        ballots: for each distinct answer, how many samples gave it and the share of them that is right.
        num_silent: samples without a readable answer.
    """
    num_samples = sum(count for count, _ in ballots) + num_silent
    wins_K = np.zeros(num_samples + 1)
    silent = [math.comb(num_silent, drawn) for drawn in range(num_silent + 1)]
    for w in range(1, max(count for count, _ in ballots) + 1):
        num_reaching = sum(count >= w for count, _ in ballots)
        draws_KT = np.zeros((num_samples + 1, num_reaching + 1))
        worth_KT = np.zeros_like(draws_KT)
        draws_KT[0, 0] = 1.0
        for count, worth in ballots:
            below = [math.comb(count, drawn) for drawn in range(min(w, count + 1))]
            next_draws_KT, next_worth_KT = _shifted(draws_KT, below), _shifted(worth_KT, below)
            if count >= w:
                reaching = math.comb(count, w)
                next_draws_KT[w:, 1:] += reaching * draws_KT[: num_samples + 1 - w, :-1]
                shared_KT = worth_KT + worth * draws_KT
                next_worth_KT[w:, 1:] += reaching * shared_KT[: num_samples + 1 - w, :-1]
            draws_KT, worth_KT = next_draws_KT, next_worth_KT
        wins_K += _shifted(worth_KT, silent)[:, 1:] @ (1.0 / np.arange(1, num_reaching + 1))
    return tuple(float(wins) / math.comb(num_samples, k) for k, wins in enumerate(wins_K))


def _shifted(table_KT: npt.NDArray[np.float64], weights: Sequence[int]) -> npt.NDArray[np.float64]:
    """Times the polynomial in x with these coefficients."""
    product_KT = np.zeros_like(table_KT)
    for power, weight in enumerate(weights):
        product_KT[power:] += weight * table_KT[: len(table_KT) - power]
    return product_KT


def paired_test(pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]], *, seed: int = 0) -> PairedTest:
    """Whether two models differ on the problems that both answered, two-sided.

    Under the hypothesis of no difference the two models may swap places on each problem; the p-value is the share of
    all swaps whose summed difference in shares is at least as far from 0 as the one seen. With one sample a problem
    that is McNemar's exact test (McNemar 1947, Psychometrika 12): the binomial test on the problems that changed.

    Args:
        pairs: for each problem (right, judged) of the one and of the other; judged at least 1.
        seed: of the 20,000 random swaps, drawn only where the exact count would be too long.
    """
    unit = math.lcm(*{of for pair in pairs for _, of in pair})
    differences = [right_b * (unit // of_b) - right_a * (unit // of_a) for (right_a, of_a), (right_b, of_b) in pairs]
    changed = [difference for difference in differences if difference]
    if all(of == 1 for pair in pairs for _, of in pair):
        num_worsened = sum(difference < 0 for difference in changed)
        return PairedTest(mcnemar_p_value(num_worsened, len(changed) - num_worsened), "exact McNemar")
    # Without their common divisor: 4 samples a problem are quarters, whatever else was counted.
    divisor = math.gcd(*changed) if changed else 1
    changed = [difference // divisor for difference in changed]
    if sum(map(abs, changed)) <= MAX_EXACT_TOTAL:
        return PairedTest(sign_flip_p_value(changed), "exact sign flips")
    return PairedTest(_drawn_sign_flips(changed, seed=seed), f"{NUM_FLIPS:,} random sign flips")


def mcnemar_p_value(num_only_first: int, num_only_second: int) -> float:
    """McNemar's exact two-sided test: twice the smaller tail of a fair coin over the problems that one alone solved."""
    num_changed = num_only_first + num_only_second
    tail = sum(math.comb(num_changed, i) for i in range(min(num_only_first, num_only_second) + 1))
    p_value: float = 2 * tail / 2**num_changed
    return min(1.0, p_value)


def sign_flip_p_value(differences: Sequence[int]) -> float:
    """Share of the 2^N sign changes of N differences whose sum is at least as far from 0 as the sum seen, exactly.

    Builds up, one difference after the other, the distribution of the part of the total that has a plus sign.

    Args:
        differences: in whole units; the time grows with N times their total.
    """
    total = sum(map(abs, differences))
    chance_N = np.zeros(total + 1)  # N = sizes of that part, 0 to total
    chance_N[0] = 1.0
    for size in map(abs, differences):
        chance_N[size:] += chance_N[: total + 1 - size].copy()
        chance_N *= 0.5
    is_as_far_N = np.abs(2 * np.arange(total + 1) - total) >= abs(sum(differences))
    return min(1.0, float(chance_N[is_as_far_N].sum()))


def _drawn_sign_flips(differences: Sequence[int], *, seed: int) -> float:
    """The same share among random sign changes; the one seen counts as one of them, so that it is never 0."""
    generator = np.random.default_rng(seed)
    sizes = np.abs(np.asarray(differences, dtype=np.float64))
    seen = abs(float(sum(differences))) * (1.0 - 1e-12)
    num_as_far = 0
    for _ in range(NUM_FLIPS):
        signs = generator.integers(0, 2, size=len(sizes)) * 2.0 - 1.0
        num_as_far += abs(float(sizes @ signs)) >= seen
    return (1 + num_as_far) / (1 + NUM_FLIPS)
