"""Divergences between two models' distributions, against autograd through the formula written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aha.models import Transformer
from aha.train import divergence as divergence_module
from aha.train.batches import TrainingSequence, pack
from aha.train.divergence import Divergence, token_divergences

MakeModel = Callable[..., Transformer]
SEQUENCES = [
    TrainingSequence((1, 20, 21, 22), (30, 31, 4)),
    TrainingSequence((1, 20, 21, 22), (33,)),
    TrainingSequence((1, 20, 25), (40, 41, 42, 43, 4)),
]


def slow_divergences(student: Transformer, teacher: Transformer, *, kind: Divergence, temperature: float) -> Tensor:
    values = []
    for s in SEQUENCES:
        token_ids = torch.tensor([[*s.prompt_ids, *s.completion_ids]])
        rows = slice(len(s.prompt_ids) - 1, -1)
        ours = (student(token_ids)[0, rows].float() / temperature).log_softmax(-1)
        theirs = (teacher(token_ids)[0, rows].float() / temperature).log_softmax(-1).detach()
        first, second = (ours, theirs) if kind == "reverse_kl" else (theirs, ours)
        values.append((first.exp() * (first - second)).sum(-1))
    return torch.cat(values)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
def test_values_and_gradients_equal_autograd_through_the_formula(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, chunk_rows: int, temperature: float, kind: Divergence
) -> None:
    student, teacher, slow = make_model(seed=0), make_model(seed=1), make_model(seed=0)
    monkeypatch.setattr(divergence_module, "CHUNK_ELEMENTS", chunk_rows * student.config.vocab_size)
    found_M = token_divergences(student, teacher, pack(SEQUENCES), divergence=kind, temperature=temperature)
    slow_M = slow_divergences(slow, teacher, kind=kind, temperature=temperature)
    torch.testing.assert_close(found_M, slow_M, rtol=1e-4, atol=1e-6)
    assert found_M.min() > 0
    weights_M = torch.linspace(0.5, 2.0, len(found_M))
    (found_M * weights_M).sum().backward()
    (slow_M * weights_M).sum().backward()
    theirs = dict(slow.named_parameters())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6, msg=name)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
def test_a_model_has_no_distance_from_itself(make_model: MakeModel, kind: Divergence) -> None:
    student, teacher = make_model(seed=0), make_model(seed=0)
    found_M = token_divergences(student, teacher, pack(SEQUENCES), divergence=kind)
    torch.testing.assert_close(found_M, torch.zeros_like(found_M), rtol=0, atol=1e-6)
    found_M.sum().backward()
    largest = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
    assert largest < 1e-5


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
def test_hand_computed_numbers(kind: Divergence) -> None:
    """Student (1/2, 1/2), teacher (3/4, 1/4): ln(2/3)/2 + ln(2)/2 = 0.14384; 3/4 ln(3/2) + 1/4 ln(1/2) = 0.13081."""
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    expected = {"reverse_kl": 0.143841, "forward_kl": 0.130812}[kind]
    assert divergence_module._values(student, teacher, kind).item() == pytest.approx(expected, abs=1e-6)
