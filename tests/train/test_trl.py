"""Our losses beside TRL's own code on the same numbers, which trl_losses.py wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aha.train.grpo_config import GRPOConfig
from aha.train.importance import sampler_ratio, truncated_weights
from aha.train.kl import kl_penalty
from aha.train.losses import PolicyTokens, UpdateSize, sum_tokens

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_losses.json").read_text(encoding="utf-8"))


def numbers(name: str) -> torch.Tensor:
    return torch.tensor(TRL[name], dtype=torch.float64)


@pytest.mark.parametrize("name", TRL["cases"])
def test_loss_and_gradient_equal_those_of_trl(name: str) -> None:
    case = TRL["cases"][name]
    # TRL's largest weight of CISPO is 1 + clip_high here, and it has no lower one.
    is_cispo = case["loss_type"] == "cispo"
    chosen = GRPOConfig(
        task="countdown",
        loss=name.split()[0],
        clip_low=1.0 if is_cispo else case["epsilon_low"],
        clip_high=case["epsilon_high"] - is_cispo,
    ).chosen_loss
    logprobs_M = numbers("logprobs").requires_grad_()
    tokens = PolicyTokens(
        logprobs_M=logprobs_M,
        old_logprobs_M=numbers("old_logprobs"),
        advantages_M=numbers("advantages").repeat_interleave(torch.tensor(TRL["lengths"])),
        lengths=TRL["lengths"],
    )
    size = UpdateSize(
        num_tokens=len(logprobs_M), num_sequences=len(TRL["lengths"]), max_tokens=TRL["max_tokens"]
    )  # fmt: skip
    losses_M = chosen.token_losses(tokens, clip_low=chosen.clip_low, clip_high=chosen.clip_high).losses_M
    if "importance_cap" in case:
        ratio_M = sampler_ratio(tokens.old_logprobs_M, sampled_logprobs_M=numbers("sampled_logprobs"))
        assert (ratio_M > case["importance_cap"]).any()
        losses_M = losses_M * truncated_weights(ratio_M, cap=case["importance_cap"])
    if "beta" in case:
        reference_M = numbers("reference_logprobs")
        arguments: Any = {"reference_logprobs_M": reference_M, "old_logprobs_M": tokens.old_logprobs_M}
        losses_M = losses_M + case["beta"] * kl_penalty(logprobs_M, estimator="k3", **arguments)
    total = sum_tokens(losses_M, tokens=tokens, aggregation=chosen.aggregation)
    loss = total / size.normaliser(chosen.aggregation)
    (gradient_M,) = torch.autograd.grad(loss, logprobs_M)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert gradient_M.tolist() == pytest.approx(case["gradient"], rel=1e-9, abs=1e-12)


def test_numbers_of_trl_come_from_a_named_release_and_clip_both_ways() -> None:
    assert TRL["trl_version"].count(".") == 2
    ratio_M = (numbers("logprobs") - numbers("old_logprobs")).exp()
    assert (ratio_M > 1.28).any()
    assert (ratio_M < 0.8).any()
