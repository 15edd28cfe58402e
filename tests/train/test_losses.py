"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aha.train.losses import KLEstimator, PolicyLoss, group_advantages, grpo_loss, kl_penalty

NAN = math.nan
POLICY = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
# d KL(policy || reference) / d logit_i = p_i (log(p_i / q_i) - KL), worked out for the two distributions above.
TRUE_KL_GRADIENT = torch.tensor([-0.1575, 0.1311, 0.0264], dtype=torch.float64)


def test_advantages_are_rewards_less_their_mean_over_the_population_deviation() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 4.0, 4.0, 6.0]]))
    # Mean 1/4, deviation sqrt(3)/4; mean 4, deviation sqrt(2).
    expected_PG = torch.tensor([[math.sqrt(3), *[-1 / math.sqrt(3)] * 3], [-math.sqrt(2), 0.0, 0.0, math.sqrt(2)]])
    torch.testing.assert_close(advantages_PG, expected_PG, rtol=1e-5, atol=1e-6)


def test_advantages_without_scale_are_rewards_less_their_mean() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none")
    assert advantages_PG.tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("reward", [0.0, 1.0, 1.1, 0.1, -3.7, 1e8])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_group_with_equal_rewards_gets_exactly_zero_advantage(reward: float, scale: str) -> None:
    for size in (2, 3, 12):
        advantages_PG = group_advantages(torch.full((1, size), reward), scale=scale)  # type: ignore[arg-type]
        assert advantages_PG.tolist() == [[0.0] * size]


def test_unjudged_completion_is_left_out_of_its_group() -> None:
    advantages_PG = group_advantages(torch.tensor([[1.0, NAN, 0.0, NAN], [1.0, NAN, 1.0, 1.0], [NAN] * 4]))
    torch.testing.assert_close(advantages_PG[0], torch.tensor([1.0, 0.0, -1.0, 0.0]), rtol=1e-5, atol=0.0)
    assert advantages_PG[1:].abs().sum() == 0.0


