"""Packing: nothing padded, shared beginnings once, every completion token predicted by the row before it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from aha.train.batches import PackedBatch, TrainingSequence, count_shared, pack, split_by_tokens


def sequence(prompt: list[int], completion: list[int], *, advantage: float = 1.0) -> TrainingSequence:
    return TrainingSequence(tuple(prompt), tuple(completion), advantage)


def documents(batch: PackedBatch) -> list[list[int]]:
    """The sequences as the attention sees them: the tokens of their rows."""
    return [batch.token_ids_N[rows].tolist() for rows in batch.rows]


def test_completion_tokens_are_predicted_by_the_row_before_them() -> None:
    batch = pack([sequence([10, 11], [12, 4])])
    assert batch.token_ids_N.tolist() == [10, 11, 12, 4]
    assert batch.positions_N.tolist() == [0, 1, 2, 3]
    # The last prompt token predicts the first completion token; the end-of-sequence token 4 is a target too.
    assert batch.predictor_rows_M.tolist() == [1, 2]
    assert batch.targets_M.tolist() == [12, 4]


def test_completions_of_one_prompt_share_its_rows() -> None:
    batch = pack([sequence([7, 8, 9], [1, 4]), sequence([7, 8, 9], [2, 3, 4])])
    assert batch.token_ids_N.tolist() == [7, 8, 9, 1, 4, 2, 3, 4]
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert documents(batch) == [[7, 8, 9, 1, 4], [7, 8, 9, 2, 3, 4]]
    assert batch.predictor_rows_M.tolist() == [2, 3, 2, 5, 6]
    assert batch.lengths == (5, 6)


def test_prompts_share_only_what_they_begin_with() -> None:
    batch = pack([sequence([7, 8, 9], [1]), sequence([7, 8, 5, 6], [2]), sequence([7, 8], [3]), sequence([9], [4])])
    assert batch.token_ids_N.tolist() == [7, 8, 9, 1, 5, 6, 2, 3, 9, 4]
    assert documents(batch) == [[7, 8, 9, 1], [7, 8, 5, 6, 2], [7, 8, 3], [9, 4]]
    assert batch.targets_M.tolist() == [1, 2, 3, 4]


def test_advantages_and_sampled_logprobs_follow_their_tokens() -> None:
    sampled = TrainingSequence((1,), (2, 3), 0.5, (-0.1, -0.2))
    batch = pack([sampled, sequence([1], [9], advantage=-2.0)])
    assert batch.advantages_M.tolist() == [0.5, 0.5, -2.0]
    torch.testing.assert_close(batch.sampled_logprobs_M, torch.tensor([-0.1, -0.2, float("nan")]), equal_nan=True)


def test_tokens_that_were_shown_are_context_and_no_targets() -> None:
    masked = TrainingSequence(
        (1, 2), (3, 4, 70, 71, 5, 6), 0.5, (-0.1, -0.2, math.nan, math.nan, -0.3, -0.4),
        is_sampled=(True, True, False, False, True, True),
    )  # fmt: skip
    batch = pack([sequence([1, 2], [9]), masked])
    assert batch.token_ids_N.tolist() == [1, 2, 9, 3, 4, 70, 71, 5, 6]
    assert documents(batch)[1] == [1, 2, 3, 4, 70, 71, 5, 6]
    assert batch.targets_M.tolist() == [9, 3, 4, 5, 6]
    # The last token shown predicts the first one of the next turn.
    assert batch.token_ids_N[batch.predictor_rows_M].tolist() == [2, 2, 3, 71, 5]
    assert batch.advantages_M.tolist() == [1.0, 0.5, 0.5, 0.5, 0.5]
    torch.testing.assert_close(batch.sampled_logprobs_M[1:], torch.tensor([-0.1, -0.2, -0.3, -0.4]))
    assert (masked.num_trained, masked.num_tokens) == (4, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_sampled": (True,)}, "is_sampled has 1 values for 2 completion tokens"),
        ({"sampled_logprobs": (-0.1,) * 3}, "sampled_logprobs has 3 values for 2 completion tokens"),
        ({"is_sampled": (False, False)}, "at least one completion token that was sampled"),
    ],
)
def test_mask_that_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack([replace(sequence([1], [2, 3]), **fields)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt", "completion"), [([], [1]), ([1], [])])
def test_sequence_without_prompt_or_completion_is_refused(prompt: list[int], completion: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one prompt token and one completion token"):
        pack([sequence(prompt, completion)])


def test_micro_batches_keep_order_and_stay_within_their_tokens() -> None:
    rng = random.Random(0)
    for max_tokens in (1, 7, 20, 10_000):
        sequences = [
            sequence([rng.randrange(2) for _ in range(rng.randrange(1, 6))], [5] * rng.randrange(1, 9))
            for _ in range(40)
        ]
        micro_batches = split_by_tokens(sequences, max_tokens=max_tokens)
        assert [s for micro_batch in micro_batches for s in micro_batch] == sequences
        for micro_batch in micro_batches:
            assert len(micro_batch) == 1 or len(pack(micro_batch).token_ids_N) <= max_tokens


def test_shared_tokens_count_the_common_beginning_of_prompts() -> None:
    assert count_shared(None, sequence([1, 2], [3])) == 0
    assert count_shared(sequence([1, 2], [3]), sequence([1, 2], [9])) == 2
    assert count_shared(sequence([1, 2, 3], [4]), sequence([1, 2], [3])) == 2
    assert count_shared(sequence([5], [6]), sequence([1], [6])) == 0
