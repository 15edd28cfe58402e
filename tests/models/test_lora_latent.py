"""Adapters on models with latent attention and experts: which matrices have them, and both forms of attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aha.engine import Engine
from aha.models import (
    BaseWeights,
    Transformer,
    attach_lora,
    frozen_twin,
    hash_weights,
    load_model,
    merge,
    save_adapter,
)
from aha.models.lora import LoraTargets, adapters, part_names
from aha.types import SamplingParams

from .reference import TOLERANCE, draw_tokens, make_reference, reference_logits, worst_difference

CASES = ["v3_yarn", "v3_moonlight", "qwen3_moe"]
ATTENTION = {
    "v3_yarn": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    "v3_moonlight": {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}


def adapted(case: str, folder: Path, *, targets: LoraTargets = "all_linear") -> tuple[Transformer, Any]:
    """A model with adapters that were trained a little, and the reference without."""
    reference = make_reference(case, seed=1)
    reference.save_pretrained(folder)
    model = load_model(folder, dtype="float32", device="cpu")
    attach_lora(model, rank=3, alpha=5.0, targets=targets, base=BaseWeights(folder.resolve(), hash_weights(folder)))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.copy_(torch.empty(adapter.b.shape).normal_(0.0, 0.1, generator=generator))
    model.weight_version += 1
    return model, reference


@torch.no_grad()
def add_adapter(reference: Any, tensors: dict[str, Tensor], *, scale: float) -> None:
    """W + scale B A, on the reference's modules by the names in PEFT's file."""
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            module = reference.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            assert isinstance(module, nn.Linear), name
            module.weight += scale * tensors[name.replace("lora_A", "lora_B")] @ a


@pytest.mark.parametrize("case", CASES)
def test_adapters_lie_beside_attention_and_what_every_token_passes(case: str, tmp_path: Path) -> None:
    model, reference = adapted(case, tmp_path)
    names = part_names(model, targets="all_linear")
    assert {n.rpartition(".")[2] for n in names if ".self_attn." in n} == ATTENTION[case]
    assert part_names(model, targets="attention") == {n for n in names if ".self_attn." in n}
    assert not any(".experts." in name or name.endswith("gate") for name in names), "routed experts have none"
    linear = {n for n, m in reference.model.named_modules() if isinstance(m, nn.Linear)}
    assert names == linear, "every Linear of the reference, whose routed experts and gates are none"


@pytest.mark.parametrize("case", CASES)
def test_adapter_in_pefts_names_gives_the_reference_the_same_logits(case: str, tmp_path: Path) -> None:
    model, reference = adapted(case, tmp_path / "base")
    save_adapter(model, tmp_path / "adapter")
    add_adapter(reference, load_file(tmp_path / "adapter" / "adapter_model.safetensors"), scale=5.0 / 3)
    token_ids_BT = draw_tokens(2, 30)
    expected = reference_logits(reference, token_ids_BT)
    assert worst_difference(model(token_ids_BT), expected) < 2 * TOLERANCE
    again = load_model(tmp_path / "adapter", dtype="float32", device="cpu")
    with torch.no_grad():  # attention that is differentiated adds up in another order
        assert torch.equal(again(token_ids_BT), model(token_ids_BT))
        assert torch.equal(frozen_twin(model)(token_ids_BT), model(token_ids_BT))
    merge(model)
    assert worst_difference(model(token_ids_BT), expected) < 2 * TOLERANCE


def test_target_modules_of_a_model_with_experts_are_whole_names(tmp_path: Path) -> None:
    model, _ = adapted("v3_yarn", tmp_path / "base")
    save_adapter(model, tmp_path / "adapter")
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    # PEFT adapts each module whose name ends with one of these: "gate_proj" alone would take every routed expert.
    assert set(targets) == part_names(model, targets="all_linear")
    assert "layers.1.mlp.shared_experts.gate_proj" in targets


@pytest.mark.parametrize("targets", ["attention", "all_linear"])
@pytest.mark.parametrize("case", ["v3_yarn", "v3_moonlight"])
def test_absorbed_decode_with_adapters_equals_expanded(case: str, targets: LoraTargets, tmp_path: Path) -> None:
    model, _ = adapted(case, tmp_path, targets=targets)
    plain = load_model(tmp_path, dtype="float32", device="cpu")
    prompt = draw_tokens(9).tolist()
    (group,) = Engine(model).generate([prompt], SamplingParams(num_samples=2, max_tokens=20, seed=1))
    for completion in group:
        token_ids = torch.tensor([[*prompt, *completion.token_ids]])
        picks_T1 = torch.tensor(completion.token_ids).unsqueeze(1)
        with torch.no_grad():
            found, without = (
                m(token_ids)[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, picks_T1)[:, 0] for m in (model, plain)
            )
        assert worst_difference(torch.tensor(completion.logprobs), found) < 5 * TOLERANCE
        assert worst_difference(found, without) > 0.1, "the adapter makes a difference"


def test_every_adapter_of_a_latent_model_gets_a_gradient(tmp_path: Path) -> None:
    model, _ = adapted("v3_yarn", tmp_path)
    model(draw_tokens(2, 20)).square().mean().backward()
    for name, adapter in adapters(model):
        for matrix in (adapter.a, adapter.b):
            assert matrix.grad is not None
            assert matrix.grad.abs().max() > 0, name
    frozen = [p for n, p in model.named_parameters() if ".adapter." not in n]
    assert not any(p.requires_grad for p in frozen)


def test_merged_keys_and_values_are_made_again_when_the_weights_change(tmp_path: Path) -> None:
    model, _ = adapted("v3_moonlight", tmp_path)
    engine, sampling = Engine(model), SamplingParams(max_tokens=8, temperature=0.0)
    engine.generate([[3, 4, 5]], sampling)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.mul_(-3.0)
    model.weight_version += 1
    assert engine.generate([[3, 4, 5]], sampling) == Engine(frozen_twin(model)).generate([[3, 4, 5]], sampling)
