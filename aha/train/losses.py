"""Policy-gradient losses. Each returns a sum over tokens; the loop divides by one global normaliser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped before exp: e**20 is past every clip, and float32 overflows at e**88."""

KLEstimator = Literal["k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss summed over tokens, with what the metrics need."""

    loss: Tensor
    """Differentiable scalar: the sum over the M tokens."""
    num_clipped_low: int
    """Tokens where clipping at 1 - clip_low stops the gradient."""
    num_clipped_high: int
    """Tokens where clipping at 1 + clip_high stops the gradient."""


def group_advantages(rewards_PG: Tensor, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """Advantage of each completion relative to the other completions of its prompt.

    Source: DeepSeekMath (arXiv:2402.03300), A = (r - mean) / std over the group; "none" leaves the division out
    (Dr.GRPO, arXiv:2503.20783). The standard deviation is the population's (correction 0).

    Args:
        rewards_PG: float32, P prompts x G completions each, in reward units. NaN marks a completion that could not
            be judged: it has no part in its group's statistics and gets advantage 0.

    Returns:
        Advantages (P, G), unitless, mean 0 over the judged completions of each row. A row whose judged rewards are
        equal is all zeros: such a group teaches nothing and the caller may drop it.

    Raises:
        ValueError: if G < 2, since a lone completion has nothing to compare with.
    """
    if rewards_PG.shape[1] < 2:
        raise ValueError(f"group_size must be at least 2, got {rewards_PG.shape[1]}")
    is_judged_PG = ~rewards_PG.isnan()
    count_P1 = is_judged_PG.sum(dim=1, keepdim=True).clamp(min=1)
    known_PG = rewards_PG.nan_to_num(0.0)
    mean_P1 = known_PG.sum(dim=1, keepdim=True) / count_P1
    centred_PG = (known_PG - mean_P1).masked_fill(~is_judged_PG, 0.0)
    advantages_PG = centred_PG
    if scale == "std":
        std_P1 = (centred_PG.square().sum(dim=1, keepdim=True) / count_P1).sqrt()
        advantages_PG = centred_PG / (std_P1 + eps)
    # Compared for equality, not left to eps: twelve rewards of 1.1 have a float std that turns into advantages of 0.1.
    highest_P1 = rewards_PG.nan_to_num(-torch.inf).amax(dim=1, keepdim=True)
    lowest_P1 = rewards_PG.nan_to_num(torch.inf).amin(dim=1, keepdim=True)
    return advantages_PG.masked_fill(highest_P1 <= lowest_P1, 0.0)


def grpo_loss(
    logprobs_M: Tensor, *, old_logprobs_M: Tensor, advantages_M: Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """The clipped surrogate of PPO on group-relative advantages, with its own upper clip.

    Source: GRPO, R1 §2.2.1; clip-higher, DAPO (arXiv:2503.14476) §3.1. loss = -min(A r, A clip(r, 1-low, 1+high)).

    Args:
        logprobs_M: log-probabilities now, one per trained token.
        old_logprobs_M: under the policy that the ratio is taken to; no gradient.
        advantages_M: one per token, the same within a completion.
        clip_low, clip_high: distances from 1; 0.2 and 0.28 in DAPO.
    """
    log_ratio_M = (logprobs_M - old_logprobs_M).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_M = log_ratio_M.exp()
    clipped_M = ratio_M.clamp(1.0 - clip_low, 1.0 + clip_high)
    objective_M = torch.minimum(advantages_M * ratio_M, advantages_M * clipped_M)
    return PolicyLoss(
        loss=-objective_M.sum(),
        num_clipped_low=int(((ratio_M < 1.0 - clip_low) & (advantages_M < 0)).sum()),
        num_clipped_high=int(((ratio_M > 1.0 + clip_high) & (advantages_M > 0)).sum()),
    )


def kl_penalty(
    logprobs_M: Tensor, *, reference_logprobs_M: Tensor, old_logprobs_M: Tensor, estimator: KLEstimator
) -> Tensor:
    """Per-token estimate of KL(policy || reference) whose gradient is that of the KL.

    With l = log policy - log reference (Schulman, "Approximating KL divergence"): k2 = l**2 / 2, whose gradient is
    right as it stands. k3 = exp(-l) + l - 1 is unbiased in value, but its own gradient is that of the forward KL, so
    it is multiplied by the differentiable ratio to the sampling policy, which makes it right on policy.
    """
    gap_M = (logprobs_M - reference_logprobs_M).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k2":
        return gap_M.square() / 2
    ratio_M = (logprobs_M - old_logprobs_M).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return (torch.exp(-gap_M) + gap_M - 1) * ratio_M


LOSSES: dict[str, Callable[..., PolicyLoss]] = {"grpo": grpo_loss}
"""Names that a recipe's `loss` may take."""
