"""AdamW on float32 masters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aha.models import Transformer
from aha.train.optimizer import Optimizer

MakeModel = Callable[..., Transformer]


def fill_gradients(model: Transformer, *, value: float) -> None:
    """Backpropagate the same gradient into every parameter, by way of autograd as a loss would."""
    sum(value * parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]


def test_step_by_hand_moves_every_weight_by_the_learning_rate(make_model: MakeModel) -> None:
    # AdamW's first step is learning_rate * g / |g| whatever the size of the gradient.
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model)
    fill_gradients(model, value=0.25)
    optimizer.step(learning_rate=0.01)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.01, rtol=0.0, atol=1e-6)


def test_weight_decay_spares_norms_and_biases(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, weight_decay=0.5)
    fill_gradients(model, value=0.0)
    optimizer.step(learning_rate=0.1)
    for name, parameter in model.named_parameters():
        kept = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_raises_the_weight_version_and_clears_gradients(make_model: MakeModel, dtype: str) -> None:
    model = make_model(dtype=dtype)
    optimizer = Optimizer(model)
    version = model.weight_version
    fill_gradients(model, value=1.0)
    optimizer.step(learning_rate=0.01)
    assert model.weight_version == version + 1
    assert optimizer.clip_grad_norm(1.0) == 0.0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_weights_follow_float32_masters(make_model: MakeModel) -> None:
    # A step of 1e-4 is far below bfloat16's resolution of weights near 1: only masters can add up thirty of them.
    model = make_model(dtype="bfloat16")
    optimizer = Optimizer(model)
    for _ in range(30):
        fill_gradients(model, value=1.0)
        optimizer.step(learning_rate=1e-3)
    assert model.final_norm.dtype == torch.bfloat16
    torch.testing.assert_close(model.final_norm.float(), torch.full((32,), 0.97), rtol=0.0, atol=0.004)


def test_bfloat16_gradients_of_micro_batches_are_summed_in_float32(make_model: MakeModel) -> None:
    # 1 + 256 * 2**-8: each small gradient is lost when it is added to 1 in bfloat16.
    model = make_model(dtype="bfloat16")
    optimizer = Optimizer(model)
    fill_gradients(model, value=1.0)
    for _ in range(256):
        fill_gradients(model, value=2.0**-9)
    norm = optimizer.clip_grad_norm(1e9)
    assert norm == pytest.approx(1.5 * model.num_parameters() ** 0.5, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters()), "no second copy of the gradient is kept"


def test_clipping_scales_to_the_norm_and_reports_the_one_before(make_model: MakeModel) -> None:
    model = make_model()
    optimizer = Optimizer(model)
    fill_gradients(model, value=3.0)
    norm = 3.0 * model.num_parameters() ** 0.5
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(norm, rel=1e-4)
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(1.0, rel=1e-4)


def test_gradient_that_is_not_finite_shows_in_the_norm(make_model: MakeModel) -> None:
    model = make_model()
    fill_gradients(model, value=float("nan"))
    assert not torch.tensor(Optimizer(model).clip_grad_norm(1.0)).isfinite()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_taken_back_continues_bit_for_bit(make_model: MakeModel, dtype: str) -> None:
    def steps(optimizer: Optimizer, model: Transformer, *, values: list[float]) -> None:
        for value in values:
            fill_gradients(model, value=value)
            optimizer.step(learning_rate=0.003)

    model, again = make_model(dtype=dtype), make_model(dtype=dtype, seed=9)
    first, second = Optimizer(model, weight_decay=0.1), Optimizer(again, weight_decay=0.1)
    steps(first, model, values=[1.0, -0.3, 0.01])
    again.load_state_dict(model.state_dict())
    second.load_state_tensors({name: tensor.clone() for name, tensor in first.state_tensors().items()})
    steps(first, model, values=[0.5, 0.2])
    steps(second, again, values=[0.5, 0.2])
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, tensor in first.state_tensors().items():
        assert torch.equal(tensor, second.state_tensors()[name]), name


def test_closed_optimizer_leaves_bfloat16_gradients_to_the_next(make_model: MakeModel) -> None:
    model = make_model(dtype="bfloat16")
    Optimizer(model).close()
    optimizer = Optimizer(model)
    fill_gradients(model, value=1.0)
    assert optimizer.clip_grad_norm(1e9) == pytest.approx(model.num_parameters() ** 0.5, rel=1e-3)
