"""Experts: against a formula that visits one token and one expert at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models import ModelConfig, PackedAttention, build_model
from aha.models.config import ExpertsShape, LatentAttentionShape
from aha.models.experts import MixtureOfExperts, grouped_outer, grouped_product
from aha.models.projection import Pass

WIDTH, HIDDEN = 12, 10  # HIDDEN: rows of 40 bytes, which torch's grouped product does not take
RUN = Pass(PackedAttention([1]), F.linear, 0, (torch.empty(0), torch.empty(0)))
ROUTES = ("mixed", "all to one", "two never")


def config(*, width: int = WIDTH, hidden: int = HIDDEN, **experts: Any) -> ModelConfig:
    shape = {"num_experts": 7, "num_experts_per_token": 3, "intermediate_size": hidden, "num_shared_experts": 1,
             "scoring": "sigmoid", "has_selection_bias": True, "scaling_factor": 2.5} | experts  # fmt: skip
    mla = LatentAttentionShape(
        q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5
    )  # fmt: skip
    return ModelConfig(
        model_type="deepseek_v3", vocab_size=19, hidden_size=width, intermediate_size=14, num_layers=1, num_heads=3,
        num_kv_heads=3, head_dim=10, max_position_embeddings=64, mla=mla, rope_interleaved=True, num_mtp_layers=0,
        experts=ExpertsShape(**shape),
    )  # fmt: skip


def make_experts(shape: ModelConfig, *, route: str = "mixed", dtype: Any = "float32") -> MixtureOfExperts:
    model = build_model(shape, dtype=dtype, device="cpu")
    model.initialise(seed=3)
    layer: Any = model.layers[0]
    experts: MixtureOfExperts = layer.feed_forward
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.mul_(20)
        if route == "all to one":
            experts.gate.selection_bias[2] = 9.0
        if route == "two never":
            experts.gate.selection_bias[[0, 4]] = -9.0
    return experts


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_by_token(experts: MixtureOfExperts, x_ND: Tensor) -> Tensor:
    """Equation 12 as it is written."""
    routing = experts.gate(x_ND)
    rows = []
    for token, (x_D, chosen_k, weights_k) in enumerate(
        zip(x_ND, routing.experts_Nk.tolist(), routing.weights_Nk, strict=True)
    ):
        y_D = torch.zeros_like(x_D)
        for expert, weight in zip(chosen_k, weights_k, strict=True):
            gate_F, up_F = (experts.gate_up_proj[expert] @ x_D).chunk(2)
            y_D = y_D + weight * (experts.down_proj[expert] @ (F.silu(gate_F) * up_F))
        if experts.shared_experts is not None:
            y_D = y_D + experts.shared_experts(x_ND[token : token + 1], RUN)[0]
        rows.append(y_D)
    return torch.stack(rows)


def results(experts: MixtureOfExperts, x_ND: Tensor, *, slowly: bool) -> dict[str, Tensor]:
    """The result and every gradient."""
    x_ND = x_ND.clone().requires_grad_()
    experts.zero_grad()
    y_ND = token_by_token(experts, x_ND) if slowly else experts(x_ND, RUN)[0]
    (y_ND * draw(*y_ND.shape, seed=5)).sum().backward()
    assert x_ND.grad is not None
    grads = {name: p.grad.clone() for name, p in experts.named_parameters() if p.grad is not None}
    return {"y": y_ND.detach(), "x": x_ND.grad, **grads}


@pytest.mark.parametrize("width", [12, 13])
@pytest.mark.parametrize("num_tokens", [1, 2, 31])
@pytest.mark.parametrize("route", ROUTES)
def test_experts_equal_one_token_at_a_time(route: str, num_tokens: int, width: int) -> None:
    experts = make_experts(config(width=width), route=route)
    x_ND = draw(num_tokens, width)
    ours, slow = results(experts, x_ND, slowly=False), results(experts, x_ND, slowly=True)
    assert set(ours) == set(slow) == {"y", "x"} | {name for name, _ in experts.named_parameters()}
    for name, expected in slow.items():
        torch.testing.assert_close(ours[name], expected, atol=3e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    if route == "two never":
        assert not ours["gate_up_proj"][[0, 4]].any()


@pytest.mark.parametrize("route", ROUTES)
def test_experts_give_the_same_bits_again(route: str) -> None:
    experts = make_experts(config(hidden=16), route=route)
    x_ND = draw(203, WIDTH)
    first, second = results(experts, x_ND, slowly=False), results(experts, x_ND, slowly=False)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_experts_chosen_with_equal_weights_are_the_dense_sum() -> None:
    experts = make_experts(config(num_experts_per_token=7, scaling_factor=7.0, num_shared_experts=0))
    with torch.no_grad():
        experts.gate.weight.zero_()
    x_ND = draw(17, WIDTH)
    # One dense feed-forward: the experts' inner channels side by side.
    gate_FD, up_FD = (half.flatten(0, 1) for half in experts.gate_up_proj.chunk(2, dim=1))
    down_DF = experts.down_proj.transpose(0, 1).flatten(1)
    dense_ND = F.linear(F.silu(F.linear(x_ND, gate_FD)) * F.linear(x_ND, up_FD), down_DF)
    torch.testing.assert_close(experts(x_ND, RUN)[0], dense_ND, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(16, 24), (10, 24), (16, 9), (7, 5)])
@pytest.mark.parametrize("counts", [(4, 0, 9, 3), (0, 0, 16, 0), (1, 1, 1, 0)])
def test_grouped_products_equal_padded_batched_ones(
    counts: tuple[int, ...], widths: tuple[int, int], dtype: torch.dtype
) -> None:
    num_in, num_out = widths
    ends_E = torch.tensor(counts).cumsum(0, dtype=torch.int32)
    x_MI, y_MO = draw(sum(counts), num_in).to(dtype), draw(sum(counts), num_out, seed=1).to(dtype)
    weight_EIO = draw(len(counts), num_in, num_out, seed=2).to(dtype)

    def padded(rows: Tensor) -> Tensor:
        blocks = [F.pad(part, (0, 0, 0, max(counts) - len(part))) for part in rows.split(counts)]
        return torch.stack(blocks)

    product_ELO = torch.bmm(padded(x_MI), weight_EIO)
    expected = torch.cat([block[:count] for block, count in zip(product_ELO, counts, strict=True)])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(grouped_product(x_MI, weight_EIO, ends_E), expected, atol=tolerance, rtol=tolerance)
    transposed = weight_EIO.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(grouped_product(x_MI, transposed, ends_E), expected, atol=tolerance, rtol=tolerance)
    outer_EOI = torch.bmm(padded(y_MO).transpose(1, 2), padded(x_MI))
    torch.testing.assert_close(grouped_outer(y_MO, x_MI, ends_E), outer_EOI, atol=tolerance, rtol=tolerance)


def test_experts_that_no_token_chose_are_not_read() -> None:
    experts = make_experts(config(num_experts=64))
    x_ND = draw(1, WIDTH)
    expected_ND, routing = experts(x_ND, RUN)
    is_idle_E = torch.ones(64, dtype=torch.bool)
    is_idle_E[routing.experts_Nk] = False
    with torch.no_grad():
        experts.gate_up_proj[is_idle_E] = torch.nan
        experts.down_proj[is_idle_E] = torch.nan
    assert torch.equal(experts(x_ND, RUN)[0], expected_ND)
    ours = results(experts, x_ND, slowly=False)
    assert all(bool(value.isfinite().all()) for value in ours.values())


def test_memory_kept_for_the_backward_pass_does_not_depend_on_the_route() -> None:
    kept = {}
    for route in ROUTES:
        sizes: list[int] = []
        experts = make_experts(config(hidden=16), route=route)

        def keep(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel() * x.element_size())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            experts(draw(64, WIDTH), RUN)
        kept[route] = sum(sizes)
    assert len(set(kept.values())) == 1


def test_bfloat16_experts_are_near_float32_ones() -> None:
    shape = config(width=16, hidden=16)
    exact = make_experts(shape)
    rounded = make_experts(shape, dtype="bfloat16")
    with torch.no_grad():
        for mine, other in zip(exact.parameters(), rounded.parameters(), strict=True):
            mine.copy_(other.float())
    x_ND = draw(40, 16).bfloat16()
    ours, expected = results(rounded, x_ND, slowly=False), results(exact, x_ND.float(), slowly=False)
    for name, value in expected.items():
        error = (ours[name].float() - value).norm() / value.norm()
        assert error < 0.03, f"{name}: {error}"


def test_frozen_experts_get_no_gradient_and_pass_it_on() -> None:
    experts = make_experts(config())
    expected = results(experts, draw(9, WIDTH), slowly=False)
    experts.gate_up_proj.requires_grad_(False)
    experts.down_proj.requires_grad_(False)
    experts.gate_up_proj.grad = experts.down_proj.grad = None
    ours = results(experts, draw(9, WIDTH), slowly=False)
    assert not ours.keys() & {"gate_up_proj", "down_proj"}
    assert torch.equal(ours["x"], expected["x"])


def test_recomputed_experts_have_the_gradients_of_kept_ones() -> None:
    model = build_model(dataclasses.replace(config(), num_layers=2), dtype="float32", device="cpu")
    model.initialise(seed=0)
    token_ids_BT = torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(0))
    grads = []
    for activations in ("keep", "recompute"):
        model.activations = activations  # type: ignore[assignment]
        model.zero_grad()
        model(token_ids_BT).logsumexp(-1).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(kept, again) for kept, again in zip(*grads, strict=True))


def test_latent_attention_has_the_same_bits_with_and_without_gradients() -> None:
    model = build_model(config(), dtype="float32", device="cpu")
    model.initialise(seed=0)
    token_ids_BT = torch.randint(0, 19, (3, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(token_ids_BT)
    assert torch.equal(model(token_ids_BT).detach(), expected)


@pytest.mark.parametrize("most", [0, 512])
def test_fused_and_plain_latent_attention_agree(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(config(), dtype="float32", device="cpu")
    model.initialise(seed=0)
    token_ids_BT = torch.randint(0, 19, (3, 21), generator=torch.Generator().manual_seed(0))
    expected = model(token_ids_BT).detach()
    monkeypatch.setattr("aha.models.attention.MAX_PLAIN_LENGTH", most)
    torch.testing.assert_close(model(token_ids_BT).detach(), expected, atol=1e-5, rtol=0)
