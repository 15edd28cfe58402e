"""Products in FP8: forward and both gradients against formulas written out, and the layouts that the GPU wants."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models import ExpertsShape, LatentAttentionShape, ModelConfig, PackedAttention, Transformer, fp8_product
from aha.models.experts import MixtureOfExperts
from aha.models.fp8 import ACTIVATION_BLOCK, Quantised, quantise, quantise_activations, quantise_weight
from aha.models.fp8_config import WEIGHT_BLOCK
from aha.models.fp8_product import Fp8Products, fp8_linear, has_fp8_units, multiply, training_products
from aha.models.layer import Layer
from aha.models.mtp import MultiTokenPrediction

ODD_SIZES = [(1, 1, 1), (3, 130, 129), (5, 576, 40), (200, 64, 300)]
"""Tokens, inputs, outputs: none a multiple of 128."""


DENSE = ModelConfig(
    model_type="llama",
    vocab_size=11,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=32,
)
WITH_MTP = dataclasses.replace(
    DENSE,
    model_type="deepseek_v3",
    hidden_size=48,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=24,
    initializer_range=0.1,
    rope_interleaved=True,
    mla=LatentAttentionShape(q_lora_rank=None, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16),
    experts=ExpertsShape(
        num_experts=4,
        num_experts_per_token=2,
        intermediate_size=24,
        num_shared_experts=1,
        scoring="sigmoid",
        has_selection_bias=True,
        first_layer=1,
    ),
    num_mtp_layers=1,
)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def rounded(x: Tensor, block: tuple[int, int]) -> Tensor:
    """x as FP8 has it, in float64, each number times its block's scale."""
    values, scales = quantise(x, block=block, scale_fmt="float")
    scales = scales.double().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return values.double() * scales[: x.shape[0], : x.shape[1]]


