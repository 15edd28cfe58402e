"""Log-probabilities against the slow formula on full logits, and against what the engine sampled with."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aha.engine import Engine
from aha.models import Transformer
from aha.train import logprobs
from aha.train.batches import TrainingSequence, pack
from aha.train.logprobs import token_logprobs
from aha.train.optimizer import Optimizer
from aha.types import Completion, SamplingParams

MakeModel = Callable[..., Transformer]

SEQUENCES = [
    TrainingSequence((1, 20, 21, 22), (30, 31, 4)),
    TrainingSequence((1, 20, 21, 22), (33,)),
    TrainingSequence((1, 20, 25), (40, 41, 42, 43, 44, 4)),
    TrainingSequence((9,), (50, 4)),
]


def slow_logprobs(model: Transformer, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every completion token: one sequence at a time, full log-softmax."""
    chosen, entropies = [], []
    for s in SEQUENCES:
        token_ids = torch.tensor([[*s.prompt_ids, *s.completion_ids]])
        log_softmax = (model(token_ids)[0, :-1].float() / temperature).log_softmax(dim=-1)
        first = len(s.prompt_ids) - 1
        rows = log_softmax[first:]
        chosen.append(rows.gather(1, token_ids[0, first + 1 :, None]).squeeze(1))
        entropies.append(-(rows.exp() * rows).sum(dim=-1))
    return torch.cat(chosen), torch.cat(entropies)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 5, 1000])
def test_logprobs_and_entropy_equal_the_full_log_softmax(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, chunk_rows: int, temperature: float
) -> None:
    model = make_model()
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk_rows * model.config.vocab_size + 17)
    found = token_logprobs(model, pack(SEQUENCES), temperature=temperature)
    slow_M, entropy_M = slow_logprobs(model, temperature=temperature)
    torch.testing.assert_close(found.logprobs_M, slow_M, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(found.entropy_M, entropy_M, rtol=0.0, atol=1e-5)
    assert not found.entropy_M.requires_grad


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_gradient_equals_autograd_through_the_slow_formula(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, *, tie_word_embeddings: bool
) -> None:
    model = make_model(tie_word_embeddings=tie_word_embeddings)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * model.config.vocab_size)
    weights_M = torch.linspace(-1.0, 1.0, steps=12)
    parameters = list(model.parameters())
    fast = torch.autograd.grad(
        (token_logprobs(model, pack(SEQUENCES), temperature=0.8)[0] * weights_M).sum(), parameters
    )
    slow = torch.autograd.grad((slow_logprobs(model, temperature=0.8)[0] * weights_M).sum(), parameters)
    for (name, _), ours, expected in zip(model.named_parameters(), fast, slow, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_three_tokens_by_hand(make_model: MakeModel) -> None:
    """Tokens 1 2 0, prompt 1: the row of 1 predicts 2, the row of 2 predicts 0, and nothing else is in the loss.

    Without layers the final state of a token is its normed embedding, so that logits can be worked out by hand.
    """
    model = make_model(
        vocab_size=3, hidden_size=2, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, tie_word_embeddings=False
    )
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.zero_()
        model.embed_tokens.copy_(torch.tensor([[9.0, 9.0], [1.0, 1.0], [1.0, -1.0]]))
        model.lm_head.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]]))
    batch = pack([TrainingSequence((1,), (2, 0))])
    # Token 1 has state (1, 1): logits 0, 1, 3. Token 2 has state (1, -1): logits 0, 1, 1.
    expected = [3 - math.log(1 + math.e + math.e**3), -math.log(1 + 2 * math.e)]
    assert token_logprobs(model, batch).logprobs_M.tolist() == pytest.approx(expected, abs=1e-5)


def test_prompt_tokens_have_no_part_in_the_loss(make_model: MakeModel) -> None:
    batch = pack(SEQUENCES)
    assert batch.targets_M.tolist() == [token for s in SEQUENCES for token in s.completion_ids]
    assert len(token_logprobs(make_model(), batch).logprobs_M) == 12


def sampled(engine: Engine, *, temperature: float) -> list[tuple[tuple[int, ...], Completion]]:
    prompts = [[1, 20, 21], [1, 20, 21, 22, 23, 24, 25], [9]]
    groups = engine.generate(prompts, SamplingParams(num_samples=8, temperature=temperature, max_tokens=12, seed=3))
    return [(tuple(p), c) for p, group in zip(prompts, groups, strict=True) for c in group]


def trained_logprobs(model: Transformer, drawn: list[tuple[tuple[int, ...], Completion]], temperature: float) -> Tensor:
    sequences = [TrainingSequence(prompt, c.token_ids, 1.0, c.logprobs) for prompt, c in drawn]
    with torch.no_grad():
        return token_logprobs(model, pack(sequences), temperature=temperature).logprobs_M


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_engine_and_trainer_agree_before_and_after_an_optimiser_step(make_model: MakeModel, temperature: float) -> None:
    # Wide enough that the engine multiplies with packed copies of the weights, which a step makes stale.
    model = make_model(hidden_size=96, head_dim=24)
    engine, optimizer = Engine(model), Optimizer(model)
    before = None
    for _ in range(2):
        drawn = sampled(engine, temperature=temperature)
        engine_M = torch.tensor([value for _, c in drawn for value in c.logprobs])
        trainer_M = trained_logprobs(model, drawn, temperature)
        torch.testing.assert_close(engine_M, trainer_M, rtol=0.0, atol=1e-4)
        assert {c.weight_version for _, c in drawn} == {model.weight_version}
        if before is not None:
            moved_M = trained_logprobs(model, before, temperature) - torch.tensor(
                [value for _, c in before for value in c.logprobs]
            )
            assert moved_M.abs().max() > 0.01, "the step changed too little for this test to see stale weights"
        before = drawn
        loss = -token_logprobs(model, pack(SEQUENCES)).logprobs_M.mean()
        loss.backward()
        optimizer.step(learning_rate=0.02)


def test_engine_and_trainer_agree_in_bfloat16(make_model: MakeModel) -> None:
    model = make_model(hidden_size=96, head_dim=24, dtype="bfloat16")
    drawn = sampled(Engine(model), temperature=1.0)
    engine_M = torch.tensor([value for _, c in drawn for value in c.logprobs])
    gap_M = trained_logprobs(model, drawn, 1.0).exp() - engine_M.exp()
    assert gap_M.abs().mean() < 0.005


def test_frozen_head_gets_no_gradient_and_its_input_the_same_one(make_model: MakeModel) -> None:
    """Under LoRA the head is frozen: its gradient, as large as the vocabulary is wide, is never computed."""
    model, frozen = make_model(tie_word_embeddings=False), make_model(tie_word_embeddings=False)
    frozen.lm_head.requires_grad_(False)
    for each in (model, frozen):
        token_logprobs(each, pack(SEQUENCES)).logprobs_M.sum().backward()
    assert frozen.lm_head.grad is None
    assert model.lm_head.grad is not None
    assert model.final_norm.grad is not None
    torch.testing.assert_close(frozen.final_norm.grad, model.final_norm.grad, rtol=0.0, atol=0.0)
