"""Losses against numbers worked out by hand, and against each paper's formula in plain Python."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aha.train.grpo_config import GRPOConfig
from aha.train.losses import LOSSES, PolicyTokens, UpdateSize, clipped_loss, sum_tokens

from .slow_losses import SlowSequence, slow_loss

MAX_TOKENS = 4
OLD = -1.5
NAMES = sorted(LOSSES)


class Found(NamedTuple):
    loss: float
    gradient_M: Tensor
    ratio_M: Tensor


def loss_of(
    logprobs: Sequence[float], *, old: Sequence[float], advantages: Sequence[float], lengths: Sequence[int], **set_: Any
) -> Found:
    """A whole update's loss, as the loop makes it, and its gradient with respect to the log-probabilities.

    Args:
        advantages: one per sequence.
        set_: fields of GRPOConfig.
    """
    chosen = GRPOConfig(task="countdown", **set_).chosen_loss
    logprobs_M = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    tokens = PolicyTokens(
        logprobs_M=logprobs_M,
        old_logprobs_M=torch.tensor(old, dtype=torch.float64),
        advantages_M=torch.tensor(advantages, dtype=torch.float64).repeat_interleave(torch.tensor(lengths)),
        lengths=lengths,
    )
    size = UpdateSize(num_tokens=len(logprobs), num_sequences=len(lengths), max_tokens=MAX_TOKENS)
    result = chosen.token_losses(tokens, clip_low=chosen.clip_low, clip_high=chosen.clip_high)
    total = sum_tokens(result.losses_M, tokens=tokens, aggregation=chosen.aggregation)
    loss = total / size.normaliser(chosen.aggregation)
    (gradient_M,) = torch.autograd.grad(loss, logprobs_M)
    return Found(loss.item(), gradient_M, result.ratio_M)


def loss_at(name: str, ratios: list[float], **arguments: Any) -> Found:
    """Two sequences: the first of two tokens is good (advantage 1), the second of one token is bad (advantage -2)."""
    logprobs = [OLD + math.log(ratio) for ratio in ratios]
    return loss_of(logprobs, old=[OLD] * 3, advantages=[1.0, -2.0], lengths=[2, 1], loss=name, **arguments)


def test_grpo_is_the_mean_over_sequences_of_their_token_means() -> None:
    found = loss_at("grpo", [1.5, 0.5, 0.5])
    # Good, likelier by more than 0.2: -1 x 1.2, no gradient. Good, rarer: -1 x 0.5, gradient -0.5. Bad, rarer by more
    # than 0.2: 2 x 0.8 = 1.6, no gradient. ((-1.2 - 0.5) / 2 + 1.6) / 2 = 0.375; -0.5 / 2 tokens / 2 sequences.
    assert found.loss == pytest.approx(0.375)
    assert found.gradient_M.tolist() == pytest.approx([0.0, -0.125, 0.0])


def test_dr_grpo_divides_by_sequences_times_the_longest_allowed_length() -> None:
    found = loss_at("dr_grpo", [1.5, 0.5, 0.5])
    # (-1.2 - 0.5 + 1.6) / (2 sequences x 4 tokens) = -0.0125; -0.5 / 8.
    assert found.loss == pytest.approx(-0.0125)
    assert found.gradient_M.tolist() == pytest.approx([0.0, -0.0625, 0.0])


def test_dapo_is_the_mean_over_tokens_and_clips_higher() -> None:
    found = loss_at("dapo", [1.5, 0.5, 0.5])
    # (-1.28 - 0.5 + 1.6) / 3 tokens = -0.06; -0.5 / 3.
    assert found.loss == pytest.approx(-0.06)
    assert found.gradient_M.tolist() == pytest.approx([0.0, -0.5 / 3, 0.0])


def test_gspo_clips_the_geometric_mean_of_a_sequence() -> None:
    found = loss_at("gspo", [1.5, 0.5, 0.5])
    # Good: s = sqrt(1.5 x 0.5), below the clip but good, so not clipped: -s, gradient -s / 2 tokens on each.
    # Bad: s = 0.5, clipped at 0.9997: 2 x 0.9997, no gradient. Then the mean over 2 sequences.
    s = math.sqrt(0.75)
    assert found.loss == pytest.approx((-s + 1.9994) / 2)
    assert found.gradient_M.tolist() == pytest.approx([-s / 4, -s / 4, 0.0])
    assert found.ratio_M.tolist() == pytest.approx([s, s, 0.5])


def test_cispo_weighs_the_log_probability_by_the_capped_ratio_and_silences_no_token() -> None:
    found = loss_at("cispo", [1.5, 6.0, 0.5])
    # Weights 1.5, 5 (capped) and 0.5 on -A log policy, over 3 tokens; the weights themselves have no gradient.
    first, second, third = (OLD + math.log(ratio) for ratio in (1.5, 6.0, 0.5))
    assert found.loss == pytest.approx((-1.5 * first - 5.0 * second + 0.5 * 2.0 * third) / 3)
    assert found.gradient_M.tolist() == pytest.approx([-1.5 / 3, -5.0 / 3, 1.0 / 3])


def test_rloo_takes_the_sequence_as_one_action() -> None:
    found = loss_at("rloo", [1.5, 0.5, 0.5])
    # Good: R = 1.5 x 0.5 = 0.75, -0.75, gradient -0.75 on each of its tokens. Bad: R = 0.5, clipped: 2 x 0.8 = 1.6.
    assert found.loss == pytest.approx((-0.75 + 1.6) / 2)
    assert found.gradient_M.tolist() == pytest.approx([-0.375, -0.375, 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 2.0, -2.56, 0.0),  # good and already likelier by more than 0.28: -A (1 + high)
        (1.5, -2.0, 3.0, 3.0),  # bad and likelier: never clipped, -A r
        (0.5, 2.0, -1.0, -1.0),  # good and rarer: never clipped, -A r
        (0.5, -2.0, 1.6, 0.0),  # bad and already rarer by more than 0.2: -A (1 - low)
        (1.25, 2.0, -2.5, -2.5),  # within clip-higher, though past 0.2
        (0.85, -2.0, 1.7, 1.7),
    ],
)
def test_clipping_acts_only_where_the_ratio_already_moved_the_right_way(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    found = loss_of([OLD + math.log(ratio)], old=[OLD], advantages=[advantage], lengths=[1])
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.gradient_M.item() == pytest.approx(gradient, rel=1e-12)


SHARES = {  # of a token's advantage in the gradient: sequences of 2 and 1 tokens, 3 tokens, at most 4
    "grpo": (1 / 4, 1 / 2), "gspo": (1 / 4, 1 / 2), "rloo": (1 / 2, 1 / 2),
    "dapo": (1 / 3, 1 / 3), "cispo": (1 / 3, 1 / 3), "dr_grpo": (1 / 8, 1 / 8),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_the_ratio_is_exactly_one_and_the_gradient_that_of_the_policy(name: str) -> None:
    found = loss_at(name, [1.0, 1.0, 1.0])
    assert found.ratio_M.tolist() == [1.0, 1.0, 1.0]
    first, second = SHARES[name]
    assert found.gradient_M.tolist() == pytest.approx([-first, -first, 2.0 * second])


@st.composite
def updates(draw: st.DrawFn) -> list[SlowSequence]:
    logprob, step = st.floats(-6.0, -0.1), st.floats(-0.7, 0.7)
    sequences = []
    for _ in range(draw(st.integers(1, 4))):
        old = draw(st.lists(logprob, min_size=1, max_size=MAX_TOKENS))
        moved = [value + draw(step) for value in old]
        sequences.append(SlowSequence(logprobs=moved, old_logprobs=old, advantage=draw(st.floats(-3.0, 3.0))))
    return sequences


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(update=updates(), clip_low=st.floats(0.01, 0.9), clip_high=st.floats(0.01, 2.0))
def test_loss_and_gradient_are_those_of_the_paper_s_formula(
    name: str, update: list[SlowSequence], clip_low: float, clip_high: float
) -> None:
    slow = slow_loss(name, update, clip_low=clip_low, clip_high=clip_high, max_tokens=MAX_TOKENS)
    found = loss_of(
        [value for s in update for value in s.logprobs],
        old=[value for s in update for value in s.old_logprobs],
        advantages=[s.advantage for s in update],
        lengths=[len(s.logprobs) for s in update],
        loss=name, clip_low=clip_low, clip_high=clip_high,
    )  # fmt: skip
    assert found.loss == pytest.approx(slow.loss, rel=1e-9, abs=1e-9)
    assert found.gradient_M.tolist() == pytest.approx(slow.gradient, rel=1e-9, abs=1e-9)


def share_of(update: list[SlowSequence], *, size: UpdateSize, name: str) -> tuple[float, list[list[float]]]:
    """A micro-batch's share of the update's loss, and its gradient by sequence."""
    loss, lengths = LOSSES[name], [len(s.logprobs) for s in update]
    logprobs_M = torch.tensor([v for s in update for v in s.logprobs], dtype=torch.float64, requires_grad=True)
    tokens = PolicyTokens(
        logprobs_M=logprobs_M,
        old_logprobs_M=torch.tensor([v for s in update for v in s.old_logprobs], dtype=torch.float64),
        advantages_M=torch.tensor([s.advantage for s in update for _ in s.logprobs], dtype=torch.float64),
        lengths=lengths,
    )
    losses_M = loss.token_losses(tokens, clip_low=0.2, clip_high=0.28).losses_M
    share = sum_tokens(losses_M, tokens=tokens, aggregation=loss.aggregation) / size.normaliser(loss.aggregation)
    (gradient_M,) = torch.autograd.grad(share, logprobs_M)
    return share.item(), [part.tolist() for part in gradient_M.split(lengths)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(update=updates(), draw=st.data())
def test_shares_of_micro_batches_add_up_however_the_update_is_split_and_ordered(
    name: str, update: list[SlowSequence], draw: st.DataObject
) -> None:
    size = UpdateSize(
        num_tokens=sum(len(s.logprobs) for s in update), num_sequences=len(update), max_tokens=MAX_TOKENS
    )  # fmt: skip
    whole, gradients = share_of(update, size=size, name=name)
    order = draw.draw(st.permutations(range(len(update))))
    is_cut = draw.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
    starts = [0, *(i for i in range(1, len(order)) if is_cut[i]), len(order)]
    total = 0.0
    for start, end in pairwise(starts):
        share, parts = share_of([update[i] for i in order[start:end]], size=size, name=name)
        total += share
        for i, part in zip(order[start:end], parts, strict=True):
            assert part == pytest.approx(gradients[i], rel=1e-12, abs=1e-14)
    assert total == pytest.approx(whole, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [-500.0, 500.0])
def test_loss_stays_finite_for_ratios_that_overflow(name: str, gap: float) -> None:
    found = loss_of([gap, gap], old=[0.0, 0.0], advantages=[-1.0], lengths=[2], loss=name)
    assert math.isfinite(found.loss)
    assert found.gradient_M.isfinite().all()


def test_ratio_has_no_gradient_of_its_own() -> None:
    logprobs_M = torch.zeros(2, requires_grad=True)
    tokens = PolicyTokens(logprobs_M=logprobs_M, old_logprobs_M=torch.zeros(2), advantages_M=torch.ones(2), lengths=[2])
    for loss in LOSSES.values():
        assert not loss.token_losses(tokens, clip_low=0.2, clip_high=0.2).ratio_M.requires_grad


def test_every_loss_comes_with_its_paper_s_settings() -> None:
    table = {
        name: (loss.aggregation, loss.advantage_scale, loss.clip_low, loss.clip_high) for name, loss in LOSSES.items()
    }
    assert table == {
        "grpo": ("sequence_mean", "std", 0.2, 0.2),
        "dr_grpo": ("constant", "none", 0.2, 0.2),
        "dapo": ("token_mean", "std", 0.2, 0.28),
        "gspo": ("sequence_mean", "std", 3e-4, 4e-4),
        "cispo": ("token_mean", "std", 1.0, 4.0),
        "rloo": ("sequence_mean", "leave_one_out", 0.2, 0.2),
    }
    assert GRPOConfig(task="countdown").loss == "dapo", "the shipped recipes were measured with it"


def test_page_about_losses_knows_every_loss_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    table = page.split("| `loss` |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == NAMES


def test_stage_replaces_a_loss_s_settings_one_by_one() -> None:
    chosen = GRPOConfig(task="countdown", loss="grpo", aggregation="constant", clip_high=0.3).chosen_loss
    assert (chosen.aggregation, chosen.advantage_scale) == ("constant", "std")
    assert (chosen.clip_low, chosen.clip_high) == (0.2, 0.3)
    chosen = GRPOConfig(task="countdown", loss="rloo", advantage_scale="none", clip_low=0.1).chosen_loss
    assert (chosen.aggregation, chosen.advantage_scale) == ("sequence_mean", "none")
    assert (chosen.clip_low, chosen.clip_high) == (0.1, 0.2)
    assert chosen.token_losses is not clipped_loss
