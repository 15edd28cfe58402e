"""Packed batches: sequences laid end to end without padding, with a loss on the completion's tokens only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """A prompt, its completion, and what every completion token weighs in the loss."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The end-of-sequence token included: to stop is an action that is trained too."""
    advantage: float = 1.0
    """Same for each token of the completion; 1 for supervised training."""
    sampled_logprobs: tuple[float, ...] = ()
    """Log-probabilities under the policy that drew the completion; empty for supervised training."""
    old_logprobs: tuple[float, ...] = ()
    """Of the trained tokens, by the trainer before the step's first update; empty when that is the policy now."""
    is_sampled: tuple[bool, ...] = ()
    """Which completion tokens are trained; the others, what a task showed between turns, are context. Empty: all."""

    @property
    def num_trained(self) -> int:
        """Completion tokens that have a loss."""
        return sum(self.is_sampled) if self.is_sampled else len(self.completion_ids)

    def trained(self, values: Sequence[Number]) -> list[Number]:
        """Of one value per completion token, those of the tokens that are trained."""
        return list(itertools.compress(values, self.is_sampled)) if self.is_sampled else list(values)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences without padding; neighbours share the tokens that their prompts begin with in common.

    N counts the tokens computed, M the tokens that are trained: all that were sampled, in order. What a task showed the
    model between its turns is among the N alone, so that no loss, ratio, entropy or mean over M ever sees it.
    """

    token_ids_N: Tensor
    positions_N: Tensor
    lengths: tuple[int, ...]
    """Tokens of each sequence, its prompt included."""
    rows: tuple[Tensor, ...]
    """For each sequence, which of the N rows hold its tokens."""
    predictor_rows_M: Tensor
    """Row among the N that predicts each trained token: the one before it."""
    targets_M: Tensor
    advantages_M: Tensor
    sampled_logprobs_M: Tensor
    """float32; NaN where nothing was sampled."""

    @property
    def documents_per_row(self) -> Tensor:
        """int64: how many sequences each of the N rows belongs to."""
        return torch.bincount(torch.cat(self.rows), minlength=len(self.token_ids_N))


def pack(sequences: Sequence[TrainingSequence]) -> PackedBatch:
    """Lay sequences end to end, what a prompt has in common with the one before it only once.

    Raises:
        ValueError: for an empty prompt or completion, which would leave a token without a predictor or a target, and
            for a mask or log-probabilities that are not one per completion token.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    rows: list[Tensor] = []
    predictors: list[Tensor] = []
    prompt_rows = torch.empty(0, dtype=torch.long)
    previous: TrainingSequence | None = None
    for sequence in sequences:
        _check(sequence)
        num_prompt, num_completion = len(sequence.prompt_ids), len(sequence.completion_ids)
        num_shared = count_shared(previous, sequence)
        new_rows = torch.arange(len(token_ids), len(token_ids) + num_prompt - num_shared)
        prompt_rows = torch.cat((prompt_rows[:num_shared], new_rows))
        token_ids += sequence.prompt_ids[num_shared:]
        positions += range(num_shared, num_prompt)
        completion_rows = torch.arange(len(token_ids), len(token_ids) + num_completion)
        token_ids += sequence.completion_ids
        positions += range(num_prompt, num_prompt + num_completion)
        rows.append(torch.cat((prompt_rows, completion_rows)))
        before = rows[-1][num_prompt - 1 : -1]
        predictors.append(before[torch.tensor(sequence.is_sampled)] if sequence.is_sampled else before)
        previous = sequence
    sampled = [s.sampled_logprobs or (math.nan,) * len(s.completion_ids) for s in sequences]
    return PackedBatch(
        token_ids_N=torch.tensor(token_ids),
        positions_N=torch.tensor(positions),
        lengths=tuple(s.num_tokens for s in sequences),
        rows=tuple(rows),
        predictor_rows_M=torch.cat(predictors),
        targets_M=torch.tensor([token for s in sequences for token in s.trained(s.completion_ids)]),
        advantages_M=torch.tensor([s.advantage for s in sequences for _ in range(s.num_trained)], dtype=torch.float32),
        sampled_logprobs_M=torch.tensor(
            [value for s, values in zip(sequences, sampled, strict=True) for value in s.trained(values)],
            dtype=torch.float32,
        ),
    )


def _check(sequence: TrainingSequence) -> None:
    if not sequence.prompt_ids or not sequence.completion_ids:
        raise ValueError("a training sequence needs at least one prompt token and one completion token")
    num_completion = len(sequence.completion_ids)
    for name, values in (("is_sampled", sequence.is_sampled), ("sampled_logprobs", sequence.sampled_logprobs)):
        if values and len(values) != num_completion:
            raise ValueError(f"{name} has {len(values)} values for {num_completion} completion tokens")
    if not sequence.num_trained:
        raise ValueError("a training sequence needs at least one completion token that was sampled")


def count_shared(previous: TrainingSequence | None, sequence: TrainingSequence) -> int:
    """How many tokens two prompts begin with in common: the whole of it in a group, the instructions elsewhere."""
    if previous is None:
        return 0
    if previous.prompt_ids == sequence.prompt_ids:
        return len(sequence.prompt_ids)
    pairs = zip(previous.prompt_ids, sequence.prompt_ids, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def split_by_tokens(sequences: Sequence[TrainingSequence], *, max_tokens: int) -> list[list[TrainingSequence]]:
    """Micro-batches of at most `max_tokens` computed tokens, in order; a longer sequence stands alone."""
    micro_batches: list[list[TrainingSequence]] = []
    room = 0
    for sequence in sequences:
        previous = micro_batches[-1][-1] if micro_batches else None
        needed = sequence.num_tokens - count_shared(previous, sequence)
        if previous is None or needed > room:
            micro_batches.append([])
            needed, room = sequence.num_tokens, max_tokens
        micro_batches[-1].append(sequence)
        room -= needed
    return micro_batches
