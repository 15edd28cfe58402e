"""Low-rank adapters: the formula, what is frozen, what is shared, and what merging gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aha.engine import Engine
from aha.errors import ModelError
from aha.models import (
    ModelConfig,
    PackedAttention,
    Transformer,
    attach_lora,
    build_model,
    frozen_twin,
    load_model,
    merge,
    num_trainable,
)
from aha.models import without_adapter as base_of
from aha.models.lora import LoraTargets, adaptable, adapters, attach_parts
from aha.models.parity import NUM_CONTINUED, compare_models
from aha.train.batches import TrainingSequence, pack
from aha.train.logprobs import token_logprobs
from aha.train.optimizer import Optimizer
from aha.types import SamplingParams

IDS_BT = torch.randint(0, 53, (3, 9), generator=torch.Generator().manual_seed(3))


def make_model(*, dtype: str = "float32", **fields: Any) -> Transformer:
    defaults: dict[str, Any] = {
        "model_type": "qwen2", "vocab_size": 53, "hidden_size": 24, "intermediate_size": 20, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "has_qkv_bias": True,
        "tie_word_embeddings": True, "initializer_range": 0.2, "eos_token_ids": (3,),
    }  # fmt: skip
    model = build_model(ModelConfig(**(defaults | fields)), dtype=dtype, device="cpu")  # type: ignore[arg-type]
    model.initialise(seed=0)
    return model


def with_adapter(
    model: Transformer, *, rank: int = 4, alpha: float = 8.0, targets: LoraTargets = "all_linear", scatter: float = 0.1
) -> Transformer:
    """Adapters whose B is not zero any more, as after some training."""
    attach_lora(model, rank=rank, alpha=alpha, targets=targets, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.copy_(torch.empty(adapter.b.shape).normal_(0.0, scatter, generator=generator))
    model.weight_version += 1
    return model


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model(IDS_BT)


def train_a_step(model: Transformer, optimizer: Optimizer, *, learning_rate: float = 0.05) -> None:
    batch = pack([TrainingSequence((1, 2, 3), (4, 5, 6, 3)), TrainingSequence((1, 7), (8, 3))])
    (-token_logprobs(model, batch).logprobs_M.mean()).backward()
    optimizer.step(learning_rate=learning_rate)


def test_fresh_adapter_leaves_every_logit_as_it_was() -> None:
    model = make_model()
    before = logits(model)
    attach_lora(model, rank=4, alpha=8.0)
    assert torch.equal(logits(model), before)


def test_adapter_adds_alpha_over_rank_times_b_a_to_each_part() -> None:
    model = with_adapter(make_model(), rank=4, alpha=8.0)
    layer = model.layers[1]
    projection = layer.attention.qkv_proj
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = projection.project(
            x, model.begin_pass(torch.arange(5), attention=PackedAttention([5]), linear=torch.nn.functional.linear)
        )
        a_q, a_k, a_v = projection.adapter.a.split(4)
        b_q, b_k, b_v = projection.adapter.b.split((32, 16, 16))
        deltas = [2.0 * b @ (a @ x.T) for a, b in ((a_q, b_q), (a_k, b_k), (a_v, b_v))]
        expected = x @ projection.weight.T + projection.bias + torch.cat(deltas).T
    torch.testing.assert_close(found, expected)


def test_a_is_kaiming_uniform_and_b_is_zero() -> None:
    # nn.Linear's own start, uniform within 1 / sqrt(inputs), as the paper's code has it.
    model = make_model()
    attach_lora(model, rank=16, alpha=16.0, seed=5)
    for name, adapter in adapters(model):
        bound = adapter.a.shape[1] ** -0.5
        assert not adapter.b.any(), name
        assert 0.9 * bound < adapter.a.abs().max() <= bound
        assert adapter.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    other, again = make_model(), make_model()
    attach_lora(again, rank=16, alpha=16.0, seed=5)
    attach_lora(other, rank=16, alpha=16.0, seed=6)
    first = dict(adapters(model))["layers.0.attention.o_proj"].a
    assert torch.equal(first, dict(adapters(again))["layers.0.attention.o_proj"].a)
    assert not torch.equal(first, dict(adapters(other))["layers.0.attention.o_proj"].a)


@pytest.mark.parametrize(
    ("targets", "matrices"),
    [
        ("attention", {"attention.qkv_proj", "attention.o_proj"}),
        ("mlp", {"feed_forward.gate_up_proj", "feed_forward.down_proj"}),
        (
            "all_linear",
            {"attention.qkv_proj", "attention.o_proj", "feed_forward.gate_up_proj", "feed_forward.down_proj"},
        ),
    ],
)
def test_only_adapters_of_the_targets_are_trained(targets: LoraTargets, matrices: set[str]) -> None:
    model = make_model()
    attach_lora(model, rank=2, alpha=4.0, targets=targets)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"layers.{i}.{m}.adapter.{x}" for i in (0, 1) for m in matrices for x in "ab"}
    sizes = {"qkv_proj": 3 * 24 + 64, "o_proj": 32 + 24, "gate_up_proj": 2 * 24 + 40, "down_proj": 20 + 24}
    assert num_trainable(model) == 2 * 2 * sum(sizes[m.partition(".")[2]] for m in matrices)


def test_step_moves_the_adapter_alone_and_has_no_masters_for_the_base() -> None:
    model = make_model(dtype="bfloat16")
    attach_lora(model, rank=2, alpha=4.0)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = Optimizer(model)
    train_a_step(model, optimizer)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert all(p.grad is None for p in model.parameters())
    assert all(adapter.b.any() for _, adapter in adapters(model))
    held = sum(t.numel() for name, t in optimizer.state_tensors().items() if not name.endswith(".step"))
    assert held == 3 * num_trainable(model), "master and two moments for each trained parameter, nothing else"


@pytest.mark.parametrize("targets", ["all_linear", "attention", "mlp"])
def test_gradients_of_the_adapter_follow_from_those_of_the_full_matrix(targets: LoraTargets) -> None:
    # W' = W + s B A: dL/dB = s dL/dW' A^T, dL/dA = s B^T dL/dW'.
    model = with_adapter(make_model(), rank=3, alpha=6.0, targets=targets)
    full = make_model()
    full.load_state_dict({k: v for k, v in model.state_dict().items() if ".adapter." not in k})
    deltas = {
        name: torch.cat([a.delta(part) for part in a.rows]) for name, a in adapters(model)
    }  # fmt: skip
    with torch.no_grad():
        for name, projection in adaptable(full):
            if name in deltas:
                projection.weight += deltas[name]
    batch = pack([TrainingSequence((1, 2, 3), (4, 5, 6, 3)), TrainingSequence((1, 7), (8, 3))])
    for each in (model, full):
        (-token_logprobs(each, batch).logprobs_M.sum()).backward()
    gradients = {name: projection.weight.grad for name, projection in adaptable(full)}
    for name, adapter in adapters(model):
        grad = gradients[name]
        assert grad is not None
        for part_rows, a, b, grad_a, grad_b in zip(
            adapter.rows.values(),
            (part[1] for part in adapter.parts()),
            (part[2] for part in adapter.parts()),
            adapter.a.grad.split(3),  # type: ignore[union-attr]
            adapter.b.grad.split([r.stop - r.start for r in adapter.rows.values()]),  # type: ignore[union-attr]
            strict=True,
        ):
            torch.testing.assert_close(grad_b, 2.0 * grad[part_rows] @ a.T, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(grad_a, 2.0 * b.T @ grad[part_rows], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_activations_give_the_same_bits(dtype: str) -> None:
    models = [with_adapter(make_model(dtype=dtype)) for _ in range(2)]
    models[1].activations = "recompute"
    for model in models:
        train_a_step(model, Optimizer(model))
    kept, recomputed = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def sampled_logprobs(engine: Engine, *, prompts: list[list[int]]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=4)
    return [(done.token_ids, done.logprobs) for (done,) in engine.generate(prompts, sampling)]


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.005)])
def test_engine_samples_from_the_updated_adapter(dtype: str, most: float) -> None:
    """What was sampled is what is trained, after each step; a sampler that stays with the base would fail here."""
    model = make_model(dtype=dtype, hidden_size=64)
    attach_lora(model, rank=4, alpha=8.0)
    engine, optimizer = Engine(model), Optimizer(model)
    prompts = [[1, 2, 3, 4], [9, 8, 7], [5, 11, 12, 13, 14]]
    sampled_logprobs(engine, prompts=prompts)  # the engine has packed its weights once
    for _ in range(2):
        train_a_step(model, optimizer)
        drawn = sampled_logprobs(engine, prompts=prompts)
        batch = pack([TrainingSequence(tuple(p), ids) for p, (ids, _) in zip(prompts, drawn, strict=True)])
        sampled = torch.tensor([value for _, values in drawn for value in values])
        with torch.no_grad():
            trained = token_logprobs(model, batch).logprobs_M
            untrained = token_logprobs(base_of(model), batch).logprobs_M
        if dtype == "float32":
            assert (sampled - trained).abs().max() < most
        else:
            assert (sampled.exp() - trained.exp()).abs().mean() < most
        assert (sampled.exp() - untrained.exp()).abs().mean() > 4 * most, "the adapter has an effect to be seen"


def test_frozen_twin_stays_behind_and_shares_the_base() -> None:
    model = with_adapter(make_model())
    twin, before = frozen_twin(model), logits(model)
    train_a_step(model, Optimizer(model))
    assert torch.equal(logits(twin), before)
    assert not torch.equal(logits(model), before)
    own = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        assert (parameter is own[name]) is (".adapter." not in name)
        assert not parameter.requires_grad
    assert all(p.requires_grad for name, p in own.items() if ".adapter." in name)


def test_base_without_adapter_is_the_model_as_it_was() -> None:
    model = make_model()
    before = logits(model)
    with_adapter(model)
    assert not torch.allclose(logits(model), before, atol=1e-2)
    assert torch.equal(logits(base_of(model)), before)
    assert model.lora is not None, "the model itself keeps its adapter"


@pytest.mark.parametrize("targets", ["all_linear", "attention", "mlp"])
def test_merged_model_computes_the_same(tmp_path: Path, targets: LoraTargets) -> None:
    model = with_adapter(make_model(), targets=targets)
    expected = logits(model)
    model.save(tmp_path / "merged")
    merge(model)
    assert model.lora is None
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(load_model(tmp_path / "merged", dtype="float32", device="cpu")), logits(model))


def test_adapter_on_some_of_the_fused_parts_adds_to_their_rows_only() -> None:
    # PEFT's own default for many models: q_proj and v_proj.
    model, whole = make_model(), make_model()
    names = {f"layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}
    attach_parts(model, names=names, rank=2, scale=0.5)
    attach_parts(whole, names=names | {n.replace("v_proj", "k_proj") for n in names}, rank=2, scale=0.5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        parts = {name: (a, b) for _, adapter in adapters(whole) for name, a, b in adapter.parts()}
        for _, adapter in adapters(model):
            for name, a, b in adapter.parts():
                a.normal_(generator=generator)
                b.normal_(generator=generator)
                parts[name][0].copy_(a)
                parts[name][1].copy_(b)  # and k stays zero
    torch.testing.assert_close(logits(model), logits(whole))
    assert not torch.allclose(logits(model), logits(make_model()), atol=1e-2)


def test_second_adapter_and_impossible_ranks_are_refused() -> None:
    model = make_model()
    for rank in (0, 21):
        with pytest.raises(ModelError, match=f"lora_rank must be from 1 to 20, .* got {rank}"):
            attach_lora(model, rank=rank, alpha=1.0)
    attach_lora(model, rank=20, alpha=1.0)
    with pytest.raises(ModelError, match="has a LoRA adapter already"):
        attach_lora(model, rank=2, alpha=1.0)


def test_parity_tells_equal_models_from_others() -> None:
    model = with_adapter(make_model())
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    same = compare_models(model, frozen_twin(model), prompts=prompts)
    assert (same.max_logit_difference, same.mean_probability_difference, same.same_argmax_fraction) == (0.0, 0.0, 1.0)
    assert (same.num_positions, same.num_continued, same.num_same_continuations) == (7 + 2 * NUM_CONTINUED, 2, 2)
    other = compare_models(model, base_of(model), prompts=prompts)
    assert other.max_logit_difference > 0.1
    assert other.mean_probability_difference > 0.001
    assert other.num_same_continuations < 2