def test_advantages_of_a_row_have_mean_zero_and_deviation_one() -> None:
    rewards_PG = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    advantages_PG = group_advantages(rewards_PG)
    torch.testing.assert_close(advantages_PG.mean(dim=1), torch.zeros(5), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(advantages_PG.std(dim=1, correction=0), torch.ones(5), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("size", [0, 1])
def test_lone_completion_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size must be at least 2, got {size}"):
        group_advantages(torch.zeros(3, size))


def loss_at(ratios: list[float], *, advantages: list[float]) -> tuple[PolicyLoss, Tensor]:
    """GRPO's loss at given ratios to the old policy, and its gradient with respect to the log-probabilities."""
    old_M = torch.tensor([-1.5] * len(ratios), dtype=torch.float64)
    logprobs_M = (old_M + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    result = grpo_loss(
        logprobs_M,
        old_logprobs_M=old_M,
        advantages_M=torch.tensor(advantages, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.28,
    )
    (gradient_M,) = torch.autograd.grad(result.loss, logprobs_M)
    return result, gradient_M


def test_loss_on_policy_is_minus_the_advantages_with_the_policy_gradient() -> None:
    result, gradient_M = loss_at([1.0, 1.0, 1.0], advantages=[2.0, -0.5, 0.0])
    assert result.loss.item() == pytest.approx(-1.5, abs=1e-12)
    # d (-A r) / d logprob = -A r, and r = 1 exactly.
    assert gradient_M.tolist() == [-2.0, 0.5, 0.0]
    assert (result.num_clipped_low, result.num_clipped_high) == (0, 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 2.0, -2.56, 0.0, (0, 1)),  # good and already likelier by more than 0.28: -A (1 + high)
        (1.5, -2.0, 3.0, 3.0, (0, 0)),  # bad and likelier: never clipped, -A r
        (0.5, 2.0, -1.0, -1.0, (0, 0)),  # good and rarer: never clipped, -A r
        (0.5, -2.0, 1.6, 0.0, (1, 0)),  # bad and already rarer by more than 0.2: -A (1 - low)
        (1.25, 2.0, -2.5, -2.5, (0, 0)),  # within clip-higher, though past 0.2
        (0.85, -2.0, 1.7, 1.7, (0, 0)),
    ],
)
def test_loss_clips_only_where_the_ratio_already_moved_the_right_way(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: tuple[int, int]
) -> None:
    result, gradient_M = loss_at([ratio], advantages=[advantage])
    assert result.loss.item() == pytest.approx(loss, rel=1e-12)
    assert gradient_M.item() == pytest.approx(gradient, rel=1e-12)
    assert (result.num_clipped_low, result.num_clipped_high) == clipped


def test_loss_stays_finite_for_ratios_that_overflow() -> None:
    for gap in (-500.0, 500.0):
        logprobs_M = torch.tensor([gap]).requires_grad_()
        result = grpo_loss(
            logprobs_M,
            old_logprobs_M=torch.zeros(1),
            advantages_M=torch.tensor([-1.0]),
            clip_low=0.2,
            clip_high=0.28,
        )
        result.loss.backward()
        assert result.loss.isfinite()
        assert logprobs_M.grad is not None
        assert logprobs_M.grad.isfinite().all()


def expected_gradient(estimator: KLEstimator) -> Tensor:
    """Expectation over the policy of the estimator's gradient with respect to the policy's three logits."""
    logits = POLICY.log().requires_grad_()
    logprobs = logits.log_softmax(dim=-1)
    penalties = kl_penalty(
        logprobs, reference_logprobs_M=REFERENCE.log(), old_logprobs_M=POLICY.log(), estimator=estimator
    )
    # The tokens are drawn, so their probabilities carry no gradient.
    (gradient,) = torch.autograd.grad((POLICY * penalties).sum(), logits)
    return gradient


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_penalty_has_the_gradient_of_the_kl_divergence(estimator: KLEstimator) -> None:
    torch.testing.assert_close(expected_gradient(estimator), TRUE_KL_GRADIENT, rtol=0.0, atol=5e-5)


def test_kl_gradient_by_hand_is_that_of_the_exact_divergence() -> None:
    logits = POLICY.log().requires_grad_()
    logprobs = logits.log_softmax(dim=-1)
    divergence = (logprobs.exp() * (logprobs - REFERENCE.log())).sum()
    (gradient,) = torch.autograd.grad(divergence, logits)
    torch.testing.assert_close(gradient, TRUE_KL_GRADIENT, rtol=0.0, atol=5e-5)


def test_plain_k3_would_have_another_gradient() -> None:
    # What the ratio in kl_penalty is for: without it the gradient is that of the forward KL, policy - reference.
    logits = POLICY.log().requires_grad_()
    gap = logits.log_softmax(dim=-1) - REFERENCE.log()
    (gradient,) = torch.autograd.grad((POLICY * ((-gap).exp() + gap - 1)).sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([-0.2, 0.15, 0.05], dtype=torch.float64))


def test_k3_is_unbiased_and_never_negative_and_both_vanish_at_the_reference() -> None:
    arguments = {"reference_logprobs_M": REFERENCE.log(), "old_logprobs_M": POLICY.log()}
    k3 = kl_penalty(POLICY.log(), estimator="k3", **arguments)
    assert (k3 >= 0).all()
    exact = (POLICY * (POLICY / REFERENCE).log()).sum()
    torch.testing.assert_close((POLICY * k3).sum(), exact)
    for estimator in ("k2", "k3"):
        arguments = {"reference_logprobs_M": POLICY.log(), "old_logprobs_M": POLICY.log()}
        assert kl_penalty(POLICY.log(), estimator=estimator, **arguments).abs().sum() == 0.0  # type: ignore[arg-type]


def test_loss_equals_the_plain_formula_on_random_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    old_M, new_M, advantages_M = (torch.randn(50, generator=generator) * scale for scale in (1.0, 0.3, 1.0))
    logprobs_M = old_M + new_M
    ratio_M = torch.exp(logprobs_M - old_M)
    slow = -torch.min(ratio_M * advantages_M, torch.clamp(ratio_M, 1 - 0.2, 1 + 0.28) * advantages_M).sum()
    result = grpo_loss(logprobs_M, old_logprobs_M=old_M, advantages_M=advantages_M, clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(result.loss, slow)
    assert result.num_clipped_low == int(((ratio_M < 0.8) & (advantages_M < 0)).sum())
    assert result.num_clipped_high == int(((ratio_M > 1.28) & (advantages_M > 0)).sum())
