"""Truncated importance sampling: what the trainer owes to a sampler whose probabilities are not quite its own."""

from __future__ import annotations

from torch import Tensor

from aha.train.losses import bounded_exp, clamp_log


def sampler_ratio(old_logprobs_M: Tensor, *, sampled_logprobs_M: Tensor) -> Tensor:
    """Probability of each token in the trainer before the step's first update over that in the sampler; no gradient."""
    return bounded_exp(old_logprobs_M.detach() - sampled_logprobs_M)


def truncated_weights(ratio_M: Tensor, *, cap: float) -> Tensor:
    """What each token's policy loss is multiplied by: its sampler ratio, at most `cap`.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025). Token by
    token: the product over a sequence grows with its length, so that a cap on it would drop long answers first.

    Args:
        ratio_M: from `sampler_ratio`.
        cap: bounds the variance, 2 in the source; weights below 1 are left as they are.
    """
    return ratio_M.clamp(max=cap)


def mismatch_kl(old_logprobs_M: Tensor, *, sampled_logprobs_M: Tensor) -> Tensor:
    """Per-token k3 estimate of KL(sampler || trainer), in nats: never negative, 0 where the two agree."""
    gap_M = clamp_log(old_logprobs_M.detach() - sampled_logprobs_M)
    return gap_M.exp() - gap_M - 1
