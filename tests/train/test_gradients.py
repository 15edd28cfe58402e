"""The gradient of a step depends on its rollouts alone: not on micro-batches, their order, or packing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aha.models import Transformer
from aha.train import grpo, sft
from aha.train.batches import TrainingSequence
from aha.train.grpo_config import GRPOConfig
from aha.train.losses import LOSSES

from .slow_losses import SlowSequence, slow_loss

MakeModel = Callable[..., Transformer]
Gradients = dict[str, Tensor]


CONFIG = GRPOConfig(task="countdown", max_tokens=20)
ON_POLICY: list[dict[str, Any]] = [
    *({"loss": name} for name in LOSSES),
    {"loss": "grpo", "aggregation": "token_mean"},
    {"kl_coef": 0.1, "kl_estimator": "k1"},
    {"kl_coef": 0.1, "kl_estimator": "k2"},
]
STALE: list[dict[str, Any]] = [{"loss": name, "importance_cap": 1.1, "kl_coef": 0.1} for name in LOSSES]


def rollouts(*, num_groups: int = 4, group_size: int = 5) -> list[TrainingSequence]:
    """Groups that share prompts, prompts that share beginnings, odd lengths, off-policy log-probabilities."""
    rng = random.Random(0)
    sequences = []
    for _ in range(num_groups):
        prompt = (1, 20, *(rng.randrange(300) for _ in range(rng.randrange(1, 9))))
        # Groups of unequal size: completions may have been masked.
        for _ in range(group_size - rng.randrange(3)):
            completion = tuple(rng.randrange(300) for _ in range(rng.randrange(1, 14)))
            sampled = tuple(rng.uniform(-8.0, -5.0) for _ in completion)
            sequences.append(TrainingSequence(prompt, completion, rng.uniform(-2.0, 2.0), sampled))
    return sequences


def stale_rollouts(model: Transformer, *, spread: float = 0.15) -> list[TrainingSequence]:
    """Rollouts whose old policy is a bit off the model's, and whose sampler is a bit off that."""
    rng = random.Random(7)
    sequences = grpo.with_old_logprobs(model, rollouts(), CONFIG)

    def near(logprobs: Sequence[float]) -> tuple[float, ...]:
        return tuple(value + rng.gauss(0.0, spread) for value in logprobs)

    moved = [replace(s, old_logprobs=near(s.old_logprobs)) for s in sequences]
    return [replace(s, sampled_logprobs=near(s.old_logprobs)) for s in moved]


def gradients(model: Transformer) -> Gradients:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert len(found) == len(list(model.parameters()))
    return found


def assert_equal(ours: Gradients, theirs: Gradients) -> None:
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("settings", [*ON_POLICY, *STALE], ids=str)
def test_gradient_does_not_depend_on_micro_batches_or_order(make_model: MakeModel, settings: dict[str, Any]) -> None:
    model = make_model()
    reference = make_model(seed=1).requires_grad_(False) if "kl_coef" in settings else None
    is_stale = settings in STALE
    sequences = stale_rollouts(model) if is_stale else rollouts()

    def gradient_of(sequences: Sequence[TrainingSequence], max_tokens: int) -> tuple[Gradients, dict[str, float]]:
        config = replace(CONFIG, micro_batch_tokens=max_tokens, **settings)
        metrics = grpo.accumulate_gradients(model, sequences, config=config, reference=reference)
        return gradients(model), metrics

    whole, metrics = gradient_of(sequences, 100_000)
    assert any(gradient.abs().max() > 1e-3 for gradient in whole.values())
    if is_stale and settings.get("loss") != "cispo":
        assert metrics["clip_low_fraction"] > 0
        assert metrics["clip_high_fraction"] > 0
    shuffled = random.Random(1).sample(sequences, k=len(sequences))
    for order, max_tokens in ((sequences, 40), (sequences, 1), (shuffled, 100_000), (shuffled, 33)):
        found, found_metrics = gradient_of(order, max_tokens)
        assert_equal(found, whole)
        assert found_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def plain_logprobs(model: Transformer, s: TrainingSequence) -> Tensor:
    """Of the completion's tokens, by the plain forward pass on this sequence alone."""
    token_ids = torch.tensor([[*s.prompt_ids, *s.completion_ids]])
    logprobs = model(token_ids)[0, len(s.prompt_ids) - 1 : -1].log_softmax(dim=-1)
    return logprobs.gather(1, torch.tensor(s.completion_ids)[:, None]).squeeze(1)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_the_slow_formula(make_model: MakeModel, name: str) -> None:
    """One sequence at a time through the plain forward pass, with the loss and its gradient by hand."""
    model, config = make_model(), replace(CONFIG, loss=name, micro_batch_tokens=64)
    sequences = stale_rollouts(model)
    logprobs = [plain_logprobs(model, s) for s in sequences]
    update = [
        SlowSequence(logprobs=values.tolist(), old_logprobs=s.old_logprobs, advantage=s.advantage)
        for values, s in zip(logprobs, sequences, strict=True)
    ]
    chosen = config.chosen_loss
    slow = slow_loss(name, update, clip_low=chosen.clip_low, clip_high=chosen.clip_high, max_tokens=config.max_tokens)
    (torch.cat(logprobs) * torch.tensor(slow.gradient)).sum().backward()
    expected = gradients(model)
    metrics = grpo.accumulate_gradients(model, sequences, config=config)
    assert metrics["loss"] == pytest.approx(slow.loss, rel=1e-4, abs=1e-5)
    assert_equal(gradients(model), expected)


