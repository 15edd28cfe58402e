"""The KL term: how far the policy has moved from the reference model, with the gradient that this distance has."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aha.train.losses import bounded_exp, clamp_log

KLEstimator = Literal["k1", "k2", "k3"]


def kl_penalty(
    logprobs_M: Tensor, *, reference_logprobs_M: Tensor, old_logprobs_M: Tensor, estimator: KLEstimator
) -> Tensor:
    """Per-token estimate of KL(policy || reference) whose gradient is that of the KL.

    With l = log policy - log reference and r the differentiable ratio to the policy that sampled (estimators: Schulman,
    "Approximating KL divergence", 2020):

    - k1 = l, unbiased. Its own gradient is 0 in expectation, so l is held fixed and r carries the gradient: what
      subtracting it from each token's reward would give.
    - k2 = l**2 / 2, biased with little variance; its gradient is right as it stands, and r has no part in it.
    - k3 = exp(-l) + l - 1, unbiased and never negative. Its own gradient is that of the forward KL(reference ||
      policy), so it is multiplied by r.

    On policy all three have the gradient l * grad log policy, token by token. l is clamped to 20 either way, where the
    gradient of k2 and k3 ends: a token that is e**20 times likelier under one model says that something is broken.

    Args:
        logprobs_M: log-probabilities now, one per trained token.
        reference_logprobs_M: under the frozen reference; no gradient.
        old_logprobs_M: under the policy that r is taken to; no gradient.
    """
    gap_M = clamp_log(logprobs_M - reference_logprobs_M)
    if estimator == "k2":
        return gap_M.square() / 2
    ratio_M = bounded_exp(logprobs_M - old_logprobs_M)
    if estimator == "k1":
        return gap_M.detach() * ratio_M
    return (torch.exp(-gap_M) + gap_M - 1) * ratio_M
