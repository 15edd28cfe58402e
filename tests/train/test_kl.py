"""The KL term's gradient, in exact expectation over three tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aha.train.kl import KLEstimator, kl_penalty

POLICY = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
# d KL(policy || reference) / d logit_i = p_i (log(p_i / q_i) - KL), worked out for the two distributions above.
TRUE_KL_GRADIENT = torch.tensor([-0.1575, 0.1311, 0.0264], dtype=torch.float64)
ESTIMATORS: tuple[KLEstimator, ...] = ("k1", "k2", "k3")


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


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_penalty_has_the_gradient_of_the_kl_divergence(estimator: KLEstimator) -> None:
    torch.testing.assert_close(expected_gradient(estimator), TRUE_KL_GRADIENT, rtol=0.0, atol=5e-5)


def test_kl_gradient_by_hand_is_that_of_the_exact_divergence() -> None:
    logits = POLICY.log().requires_grad_()
    logprobs = logits.log_softmax(dim=-1)
    divergence = (logprobs.exp() * (logprobs - REFERENCE.log())).sum()
    (gradient,) = torch.autograd.grad(divergence, logits)
    torch.testing.assert_close(gradient, TRUE_KL_GRADIENT, rtol=0.0, atol=5e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_on_policy_every_estimator_pulls_each_token_by_its_log_ratio(estimator: KLEstimator) -> None:
    logprobs = POLICY.log().requires_grad_()
    penalties = kl_penalty(
        logprobs, reference_logprobs_M=REFERENCE.log(), old_logprobs_M=POLICY.log(), estimator=estimator
    )
    (gradient,) = torch.autograd.grad(penalties.sum(), logprobs)
    torch.testing.assert_close(gradient, (POLICY / REFERENCE).log())


def test_plain_k1_and_k3_would_have_other_gradients() -> None:
    # What the ratio in kl_penalty is for: without it k1's gradient is 0, and k3's that of the forward KL.
    for plain, wrong in (
        (lambda gap: gap, torch.zeros(3, dtype=torch.float64)),
        (lambda gap: (-gap).exp() + gap - 1, POLICY - REFERENCE),
    ):
        logits = POLICY.log().requires_grad_()
        gap = logits.log_softmax(dim=-1) - REFERENCE.log()
        (gradient,) = torch.autograd.grad((POLICY * plain(gap)).sum(), logits)
        torch.testing.assert_close(gradient, wrong)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    exact = (POLICY * (POLICY / REFERENCE).log()).sum()
    arguments = {"reference_logprobs_M": REFERENCE.log(), "old_logprobs_M": POLICY.log()}
    k1 = kl_penalty(POLICY.log(), estimator="k1", **arguments)
    k3 = kl_penalty(POLICY.log(), estimator="k3", **arguments)
    torch.testing.assert_close((POLICY * k1).sum(), exact)
    torch.testing.assert_close((POLICY * k3).sum(), exact)
    assert (k3 >= 0).all()
    # By hand: log 0.5 = -0.6931; 0.6931**2 / 2 = 0.2402; 1 / 0.5 - 0.6931 - 1 = 0.3069.
    k2 = kl_penalty(POLICY.log(), estimator="k2", **arguments)
    assert [k[0].item() for k in (k1, k2, k3)] == pytest.approx([-0.6931, 0.2402, 0.3069], abs=5e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_penalty_vanishes_at_the_reference(estimator: KLEstimator) -> None:
    arguments = {"reference_logprobs_M": POLICY.log(), "old_logprobs_M": POLICY.log()}
    assert kl_penalty(POLICY.log(), estimator=estimator, **arguments).abs().sum() == 0.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_penalty_stays_finite_where_one_model_excludes_a_token(estimator: KLEstimator) -> None:
    logprobs_M = torch.tensor([-0.1, -300.0]).requires_grad_()
    penalties = kl_penalty(
        logprobs_M,
        reference_logprobs_M=torch.tensor([-300.0, -0.1]),
        old_logprobs_M=logprobs_M.detach(),
        estimator=estimator,
    )
    penalties.sum().backward()
    assert penalties.isfinite().all()
    assert logprobs_M.grad is not None
    assert logprobs_M.grad.isfinite().all()