@pytest.mark.parametrize("name", ["dapo", "grpo"])
def test_importance_weights_act_on_the_policy_and_not_on_the_kl_term(make_model: MakeModel, name: str) -> None:
    """Each token's log-probability pulled by -min(old / sampler, cap) A + beta log(policy / reference), by hand."""
    model, reference = make_model(), make_model(seed=1).requires_grad_(False)
    config = replace(CONFIG, loss=name, importance_cap=1.1, kl_coef=0.3)
    sequences = [replace(s, old_logprobs=()) for s in stale_rollouts(model)]
    num_tokens, num_capped = sum(len(s.completion_ids) for s in sequences), 0
    for s in sequences:
        now, fixed = plain_logprobs(model, s), plain_logprobs(reference, s)
        ratio = (now.detach() - torch.tensor(s.sampled_logprobs)).exp()
        num_capped += int((ratio > 1.1).sum())
        pull = -ratio.clamp(max=1.1) * s.advantage + 0.3 * (now.detach() - fixed)
        (now * pull).sum().div(num_tokens if name == "dapo" else len(now) * len(sequences)).backward()
    expected = gradients(model)
    metrics = grpo.accumulate_gradients(model, sequences, config=config, reference=reference)
    assert_equal(gradients(model), expected)
    assert 0 < num_capped < num_tokens
    assert metrics["importance_capped_fraction"] == pytest.approx(num_capped / num_tokens)
    assert metrics["importance_max"] > 1.1
    assert metrics["mismatch_kl"] > 0


def test_importance_weights_of_a_sampler_that_agrees_change_nothing(make_model: MakeModel) -> None:
    model = make_model()
    sequences = [
        replace(s, old_logprobs=(), sampled_logprobs=s.old_logprobs)
        for s in grpo.with_old_logprobs(model, rollouts(), CONFIG)
    ]
    metrics = grpo.accumulate_gradients(model, sequences, config=replace(CONFIG, importance_cap=2.0))
    ours = gradients(model)
    assert metrics["importance_mean"] == pytest.approx(1.0, abs=1e-6)
    assert (metrics["mismatch_kl"], metrics["importance_capped_fraction"]) == (pytest.approx(0.0, abs=1e-9), 0.0)
    grpo.accumulate_gradients(model, sequences, config=CONFIG)
    assert_equal(ours, gradients(model))


def with_turns(sequences: list[TrainingSequence]) -> list[TrainingSequence]:
    """The same rollouts, some of their tokens shown by a task and not sampled; the last one always sampled."""
    rng = random.Random(2)
    masks = [(*(rng.random() < 0.6 for _ in s.completion_ids[1:]), True) for s in sequences]
    return [replace(s, is_sampled=mask) for s, mask in zip(sequences, masks, strict=True)]


OFF_POLICY = {"updates_per_step": 2, "kl_coef": 0.1}


@pytest.mark.parametrize("settings", [{}, OFF_POLICY])
def test_gradient_of_turns_equals_a_full_forward_pass_masked_by_hand(
    make_model: MakeModel, settings: dict[str, object]
) -> None:
    model, reference = make_model(), make_model(seed=1).requires_grad_(False)
    sequences = with_turns(rollouts())
    if settings:
        sequences = [replace(s, old_logprobs=tuple(s.trained(s.sampled_logprobs))) for s in sequences]
    num_tokens = sum(sum(s.is_sampled) for s in sequences)
    entropy = kl = 0.0
    for s in sequences:
        token_ids = torch.tensor([[*s.prompt_ids, *s.completion_ids]])
        rows = slice(len(s.prompt_ids) - 1, -1)
        mask = torch.tensor(s.is_sampled, dtype=torch.float32)
        log_softmax = model(token_ids)[0, rows].log_softmax(dim=-1)
        chosen = log_softmax.gather(1, token_ids[0, len(s.prompt_ids) :, None]).squeeze(1)
        old = torch.tensor(s.sampled_logprobs) if settings else chosen.detach()
        ratio = (chosen - old).exp()
        objective = torch.minimum(s.advantage * ratio, s.advantage * ratio.clamp(0.8, 1.28))
        if settings:
            theirs = reference(token_ids)[0, rows].log_softmax(dim=-1)
            gap = chosen - theirs.gather(1, token_ids[0, len(s.prompt_ids) :, None]).squeeze(1)
            penalty = ((-gap).exp() + gap - 1) * ratio
            kl += (penalty * mask).sum().item() / num_tokens
            objective = objective - 0.1 * penalty
        (-(objective * mask).sum() / num_tokens).backward()
        entropy += (-(log_softmax.exp() * log_softmax).sum(dim=-1) * mask).sum().item() / num_tokens
    slow = gradients(model)
    config = GRPOConfig(task="countdown", micro_batch_tokens=64, **settings)  # type: ignore[arg-type]
    found = grpo.accumulate_gradients(model, sequences, config=config, reference=reference if settings else None)
    assert_equal(gradients(model), slow)
    assert (found["entropy"], found["kl"]) == pytest.approx((entropy, kl), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, OFF_POLICY])
