"""Model folders: every tensor accounted for, nothing outside the folder read, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aha.errors import ModelError
from aha.models import ModelConfig, Transformer, build_model, choose_device, load_model

CONFIG = ModelConfig(
    model_type="qwen3",
    vocab_size=31,
    hidden_size=24,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    has_qk_norm=True,
    eos_token_ids=(3,),
)


def make_model(config: ModelConfig = CONFIG, *, seed: int = 0) -> Transformer:
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=seed)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model().save(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> Transformer:
    return load_model(folder, dtype="float32", device="cpu")


def error_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_loading_gives_back_what_was_saved(folder: Path) -> None:
    model, saved = load(folder), make_model()
    assert model.config == CONFIG
    for (name, a), b in zip(model.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert model.weight_version > 0, "caches keyed by version 0 are stale"


def test_saving_replaces_the_older_model_and_leaves_only_its_two_files(folder: Path) -> None:
    other = make_model(seed=1)
    other.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load(folder).embed_tokens, other.embed_tokens)


def test_tied_head_is_written_once_and_ignored_when_a_file_has_it(tmp_path: Path) -> None:
    model = make_model(dataclasses.replace(CONFIG, tie_word_embeddings=True))
    model.save(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros(31, 24)}))
    assert torch.equal(load(tmp_path).output_weight, model.embed_tokens)


def test_buffers_of_old_checkpoints_are_ignored(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(folder)


def test_half_precision_checkpoint_is_converted(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({name: x.half() for name, x in t.items()}))
    model = load(folder)
    assert model.dtype == torch.float32
    assert torch.equal(model.embed_tokens, make_model().embed_tokens.half().float())


def test_missing_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert "1 of 25 tensors are missing, the first is 'model.layers.1.mlp.up_proj.weight'" in error_of(folder)


def test_unexpected_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(20, 24)}))
    assert "unexpected tensor 'model.layers.2.mlp.up_proj.weight'" in error_of(folder)


def test_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.norm.weight": torch.zeros(25)}))
    assert "'model.norm.weight' has shape (25,), config.json says (24,)" in error_of(folder)


def test_integer_tensor_is_refused(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.norm.weight": torch.zeros(24, dtype=torch.int8)}))
    assert "'model.norm.weight' has dtype I8; choose from: F64, F32, F16, BF16" in error_of(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = value

    change_tensors(folder, spoil)
    assert "'model.layers.0.mlp.down_proj.weight' holds NaN or infinity" in error_of(folder)


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_named(kept_share: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(kept_share * path.stat().st_size)])
    assert "model.safetensors is truncated or not a safetensors file" in error_of(folder)


def test_impossible_size_is_refused_before_memory_is_taken(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10**13}))
    assert "config.json says (10000000000000, 24)" in error_of(folder)


def test_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert error_of(folder) == f"{folder} has no model.safetensors"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in error_of(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
def test_pickled_weights_are_never_opened(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    message = error_of(folder)
    assert f"has only {name}; pickled weights can run code" in message
    assert "safetensors" in message


def shard(folder: Path, *, weight_map: dict[str, str] | None = None) -> None:
    """Split the folder's file into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_equal_the_whole(folder: Path) -> None:
    whole = load(folder)
    shard(folder)
    for (name, a), b in zip(load(folder).named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_index_cannot_name_a_file_outside_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    make_model().save(tmp_path / "other")
    shard(folder, weight_map={"model.norm.weight": name})
    assert f"names {name!r}, which is not a file of {folder}" in error_of(folder)


def test_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "names 'model-00002-of-00002.safetensors', which is not a file of" in error_of(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}'])
def test_broken_index_is_named(text: str, folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    assert re.search(r"model\.safetensors\.index\.json (cannot be read|must hold a JSON object)", error_of(folder))


def test_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shard(folder)
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path) | {"model.norm.weight": torch.ones(24)}, path)
    assert "'model.norm.weight' is in another file" in error_of(folder)


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(ModelError, match="cannot write the model to"):
        make_model().save(tmp_path / "taken")


def test_full_disk_leaves_the_older_model_whole(folder: Path) -> None:
    import resource

    before = (folder / "model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Beyond the limit a write fails as on a full disk (Python ignores the signal that goes with it).
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ModelError, match="cannot write the model to"):
            make_model(seed=1).save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_meta_device_allocates_nothing() -> None:
    model = build_model(dataclasses.replace(CONFIG, vocab_size=10**12), device="meta")
    assert model.num_parameters() > 10**13
    assert model.device.type == "meta"


def test_unknown_device_lists_choices() -> None:
    with pytest.raises(ModelError, match="unknown device 'gpu'; choose from: auto, cpu, cuda, cuda:N"):
        choose_device("gpu")
