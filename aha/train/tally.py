"""What an update did, counted while its gradients are accumulated."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aha.train.importance import mismatch_kl, sampler_ratio
from aha.train.losses import Loss, PolicyTokens

TOKEN_MEANS = (
    "entropy",
    "kl",
    "clip_low_fraction",
    "clip_high_fraction",
    "ratio_low_positive_fraction",
    "ratio_high_negative_fraction",
    "sampler_gap",
    "mismatch_kl",
    "importance_mean",
    "importance_capped_fraction",
)
"""Metrics of an update that are means over its trained tokens, whatever its loss averages over."""
STEP_MEANS = ("loss", "grad_norm", "staleness", *TOKEN_MEANS)
"""Metrics of a step that are means over its updates."""


class UpdateTally:
    """Sums over the micro-batches of an update, so that its metrics do not depend on the split either."""

    def __init__(self, loss: Loss, *, importance_cap: float) -> None:
        self._loss = loss
        self._cap = importance_cap
        self._num_tokens = 0
        self._sums = dict.fromkeys(TOKEN_MEANS, 0.0)
        self._importance_max = 0.0

    def add(
        self, tokens: PolicyTokens, *, ratio_M: Tensor, sampled_logprobs_M: Tensor, entropy_M: Tensor, kl_M: Tensor
    ) -> None:
        """Count a micro-batch.

        Args:
            ratio_M: what clipping looked at.
            sampled_logprobs_M: as the sampler reported them.
        """
        is_low_M = ratio_M < 1.0 - self._loss.clip_low
        is_high_M = ratio_M > 1.0 + self._loss.clip_high
        is_good_M, is_bad_M = tokens.advantages_M > 0, tokens.advantages_M < 0
        importance_M = sampler_ratio(tokens.old_logprobs_M, sampled_logprobs_M=sampled_logprobs_M)
        values = {
            "entropy": entropy_M,
            "kl": kl_M,
            "clip_low_fraction": is_low_M & is_bad_M,
            "clip_high_fraction": is_high_M & is_good_M,
            "ratio_low_positive_fraction": is_low_M & is_good_M,
            "ratio_high_negative_fraction": is_high_M & is_bad_M,
            "sampler_gap": (tokens.old_logprobs_M.exp() - sampled_logprobs_M.exp()).abs(),
            "mismatch_kl": mismatch_kl(tokens.old_logprobs_M, sampled_logprobs_M=sampled_logprobs_M),
            "importance_mean": importance_M,
            "importance_capped_fraction": importance_M > (self._cap or float("inf")),
        }
        self._num_tokens += len(ratio_M)
        # Fetched together: on a GPU each fetch waits for all that was asked of it before.
        sums = torch.stack([value_M.sum().double() for value_M in values.values()]).tolist()
        for name, value in zip(values, sums, strict=True):
            self._sums[name] += value
        self._importance_max = max(self._importance_max, importance_M.max().item())

    def metrics(self) -> dict[str, float]:
        """The update's metrics so far."""
        means = {name: total / max(self._num_tokens, 1) for name, total in self._sums.items()}
        return {**means, "importance_max": self._importance_max}


def merge(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the updates of a step, and the largest maximum.

    A step without updates has no gradient and no loss; what there would be to measure on its tokens is not known.
    """
    if not updates:
        known = dict.fromkeys(("loss", "grad_norm", "kl", "clip_low_fraction", "clip_high_fraction"), 0.0)
        return {**dict.fromkeys((*STEP_MEANS, "importance_max"), float("nan")), **known, "is_skipped": False}
    merged = {name: statistics.fmean(update[name] for update in updates) for name in STEP_MEANS}
    merged["importance_max"] = max(update["importance_max"] for update in updates)
    return {**merged, "is_skipped": any(update["is_skipped"] for update in updates)}
