"""Policy-gradient losses: what a token costs, how tokens are averaged, and what each paper set.

All of them are sums over tokens, divided by one normaliser that is known before the first micro-batch. So the gradient
of an update depends neither on how it is split nor on the order of its sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from aha.train.advantages import AdvantageScale

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped before exp: e**20 is past every clip, and float32 overflows at e**88."""

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """What a loss looks at: the M trained tokens of whole sequences, one sequence after the other."""

    logprobs_M: Tensor
    """Log-probabilities now; differentiable."""
    old_logprobs_M: Tensor
    """Under the policy that the ratio is taken to; no gradient."""
    advantages_M: Tensor
    """The same within a sequence."""
    lengths: Sequence[int]
    """Trained tokens of each sequence; they add up to M."""

    def mean_of_sequence(self, values_M: Tensor) -> Tensor:
        """Mean over each sequence, one number a sequence."""
        return self.sum_of_sequence(values_M) / torch.tensor(self.lengths, device=values_M.device)

    def sum_of_sequence(self, values_M: Tensor) -> Tensor:
        """Sum over each sequence, one number a sequence."""
        return torch.stack([part.sum() for part in values_M.split(list(self.lengths))])

    def spread(self, values_B: Tensor) -> Tensor:
        """A sequence's number for each of its tokens."""
        return values_B.repeat_interleave(torch.tensor(self.lengths, device=values_B.device))


@dataclass(frozen=True, kw_only=True)
class TokenLosses:
    """What each token costs, before any averaging."""

    losses_M: Tensor
    """Differentiable."""
    ratio_M: Tensor
    """Probability now over the old one that clipping looks at, of the token or its sequence; no gradient."""


class LossFunction(Protocol):
    """One of the four losses below."""

    def __call__(self, tokens: PolicyTokens, *, clip_low: float, clip_high: float) -> TokenLosses: ...


def clipped_loss(tokens: PolicyTokens, *, clip_low: float, clip_high: float) -> TokenLosses:
    """The clipped surrogate of PPO: loss = -min(A r, A clip(r, 1 - low, 1 + high)), r the ratio of each token.

    Source: GRPO, DeepSeekMath (arXiv:2402.03300) §4.1.1, R1 §2.2.1; an upper clip of its own, DAPO (arXiv:2503.14476)
    §3.1; Dr.GRPO (arXiv:2503.20783). The three differ in how tokens are averaged and advantages scaled: see LOSSES.

    Args:
        clip_low, clip_high: distances from 1.
    """
    ratio_M = bounded_exp(tokens.logprobs_M - tokens.old_logprobs_M)
    objective_M = clipped_objective(ratio_M, advantages=tokens.advantages_M, clip_low=clip_low, clip_high=clip_high)
    return TokenLosses(losses_M=-objective_M, ratio_M=ratio_M.detach())


def gspo_loss(tokens: PolicyTokens, *, clip_low: float, clip_high: float) -> TokenLosses:
    """The clipped surrogate with one ratio a sequence: the geometric mean of its tokens' ratios.

    Source: GSPO (arXiv:2507.18071) §4.1, s = (policy(y|x) / old(y|x)) ** (1 / |y|). Each token carries its sequence's
    loss, so that "sequence_mean" gives the paper's mean over sequences. Ratios of sequences vary little: clips are
    thousandths.
    """
    log_ratio_B = tokens.mean_of_sequence(tokens.logprobs_M - tokens.old_logprobs_M)
    ratio_M = tokens.spread(bounded_exp(log_ratio_B))
    objective_M = clipped_objective(ratio_M, advantages=tokens.advantages_M, clip_low=clip_low, clip_high=clip_high)
    return TokenLosses(losses_M=-objective_M, ratio_M=ratio_M.detach())


def cispo_loss(tokens: PolicyTokens, *, clip_low: float, clip_high: float) -> TokenLosses:
    """REINFORCE weighted by the clipped ratio, held fixed: loss = -clip(r, 1 - low, 1 + high) A log policy.

    Source: CISPO, MiniMax-M1 (arXiv:2506.13585) §3.1. Clipping bounds a token's weight and never silences it. The
    clips are distances from 1 as in the paper, whose lower one is off: clip_low = 1. TRL's `epsilon_high` is the
    largest weight itself: its 5.0 is clip_high = 4 here.
    """
    ratio_M = bounded_exp(tokens.logprobs_M - tokens.old_logprobs_M).detach()
    weights_M = ratio_M.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLosses(losses_M=-weights_M * tokens.advantages_M * tokens.logprobs_M, ratio_M=ratio_M)


