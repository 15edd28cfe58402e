"""FP8 in blocks: every rounding against a table of all E4M3 numbers, every scale against a loop over its block."""

from __future__ import annotations

import bisect
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aha.models import fp8
from aha.models.fp8 import (
    ACTIVATION_BLOCK,
    FP8_MAX,
    Quantised,
    dequantise,
    dequantise_weight,
    next_power_of_two,
    quantise,
    quantise_activations,
    quantise_weight,
    scale_shape,
)
from aha.models.fp8_config import ScaleFormat

SCALE_FORMATS: tuple[ScaleFormat, ...] = ("float", "ue8m0")


def _all_e4m3() -> list[float]:
    """Every finite number of E4M3 that is not negative: 4 bits of exponent with a bias of 7, 3 of mantissa.

    By the format's definition (arXiv:2209.05433, table 1): exponent 0 is subnormal, and the one pattern of all ones is
    NaN.
    """
    subnormal = [m / 8 * 2.0**-6 for m in range(8)]
    normal = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return subnormal + normal


E4M3 = _all_e4m3()


def nearest_e4m3(x: float) -> float:
    """To nearest, ties to the even mantissa, saturating."""
    magnitude = min(abs(x), FP8_MAX)
    index = bisect.bisect_left(E4M3, magnitude)
    if E4M3[index] != magnitude:
        below, above = E4M3[index - 1], E4M3[index]
        is_tie = magnitude - below == above - magnitude
        takes_below = (index - 1) % 2 == 0 if is_tie else magnitude - below < above - magnitude
        index -= 1 if takes_below else 0
    return math.copysign(E4M3[index], x)


def slowly(x_NK: Tensor, block: tuple[int, int], scale_fmt: ScaleFormat) -> tuple[Tensor, Tensor]:
    """(values, scales) by one loop over blocks and one over numbers, in float32 and Python."""
    num_rows, num_columns = x_NK.shape
    values = torch.zeros(num_rows, num_columns)
    scales = torch.zeros(math.ceil(num_rows / block[0]), math.ceil(num_columns / block[1]))
    for i, j in itertools.product(range(len(scales)), range(scales.shape[1])):
        rows = range(i * block[0], min((i + 1) * block[0], num_rows))
        columns = range(j * block[1], min((j + 1) * block[1], num_columns))
        amax = max(abs(float(x_NK[r, c])) for r in rows for c in columns)
        scale = torch.tensor(max(amax, 1e-12)) / 448
        if scale_fmt == "ue8m0":
            power = -200
            while 2.0**power < float(scale):
                power += 1
            scale = torch.tensor(2.0**power)
        scales[i, j] = scale
        for r, c in itertools.product(rows, columns):
            values[r, c] = nearest_e4m3(float(x_NK[r, c] / scale))
    return values, scales


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers over several powers of ten, as weights and gradients are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(2).exp()


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((5, 7), (128, 128)),  # smaller than a block
        ((1, 1), (128, 128)),
        ((130, 129), (128, 128)),  # one row and one column too many
        ((5, 7), (2, 3)),  # ragged on both sides
        ((3, 4), (1, 1)),  # a scale for each number
        ((6, 4), (3, 2)),
    ],
)
def test_weight_is_quantised_as_a_loop_over_its_blocks_does(
    shape: tuple[int, int], block: tuple[int, int], scale_fmt: ScaleFormat
) -> None:
    weight = drawn(*shape)
    values, scales = slowly(weight, block, scale_fmt)
    ours = quantise_weight(weight, block=block, scale_fmt=scale_fmt)
    assert ours.values.dtype == torch.float8_e4m3fn
    assert ours.scale_inv.dtype == torch.float32
    assert torch.equal(ours.scale_inv, scales)
    assert torch.equal(ours.values.float(), values)


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
def test_activations_have_a_scale_for_each_token_and_128_channels(scale_fmt: ScaleFormat) -> None:
    x_TK = drawn(3, 300)
    values, scales = slowly(x_TK, (1, 128), scale_fmt)
    ours = quantise_activations(x_TK, scale_fmt=scale_fmt)
    assert tuple(ours.scale_inv.shape) == (3, 3)
    assert torch.equal(ours.scale_inv, scales)
    assert torch.equal(ours.values.float(), values)


