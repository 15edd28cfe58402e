"""Weights in one file or several: what is written, and what is left when writing fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aha.errors import ModelError
from aha.models import load_model, shards
from aha.models.safetensors_file import SafetensorsWriter, open_safetensors

from .reference import draw_tokens, make_reference, reference_class, reference_logits, worst_difference

TENSORS = {
    "b.odd": torch.randn(3, 5).bfloat16(),
    "a.wide": torch.randn(2, 3),
    "c.half": torch.randn(7).half(),
    "d.none": torch.zeros(0, 4, dtype=torch.bfloat16),
    "e.scalar": torch.tensor(2.5),
    "ü.name": torch.randn(2).bfloat16(),
}


def test_file_is_byte_for_byte_the_librarys(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    writer = SafetensorsWriter(tmp_path / "ours", shapes={n: (t.dtype, tuple(t.shape)) for n, t in TENSORS.items()})
    for name, values in reversed(TENSORS.items()):
        writer.write(name, values)
    writer.close()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_reader_gives_every_tensor_as_the_library_does(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "file")
    with open_safetensors(tmp_path / "file") as file:
        assert file.headers.keys() == TENSORS.keys()
        for name, expected in TENSORS.items():
            assert torch.equal(file.read(name), expected)
            target = torch.empty(expected.shape, dtype=torch.float32)
            file.read_into(target, name=name)
            assert torch.equal(target, expected.float())
            strided = torch.empty(*expected.shape, 2, dtype=expected.dtype)[..., 0]
            file.read_into(strided, name=name)
            assert torch.equal(strided, expected)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 20_000)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("case", ["v3_yarn", "qwen3_moe", "qwen2_tied"])
def test_shards_are_read_by_the_reference_and_by_us(case: str, tmp_path: Path) -> None:
    make_reference(case, seed=1).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype="float32", device="cpu")
    model.save(tmp_path / "ours")
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 3
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    num_bytes = [t.nbytes for file in files for t in load_file(tmp_path / "ours" / file).values()]
    assert index["metadata"]["total_size"] == sum(num_bytes)
    token_ids_BT = draw_tokens(1, 20)
    expected = model(token_ids_BT).detach()
    assert torch.equal(load_model(tmp_path / "ours", dtype="float32", device="cpu")(token_ids_BT), expected)
    theirs = reference_class(case).from_pretrained(tmp_path / "ours", experts_implementation="eager")
    assert worst_difference(expected, reference_logits(theirs.eval(), token_ids_BT)) < 1e-5


@pytest.fixture
def model(tmp_path: Path) -> Any:
    make_reference("v3", seed=0).save_pretrained(tmp_path / "source")
    return load_model(tmp_path / "source", dtype="float32", device="cpu")


def test_one_file_replaces_several_and_several_one(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    for limit, is_whole in ((20_000, False), (40_000, False), (10**9, True), (20_000, False)):
        monkeypatch.setattr(shards, "MAX_SHARD_BYTES", limit)
        with torch.no_grad():
            model.final_norm.add_(1.0)
        model.save(folder)
        names = {path.name for path in folder.iterdir()}
        assert ("model.safetensors" in names, "model.safetensors.index.json" in names) == (is_whole, not is_whole)
        index = shards._listed(folder / "model.safetensors.index.json")
        assert names - {"config.json", "model.safetensors", "model.safetensors.index.json"} == index
        assert torch.equal(load_model(folder, dtype="float32", device="cpu").final_norm, model.final_norm)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("num_done", range(5))
def test_folder_caught_between_two_files_has_a_whole_model_or_none(
    num_done: int, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "folder")
    renamed: list[Any] = []
    real = os.replace

    def fail(source: Path, target: Path) -> None:
        if len(renamed) == num_done:
            raise OSError("no more")
        renamed.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with torch.no_grad():
        model.final_norm.add_(1.0)
    with pytest.raises(ModelError, match="cannot write the model to .*no more"):
        model.save(tmp_path / "folder")
    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        load_model(tmp_path / "folder", device="cpu")
    assert not [path for path in (tmp_path / "folder").iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("small_shards")
def test_full_disk_leaves_the_older_shards_whole(model: Any, tmp_path: Path) -> None:
    import resource

    model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("model*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        with pytest.raises(ModelError, match="cannot write the model to"):
            model.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("model*")} == before
    assert not list(tmp_path.glob(".*"))
