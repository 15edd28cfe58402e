"""The vision tower, pixel shuffle and projector against the reference implementation, on tiny random weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from aha.errors import ModelError
from aha.models.vision import Projector, VisionTower, pixel_shuffle
from aha.models.vision_config import VisionShape, dump_vision, read_vision

TOLERANCE = 1e-5
"""Largest absolute difference of a float32 feature; the features here reach 5."""
BASE: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "image_size": [28, 28],
    "patch_size": [7, 7],
    "initializer_range": 0.2,
    "layer_scale_init_value": 0.5,
}
CASES: dict[str, dict[str, Any]] = {
    "published": {"attention_bias": True},
    "no_bias": {},
    "rms_norm_qk_norm": {"norm_type": "rms_norm", "use_qk_norm": True, "layer_norm_eps": 1e-5},
    "final_norm": {"use_mean_pooling": False, "attention_bias": True},
    "no_positions": {"use_absolute_position_embeddings": False},
    "mask_token": {"use_mask_token": True},
    "ragged_edge": {"image_size": [33, 33], "patch_size": [8, 8]},
    "one_channel": {"num_channels": 1, "image_size": 24, "patch_size": 6},
}


def make_reference(case: str, *, seed: int = 0) -> Any:
    """A tower of the reference, whose norms, scales, biases, class token and positions are random too."""
    torch.manual_seed(seed)
    tower = transformers.InternVLVisionModel(transformers.InternVLVisionConfig(**{**BASE, **CASES[case]})).eval()
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name.endswith(("bias", "token", "position_embeddings")):
                parameter.normal_(0.0, 0.5)
            elif "norm" in name or "lambda" in name:
                parameter.normal_(1.0, 0.3)
    return tower


def shape_of(reference: Any, **changes: Any) -> VisionShape:
    return read_vision({"image_token_id": 3, "vision_config": reference.config.to_dict(), **changes})


def tower_of(reference: Any) -> VisionTower:
    tower = VisionTower(shape_of(reference))
    tower.load_state_dict(reference.state_dict())
    return tower.eval()


def draw_pixels(reference: Any, *, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, reference.config.num_channels, rows, columns, generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_features_equal_the_reference_at_every_position(case: str) -> None:
    reference = make_reference(case)
    size = reference.config.image_size[0]
    pixels = draw_pixels(reference, rows=size, columns=size)
    with torch.no_grad():
        theirs = reference(pixels).last_hidden_state
        ours = tower_of(reference)(pixels)
    assert float(theirs.std()) > 0.5, "near-equal features would agree whatever the tower computes"
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < TOLERANCE


@pytest.mark.parametrize(("rows", "columns"), [(28, 28), (42, 42), (21, 35), (30, 50)])
def test_positions_are_stretched_to_other_sizes_as_in_the_reference(rows: int, columns: int) -> None:
    reference = make_reference("published")
    pixels = draw_pixels(reference, rows=rows, columns=columns)
    with torch.no_grad():
        theirs = reference(pixels).last_hidden_state
        ours = tower_of(reference)(pixels)
    assert float((ours - theirs).abs().max()) < TOLERANCE


def test_gradients_equal_the_reference() -> None:
    reference = make_reference("rms_norm_qk_norm")
    tower = tower_of(reference)
    pixels = draw_pixels(reference, rows=28, columns=28)
    reference(pixels).last_hidden_state.square().mean().backward()
    tower(pixels).square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_leaving_out_layer_scale_fails_the_tolerance() -> None:
    reference = make_reference("published")
    tower = tower_of(reference)
    with torch.no_grad():
        tower.encoder.layer[1].lambda_2.fill_(1.0)  # type: ignore[union-attr]
        pixels = draw_pixels(reference, rows=28, columns=28)
        difference = (tower(pixels) - reference(pixels).last_hidden_state).abs().max()
    assert float(difference) > 100 * TOLERANCE


@pytest.mark.parametrize(("grid", "downsample"), [(6, 2), (8, 4), (5, 1)])
def test_pixel_shuffle_equals_the_reference(grid: int, downsample: int) -> None:
    x_MYXD = torch.randn(2, grid, grid, 12)
    theirs = InternVLModel.pixel_shuffle(None, x_MYXD, scale_factor=1 / downsample)
    assert torch.equal(pixel_shuffle(x_MYXD, downsample=downsample), theirs)


def test_pixel_shuffle_keeps_squares_together_by_hand() -> None:
    numbers_1YX1 = torch.arange(16).view(1, 4, 4, 1)
    squares = pixel_shuffle(numbers_1YX1, downsample=2)[0]
    assert squares[0, 1].tolist() == [2, 3, 6, 7]
    assert squares[1, 0].tolist() == [8, 9, 12, 13]


@pytest.mark.parametrize("ratio", [0.5, 0.25, 1.0])
def test_projector_equals_the_reference(ratio: float) -> None:
    reference = make_reference("published")
    torch.manual_seed(2)
    text = {"model_type": "qwen2", "hidden_size": 20, "vocab_size": 7, "num_hidden_layers": 1}
    config = transformers.InternVLConfig(vision_config=reference.config, text_config=text, downsample_ratio=ratio)
    theirs = InternVLMultiModalProjector(config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0.1, 0.3)
    ours = Projector(shape_of(reference, downsample_ratio=ratio), width=20)
    ours.load_state_dict(theirs.state_dict())
    x_MTD = torch.randn(2, 5, round(24 / ratio**2))
    torch.testing.assert_close(ours(x_MTD), theirs(x_MTD), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_back_and_read_by_the_reference(case: str) -> None:
    shape = shape_of(make_reference(case))
    written = dump_vision(shape)
    assert read_vision(written) == shape
    theirs = transformers.InternVLConfig(**written, text_config={"model_type": "qwen2"})
    assert read_vision(theirs.to_dict()) == shape


def test_published_shape_gives_256_tokens_a_tile() -> None:
    assert read_vision({}).tokens_per_tile == 256
    assert read_vision({}) == read_vision(transformers.InternVLConfig().to_dict())


@pytest.mark.parametrize(
    ("vision", "top", "said"),
    [
        ({"hidden_act": "relu"}, {}, "hidden_act 'relu' is not supported; only 'gelu' is"),
        ({}, {"vision_feature_layer": -2}, "vision_feature_layer -2"),
        ({}, {"vision_feature_select_strategy": "full"}, "only 'default' is"),
        ({}, {"downsample_ratio": 0.4}, "1 over a whole number"),
        ({"norm_type": "group_norm"}, {}, "layer_norm, rms_norm"),
        ({"image_size": [448, 224]}, {}, "not square"),
        ({"image_size": 42}, {}, "a grid of 3"),
        ({"num_attention_heads": 5}, {}, "5 heads must divide hidden_size 1024"),
        ({"num_hidden_layers": 0}, {}, "num_layers must be at least 1"),
        ({"model_type": "clip_vision_model"}, {}, "choose from: internvl_vision"),
        ({"vision_use_head": True}, {}, "unknown setting 'vision_use_head' = True"),
        ({"num_hidden_layers": 10**9}, {}, "num_layers must be at most 1000"),
        ({"image_size": 10**6, "patch_size": 10**3}, {}, "image_size must be at most 4096"),
        ({"layer_scale_init_value": math.nan}, {}, "finite"),
        ({"auto_map": {"AutoModel": "code.Eye"}}, {}, "auto_map names code"),
        ({"rope_type": "2d"}, {}, "unknown setting 'rope_type'"),
    ],
)
def test_setting_that_would_be_computed_wrongly_is_refused(
    vision: dict[str, Any], top: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        read_vision({"vision_config": vision, **top})


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"attention_bias": "false"}, "attention_bias must be true or false, got 'false'"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps must be a number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be a whole number"),
    ],
)
def test_setting_of_another_type_is_refused(vision: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        read_vision({"vision_config": vision})


def test_leftovers_of_the_original_configuration_are_let_pass() -> None:
    vision = {"dropout": 0.0, "initializer_factor": 0.1, "drop_path_rate": 0.1, "torch_dtype": "bfloat16"}
    assert read_vision({"vision_config": vision}) == read_vision({})