def test_a_matrix_of_576_rows_has_five_rows_of_scales() -> None:
    """kv_a_proj_with_mqa of DeepSeek-V3: 512 of the latent and 64 of the rotary key, so the last block is half full."""
    weight = drawn(576, 300)
    ours = quantise_weight(weight)
    assert tuple(ours.scale_inv.shape) == scale_shape(weight.shape) == (5, 3)
    edge = weight[512:, 256:].abs().max()
    assert ours.scale_inv[4, 2] == edge / 448
    assert torch.equal(quantise_weight(weight[512:]).scale_inv, ours.scale_inv[4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantised_weight_is_the_product_of_each_value_and_its_blocks_scale(dtype: torch.dtype) -> None:
    ours = quantise_weight(drawn(576, 130))
    out = dequantise_weight(*ours, out=torch.empty(576, 130, dtype=dtype))
    expected = torch.empty(576, 130)
    for row, column in itertools.product(range(576), range(130)):
        expected[row, column] = ours.values[row, column].float() * ours.scale_inv[row // 128, column // 128]
    assert torch.equal(out, expected.to(dtype))


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = drawn(700, 130)
    whole = quantise_weight(weight)
    matrix = dequantise_weight(*whole, out=torch.empty(700, 130))
    monkeypatch.setattr(fp8, "_BAND_ELEMENTS", 1)
    assert torch.equal(quantise_weight(weight).values.view(torch.uint8), whole.values.view(torch.uint8))
    assert torch.equal(quantise_weight(weight).scale_inv, whole.scale_inv)
    assert torch.equal(dequantise_weight(*whole, out=torch.empty(700, 130)), matrix)


def test_scales_of_another_grid_are_refused() -> None:
    values = quantise_weight(drawn(576, 128)).values
    with pytest.raises(ValueError, match=r"\(5, 1\)"):
        dequantise_weight(values, torch.ones(4, 1), out=torch.empty(576, 128))


def test_zeros_stay_zeros_and_their_scale_is_not_zero() -> None:
    x = torch.zeros(2, 256)
    x[1, 200] = 1.0
    ours = quantise_activations(x)
    assert bool((ours.scale_inv > 0).all())
    assert torch.equal(dequantise(ours, block=ACTIVATION_BLOCK)[0], torch.zeros(256))
    assert float(dequantise(ours, block=ACTIVATION_BLOCK)[1, 200]) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_spoils_its_own_block_only(bad: float, scale_fmt: ScaleFormat) -> None:
    """It must reach the gradient's norm, by which a step is skipped; a finite number made of it would hide it."""
    x = drawn(2, 256)
    x[0, 3] = bad
    back = dequantise(quantise_activations(x, scale_fmt=scale_fmt), block=ACTIVATION_BLOCK)
    assert not math.isfinite(float(back[0, 3]))
    assert bool(back[0, 128:].isfinite().all())
    assert bool(back[1].isfinite().all())


def test_gradients_far_below_one_are_not_rounded_to_zero() -> None:
    x = drawn(4, 128) * 1e-9
    back = dequantise(quantise_activations(x), block=ACTIVATION_BLOCK)
    assert float((back - x).norm() / x.norm()) < 0.05


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
@given(st.integers(0, 2**31 - 1))
def test_error_is_at_most_a_sixteenth_or_half_a_subnormal_step(scale_fmt: ScaleFormat, seed: int) -> None:
    x = drawn(3, 130, seed=seed)
    ours = quantise_activations(x, scale_fmt=scale_fmt)
    steps = ours.scale_inv.repeat_interleave(128, dim=1)[:, :130] * 2.0**-9
    error = (dequantise(ours, block=ACTIVATION_BLOCK) - x).abs()
    assert bool((error <= torch.maximum(x.abs() / 16, steps / 2) * (1 + 1e-5)).all())


@given(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32))
def test_power_of_two_is_the_least_that_is_not_below(scale: float) -> None:
    power = float(next_power_of_two(torch.tensor(scale)))
    assert math.frexp(power)[0] == 0.5
    assert power / 2 < scale <= power


def test_power_of_two_just_above_a_power_is_the_next_one() -> None:
    just_above = torch.tensor(1.0).nextafter(torch.tensor(2.0))
    assert next_power_of_two(torch.stack([torch.tensor(1.0), just_above])).tolist() == [1.0, 2.0]


def test_with_powers_of_two_quantising_again_changes_nothing() -> None:
    """So that a checkpoint with ue8m0 scales survives bf16 and FP8 in turn to the last bit."""
    once = dequantise(quantise(drawn(300, 200), block=(128, 128), scale_fmt="ue8m0"), block=(128, 128))
    assert torch.equal(once.bfloat16().float(), once)
    again = dequantise(quantise(once.bfloat16(), block=(128, 128), scale_fmt="ue8m0"), block=(128, 128))
    assert torch.equal(once, again)


def test_transformers_dequantises_whole_blocks_the_same() -> None:
    """Its slow path cuts a matrix by the number of its scales, so that it is right for whole blocks only."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    ours = quantise_weight(drawn(256, 384))
    theirs = Fp8Dequantize(None)._dequantize_one(ours.values, ours.scale_inv, output_dtype=torch.bfloat16)
    assert torch.equal(theirs, dequantise_weight(*ours, out=torch.empty(256, 384, dtype=torch.bfloat16)))


def test_transformers_dequantises_ragged_edges_in_its_backward_pass_the_same() -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    ours = quantise_weight(drawn(576, 300))
    theirs = _dequantize_fp8_weight(ours.values, ours.scale_inv, [128, 128], torch.float32)
    assert torch.equal(theirs, dequantise_weight(*ours, out=torch.empty(576, 300)))


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
def test_transformers_quantises_whole_blocks_nearly_the_same(scale_fmt: ScaleFormat) -> None:
    """It multiplies by 448 / amax where the published kernel divides by amax / 448: a number in 10,000 rounds over."""
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    weight = drawn(256, 384)
    ours = quantise_weight(weight, scale_fmt=scale_fmt)
    config = FineGrainedFP8Config(scale_fmt=scale_fmt)
    theirs = Fp8Quantize(SimpleNamespace(quantization_config=config))._quantize_one("x.weight", weight)
    scales = theirs["x.weight_scale_inv"].float()
    torch.testing.assert_close(ours.scale_inv, scales, rtol=0 if scale_fmt == "ue8m0" else 1e-6, atol=0)
    differs = ours.values.float() != theirs["x.weight"].float()
    assert float(differs.float().mean()) < 1e-3


def test_leading_axes_are_batches() -> None:
    x = drawn(3, 130, 129)
    together = quantise(x, block=(128, 128), scale_fmt="float")
    for index in range(3):
        alone = quantise_weight(x[index])
        assert torch.equal(together.values[index].float(), alone.values.float())
        assert torch.equal(together.scale_inv[index], alone.scale_inv)
    assert isinstance(together, Quantised)
