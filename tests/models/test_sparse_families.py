"""DeepSeek-V3, Kimi-K2 and Qwen3-MoE beyond plain logits: caches, names, gates that stay exact."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from aha.engine import Engine
from aha.models import PackedAttention, Transformer, attach_lora, build_model, frozen_twin, load_model, read_config
from aha.train.optimizer import Optimizer
from aha.types import SamplingParams

from .reference import (
    ORIGINAL_WINDOW,
    SPARSE_CASES,
    TOLERANCE,
    compute_by_loops,
    draw_tokens,
    make_reference,
    reference_class,
    reference_logits,
    worst_difference,
)

BIAS = "e_score_correction_bias"


def load_case(case: str, folder: Path, *, seed: int = 0, **changes: Any) -> tuple[Transformer, Any]:
    reference = make_reference(case, seed=seed, **changes)
    reference.save_pretrained(folder)
    return load_model(folder, dtype="float32", device="cpu"), reference


@pytest.mark.parametrize("case", SPARSE_CASES)
def test_cached_decode_equals_the_references_full_forward(case: str, tmp_path: Path) -> None:
    """The engine decodes over cached latents (absorbed); the reference computes every prefix anew, expanded."""
    model, reference = load_case(case, tmp_path)
    prompts = [draw_tokens(n, seed=n).tolist() for n in (ORIGINAL_WINDOW + 5, 1, 7)]
    sampling = SamplingParams(num_samples=2, max_tokens=ORIGINAL_WINDOW + 6, seed=3)
    for prompt, group in zip(prompts, Engine(model).generate(prompts, sampling), strict=True):
        for completion in group:
            token_ids = torch.tensor([[*prompt, *completion.token_ids]])
            logits_TV = reference_logits(reference, token_ids)[0, len(prompt) - 1 : -1]
            picked_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(completion.token_ids).unsqueeze(1))[:, 0]
            assert worst_difference(torch.tensor(completion.logprobs), picked_T) < 3 * TOLERANCE


@pytest.mark.parametrize("case", ["v3_yarn", "v3_moonlight", "qwen3_moe_dense_layers"])
def test_packed_documents_equal_the_reference_one_by_one(case: str, tmp_path: Path) -> None:
    model, reference = load_case(case, tmp_path)
    documents = [draw_tokens(n, seed=n) for n in (33, 1, 17, 18, 40)]
    hidden_ND = model.hidden_states(
        torch.cat(documents),
        positions_N=torch.cat([torch.arange(len(d)) for d in documents]),
        attention=PackedAttention([len(d) for d in documents]),
    )
    theirs = torch.cat([reference_logits(reference, d.unsqueeze(0))[0] for d in documents])
    assert worst_difference(F.linear(hidden_ND, model.output_weight), theirs) < TOLERANCE


def test_kimi_k2_is_the_same_architecture_with_values_of_its_own(tmp_path: Path) -> None:
    """Published values in small: one group, 64 heads' worth of nothing shared, beta_fast = beta_slow, no MTP."""
    model, reference = load_case("v3_kimi", tmp_path, rms_norm_eps=1e-6)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "kimi_k2"}))
    kimi = load_model(tmp_path, dtype="float32", device="cpu")
    assert kimi.config.model_type == "kimi_k2"
    token_ids_BT = draw_tokens(2, 40)
    assert torch.equal(kimi(token_ids_BT), model(token_ids_BT))
    assert worst_difference(kimi(token_ids_BT), reference_logits(reference, token_ids_BT)) < TOLERANCE
    kimi.save(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("kimi_k2", ["DeepseekV3ForCausalLM"])
    assert read_config(tmp_path / "ours") == kimi.config
    # The same folder, named as the reference knows it.
    (tmp_path / "ours" / "config.json").write_text(json.dumps(written | {"model_type": "deepseek_v3"}))
    theirs = reference_class("v3_kimi").from_pretrained(tmp_path / "ours").eval()
    compute_by_loops(theirs)
    assert worst_difference(kimi(token_ids_BT), reference_logits(theirs, token_ids_BT)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_no_shared_experts_is_what_the_reference_makes_of_none(tmp_path: Path) -> None:
    model, reference = load_case("v3", tmp_path, n_shared_experts=0)
    token_ids_BT = draw_tokens(2, 30)
    assert worst_difference(model(token_ids_BT), reference_logits(reference, token_ids_BT)) < TOLERANCE
    model.save(tmp_path / "ours")
    theirs = reference_class("v3").from_pretrained(tmp_path / "ours").eval()
    compute_by_loops(theirs)
    assert worst_difference(model(token_ids_BT), reference_logits(theirs, token_ids_BT)) < TOLERANCE


def biases(model: Transformer) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith("selection_bias")}


def assert_exact(model: Transformer, expected: dict[str, Tensor]) -> None:
    found = biases(model)
    assert found.keys() == expected.keys()
    assert found, "the model has no gate with a bias"
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], values), name


