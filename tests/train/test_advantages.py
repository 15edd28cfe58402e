"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.train.advantages import AdvantageScale, group_advantages

NAN = math.nan
SCALES: tuple[AdvantageScale, ...] = ("std", "none", "leave_one_out")


def test_advantages_are_rewards_less_their_mean_over_the_population_deviation() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 4.0, 4.0, 6.0]]))
    # Mean 1/4, deviation sqrt(3)/4; mean 4, deviation sqrt(2).
    expected_PG = torch.tensor([[math.sqrt(3), *[-1 / math.sqrt(3)] * 3], [-math.sqrt(2), 0.0, 0.0, math.sqrt(2)]])
    torch.testing.assert_close(advantages_PG, expected_PG, rtol=1e-5, atol=1e-6)


def test_advantages_without_scale_are_rewards_less_their_mean() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none")
    assert advantages_PG.tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_leave_one_out_is_each_reward_less_the_mean_of_the_others() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, NAN, 2.0]]), scale="leave_one_out")
    # 1 - 0 and 0 - 1/3; then 3 - 1.5, 1 - 2.5 and 2 - 2 among the three that were judged.
    expected_PG = torch.tensor([[1.0, *[-1 / 3] * 3], [1.5, -1.5, 0.0, 0.0]])
    torch.testing.assert_close(advantages_PG, expected_PG)


@pytest.mark.parametrize("reward", [0.0, 1.0, 1.1, 0.1, -3.7, 1e8])
@pytest.mark.parametrize("scale", SCALES)
def test_group_with_equal_rewards_gets_exactly_zero_advantage(reward: float, scale: AdvantageScale) -> None:
    for size in (2, 3, 12):
        advantages_PG = group_advantages(torch.full((1, size), reward), scale=scale)
        assert advantages_PG.tolist() == [[0.0] * size]


def test_unjudged_completion_is_left_out_of_its_group() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, NAN, 0.0, NAN], [1.0, NAN, 1.0, 1.0], [NAN] * 4]))
    torch.testing.assert_close(advantages_PG[0], torch.tensor([1.0, 0.0, -1.0, 0.0]), rtol=1e-5, atol=0.0)
    assert advantages_PG[1:].abs().sum() == 0.0


@pytest.mark.parametrize("scale", SCALES)
def test_lone_judged_completion_teaches_nothing(scale: AdvantageScale) -> None:
    assert group_advantages(torch.tensor([[5.0, NAN, NAN]]), scale=scale).tolist() == [[0.0, 0.0, 0.0]]


def test_advantages_of_a_row_have_mean_zero_and_deviation_one() -> None:
    rewards_PG = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    advantages_PG = group_advantages(rewards_PG)
    torch.testing.assert_close(advantages_PG.mean(dim=1), torch.zeros(5), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(advantages_PG.std(dim=1, correction=0), torch.ones(5), rtol=1e-4, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(rewards=st.lists(st.one_of(st.just(NAN), st.integers(-8, 8).map(lambda n: n / 4)), min_size=2, max_size=9))
def test_advantages_are_those_of_the_plain_formulas(rewards: list[float]) -> None:
    known = [reward for reward in rewards if reward == reward]
    for scale in SCALES:
        found = group_advantages(torch.tensor([rewards], dtype=torch.float64), scale=scale)[0].tolist()
        for reward, advantage in zip(rewards, found, strict=True):
            if reward != reward or len(set(known)) < 2:
                assert advantage == 0.0
                continue
            others = (sum(known) - reward) / (len(known) - 1)
            expected = {
                "std": (reward - statistics.fmean(known)) / (statistics.pstdev(known) + 1e-6),
                "none": reward - statistics.fmean(known),
                "leave_one_out": reward - others,
            }[scale]
            assert advantage == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [0, 1])
def test_lone_completion_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size must be at least 2, got {size}"):
        group_advantages(torch.zeros(3, size))
