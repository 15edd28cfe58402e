"""Folders in FP8: read tensor by tensor with every scale accounted for, written so that others read the same."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aha.errors import ModelError
from aha.models import ModelConfig, Transformer, build_model, dump_config, load_model, parse_config, save_model
from aha.models.checkpoint import stored_tensors
from aha.models.config import ExpertsShape, LatentAttentionShape
from aha.models.fp8 import quantise_weight
from aha.models.fp8_config import ScaleFormat
from aha.models.fp8_files import SCALE_FORMATS, Form, is_converted

CONFIG = ModelConfig(
    model_type="qwen2",
    vocab_size=31,
    hidden_size=136,
    intermediate_size=300,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    max_position_embeddings=64,
    has_qkv_bias=True,
    eos_token_ids=(3,),
)
"""No side of a matrix is a multiple of 128: 192 rows of queries, 64 of keys, 136 and 300 columns."""
V3 = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=31,
    hidden_size=130,
    intermediate_size=150,
    num_layers=2,
    num_heads=3,
    num_kv_heads=3,
    head_dim=24,
    max_position_embeddings=64,
    rope_interleaved=True,
    mla=LatentAttentionShape(q_lora_rank=40, kv_lora_rank=140, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=48),
    experts=ExpertsShape(
        num_experts=4,
        num_experts_per_token=2,
        intermediate_size=30,
        num_shared_experts=1,
        has_selection_bias=True,
        scoring="sigmoid",
        first_layer=1,
        scaling_factor=2.5,
    ),
    num_mtp_layers=1,
    eos_token_ids=(1,),
)
"""Every kind of tensor that DeepSeek-V3 has; kv_a_proj_with_mqa has 148 rows, as V3's 576 no multiple of 128."""
MOE = ModelConfig(
    model_type="qwen3_moe",
    vocab_size=31,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    has_qk_norm=True,
    experts=ExpertsShape(
        num_experts=4, num_experts_per_token=2, intermediate_size=24, scoring="softmax", has_selection_bias=False
    ),
    eos_token_ids=(1,),
)
FAMILIES = {"qwen2": CONFIG, "deepseek_v3": V3, "qwen3_moe": MOE}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FORMS: tuple[Form, ...] = ("fp8", "fp8_ue8m0")
UP = "model.layers.1.mlp.up_proj.weight"


