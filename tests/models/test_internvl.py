"""InternVL against the reference implementation, with language models of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from aha.errors import ModelError
from aha.models import (
    InternVL,
    ModelConfig,
    Transformer,
    attach_lora,
    build_model,
    load_model,
    parse_config,
    read_config,
)
from aha.models.parity import compare_models
from aha.train.optimizer import Optimizer

TOLERANCE = 1e-5
"""Largest absolute difference of a float32 logit; the logits here reach 8."""
IMAGE, LENGTH, TILE, TOKENS_PER_TILE = 11, 60, 28, 4

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "image_size": [TILE, TILE],
    "patch_size": [7, 7],
    "initializer_range": 0.2,
    "layer_scale_init_value": 0.5,
    "attention_bias": True,
}
DENSE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": [2, 5],
}
SPARSE = {"moe_intermediate_size": 20, "num_experts_per_tok": 2}
QWEN3_MOE = {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "norm_topk_prob": True, **SPARSE}
LATENT: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "num_key_value_heads": 3,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    **SPARSE,
}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2": {"text": {"model_type": "qwen2"}},
    "qwen2_tied": {"text": {"model_type": "qwen2", "tie_word_embeddings": True}, "top": {"tie_word_embeddings": True}},
    "qwen3_rms_norm": {"text": {"model_type": "qwen3", "head_dim": 16},
                       "vision": {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}},
    "llama_final_norm": {"text": {"model_type": "llama"}, "vision": {"use_mean_pooling": False}},
    "qwen3_moe": {"text": QWEN3_MOE},
    "deepseek_v3": {"text": LATENT},
    "quarter": {"text": {"model_type": "qwen2"}, "top": {"downsample_ratio": 0.25}},
}  # fmt: skip


def make_reference(case: str, *, seed: int = 0) -> Any:
    """A random model of the reference; norms, scales, biases, class token and positions are random too."""
    changes = CASES[case]
    config = transformers.InternVLConfig(
        **{"image_token_id": IMAGE, "tie_word_embeddings": False, **changes.get("top", {})},
        vision_config={**VISION, **changes.get("vision", {})},
        text_config={**DENSE, **changes["text"]},
    )
    torch.manual_seed(seed)
    model = transformers.InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "cls_token", "position_embeddings")):
                parameter.normal_(0.0, 0.3)
            elif "norm" in name or "lambda" in name:
                parameter.normal_(1.0, 0.3)
            elif "projector" in name:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    return model


def draw_prompt(*, num_tiles: tuple[int, ...], tokens_per_tile: int = TOKENS_PER_TILE, seed: int = 0) -> torch.Tensor:
    """A row of random tokens with runs of image tokens in it, none at the start."""
    generator = torch.Generator().manual_seed(seed)
    token_ids_1T = torch.randint(12, 97, (1, LENGTH), generator=generator)
    start = 3
    for count in num_tiles:
        token_ids_1T[0, start : start + count * tokens_per_tile] = IMAGE
        start += count * tokens_per_tile + 5
    return token_ids_1T


def draw_pixels(num_tiles: int, *, seed: int = 3) -> torch.Tensor:
    return torch.randn(num_tiles, 3, TILE, TILE, generator=torch.Generator().manual_seed(seed))


def load(folder: Path) -> InternVL:
    model = load_model(folder, dtype="float32", device="cpu")
    assert isinstance(model, InternVL)
    return model


@torch.no_grad()
def assert_equal_logits(model: Transformer, reference: Any, *, tokens_per_tile: int = TOKENS_PER_TILE) -> None:
    for num_tiles in ((1,), (3,), (2, 4)):
        prompt = draw_prompt(num_tiles=num_tiles, tokens_per_tile=tokens_per_tile)
        pixels = draw_pixels(sum(num_tiles))
        theirs = reference(prompt, pixel_values=pixels).logits
        assert float(theirs.std()) > 0.5, "near-uniform logits would agree whatever the model computes"
        assert float((model(prompt, pixels) - theirs).abs().max()) < TOLERANCE
    prompt = draw_prompt(num_tiles=())
    assert float((model(prompt) - reference(prompt).logits).abs().max()) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference_with_pictures_and_without(case: str, tmp_path: Path) -> None:
    reference = make_reference(case)
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.num_parameters() == reference.num_parameters()
    assert_equal_logits(model, reference, tokens_per_tile=model.vision.tokens_per_tile)


@pytest.mark.parametrize("case", CASES)
def test_our_save_reloads_in_the_reference_with_equal_logits(case: str, tmp_path: Path) -> None:
    make_reference(case, seed=1).save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    reference = transformers.InternVLForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert_equal_logits(model, reference, tokens_per_tile=model.vision.tokens_per_tile)
    assert (
        load_file(tmp_path / "ours" / "model.safetensors").keys()
        == load_file(tmp_path / "theirs" / "model.safetensors").keys()
    )
    assert load(tmp_path / "ours").config == model.config


def rename_as_in_memory_of_version_5(folder: Path) -> None:
    def renamed(name: str) -> str:
        if name.startswith("language_model.model."):
            return f"model.language_model.{name.removeprefix('language_model.model.')}"
        return name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}"

    path = folder / "model.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("case", ["qwen2", "qwen2_tied", "deepseek_v3"])
def test_both_prefixes_load_the_same(case: str, tmp_path: Path) -> None:
    make_reference(case).save_pretrained(tmp_path)
    one = load(tmp_path)
    rename_as_in_memory_of_version_5(tmp_path)
    assert "model.vision_tower.embeddings.cls_token" in load_file(tmp_path / "model.safetensors")
    two = load(tmp_path)
    for (name, mine), (_, other) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize(("is_tied", "outer"), [(True, None), (False, None), (True, False), (False, True)])
def test_outer_tying_counts_where_it_is_written_else_the_inner(is_tied: bool, outer: bool | None) -> None:
    raw = make_reference("qwen2").config.to_dict()
    raw["text_config"]["tie_word_embeddings"] = is_tied
    del raw["tie_word_embeddings"]
    if outer is not None:
        raw["tie_word_embeddings"] = outer
    assert parse_config(raw, source="x").tie_word_embeddings is (is_tied if outer is None else outer)


def test_version_4_config_reads_the_same(tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    as_version_5 = read_config(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    rope = raw["text_config"].pop("rope_parameters")
    raw["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    raw["text_config"].pop("layer_types")
    raw["torch_dtype"] = raw.pop("dtype")
    del raw["tie_word_embeddings"]
    path.write_text(json.dumps(raw))
    assert read_config(tmp_path) == as_version_5


def test_gradients_of_eye_and_language_model_equal_the_reference(tmp_path: Path) -> None:
    reference = make_reference("qwen2")
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    prompt, pixels = draw_prompt(num_tiles=(2,)), draw_pixels(2)
    reference(prompt, pixel_values=pixels).logits.square().mean().backward()
    model(prompt, pixels).square().mean().backward()
    theirs = dict(reference.model.named_parameters())
    for name in ("vision_tower", "multi_modal_projector"):
        for inner, parameter in getattr(model, name).named_parameters():
            expected = theirs[f"{name}.{inner}"].grad
            torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-3, msg=inner)
    torch.testing.assert_close(model.embed_tokens.grad, theirs["language_model.embed_tokens.weight"].grad)


def test_transposed_pixel_shuffle_fails_the_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first version of pixel shuffle, which the published weights were not trained with."""
    from aha.models import internvl

    right = internvl.pixel_shuffle
    monkeypatch.setattr(internvl, "pixel_shuffle", lambda x, **options: right(x, **options).transpose(1, 2))
    reference = make_reference("qwen2")
    reference.save_pretrained(tmp_path)
    prompt, pixels = draw_prompt(num_tiles=(1,)), draw_pixels(1)
    with torch.no_grad():
        difference = (load(tmp_path)(prompt, pixels) - reference(prompt, pixel_values=pixels).logits).abs().max()
    assert float(difference) > 1000 * TOLERANCE


