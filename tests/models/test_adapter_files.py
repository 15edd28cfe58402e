"""Adapter folders in PEFT's layout: PEFT 0.21.2 wrote the one in tests/models/peft, and read ours (docs/LOG.md)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aha.errors import ModelError
from aha.models import BaseWeights, Transformer, attach_lora, hash_weights, load_model, save_adapter
from aha.models.adapter_files import load_adapter_into
from aha.models.lora import adapters

PEFT = Path(__file__).parent / "peft"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PEFT / "base", tmp_path / "base"))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """PEFT's adapter, in a folder that can be changed."""
    return Path(shutil.copytree(PEFT / "adapter", tmp_path / "theirs"))


def load(folder: Path, *, base: Path) -> Transformer:
    return load_model(folder, dtype="float32", device="cpu", resolve=lambda name: base)


def adapted(base: Path, *, seed: int = 0) -> Transformer:
    """A model with adapters that were trained a little."""
    model = load_model(base, dtype="float32", device="cpu")
    attach_lora(model, rank=3, alpha=5.0, seed=seed, base=BaseWeights(base.resolve(), hash_weights(base)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.copy_(torch.empty(adapter.b.shape).normal_(0.0, 0.1, generator=generator))
    return model


def change(folder: Path, key: str, value: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def test_adapter_that_peft_wrote_gives_the_logits_that_peft_gave(theirs: Path, base: Path) -> None:
    """Rank-stabilised, on q, v, o and up only, with a Hugging Face id as its base."""
    asked: list[str] = []

    def resolve(name: str) -> Path:
        asked.append(name)
        return base

    model = load_model(theirs, dtype="float32", device="cpu", resolve=resolve)
    expected = load_file(PEFT / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["token_ids"]), expected["logits"], atol=1e-5, rtol=1e-5)
    assert asked == ["someone/mini"]
    assert not any(p.requires_grad for p in model.parameters())


def test_saved_adapter_has_the_names_and_settings_that_peft_reads(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(base), tmp_path / "ours")
    ours, theirs = (set(load_file(f / "adapter_model.safetensors")) for f in (tmp_path / "ours", PEFT / "adapter"))
    assert theirs < ours
    assert len(ours) == 2 * 7 * 2
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert settings.keys() <= json.loads((PEFT / "adapter" / "adapter_config.json").read_text()).keys()
    assert settings["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (3, 5.0, False)


def test_saved_adapter_comes_back_to_the_bit(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    save_adapter(model, tmp_path / "ours")
    again = load_model(tmp_path / "ours", dtype="float32", device="cpu")
    other = adapted(base, seed=1)
    load_adapter_into(other, tmp_path / "ours")
    ids_BT = torch.arange(22).reshape(2, 11)
    with torch.no_grad():
        assert torch.equal(again(ids_BT), model(ids_BT))
        assert torch.equal(other(ids_BT), model(ids_BT))
    save_adapter(again, tmp_path / "once more")
    written = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "once more")]
    assert written[0] == written[1]


def test_rank_stabilised_adapter_keeps_its_scale(theirs: Path, base: Path, tmp_path: Path) -> None:
    save_adapter(load(theirs, base=base), tmp_path / "copy")
    expected = load_file(PEFT / "expected.safetensors")
    with torch.no_grad():
        found = load(tmp_path / "copy", base=base)(expected["token_ids"])
    torch.testing.assert_close(found, expected["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type 'IA3' is not supported; only 'LORA' is"),
        ("use_dora", True, "use_dora = True is not supported"),
        ("bias", "all", "bias = 'all' is not supported"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern = "),
        ("modules_to_save", ["lm_head"], "modules_to_save = "),
        ("lora_alpha", "much", "wrong type"),
        ("r", 0, "r must be at least 1|missing or has the wrong type"),
        ("r", 2, "has shape"),
        ("r", 10**18, "has shape"),
        ("r", 10**400, "wrong type"),
        ("r", math.inf, "wrong type"),
        ("r", 2.5, "wrong type"),
        ("lora_alpha", 10**400, "wrong type"),
        ("use_rslora", "false", "wrong type"),
        ("init_lora_weights", "pissa_niter_4", "init_lora_weights = 'pissa_niter_4' is not supported"),
    ],
)
def test_other_adapters_are_refused(theirs: Path, base: Path, key: str, value: object, message: str) -> None:
    change(theirs, key, value)
    with pytest.raises(ModelError, match=message) as caught:
        load(theirs, base=base)
    assert "\n" not in str(caught.value)


def rename(tensors: dict[str, Any]) -> None:
    name = sorted(tensors)[0]
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = tensors.pop(name)


def drop(tensors: dict[str, Any]) -> None:
    del tensors[sorted(tensors)[0]]


def quantise(tensors: dict[str, Any]) -> None:
    values = tensors[sorted(tensors)[0]]
    values[0, 0] = float("nan")
    tensors[sorted(tensors)[0]] = values.to(torch.float8_e4m3fn)


def spoil(tensors: dict[str, Any]) -> None:
    tensors[sorted(tensors)[0]][0, 0] = float("nan")


def move(tensors: dict[str, Any]) -> None:
    name = sorted(tensors)[0]
    tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename, "is not a LoRA matrix"),
        (drop, "does not fit the model: layers.0.mlp.up_proj.lora_A"),
        (spoil, "holds NaN"),
        (quantise, "holds NaN"),
        (move, "does not fit the model"),
    ],
)
def test_broken_tensors_are_refused(
    theirs: Path, base: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    tensors = load_file(theirs / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, theirs / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=message):
        load(theirs, base=base)


def test_torn_and_pickled_files_are_refused(theirs: Path, base: Path) -> None:
    weights = theirs / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        load(theirs, base=base)
    weights.rename(theirs / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled and can run code"):
        load(theirs, base=base)
    (theirs / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        load(theirs, base=base)


def test_base_whose_name_no_folder_can_have_is_looked_up(theirs: Path, base: Path) -> None:
    change(theirs, "base_model_name_or_path", "x" * 5000)
    assert load(theirs, base=base).lora is not None


def test_missing_and_changed_bases_are_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(base), tmp_path / "ours")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1.0
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ModelError, match="belongs to base weights with sha256 .* put the old base back"):
        load_model(tmp_path / "ours")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="base .* is not a folder here"):
        load_model(tmp_path / "ours")
    with pytest.raises(ModelError, match="is an adapter itself"):
        load(tmp_path / "ours", base=tmp_path / "ours")


def test_adapter_of_a_base_that_was_never_saved_is_not_written(base: Path, tmp_path: Path) -> None:
    model = load_model(base, dtype="float32", device="cpu")
    attach_lora(model, rank=2, alpha=2.0)
    with pytest.raises(ModelError, match="lies in no folder; save it before"):
        save_adapter(model, tmp_path / "ours")