def make_model(config: ModelConfig = CONFIG, *, dtype: Any = "float32") -> Transformer:
    model = build_model(config, dtype=dtype, device="cpu")
    model.initialise(seed=0)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(make_model(), folder=tmp_path / "fp8", form="fp8")
    return tmp_path / "fp8"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["quantization_config"] |= changes
    path.write_text(json.dumps(raw), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def error_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def state(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def slowly_dequantised(values: Tensor, scale_inv: Tensor) -> Tensor:
    """Number by number's scale, without padding or views."""
    rows = torch.arange(values.shape[0]) // 128
    columns = torch.arange(values.shape[1]) // 128
    return values.float() * scale_inv.float()[rows][:, columns]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_saved_fp8_model_reloads_to_exactly_what_its_file_stands_for(
    tmp_path: Path, form: Form, dtype: Any, family: str
) -> None:
    save_model(make_model(FAMILIES[family]), folder=tmp_path / "fp8", form=form)
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    plain = {
        name: slowly_dequantised(values, tensors[name + "_scale_inv"]) if name + "_scale_inv" in tensors else values
        for name, values in tensors.items()
        if not name.endswith("_scale_inv")
    }
    config = json.loads((tmp_path / "fp8" / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (tmp_path / "plain").mkdir()
    save_file(plain, tmp_path / "plain" / "model.safetensors")
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = state(load_model(tmp_path / "fp8", dtype=dtype, device="cpu"))
    theirs = state(load_model(tmp_path / "plain", dtype=dtype, device="cpu"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("form", FORMS)
def test_saving_in_fp8_moves_no_weight_by_more_than_a_sixteenth(tmp_path: Path, form: Form) -> None:
    model = make_model()
    save_model(model, folder=tmp_path / "fp8", form=form)
    after = state(load_model(tmp_path / "fp8", dtype="float32", device="cpu"))
    for name, weight in state(model).items():
        if weight.ndim == 2 and "layers" in name:
            # Below the least normal number of a block (2 ** -6 of 448 times its scale) steps are even: 2 ** -9.
            step = float(weight.abs().max()) * 2 / 448 * 2.0**-9
            assert bool(((after[name] - weight).abs() <= torch.clamp_min(weight.abs() / 16, step) * 1.0001).all())
            assert not torch.equal(after[name], weight)
        else:
            assert torch.equal(after[name], weight), "embedding, head, norms and biases are kept"


def test_with_powers_of_two_fp8_to_bfloat16_and_back_is_the_same_file(tmp_path: Path) -> None:
    save_model(make_model(), folder=tmp_path / "once", form="fp8_ue8m0", dtype="bfloat16")
    model = load_model(tmp_path / "once", dtype="bfloat16", device="cpu")
    save_model(model, folder=tmp_path / "twice", form="fp8_ue8m0")
    again = load_model(tmp_path / "twice", dtype="bfloat16", device="cpu")
    assert all(torch.equal(weight, state(again)[name]) for name, weight in state(model).items())


@pytest.mark.parametrize("form", FORMS)
def test_folder_has_deepseeks_layout(tmp_path: Path, form: Form) -> None:
    save_model(make_model(dtype="bfloat16"), folder=tmp_path / "fp8", form=form)
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    raw = json.loads((tmp_path / "fp8" / "config.json").read_text(encoding="utf-8"))
    written = raw["quantization_config"]
    assert written == FP8 | {"modules_to_not_convert": ["lm_head", "model.embed_tokens"]} | (
        {"scale_fmt": "ue8m0"} if form == "fp8_ue8m0" else {}
    )
    assert raw["torch_dtype"] == "bfloat16"
    assert tensors[UP].dtype == torch.float8_e4m3fn
    assert tensors[UP + "_scale_inv"].dtype == torch.float32
    assert tuple(tensors[UP + "_scale_inv"].shape) == (3, 2)
    assert tensors["model.layers.0.self_attn.q_proj.bias"].dtype == torch.bfloat16
    assert {name for name in tensors if name.startswith(("lm_head", "model.embed", "model.norm"))} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    }


def test_deepseek_v3_keeps_embedding_head_norms_gate_bias_and_mtp_projection(tmp_path: Path) -> None:
    model = make_model(V3, dtype="bfloat16")
    bias = dict(stored_tensors(model))["model.layers.1.mlp.gate.e_score_correction_bias"]
    bias.copy_(torch.tensor([0.1234567, -1e-3, 1e-3, 0.0]))
    save_model(model, folder=tmp_path / "fp8", form="fp8")
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    kept = {name for name, values in tensors.items() if values.ndim == 2 and values.dtype != torch.float8_e4m3fn}
    assert {name for name in kept if not name.endswith("_scale_inv")} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.2.mlp.gate.weight",
        "model.layers.2.eh_proj.weight",
    }
    assert tuple(tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape) == (2, 2)
    assert tensors["model.layers.2.mlp.experts.3.up_proj.weight"].dtype == torch.float8_e4m3fn
    raw = json.loads((tmp_path / "fp8" / "config.json").read_text(encoding="utf-8"))
    assert raw["quantization_config"]["modules_to_not_convert"] == [
        "lm_head",
        "model.embed_tokens",
        "model.layers.1.mlp.gate",
        "model.layers.2.eh_proj",
        "model.layers.2.mlp.gate",
    ]
    again = dict(stored_tensors(load_model(tmp_path / "fp8", dtype="bfloat16", device="cpu")))
    assert torch.equal(again["model.layers.1.mlp.gate.e_score_correction_bias"], bias)
    assert bias.dtype == torch.float32


@pytest.mark.parametrize("place", ["beside", "in text_config"])
def test_model_that_sees_keeps_its_eye_and_its_language_model_is_in_fp8(tmp_path: Path, place: str) -> None:
    raw = json.loads(json.dumps(dump_config(CONFIG, dtype="float32")))
    vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 44,
              "image_size": [28, 28], "patch_size": [7, 7]}  # fmt: skip
    both = {"model_type": "internvl", "image_token_id": 11, "text_config": raw, "vision_config": vision}
    model = make_model(parse_config(both, source="here"))
    save_model(model, folder=tmp_path / "fp8", form="fp8")
    if place == "in text_config":
        path = tmp_path / "fp8" / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["text_config"]["quantization_config"] = config.pop("quantization_config")
        path.write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    in_fp8 = {name for name, values in tensors.items() if values.dtype == torch.float8_e4m3fn}
    assert "language_model.model.layers.1.mlp.up_proj.weight" in in_fp8
    assert all(name.startswith("language_model.model.layers.") for name in in_fp8)
    after = state(load_model(tmp_path / "fp8", dtype="float32", device="cpu"))
    for name, weight in state(model).items():
        assert float((after[name] - weight).norm() / weight.norm().clamp_min(1e-9)) < 0.04


def test_scales_may_lie_in_another_file_than_their_weight(folder: Path) -> None:
    """Where a checkpoint is cut into files, the cut may fall between the two."""
    whole = state(load_model(folder, dtype="float32", device="cpu"))
    tensors = load_file(folder / "model.safetensors")
    parts = {
        "model-00001-of-00002.safetensors": {n: t for n, t in tensors.items() if n.endswith("_scale_inv")},
        "model-00002-of-00002.safetensors": {n: t for n, t in tensors.items() if not n.endswith("_scale_inv")},
    }
    (folder / "model.safetensors").unlink()
    for file, part in parts.items():
        save_file(part, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    split = state(load_model(folder, dtype="float32", device="cpu"))
    assert all(torch.equal(whole[name], split[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.bfloat16])
def test_scales_of_fewer_bits_are_read_too(tmp_path: Path, dtype: torch.dtype) -> None:
    """DeepSeek-V4 and transformers store ue8m0 scales in a byte, Qwen3's FP8 files in bfloat16."""
    save_model(make_model(), folder=tmp_path / "fp8", form="fp8_ue8m0")
    before = state(load_model(tmp_path / "fp8", dtype="float32", device="cpu"))

    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors.update({n: t.to(dtype) for n, t in tensors.items() if n.endswith("_scale_inv")})

    change_tensors(tmp_path / "fp8", narrow)
    after = state(load_model(tmp_path / "fp8", dtype="float32", device="cpu"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_blocks_of_another_size_are_read(folder: Path) -> None:
    def by_64(tensors: dict[str, Tensor]) -> None:
        tensors[UP], tensors[UP + "_scale_inv"] = quantise_weight(torch.ones(300, 136), block=(64, 32))

    def others_plain(tensors: dict[str, Tensor]) -> None:
        for scale in [n for n in tensors if n.endswith("_scale_inv") and not n.startswith(UP)]:
            del tensors[scale]
            tensors[scale.removesuffix("_scale_inv")] = tensors[scale.removesuffix("_scale_inv")].float()

    change_tensors(folder, others_plain)
    change_tensors(folder, by_64)
    change_config(folder, weight_block_size=[64, 32])
    up = dict(stored_tensors(load_model(folder, dtype="float32", device="cpu")))[UP]
    torch.testing.assert_close(up, torch.ones(300, 136))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(UP + "_scale_inv"), f"{UP + '_scale_inv'!r} is missing"),
        (lambda t: t.update({UP + "_scale_inv": torch.ones(2, 2)}), f"{UP + '_scale_inv'!r} has shape (2, 2)"),
        (lambda t: t.update({UP + "_scale_inv": torch.ones(3, 2).int()}), f"{UP + '_scale_inv'!r} has dtype I32"),
        (lambda t: t.update({"lm_head.weight_scale_inv": torch.ones(1, 2)}), "unexpected tensor 'lm_head.weight_scale"),
        (lambda t: t.update({UP: t[UP].float()}), f"unexpected tensor {UP + '_scale_inv'!r}"),
        (lambda t: t.update({UP: t[UP][:299]}), f"{UP!r} has shape (299, 136)"),
        (lambda t: t.update({UP + "_scale_inv": torch.full((3, 2), math.nan)}), f"{UP!r} holds NaN"),
        (lambda t: t.update({UP + "_scale_inv": torch.zeros(3, 2)}), "scale that is not above 0"),
        (lambda t: t.update({UP: torch.full((300, 136), math.nan).to(torch.float8_e4m3fn)}), f"{UP!r} holds NaN"),
        (lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}), "only matrices"),
        (lambda t: t.update({UP: t[UP].to(torch.float8_e5m2)}), "dtype F8_E5M2"),
        (lambda t: t.pop(UP), "1 of"),
    ],
)
def test_tensor_that_does_not_fit_is_refused_by_its_name(
    folder: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    change_tensors(folder, change)
    assert words in error_of(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "gptq"}, "unknown quant_method 'gptq'"),
        ({"quant_method": "awq"}, "unknown quant_method 'awq'"),
        ({"quant_method": "bitsandbytes"}, "unknown quant_method 'bitsandbytes'"),
        ({"quant_method": "compressed-tensors"}, "unknown quant_method 'compressed-tensors'"),
        ({"quant_method": ["fp8"]}, "unknown quant_method"),
        ({"fmt": "e5m2"}, "fmt 'e5m2' is not supported; choose from: 'e4m3'"),
        ({"activation_scheme": "static"}, "activation_scheme 'static'"),
        ({"scale_fmt": "e5m2"}, "scale_fmt 'e5m2'"),
        ({"expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
        ({"modules_to_convert": ["model.embed_tokens"]}, "modules_to_convert ['model.embed_tokens']"),
        ({"weight_block_size": None}, "weight_block_size None"),
        ({"weight_block_size": [128]}, "weight_block_size [128]"),
        ({"weight_block_size": [128, 0]}, "weight_block_size [128, 0]"),
        ({"weight_block_size": [128, "128"]}, "weight_block_size [128, '128']"),
        ({"modules_to_not_convert": 3}, "modules_to_not_convert 3"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is not known"),
        ({"modules_to_not_convert": ["model.layers.1.mlp"]}, f"{'model.layers.1.mlp.down_proj.weight'!r} is in FP8"),
        ({"modules_to_not_convert": ["up_proj"]}, "up_proj.weight' is in FP8"),
    ],
)
def test_setting_that_would_be_read_wrongly_is_refused_by_its_name(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    change_config(folder, **changes)
    assert words in error_of(folder)


def test_module_of_a_longer_name_is_not_the_one_that_was_left_out(folder: Path) -> None:
    change_config(folder, modules_to_not_convert=["model.layers.1.mlp.gate", "lm_head"])
    load_model(folder, dtype="float32", device="cpu")


def test_fp8_tensors_without_a_word_in_the_config_are_refused(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    assert "F8_E4M3" in error_of(folder) or "_scale_inv" in error_of(folder)


def test_weight_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model = make_model()
    dict(stored_tensors(model))["model.layers.1.mlp.down_proj.weight"].data[3, 5] = math.inf
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.down_proj.weight"):
        save_model(model, folder=tmp_path / "fp8", form="fp8")
    assert not (tmp_path / "fp8").exists()


@pytest.mark.parametrize(
    ("name", "shape", "converted"),
    [
        ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), True),
        ("model.layers.3.self_attn.q_b_proj.weight", (24576, 1536), True),
        ("model.layers.3.self_attn.o_proj.weight", (7168, 16384), True),
        ("model.layers.3.mlp.experts.255.down_proj.weight", (7168, 2048), True),
        ("model.layers.61.mlp.shared_experts.gate_proj.weight", (2048, 7168), True),
        ("language_model.model.layers.3.mlp.up_proj.weight", (64, 64), True),
        ("model.layers.3.mlp.gate.weight", (256, 7168), False),
        ("model.layers.3.mlp.gate.e_score_correction_bias", (256,), False),
        ("model.layers.61.eh_proj.weight", (7168, 14336), False),
        ("model.layers.61.shared_head.head.weight", (129280, 7168), False),
        ("model.layers.61.enorm.weight", (7168,), False),
        ("model.layers.3.self_attn.q_a_layernorm.weight", (1536,), False),
        ("model.layers.3.self_attn.q_proj.bias", (1536,), False),
        ("model.embed_tokens.weight", (129280, 7168), False),
        ("lm_head.weight", (129280, 7168), False),
        ("vision_tower.encoder.layer.3.attention.q_proj.weight", (1024, 1024), False),
        ("multi_modal_projector.linear_1.weight", (896, 4096), False),
    ],
)
def test_matrices_of_layers_are_converted_and_nothing_else(name: str, shape: tuple[int, ...], converted: bool) -> None:
    assert is_converted(name, shape) is converted


WHOLE = ModelConfig(
    model_type="llama",
    vocab_size=40,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    max_position_embeddings=64,
    eos_token_ids=(3,),
)
"""Sides that 128 divides: transformers' way to dequantise on a CPU is right for these only."""


@pytest.mark.parametrize("form", FORMS)
def test_transformers_replaces_the_modules_that_are_in_fp8_and_computes_the_same(tmp_path: Path, form: Form) -> None:
    """Its own loader wants the package accelerate; these are the steps it takes."""
    from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, FP8Linear, replace_with_fp8_linear

    save_model(make_model(WHOLE), folder=tmp_path / "fp8", form=form)
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    config = AutoConfig.from_pretrained(tmp_path / "fp8")
    settings = dict(config.quantization_config)
    assert settings.pop("quant_method") == "fp8"
    theirs = FineGrainedFP8Config(**settings)
    scale_fmt: ScaleFormat = SCALE_FORMATS[form]
    assert theirs.scale_fmt == scale_fmt
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    replace_with_fp8_linear(
        model, modules_to_not_convert=theirs.modules_to_not_convert, quantization_config=theirs, pre_quantized=True
    )
    replaced = {name: module for name, module in model.named_modules() if isinstance(module, FP8Linear)}
    assert {f"{name}.weight_scale_inv" for name in replaced} == {n for n in tensors if n.endswith("_scale_inv")}
    for name, module in replaced.items():
        assert module.weight_scale_inv.shape == tensors[f"{name}.weight_scale_inv"].shape
    plain = {
        name: Fp8Dequantize(None)._dequantize_one(values, tensors[name + "_scale_inv"], output_dtype=torch.float32)
        if name + "_scale_inv" in tensors
        else values
        for name, values in tensors.items()
        if not name.endswith("_scale_inv")
    }
    reference = AutoModelForCausalLM.from_config(config).float().eval()
    reference.load_state_dict(plain)
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_model(tmp_path / "fp8", dtype="float32", device="cpu")(ids)
        torch.testing.assert_close(ours, reference(ids).logits, rtol=1e-5, atol=1e-5)


def test_folder_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    """As its saver does it: whole blocks only, `scale_fmt` spelt out, keys that are its own."""
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    model = make_model(WHOLE)
    save_model(model, folder=tmp_path / "theirs", dtype="float32")
    theirs = FineGrainedFP8Config(modules_to_not_convert=["lm_head"])
    convert = Fp8Quantize(SimpleNamespace(quantization_config=theirs))
    tensors: dict[str, Tensor] = {}
    for name, values in load_file(tmp_path / "theirs" / "model.safetensors").items():
        tensors |= convert._quantize_one(name, values) if is_converted(name, values.shape) else {name: values}
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = {**theirs.to_dict(), "quant_method": "fp8"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    after = state(load_model(tmp_path / "theirs", dtype="float32", device="cpu"))
    for name, weight in state(model).items():
        assert float((after[name] - weight).norm() / weight.norm()) < 0.04
