"""A model's weights in one file or in several with an index, as Hugging Face folders hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from aha.errors import ModelError
from aha.models.json_file import read_json_object
from aha.models.safetensors_file import SafetensorsWriter, tensor_bytes

MAX_SHARD_BYTES = 5 * 10**9
"""A larger model is written as several files, as transformers 4 does."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class ShardedWriter:
    """A model's tensors on their way into a folder: under hidden names, until `put_in_place`.

    Args:
        shapes: dtype and shape of every tensor; each is to be written once, in any order.
    """

    def __init__(self, folder: Path, *, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._folder = folder
        sizes = {name: tensor_bytes(*shapes[name]) for name in shapes}
        self._total_size = sum(sizes.values())
        self._files = _plan_files(sizes)
        self._hidden = {name: folder / f".{name}.{os.getpid()}" for name in (*self._files, INDEX)}
        self._writers: dict[str, SafetensorsWriter] = {}
        try:
            for file, names in self._files.items():
                writer = SafetensorsWriter(self._hidden[file], shapes={name: shapes[name] for name in names})
                self._writers |= dict.fromkeys(names, writer)
        except OSError:
            self._remove()
            raise

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def write(self, name: str, values: Tensor) -> None:
        self._writers[name].write(name, values)

    def put_in_place(self) -> None:
        """Give the files their names. A folder that is caught in between has the old model, the new one, or none."""
        self._close()
        old = _listed(self._folder / INDEX)
        if list(self._files) == [WEIGHTS]:
            os.replace(self._hidden[WEIGHTS], self._folder / WEIGHTS)  # from now on read instead of an index
            (self._folder / INDEX).unlink(missing_ok=True)
        else:
            weight_map = {name: file for file, names in self._files.items() for name in names}
            index = {"metadata": {"total_size": self._total_size}, "weight_map": dict(sorted(weight_map.items()))}
            self._hidden[INDEX].write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            for name in (INDEX, WEIGHTS):
                (self._folder / name).unlink(missing_ok=True)
            for file in (*self._files, INDEX):
                os.replace(self._hidden[file], self._folder / file)
        for file in old - set(self._files):
            (self._folder / file).unlink(missing_ok=True)

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _remove(self) -> None:
        with suppress(OSError):
            self._close()
        for path in self._hidden.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _plan_files(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The tensors of each file; a file is closed when the next tensor would make it larger than MAX_SHARD_BYTES."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > MAX_SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}


def _listed(index: Path) -> set[str]:
    """Files of the folder that an older index names."""
    try:
        names = set(read_json_object(index)["weight_map"].values())
    except (ModelError, KeyError, TypeError, AttributeError):
        return set()
    return {
        name for name in names if isinstance(name, str) and Path(name).name == name and (index.parent / name).is_file()
    }


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's weights.

    Raises:
        ModelError: there are none, or the index is broken.
    """
    index = folder / INDEX
    single = folder / WEIGHTS
    if single.exists():
        if not single.is_file():  # a pipe would be waited for
            raise ModelError(f"{single} is not a regular file; put the weights themselves there")
        return [single]
    if index.exists():
        try:
            names = sorted(set(read_json_object(index)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read: {error}") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not os.path.isfile(folder / name):
                raise ModelError(f"{index} names {name!r}, which is not a file of {folder}")
        return [folder / name for name in names]
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    if pickled:
        raise ModelError(f"{folder} has only {pickled[0]}; pickled weights can run code, convert it to safetensors")
    raise ModelError(f"{folder} has no model.safetensors")