def test_other_number_of_features_than_image_tokens_is_refused(tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    model = load(tmp_path)
    with pytest.raises(ModelError, match=r"4 image tokens \(id 11\) stand for 8 features of pictures; a tile takes 4"):
        model(draw_prompt(num_tiles=(1,)), draw_pixels(2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "internvl", "text_config": {"model_type": "gpt2"}}, "text_config: unknown model_type 'gpt2'"),
        ({"text_config": {"model_type": "internvl"}}, "configuration of a language model"),
        ({"text_config": "qwen2"}, "configuration of a language model"),
        ({"vision_config": 5}, "wrong type"),
        ({"image_token_id": 97}, "image_token_id 97 must be below vocab_size 97"),
        ({"vision_feature_layer": -2}, "only -1 is"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "which aha never runs"),
    ],
)
def test_setting_that_would_be_computed_wrongly_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=said) as caught:
        load_model(tmp_path, device="cpu")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "vision_tower.encoder.layer.1.lambda_2",
            "1 of 7[0-9] tensors are missing, the first is 'vision_tower",
        ),
        ("multi_modal_projector.linear_1.weight", "missing"),
        ("language_model.model.norm.weight", "the first is 'model.norm.weight'"),
    ],
)
def test_missing_tensor_is_named(name: str, said: str, tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != name}, path)
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path, device="cpu")