@pytest.fixture
def exact_folder(tmp_path: Path) -> Path:
    """A bfloat16 model whose gates' biases no bfloat16 could hold."""
    reference = make_reference("v3", seed=4).to(torch.bfloat16)
    for name, buffer in reference.named_buffers():
        if name.endswith(BIAS):
            assert buffer.dtype == torch.bfloat16, "transformers keeps it in float32 only when it loads a model"
            module = reference.get_submodule(name.rpartition(".")[0])
            module.e_score_correction_bias = torch.linspace(-0.2, 0.2, buffer.numel()) + 1e-5
    reference.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_bias_of_a_bfloat16_model_stays_exact_in_memory(exact_folder: Path) -> None:
    model = load_model(exact_folder, dtype="bfloat16", device="cpu")
    expected = {name: values.clone() for name, values in biases(model).items()}
    assert any(not torch.equal(v, v.bfloat16().float()) for v in expected.values())
    assert_exact(model, expected)
    assert model.dtype == torch.bfloat16
    assert_exact(model.to(torch.bfloat16), expected)
    assert_exact(model.bfloat16(), expected)
    assert_exact(model.half(), expected)
    assert_exact(model.float(), expected)
    assert_exact(model.to(torch.bfloat16), expected)
    assert_exact(copy.deepcopy(model), expected)
    attach_lora(model, rank=2, alpha=2.0)
    assert_exact(frozen_twin(model), expected)


def test_bias_comes_out_of_the_meta_device_in_float32(exact_folder: Path) -> None:
    config = read_config(exact_folder)
    meta = build_model(config, dtype="bfloat16", device="meta")
    for model in (meta, meta.to(torch.bfloat16), meta.to_empty(device="cpu")):
        assert {values.dtype for values in biases(model).values()} == {torch.float32}
        assert model.dtype == torch.bfloat16
    model.load_state_dict(load_model(exact_folder, dtype="bfloat16", device="cpu").state_dict())
    assert_exact(model, biases(load_model(exact_folder, dtype="bfloat16", device="cpu")))


def test_bias_is_float32_on_disk_and_comes_back(exact_folder: Path, tmp_path: Path) -> None:
    model = load_model(exact_folder, dtype="bfloat16", device="cpu")
    model.save(tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    before = load_file(exact_folder / "model.safetensors")
    for name, values in tensors.items():
        assert values.dtype == (torch.float32 if name.endswith(BIAS) else torch.bfloat16)
        assert torch.equal(values, before[name]), name
    assert tensors.keys() == before.keys()
    assert_exact(load_model(tmp_path / "ours", dtype="bfloat16", device="cpu"), biases(model))
    theirs = reference_class("v3").from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    for name, buffer in theirs.named_buffers():
        if name.endswith(BIAS):
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer, tensors[name])


def test_bias_is_left_alone_by_the_optimiser(exact_folder: Path) -> None:
    model = load_model(exact_folder, dtype="bfloat16", device="cpu")
    expected = {name: values.clone() for name, values in biases(model).items()}
    optimizer = Optimizer(model)
    for _ in range(2):
        model(draw_tokens(2, 20)).float().square().mean().backward()
        optimizer.step(learning_rate=0.01)
    assert_exact(model, expected)
    assert model.dtype == torch.bfloat16
