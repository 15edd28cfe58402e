"""`products = "fp8"` in a stage: the layers' products are FP8's, the rest is not, and what cannot work is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aha.errors import ConfigError
from aha.models import Transformer
from aha.train.adapter import prepare_stage
from aha.train.batches import TrainingSequence, pack
from aha.train.grpo_config import GRPOConfig
from aha.train.logprobs import token_logprobs
from aha.train.optimizer import Optimizer
from aha.train.sft import SFTConfig, accumulate_gradients

MakeModel = Callable[..., Transformer]


def examples(num: int = 6) -> list[TrainingSequence]:
    rng = random.Random(0)
    return [
        TrainingSequence((1, 20), tuple(rng.randrange(300) for _ in range(rng.randrange(1, 30)))) for _ in range(num)
    ]


def prepared(model: Transformer, **settings: Any) -> Transformer:
    prepare_stage(model, SFTConfig(task="countdown", **settings))
    return model


def logprobs(model: Transformer) -> Tensor:
    return token_logprobs(model, pack(examples())).logprobs_M


def test_a_stage_chooses_what_its_model_multiplies_in(make_model: MakeModel) -> None:
    model: Transformer = make_model()
    exact = logprobs(model).detach()
    in_fp8 = logprobs(prepared(model, products="fp8")).detach()
    assert 1e-5 < float((in_fp8 - exact).abs().max()) < 0.2
    assert torch.equal(logprobs(prepared(model)).detach(), exact)


def test_gradients_are_near_the_exact_ones_and_reach_every_parameter(make_model: MakeModel) -> None:
    model: Transformer = make_model()
    gradients: list[dict[str, Tensor]] = []
    for settings in (dict[str, str](), {"products": "fp8"}):
        prepared(model, **settings)
        accumulate_gradients(model, examples(), micro_batch_tokens=4096)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    exact, ours = gradients
    assert ours.keys() == exact.keys() == dict(model.named_parameters()).keys()
    for name, gradient in ours.items():
        assert float((gradient - exact[name]).norm() / exact[name].norm()) < 0.15, name


def test_recomputed_activations_give_the_same_gradients(make_model: MakeModel) -> None:
    model: Transformer = make_model()
    gradients: list[list[Tensor]] = []
    for activations in ("keep", "recompute"):
        prepared(model, products="fp8", activations=activations)
        accumulate_gradients(model, examples(), micro_batch_tokens=4096)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_training_in_fp8_learns_as_far_as_exact_training(make_model: MakeModel) -> None:
    losses = []
    for products in ("full", "fp8"):
        model = prepared(make_model(), products=products)
        optimizer = Optimizer(model)
        for _ in range(20):
            loss = accumulate_gradients(model, examples(), micro_batch_tokens=4096)["loss"]
            optimizer.step(learning_rate=3e-3)
        losses.append(loss)
    first = float(-logprobs(make_model()).detach().mean())
    assert losses[0] < 0.7 * first
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="lora_rank = 0"):
        SFTConfig(task="countdown", products="fp8", lora_rank=4)


def test_reinforcement_needs_the_correction_for_a_sampler_that_is_another_model() -> None:
    with pytest.raises(ConfigError, match="importance_cap = 2"):
        GRPOConfig(task="countdown", products="fp8")
    assert GRPOConfig(task="countdown", products="fp8", importance_cap=2.0).products == "fp8"