def test_what_was_shown_has_no_probability_that_matters(make_model: MakeModel, settings: dict[str, object]) -> None:
    model, reference = make_model(), make_model(seed=1).requires_grad_(False)
    config = GRPOConfig(task="countdown", **settings)  # type: ignore[arg-type]

    def found(value: float) -> tuple[Gradients, dict[str, float]]:
        sequences = [
            replace(s, sampled_logprobs=tuple(
                logprob if is_sampled else value
                for logprob, is_sampled in zip(s.sampled_logprobs, s.is_sampled, strict=True)
            ))
            for s in with_turns(rollouts())
        ]  # fmt: skip
        metrics = grpo.accumulate_gradients(model, sequences, config=config, reference=reference if settings else None)
        return gradients(model), metrics

    (as_unknown, metrics), (as_certain, other_metrics) = found(math.nan), found(0.0)
    assert metrics == other_metrics
    assert all(torch.equal(as_unknown[name], as_certain[name]) for name in as_unknown)


def test_old_logprobs_of_turns_stay_with_their_tokens(make_model: MakeModel) -> None:
    model = make_model()
    config = GRPOConfig(task="countdown", updates_per_step=2, micro_batch_tokens=50)
    sequences = grpo.with_old_logprobs(model, with_turns(rollouts()), config)
    for s in sequences:
        assert len(s.old_logprobs) == s.num_trained
    metrics = grpo.accumulate_gradients(model, sequences, config=config)
    assert metrics["clip_low_fraction"] == metrics["clip_high_fraction"] == 0.0


def test_sft_gradient_does_not_depend_on_micro_batches(make_model: MakeModel) -> None:
    model = make_model()
    sequences = [TrainingSequence(s.prompt_ids, s.completion_ids) for s in rollouts()]
    losses = sft.accumulate_gradients(model, sequences, micro_batch_tokens=100_000)
    whole = gradients(model)
    for max_tokens in (1, 30):
        assert sft.accumulate_gradients(model, sequences, micro_batch_tokens=max_tokens) == pytest.approx(
            losses, rel=1e-5
        )
        assert_equal(gradients(model), whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
def test_before_the_first_update_the_ratio_is_one_to_the_last_bit(make_model: MakeModel, name: str, dtype: str) -> None:
    """Whatever the sampler said, and also where the old log-probabilities come from a pass of their own."""
    model = make_model(dtype=dtype)
    config = replace(CONFIG, loss=name, micro_batch_tokens=50)
    found = []
    for sequences in (rollouts(), grpo.with_old_logprobs(model, rollouts(), config)):
        metrics = grpo.accumulate_gradients(model, sequences, config=config)
        outside = [metrics[key] for key in metrics if key.startswith(("clip_", "ratio_"))]
        assert outside == [0.0] * 4
        found.append(gradients(model))
    for parameter, gradient in found[0].items():
        assert torch.equal(gradient, found[1][parameter])


def test_old_log_probabilities_leave_the_sampler_s_in_place(make_model: MakeModel) -> None:
    sequences = rollouts()
    updated = grpo.with_old_logprobs(make_model(), sequences, CONFIG)
    assert [s.sampled_logprobs for s in updated] == [s.sampled_logprobs for s in sequences]
    assert all(len(s.old_logprobs) == len(s.completion_ids) for s in updated)


def test_kl_to_itself_adds_nothing(make_model: MakeModel) -> None:
    model = make_model()
    reference = make_model().requires_grad_(False)
    metrics = grpo.accumulate_gradients(
        model, rollouts(), config=GRPOConfig(task="countdown", kl_coef=10.0), reference=reference
    )
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-9)
    with_kl = gradients(model)
    grpo.accumulate_gradients(model, rollouts(), config=GRPOConfig(task="countdown"))
    assert_equal(with_kl, gradients(model))
