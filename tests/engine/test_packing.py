from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aha.engine import Engine
from aha.engine.packing import PackedWeights, can_pack, can_pack_int8
from aha.types import SamplingParams


@pytest.mark.parametrize("num_rows", [1, 7, 64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_packed_product_equals_the_plain_one(num_rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x_ND = torch.randn(803, 131, generator=generator), torch.randn(num_rows, 131, generator=generator)
    bias = torch.randn(803, generator=generator) if has_bias else None
    expected = F.linear(x_ND, weight, bias)
    torch.testing.assert_close(PackedWeights()(x_ND, weight, bias), expected, atol=1e-4, rtol=1e-5)


def test_int8_product_of_one_row_is_the_product_of_the_rounded_numbers() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x_1D = torch.randn(64, 48, generator=generator), torch.randn(1, 48, generator=generator)
    bias = torch.randn(64, generator=generator)
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = (weight / scales).round() * scales
    # The row has 255 steps between its least and its largest value; each is off by half a step at most.
    step = float(x_1D.max().clamp(min=0) - x_1D.min().clamp(max=0)) / (255 if torch.cpu._is_vnni_supported() else 127)
    worst = (rounded.abs().sum(dim=1) * step).max().item()
    product = PackedWeights(quantize="int8")(x_1D, weight, bias)
    assert 0 < float((product - (x_1D @ rounded.T + bias)).abs().max()) <= worst


def test_int8_leaves_products_of_several_rows_exact() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, x_ND = torch.randn(64, 48, generator=generator), torch.randn(2, 48, generator=generator)
    assert torch.equal(PackedWeights(quantize="int8")(x_ND, weight, None), PackedWeights()(x_ND, weight, None))


def test_cleared_copies_follow_the_weights() -> None:
    weight, x_ND = torch.ones(1024, 64), torch.ones(16, 64)
    linear = PackedWeights()
    assert linear(x_ND, weight, None)[0, 0] == 64
    weight.mul_(2)
    linear.clear()
    assert linear(x_ND, weight, None)[0, 0] == 128


def test_nothing_is_packed_off_the_cpu() -> None:
    assert not can_pack(torch.float32, "cuda")
    assert not can_pack_int8("cuda")
    x_ND = torch.ones(600, 64, device="meta")
    assert PackedWeights(quantize="int8")(x_ND[:1], torch.ones(1024, 64, device="meta"), None).shape == (1, 1024)


def test_engine_with_int8_weights_stays_near_the_exact_one(make_model: Any) -> None:
    model = make_model(initializer_range=0.2)
    greedy = SamplingParams(temperature=0.0, max_tokens=20)
    exact, rounded = (Engine(model, quantize=q).generate([[1, 2, 3]], greedy)[0][0] for q in ("none", "int8"))
    assert exact.logprobs != rounded.logprobs
    torch.testing.assert_close(exact.logprobs[0], rounded.logprobs[0], atol=0.1, rtol=0)