def test_new_model_begins_with_a_blank_class_token_and_its_layer_scale() -> None:
    make = make_reference("qwen2").config.to_dict()
    model = build_model(parse_config(make, source="x"), dtype="float32", device="cpu")
    assert isinstance(model, InternVL)
    model.initialise(seed=0)
    tower = dict(model.vision_tower.named_parameters())
    assert not tower["embeddings.cls_token"].any()
    assert not tower["embeddings.position_embeddings"].any()
    assert (tower["encoder.layer.0.lambda_1"] == 0.5).all()
    assert (tower["encoder.layer.0.layernorm_before.weight"] == 1).all()
    assert tower["encoder.layer.0.attention.q_proj.weight"].std() > 0.01
    assert model(draw_prompt(num_tiles=(1,)), draw_pixels(1)).isfinite().all()


def test_text_only_model_has_no_eye() -> None:
    text = read_config_of_text()
    assert text.vision is None
    assert type(build_model(text, device="meta")) is Transformer


def read_config_of_text() -> ModelConfig:
    return parse_config(make_reference("qwen2").config.text_config.to_dict(), source="x")


def test_copy_with_another_eye_is_told_from_its_source(tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    one, other = load(tmp_path), load(tmp_path)
    prompts = [[12, 13, 14]]
    assert compare_models(one, other, prompts=prompts).max_logit_difference == 0
    with torch.no_grad():
        other.vision_tower.embeddings.patch_embeddings.projection.weight.mul_(1.1)
    assert compare_models(one, other, prompts=prompts).max_logit_difference > 1e-3


def test_adapter_beside_a_seeing_model_is_merged_into_what_is_saved(tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    attach_lora(model, rank=2, alpha=4.0, targets="all_linear", seed=0)
    assert not any(parameter.requires_grad for parameter in model.vision_tower.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameter.normal_(0.0, 0.3)
    model.weight_version += 1
    model.save(tmp_path / "merged")
    prompt, pixels = draw_prompt(num_tiles=(1,)), draw_pixels(1)
    with torch.no_grad():
        merged = load(tmp_path / "merged")(prompt, pixels)
        torch.testing.assert_close(merged, model(prompt, pixels), atol=1e-4, rtol=1e-4)
        assert float((merged - load(tmp_path / "base")(prompt, pixels)).abs().max()) > 0.1


INTERNVL3_1B: dict[str, Any] = {
    "model_type": "internvl",
    "image_token_id": 151_667,
    "text_config": {"model_type": "qwen2", "vocab_size": 151_674, "hidden_size": 896, "intermediate_size": 4864,
                    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                    "tie_word_embeddings": False},
    "vision_config": {"model_type": "internvl_vision", "attention_bias": True},
    "tie_word_embeddings": False,
}  # fmt: skip


def test_parameters_of_a_published_shape_are_as_many_as_the_references() -> None:
    with torch.device("meta"):
        raw = {**INTERNVL3_1B, "tie_word_embeddings": False}
        reference = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(**raw))
    model = build_model(parse_config(INTERNVL3_1B, source="x"), device="meta")
    assert model.num_parameters() == reference.num_parameters() == 938_193_024
    assert isinstance(model, InternVL)
    assert sum(p.numel() for p in model.vision_tower.parameters()) == 304_012_288


def test_bfloat16_sees_nearly_the_same(tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    exact, rounded = load(tmp_path), load_model(tmp_path, dtype="bfloat16", device="cpu")
    prompt, pixels = draw_prompt(num_tiles=(2,)), draw_pixels(2)
    with torch.no_grad():
        theirs, ours = exact(prompt, pixels), rounded(prompt, pixels)
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - theirs).abs().mean()) < 0.05 * float(theirs.std())


def test_training_on_text_leaves_the_eye_as_it_is(tmp_path: Path) -> None:
    make_reference("qwen2").save_pretrained(tmp_path)
    model = load(tmp_path)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = Optimizer(model, weight_decay=0.1)
    model(draw_prompt(num_tiles=())).square().mean().backward()
    optimizer.step(learning_rate=0.01)
    for name, parameter in model.named_parameters():
        is_eye = name.startswith(("vision_tower.", "multi_modal_projector."))
        assert torch.equal(parameter, before[name]) == is_eye, name
