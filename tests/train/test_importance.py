"""Truncated importance sampling, by hand and in exact expectation."""

from __future__ import annotations

import math

import pytest
import torch

from aha.train.importance import mismatch_kl, sampler_ratio, truncated_weights


def test_weights_are_the_ratio_of_trainer_to_sampler_up_to_the_cap() -> None:
    sampled_M = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64).log()
    trained_M = torch.tensor([0.1, 0.5, 0.4], dtype=torch.float64).log()
    ratio_M = sampler_ratio(trained_M, sampled_logprobs_M=sampled_M)
    assert ratio_M.tolist() == pytest.approx([0.5, 1.0, 4.0])
    assert truncated_weights(ratio_M, cap=2.0).tolist() == pytest.approx([0.5, 1.0, 2.0])


def test_weights_carry_no_gradient() -> None:
    trained_M = torch.zeros(2, requires_grad=True)
    assert not sampler_ratio(trained_M, sampled_logprobs_M=torch.ones(2)).requires_grad
    assert not mismatch_kl(trained_M, sampled_logprobs_M=torch.ones(2)).requires_grad


def test_weighted_gradient_of_another_sampler_is_the_trainer_s_own_in_expectation() -> None:
    """Over three tokens drawn by the sampler: sum of mu x (pi / mu) x A grad log pi = sum of pi x A grad log pi."""
    trainer = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    sampler = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

    def expectation(weights: torch.Tensor) -> torch.Tensor:
        logits = trainer.log().requires_grad_()
        losses = -advantages * logits.log_softmax(dim=-1)
        (gradient,) = torch.autograd.grad((sampler * weights * losses).sum(), logits)
        return gradient

    ratio = sampler_ratio(trainer.log(), sampled_logprobs_M=sampler.log())
    own = expectation(trainer / sampler)
    torch.testing.assert_close(expectation(truncated_weights(ratio, cap=2.0)), own)
    assert (expectation(torch.ones(3, dtype=torch.float64)) - own).abs().max() > 0.05


def test_mismatch_is_the_divergence_of_the_sampler_from_the_trainer() -> None:
    trainer = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    sampler = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    per_token = mismatch_kl(trainer.log(), sampled_logprobs_M=sampler.log())
    assert (per_token >= 0).all()
    torch.testing.assert_close((sampler * per_token).sum(), (sampler * (sampler / trainer).log()).sum())
    assert mismatch_kl(trainer.log(), sampled_logprobs_M=trainer.log()).sum() == 0.0


def test_ratio_stays_finite_where_the_sampler_took_what_the_trainer_excludes() -> None:
    ratio_M = sampler_ratio(torch.tensor([-300.0, -0.1]), sampled_logprobs_M=torch.tensor([-0.1, -300.0]))
    assert ratio_M.isfinite().all()
    assert ratio_M.tolist() == pytest.approx([math.exp(-20.0), math.exp(20.0)])