def rloo_loss(tokens: PolicyTokens, *, clip_low: float, clip_high: float) -> TokenLosses:
    """REINFORCE with the whole completion as one action: loss = -min(A R, A clip(R)), R the ratio of the sequence.

    Source: RLOO (arXiv:2402.14740); on policy its gradient is -A grad log policy(y|x), the sum over the tokens.
    The clip is for further updates on the same samples, as in TRL. Each token carries its sequence's loss, so that
    "sequence_mean" gives the paper's mean over sequences.
    """
    log_ratio_B = tokens.sum_of_sequence(tokens.logprobs_M - tokens.old_logprobs_M)
    ratio_M = tokens.spread(bounded_exp(log_ratio_B))
    objective_M = clipped_objective(ratio_M, advantages=tokens.advantages_M, clip_low=clip_low, clip_high=clip_high)
    return TokenLosses(losses_M=-objective_M, ratio_M=ratio_M.detach())


def clipped_objective(ratio_M: Tensor, *, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(A r, A clip(r, 1 - low, 1 + high)): no reward for going on where the ratio already moved the right way."""
    clipped_M = ratio_M.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(advantages * ratio_M, advantages * clipped_M)


def clamp_log(log_ratio: Tensor) -> Tensor:
    """A log ratio within MAX_LOG_RATIO of 0; beyond, its gradient is 0."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """The ratio of a log ratio, finite whatever it is."""
    return clamp_log(log_ratio).exp()


@dataclass(frozen=True, kw_only=True)
class UpdateSize:
    """How much one update trains, over all its micro-batches: what means are taken over."""

    num_tokens: int
    num_sequences: int
    """Those that are trained: groups that teach nothing and masked completions are in no mean."""
    max_tokens: int
    """Most tokens of a completion, the same for each update of a run."""

    def normaliser(self, aggregation: Aggregation) -> int:
        """What the sum over the update's tokens is divided by."""
        sizes = {
            "token_mean": self.num_tokens,
            "sequence_mean": self.num_sequences,
            "constant": self.num_sequences * self.max_tokens,
        }
        return sizes[aggregation]


def sum_tokens(values_M: Tensor, *, tokens: PolicyTokens, aggregation: Aggregation) -> Tensor:
    """The sum that `UpdateSize.normaliser` makes a mean of: sums of micro-batches add up to that of the update.

    "token_mean" weighs every token alike. "sequence_mean" weighs every sequence alike, so that a token of a long one
    counts less. "constant" weighs every token alike, and a sequence by its tokens.
    """
    return tokens.mean_of_sequence(values_M).sum() if aggregation == "sequence_mean" else values_M.sum()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A published loss: what a token costs, and all that makes it that paper's."""

    token_losses: LossFunction
    aggregation: Aggregation
    advantage_scale: AdvantageScale
    clip_low: float
    clip_high: float


LOSSES: dict[str, Loss] = {
    # DeepSeekMath §4.1.1: the mean over sequences of each one's token mean. No clip is given there: PPO's.
    "grpo": Loss(
        token_losses=clipped_loss,
        aggregation="sequence_mean",
        advantage_scale="std",
        clip_low=0.2,
        clip_high=0.2,
    ),
    # Without GRPO's two biases: long wrong answers cost less a token, easy and hard questions weigh more.
    "dr_grpo": Loss(
        token_losses=clipped_loss,
        aggregation="constant",
        advantage_scale="none",
        clip_low=0.2,
        clip_high=0.2,
    ),
    # Clip-higher and the token mean. Its dynamic sampling is refill_budget with filter_groups = "accuracy"; its
    # overlong filtering is truncated = "mask".
    "dapo": Loss(
        token_losses=clipped_loss,
        aggregation="token_mean",
        advantage_scale="std",
        clip_low=0.2,
        clip_high=0.28,
    ),
    # Clips: GSPO §5.1.
    "gspo": Loss(
        token_losses=gspo_loss,
        aggregation="sequence_mean",
        advantage_scale="std",
        clip_low=3e-4,
        clip_high=4e-4,
    ),
    # No lower clip: MiniMax-M1 §3.1, which names no upper one. A largest weight of 5: ScaleRL (arXiv:2510.13786).
    "cispo": Loss(
        token_losses=cispo_loss,
        aggregation="token_mean",
        advantage_scale="std",
        clip_low=1.0,
        clip_high=4.0,
    ),
    "rloo": Loss(
        token_losses=rloo_loss,
        aggregation="sequence_mean",
        advantage_scale="leave_one_out",
        clip_low=0.2,
        clip_high=0.2,
    ),
}
"""Names that a recipe's `loss` may take; GRPOConfig may set its clips, aggregation and advantage_scale anew."""
