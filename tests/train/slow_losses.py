"""Every loss once more, as its paper writes it: plain floats, one sequence at a time, gradients worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class SlowSequence:
    """One completion: log-probabilities of its tokens now and before, and its advantage."""

    logprobs: Sequence[float]
    old_logprobs: Sequence[float]
    advantage: float


class Result(NamedTuple):
    loss: float
    gradient: list[float]
    """With respect to each log-probability, in order."""


def slow_loss(
    name: str, sequences: Sequence[SlowSequence], *, clip_low: float, clip_high: float, max_tokens: int
) -> Result:
    num_tokens = sum(len(s.logprobs) for s in sequences)
    loss, gradient = 0.0, []
    for s in sequences:
        length = len(s.logprobs)
        # d/dlogprob of r = exp(logprob - old) is r.
        ratios = [math.exp(new - old) for new, old in zip(s.logprobs, s.old_logprobs, strict=True)]
        if name in ("gspo", "rloo"):
            product = math.prod(ratios)
            ratio = product ** (1 / length) if name == "gspo" else product
            value, slope = _clipped(ratio, s.advantage, clip_low=clip_low, clip_high=clip_high)
            loss += value / len(sequences)
            share = 1 / length if name == "gspo" else 1.0  # d log(ratio) / d logprob
            gradient += [slope * ratio * share / len(sequences)] * length
            continue
        divisor = {
            "grpo": length * len(sequences),
            "dr_grpo": max_tokens * len(sequences),
            "dapo": num_tokens,
            "cispo": num_tokens,
        }[name]
        for ratio, logprob in zip(ratios, s.logprobs, strict=True):
            if name == "cispo":
                weight = min(max(ratio, 1 - clip_low), 1 + clip_high)
                loss -= weight * s.advantage * logprob / divisor
                gradient.append(-weight * s.advantage / divisor)
            else:
                value, slope = _clipped(ratio, s.advantage, clip_low=clip_low, clip_high=clip_high)
                loss += value / divisor
                gradient.append(slope * ratio / divisor)
    return Result(loss, gradient)


def _clipped(ratio: float, advantage: float, *, clip_low: float, clip_high: float) -> tuple[float, float]:
    """-min(A r, A clip(r)), and its derivative with respect to r."""
    if advantage >= 0 and ratio > 1 + clip_high:
        return -advantage * (1 + clip_high), 0.0
    if advantage < 0 and ratio < 1 - clip_low:
        return -advantage * (1 - clip_low), 0.0
    return -advantage * ratio, -advantage
