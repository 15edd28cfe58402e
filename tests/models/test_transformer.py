"""The decoder on packed documents, across devices' dtypes, and under the engine's and the trainer's habits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aha.models import (
    ARCHITECTURES,
    ExpertsShape,
    LatentAttentionShape,
    ModelConfig,
    PackedAttention,
    Transformer,
    build_model,
)
from aha.models.attention import MAX_PADDED_RATIO, _plan_buckets
from aha.models.config import Llama3Rope
from aha.models.rope import rope_frequencies

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=41,
    hidden_size=24,
    intermediate_size=36,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    initializer_range=0.3,
)
CONFIGS = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, model_type="qwen2", has_qkv_bias=True, tie_word_embeddings=True),
    "qwen3": dataclasses.replace(LLAMA, model_type="qwen3", has_qk_norm=True, num_heads=2, head_dim=12),
}
CONFIGS["qwen3_moe"] = dataclasses.replace(
    CONFIGS["qwen3"],
    model_type="qwen3_moe",
    experts=ExpertsShape(
        num_experts=6, num_experts_per_token=2, intermediate_size=10, scoring="softmax", has_selection_bias=False
    ),
)
CONFIGS["deepseek_v3"] = dataclasses.replace(
    LLAMA,
    model_type="deepseek_v3",
    num_kv_heads=6,
    head_dim=14,
    rope_interleaved=True,
    mla=LatentAttentionShape(
        q_lora_rank=11, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=10
    ),
    experts=ExpertsShape(
        num_experts=8, num_experts_per_token=3, intermediate_size=10, num_shared_experts=1, scoring="sigmoid",
        has_selection_bias=True, num_groups=2, num_groups_per_token=1, scaling_factor=2.5, first_layer=1,
    ),
)  # fmt: skip
CONFIGS["kimi_k2"] = dataclasses.replace(CONFIGS["deepseek_v3"], model_type="kimi_k2")


def make_model(config: ModelConfig, *, seed: int = 0) -> Transformer:
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=seed)
    return model


def draw_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, LLAMA.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def packed_hidden(model: Transformer, documents: Sequence[Tensor]) -> Tensor:
    lengths = [len(d) for d in documents]
    return model.hidden_states(
        torch.cat(list(documents)),
        positions_N=torch.cat([torch.arange(n) for n in lengths]),
        attention=PackedAttention(lengths),
    )


LENGTHS = [[5, 5, 5], [1, 2, 3, 30], [17, 1, 16, 40, 15, 1], [9], [33, 20, 21, 22, 40]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_documents_equal_documents_one_by_one(family: str, lengths: list[int]) -> None:
    model = make_model(CONFIGS[family])
    documents = [draw_tokens(n, seed=i) for i, n in enumerate(lengths)]
    packed = packed_hidden(model, documents)
    alone = torch.cat([packed_hidden(model, [d]) for d in documents])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    logits = torch.cat([model(d.unsqueeze(0))[0] for d in documents])
    torch.testing.assert_close(F.linear(packed, model.output_weight), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_of_packed_documents_are_the_sum_of_those_alone(family: str) -> None:
    packed_model, alone_model = make_model(CONFIGS[family]), make_model(CONFIGS[family])
    documents = [draw_tokens(n, seed=i) for i, n in enumerate([17, 1, 16, 40, 15, 1])]
    weights_ND = torch.randn(90, LLAMA.hidden_size, generator=torch.Generator().manual_seed(1))
    (packed_hidden(packed_model, documents) * weights_ND).sum().backward()
    for document, weights in zip(documents, weights_ND.split([len(d) for d in documents]), strict=True):
        (packed_hidden(alone_model, [document]) * weights).sum().backward()
    for (name, a), b in zip(packed_model.named_parameters(), alone_model.parameters(), strict=True):
        if name == "lm_head":
            continue  # hidden states end before the head
        assert a.grad is not None
        assert b.grad is not None
        assert float((a.grad - b.grad).norm() / b.grad.norm()) < 1e-5, name


def shared_hidden(model: Transformer, prompt: Tensor, completions: Sequence[Tensor]) -> Tensor:
    """The prompt's tokens once, then every completion's."""
    ends = list(itertools.accumulate((len(c) for c in completions), initial=len(prompt)))
    own_rows = [torch.arange(start, end) for start, end in itertools.pairwise(ends)]
    positions = [torch.arange(len(prompt), len(prompt) + len(c)) for c in completions]
    return model.hidden_states(
        torch.cat([prompt, *completions]),
        positions_N=torch.cat([torch.arange(len(prompt)), *positions]),
        attention=PackedAttention(
            [len(prompt) + len(c) for c in completions],
            rows=[torch.cat((torch.arange(len(prompt)), own)) for own in own_rows],
        ),
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_prompt_shared_by_its_completions_equals_a_prompt_each(family: str) -> None:
    shared_model, apart_model = make_model(CONFIGS[family]), make_model(CONFIGS[family])
    prompt, completions = draw_tokens(11), [draw_tokens(n, seed=n) for n in (1, 9, 30, 9)]
    shared = shared_hidden(shared_model, prompt, completions)[11:]
    documents = [torch.cat((prompt, c)) for c in completions]
    apart = torch.cat([packed_hidden(apart_model, [d])[11:] for d in documents])
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=0)
    weights_ND = torch.randn(shared.shape, generator=torch.Generator().manual_seed(1))
    for hidden in (shared, apart):
        (hidden * weights_ND).sum().backward()
    for (name, a), b in zip(shared_model.named_parameters(), apart_model.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            assert float((a.grad - b.grad).norm() / b.grad.norm()) < 1e-5, name
        else:
            assert name == "lm_head", "hidden states end before the head"


def test_a_token_sees_nothing_after_it_and_nothing_of_its_neighbours() -> None:
    model = make_model(LLAMA)
    documents = [draw_tokens(n, seed=i) for i, n in enumerate([7, 12, 30])]
    before = packed_hidden(model, documents)
    documents[1][5] = (documents[1][5] + 1) % LLAMA.vocab_size
    is_changed = (packed_hidden(model, documents) - before).abs().amax(dim=1) > 1e-4
    assert is_changed.nonzero().flatten().tolist() == list(range(7 + 5, 7 + 12))


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_buckets_compute_every_token_with_little_padding(lengths: list[int]) -> None:
    documents = list(torch.arange(sum(lengths)).split(lengths))
    gathers, restore_N = _plan_buckets(documents)
    rows = torch.cat([gather_BT.flatten() for gather_BT in gathers])
    assert torch.equal(rows[restore_N], torch.arange(sum(lengths)))
    for gather_BT in gathers:
        shortest = min(len(row.unique()) for row in gather_BT)
        assert gather_BT.shape[1] <= MAX_PADDED_RATIO * shortest


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_packed_attention_equals_softmax_by_hand(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total, num_heads, num_kv_heads, head_dim = sum(lengths), 4, 2, 6
    q_NHC = torch.randn(total, num_heads, head_dim, generator=generator)
    k_NKC, v_NKC = torch.randn(2, total, num_kv_heads, head_dim, generator=generator)
    document_N = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    is_seen_NN = (document_N[:, None] == document_N[None, :]).tril()
    attended = []
    for head in range(num_heads):
        scores_NN = q_NHC[:, head] @ k_NKC[:, head // 2].T / head_dim**0.5
        attended.append(scores_NN.masked_fill(~is_seen_NN, -torch.inf).softmax(dim=-1) @ v_NKC[:, head // 2])
    ours = PackedAttention(lengths)(0, q_NHC, k_NKC, v_NKC, scale=q_NHC.shape[-1] ** -0.5)
    torch.testing.assert_close(ours, torch.stack(attended, dim=1), atol=1e-5, rtol=0)


def test_rotation_depends_on_distance_alone() -> None:
    model = make_model(LLAMA)
    document = draw_tokens(20)
    shifted = model.hidden_states(document, positions_N=torch.arange(37, 57), attention=PackedAttention([20]))
    torch.testing.assert_close(shifted, packed_hidden(model, [document]), atol=1e-4, rtol=0)


def test_rotary_tables_grow_without_changing_what_was_there() -> None:
    model = make_model(LLAMA)
    first = model.rope_tables.at(torch.arange(10), dtype=torch.float32)[0].clone()
    model.rope_tables.at(torch.tensor([5000]), dtype=torch.float32)
    assert torch.equal(model.rope_tables.at(torch.arange(10), dtype=torch.float32)[0], first)


def test_model_can_train_after_sampling_in_inference_mode() -> None:
    model = make_model(LLAMA)
    with torch.inference_mode():
        expected = model(draw_tokens(2, 9)).clone()
    logits = model(draw_tokens(2, 9))
    logits.sum().backward()
    assert torch.equal(logits.detach(), expected)
    assert all(p.grad is not None for p in model.parameters())


def test_llama3_stretching_keeps_short_wavelengths_and_divides_long_ones() -> None:
    plain = dataclasses.replace(LLAMA, head_dim=64, rope_theta=500_000.0)
    scaling = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    frequencies, stretched = rope_frequencies(plain), rope_frequencies(dataclasses.replace(plain, rope_scaling=scaling))
    wavelengths = 2 * torch.pi / frequencies
    assert torch.equal(stretched[wavelengths < 2048], frequencies[wavelengths < 2048])
    assert torch.equal(stretched[wavelengths > 8192], frequencies[wavelengths > 8192] / 8)
    is_between = (wavelengths >= 2048) & (wavelengths <= 8192)
    assert is_between.any()
    assert (stretched[is_between] < frequencies[is_between]).all()
    assert (stretched[is_between] > frequencies[is_between] / 8).all()


def test_linear_scaling_divides_positions() -> None:
    scaled = dataclasses.replace(LLAMA, rope_scaling=4.0)
    assert torch.equal(rope_frequencies(scaled), rope_frequencies(LLAMA) / 4)


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    a = make_model(LLAMA, seed=7)
    torch.manual_seed(1)
    b, other = make_model(LLAMA, seed=7), make_model(LLAMA, seed=8)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed_tokens, other.embed_tokens)


def test_initial_weights_have_the_spread_the_configuration_asks_for() -> None:
    config = dataclasses.replace(CONFIGS["qwen2"], hidden_size=192, intermediate_size=300, initializer_range=0.02)
    model = make_model(config)
    spreads = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    for name, spread in spreads.items():
        is_residual = "o_proj" in name or "down_proj" in name
        expected = 0.02 / (2 * config.num_layers) ** 0.5 if is_residual else 0.02
        assert spread == pytest.approx(expected, rel=0.05), name
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name


def test_tied_head_is_the_embedding_itself() -> None:
    tied, untied = make_model(CONFIGS["qwen2"]), make_model(LLAMA)
    assert tied.output_weight is tied.embed_tokens
    assert untied.output_weight is not untied.embed_tokens
    num_shared = LLAMA.vocab_size * LLAMA.hidden_size
    untied_config = dataclasses.replace(CONFIGS["qwen2"], tie_word_embeddings=False)
    assert make_model(untied_config).num_parameters() == tied.num_parameters() + num_shared


def test_linear_of_the_caller_computes_every_product() -> None:
    model = make_model(CONFIGS["qwen2"])
    seen: list[tuple[int, ...]] = []

    def recording(x_ND: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(weight.shape))
        return F.linear(x_ND, weight, bias)

    model.hidden_states(draw_tokens(4), positions_N=torch.arange(4), attention=PackedAttention([4]), linear=recording)
    per_layer = [(80, 24), (24, 48), (72, 24), (24, 36)]
    assert seen == list(itertools.chain(per_layer, per_layer))


def test_every_architecture_builds() -> None:
    assert set(ARCHITECTURES) == {*CONFIGS, "internvl"}  # which tests/models/test_internvl.py builds
    for family, config in CONFIGS.items():
        assert type(make_model(config)) is ARCHITECTURES[family]