@pytest.mark.parametrize(("num_tokens", "num_in", "num_out"), ODD_SIZES)
def test_forward_and_gradients_are_products_of_what_fp8_has(num_tokens: int, num_in: int, num_out: int) -> None:
    """Fig. 6: y = X W', dX = dY W, dW = dY' X, both sides of each in tiles along the axis that is contracted."""
    x = drawn(num_tokens, num_in).requires_grad_()
    weight = drawn(num_out, num_in, seed=1).requires_grad_()
    grad = drawn(num_tokens, num_out, seed=2)
    y = fp8_linear(x, weight, None)
    y.backward(grad)
    kept = rounded(x.detach(), (1, 128))
    weight8 = rounded(weight.detach(), (128, 128))
    expected_y = kept @ weight8.T
    expected_dx = rounded(grad, (1, 128)) @ weight8
    # By tokens in columns of 128, not transposed: another way to the same tiles.
    expected_dw = rounded(grad, (128, 1)).T @ rounded(kept.float(), (128, 1))
    for ours, expected in ((y, expected_y), (x.grad, expected_dx), (weight.grad, expected_dw)):
        assert ours is not None
        scale = expected.abs().max()
        torch.testing.assert_close(ours.double() / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_near_the_plain_one_and_has_its_dtype(dtype: torch.dtype) -> None:
    x = drawn(64, 256, dtype=dtype).requires_grad_()
    weight = drawn(192, 256, seed=1, dtype=dtype).requires_grad_()
    bias = drawn(192, seed=2, dtype=dtype).requires_grad_()
    plain = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    ours, theirs = fp8_linear(x, weight, bias), F.linear(*plain)
    assert ours.dtype == dtype
    grad = drawn(64, 192, seed=3)
    ours.backward(grad.to(dtype))
    theirs.backward(grad)
    assert float((ours.float() - theirs).detach().norm() / theirs.detach().norm()) < 0.05
    for tensor, reference in zip((x, weight, bias), plain, strict=True):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert tensor.grad.dtype == dtype
        assert float((tensor.grad.float() - reference.grad).norm() / reference.grad.norm()) < 0.06


def test_one_large_activation_does_not_spoil_other_tokens_or_channels() -> None:
    """What fine-grained scales are for: with one scale for the tensor, the others would be zeros."""
    x, weight = drawn(8, 256), drawn(128, 256, seed=1)
    x[0, 0] = 1e6
    error = (fp8_linear(x, weight, None) - F.linear(x, weight))[1:]
    assert float(error.norm() / F.linear(x, weight)[1:].norm()) < 0.05


def test_nan_in_the_gradient_reaches_both_gradients() -> None:
    x, weight = drawn(4, 130).requires_grad_(), drawn(6, 130, seed=1).requires_grad_()
    grad = torch.ones(4, 6)
    grad[2, 3] = math.nan
    fp8_linear(x, weight, None).backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    assert bool(x.grad[2].isnan().all())
    assert bool(x.grad[:2].isfinite().all())
    assert bool(weight.grad[3].isnan().all())


def test_frozen_weight_gets_no_gradient() -> None:
    x, weight = drawn(4, 8).requires_grad_(), drawn(6, 8, seed=1)
    fp8_linear(x, weight, None).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("counts", [(3, 0, 200, 129), (40, 41, 39, 40), (0, 0, 0, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_multiplied_as_each_one_alone_would_be(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    """Tiles of 128 tokens begin anew with each expert, and no block of a weight reaches into the next one's."""
    num_in, num_out = 136, 144  # multiples of 8, so that torch's grouped product is tried too
    x = drawn(sum(counts), num_in, dtype=dtype).requires_grad_()
    weight = drawn(len(counts), num_out, num_in, seed=1, dtype=dtype).requires_grad_()
    grad = drawn(sum(counts), num_out, seed=2, dtype=dtype) * torch.logspace(-3, 0, sum(counts))[:, None].to(dtype)
    grouped = Fp8Products(Transformer(DENSE)).grouped(x, weight, torch.tensor(counts).cumsum(0, dtype=torch.int32))
    grouped.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    alone_x, alone_weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    parts = [
        fp8_linear(rows, w, None) for rows, w in zip(alone_x.split(counts), alone_weight, strict=True) if len(rows)
    ]
    alone = torch.cat(parts)
    alone.backward(grad)
    bound = 1e-5 if dtype == torch.float32 else 2.0**-8
    for ours, theirs in ((grouped, alone), (x.grad, alone_x.grad), (weight.grad, alone_weight.grad)):
        assert theirs is not None
        assert ours.dtype == dtype
        assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()) < bound


def test_projection_of_a_multi_token_prediction_module_is_left_alone() -> None:
    model = Transformer(WITH_MTP)
    model.initialise(seed=0)
    products = Fp8Products(model)
    weight = cast(MultiTokenPrediction, model.mtp[0]).eh_proj.weight
    x = drawn(3, weight.shape[1])
    assert torch.equal(products(x, weight, None), F.linear(x, weight))
    assert not torch.equal(products(x, weight.detach().clone(), None), F.linear(x, weight))


def test_model_of_experts_and_latent_attention_trains_in_fp8() -> None:
    model = Transformer(WITH_MTP)
    model.initialise(seed=0)
    hidden: list[Tensor] = []
    for products in ("full", "fp8"):
        model.products = products
        ids_N = torch.arange(20) % 11
        hidden.append(
            model.hidden_states(
                ids_N,
                positions_N=torch.arange(20),
                attention=PackedAttention([20]),
                linear=training_products(model),
            )
        )
    hidden[1].square().sum().backward()
    difference = float((hidden[1] - hidden[0]).detach().norm() / hidden[0].detach().norm())
    assert 1e-4 < difference < 0.1
    experts = cast(MixtureOfExperts, cast(Layer, model.layers[1]).feed_forward)
    for parameter in (experts.gate.weight, experts.gate_up_proj, experts.down_proj):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any())


def test_sums_over_many_blocks_are_kept_in_float32() -> None:
    """A bfloat16 sum of 4,096 equal products would stop growing at 256."""
    x, weight = torch.ones(1, 4096, dtype=torch.bfloat16), torch.ones(1, 4096, dtype=torch.bfloat16)
    assert float(fp8_linear(x, weight, None)) == 4096


def test_a_cpu_has_no_fp8_units() -> None:
    assert not has_fp8_units(torch.device("cpu"))


@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), [*ODD_SIZES, (128, 512, 1024), (16, 128, 128)])
@pytest.mark.parametrize("right_block", [WEIGHT_BLOCK, ACTIVATION_BLOCK])
def test_hopper_gets_the_layouts_that_torch_checks(
    num_rows: int, num_in: int, num_out: int, right_block: tuple[int, int]
) -> None:
    """On the meta device torch makes the checks of the real kernel and computes nothing."""
    left = Quantised(*(t.to("meta") for t in quantise_activations(drawn(num_rows, num_in))))
    right = Quantised(*(t.to("meta") for t in quantise(drawn(num_out, num_in), block=right_block, scale_fmt="float")))
    for dtype in (torch.bfloat16, torch.float32):
        product = fp8_product.multiply_on_hopper(left, right, right_block=right_block, dtype=dtype)
        assert tuple(product.shape) == (num_rows, num_out)
        assert product.dtype == dtype


def _scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, recipe_a: Any, scale_b: Tensor, recipe_b: Any, **_: Any
) -> Tensor:
    """What the recipes mean, number by number: scale_a[m, k / 128], and scale_b[n, k / 128] or [k / 128, n / 128]."""
    assert recipe_a == F.ScalingType.BlockWise1x128
    total = torch.zeros(len(a), b.shape[1])
    for k in range(len(b)):
        left = a[:, k].float() * scale_a[:, k // 128]
        is_weight = recipe_b == F.ScalingType.BlockWise128x128
        by_column = scale_b[k // 128].repeat_interleave(128) if is_weight else scale_b[:, k // 128]
        total += torch.outer(left, b[k].float() * by_column[: b.shape[1]])
    return total


@pytest.mark.parametrize("right_block", [WEIGHT_BLOCK, ACTIVATION_BLOCK])
def test_hopper_gets_each_scale_where_its_recipe_reads_it(
    right_block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "scaled_mm", _scaled_mm)
    left = quantise_activations(drawn(5, 300) * torch.logspace(-3, 3, 300))
    right = quantise(drawn(200, 300, seed=1).T.flip(0).T, block=right_block, scale_fmt="float")
    ours = fp8_product.multiply_on_hopper(left, right, right_block=right_block, dtype=torch.float32)
    expected = multiply(left, right, right_block=right_block, dtype=torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and has_fp8_units(torch.device("cuda"))), reason="needs a Hopper GPU and CUDA 12.9"
)
def test_hopper_computes_what_is_emulated() -> None:
    for (rows, num_in, num_out), block in itertools.product(
        [(3, 130, 129), (256, 576, 512)], (WEIGHT_BLOCK, ACTIVATION_BLOCK)
    ):
        left = quantise_activations(drawn(rows, num_in).cuda())
        right = quantise(drawn(num_out, num_in, seed=1).cuda(), block=block, scale_fmt="float")
        ours = multiply(left, right, right_block=block, dtype=torch.float32)
        emulated = fp8_product.multiply_emulated(left, right, right_block=block, dtype=torch.float32)
        # Its FP8 units keep about 14 bits of a sum of 128 products (report §3.3.2).
        assert float((ours - emulated).abs().max() / emulated.abs().max()) < 1e-3
    weight = quantise_weight(drawn(128, 128).cuda())
    assert weight.values.is_cuda
