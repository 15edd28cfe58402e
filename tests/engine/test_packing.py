from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aha.engine import Engine
from aha.engine.packing import PackedWeights, can_pack, can_pack_float16
from aha.types import SamplingParams


@pytest.mark.parametrize("num_rows", [1, 7, 64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_packed_product_equals_the_plain_one(num_rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x_ND = torch.randn(803, 131, generator=generator), torch.randn(num_rows, 131, generator=generator)
    bias = torch.randn(803, generator=generator) if has_bias else None
    expected = F.linear(x_ND, weight, bias)
    torch.testing.assert_close(PackedWeights()(x_ND, weight, bias), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(PackedWeights(quantize="float16")(x_ND, weight, bias), expected, atol=0.03, rtol=0)


def test_float16_weights_that_are_exact_give_the_same_product() -> None:
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).float()
    x_ND = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        PackedWeights(quantize="float16")(x_ND, weight, None), x_ND @ weight.T, atol=1e-4, rtol=0
    )


def test_cleared_copies_follow_the_weights() -> None:
    weight, x_ND = torch.ones(1024, 64), torch.ones(16, 64)
    linear = PackedWeights()
    assert linear(x_ND, weight, None)[0, 0] == 64
    weight.mul_(2)
    linear.clear()
    assert linear(x_ND, weight, None)[0, 0] == 128


def test_nothing_is_packed_off_the_cpu() -> None:
    assert not can_pack(torch.float32, "cuda")
    assert not can_pack_float16("cuda")
    x_ND = torch.ones(600, 64, device="meta")
    assert PackedWeights(quantize="float16")(x_ND, torch.ones(1024, 64, device="meta"), None).shape == (600, 1024)


def test_engine_with_float16_weights_stays_near_the_exact_one(make_model: Any) -> None:
    model = make_model(initializer_range=0.2)
    sampling = SamplingParams(num_samples=4, temperature=0.0, max_tokens=20)
    exact, rounded = (Engine(model, quantize=q).generate([[1, 2, 3]], sampling) for q in ("none", "float16"))
    torch.testing.assert_close(exact[0][0].logprobs[0], rounded[0][0].logprobs[0], atol=0.02, rtol=0)
