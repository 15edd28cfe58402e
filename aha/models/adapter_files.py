"""Adapter folders in PEFT's layout: adapter_config.json and adapter_model.safetensors, without the base's weights.

Names and settings as PEFT 0.21 writes and reads them (tests/models/peft holds one of its own).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aha.errors import ModelError
from aha.models.checkpoint import load_model
from aha.models.config_files import dump_config
from aha.models.config_values import flag, number, whole_number
from aha.models.json_file import read_json_object, write_json_object
from aha.models.lora import BaseWeights, Lora, adaptable, adapters, attach_parts, part_rows
from aha.models.placement import DType
from aha.models.shards import weight_files
from aha.models.transformer import Transformer

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_TENSOR = re.compile(
    r"base_model\.model\.model\.(layers\.\d+\.(?:self_attn|mlp|mlp\.shared_experts)\.[a-z_]+)\.lora_([AB])\.weight"
)
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (None, False),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "kasa_config": (None,),
    # The others, "pissa" and "olora" among them, take the first B A out of the base's matrices when they are loaded.
    "init_lora_weights": (None, True, False, "gaussian", "eva"),
}
"""Setting of PEFT -> values that leave plain LoRA as it is; with any other we would compute something else."""


class AdapterFiles(NamedTuple):
    """An adapter folder, read and checked for form."""

    lora: Lora
    base_name: str
    """Of the base as the file names it: a folder, or a Hugging Face id."""
    tensors: dict[tuple[str, str], Tensor]
    """(matrix, "A" or "B") -> values."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder has an adapter and no weights of its own."""
    return (folder / CONFIG).is_file() and not any(
        (folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def hash_weights(folder: Path) -> str:
    """sha256 of a folder's weights: of the one file, or of the several files' digests."""
    digests = []
    for path in weight_files(folder):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def save_adapter(model: Transformer, folder: Path) -> None:
    """Write the adapters, and which base they belong to; each file is complete or absent.

    Raises:
        ModelError: the base was never saved, or the folder cannot be written.
    """
    lora = model.lora
    assert lora is not None
    if lora.base is None:
        raise ModelError("the adapter's base model lies in no folder; save it before training an adapter on it")
    tensors = {}
    for _, low_rank in adapters(model):
        for name, a, b in low_rank.parts():
            for letter, values in (("A", a), ("B", b)):
                tensors[f"base_model.model.model.{name}.lora_{letter}.weight"] = values.detach().cpu().clone()
    matrices = {name.removeprefix("base_model.model.model.").rsplit(".", 2)[0] for name in tensors}
    # Routed experts have projections of the same last names, and no adapters: with them, whole names are given.
    targets = sorted(matrices if model.config.experts is not None else {name.rpartition(".")[2] for name in matrices})
    config = dump_config(model.config, dtype=str(model.dtype).removeprefix("torch."))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{WEIGHTS}.{os.getpid()}"
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
        os.replace(temporary, folder / WEIGHTS)
        write_json_object(folder / BASE, {"folder": str(lora.base.folder), "sha256": lora.base.sha256})
        write_json_object(folder / "config.json", config)
        write_json_object(folder / CONFIG, _peft_config(lora, targets=targets))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write the adapter to {folder}: {error}") from None


def _peft_config(lora: Lora, *, targets: list[str]) -> dict[str, Any]:
    assert lora.base is not None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(lora.base.folder),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": not math.isclose(lora.scale, lora.alpha / lora.rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def load_adapter_folder(
    folder: Path, *, dtype: DType = "auto", device: str = "auto", resolve: Callable[[str], Path] = Path
) -> Transformer:
    """The base of an adapter folder with its adapters beside it, all frozen.

    Args:
        resolve: where the name of a base leads that is not a folder of this machine.

    Raises:
        ModelError: the base is missing or has changed, or the files are not a LoRA adapter of it.
    """
    files = read_adapter(folder)
    base_folder = Path(files.base_name)
    if not os.path.isdir(base_folder):  # which answers for a name that no folder can have, too
        base_folder = resolve(files.base_name)
    if not os.path.isdir(base_folder):
        raise ModelError(
            f"{folder}: the adapter's base {files.base_name!r} is not a folder here; "
            f"put it back, or write its place as base_model_name_or_path into {folder / CONFIG}"
        )
    if is_adapter_folder(base_folder):
        raise ModelError(f"{folder}: the adapter's base {base_folder} is an adapter itself; export that one first")
    found = BaseWeights(base_folder.resolve(), hash_weights(base_folder))
    _check_base(files.lora.base, found, folder=folder)
    model = load_model(base_folder, dtype=dtype, device=device)
    _check_shapes(model, files, folder=folder)
    attach_parts(model, names={name for name, _ in files.tensors}, rank=files.lora.rank, scale=files.lora.scale)
    model.lora = replace(files.lora, base=found)
    _copy_tensors(model, files.tensors, folder=folder)
    return model.requires_grad_(False)


def load_adapter_into(model: Transformer, folder: Path) -> None:
    """Copy a folder's adapters into a model that has adapters of the same shape, as a resumed run does.

    Raises:
        ModelError: the folder cannot be read, belongs to other base weights, or has adapters of other shapes.
    """
    assert model.lora is not None
    files = read_adapter(folder)
    if model.lora.base is not None:
        _check_base(files.lora.base, model.lora.base, folder=folder)
    _copy_tensors(model, files.tensors, folder=folder)


def read_adapter(folder: Path) -> AdapterFiles:
    """Read an adapter folder without its base.

    Raises:
        ModelError: a file is missing or broken, or describes something other than plain LoRA.
    """
    raw = read_json_object(folder / CONFIG)
    if raw.get("peft_type") != "LORA":
        raise ModelError(f"{folder / CONFIG}: peft_type {raw.get('peft_type')!r} is not supported; only 'LORA' is")
    for key, harmless in _REFUSED.items():
        if raw.get(key) not in harmless:
            raise ModelError(f"{folder / CONFIG}: {key} = {raw[key]!r} is not supported; only plain LoRA is")
    try:
        rank, alpha = whole_number(raw, "r"), number(raw, "lora_alpha")
        base_name = str(raw.get("base_model_name_or_path") or "")
        scale = alpha / math.sqrt(rank) if flag(raw, "use_rslora", default=False) else alpha / rank
        base = None
        if (folder / BASE).is_file():
            saved = read_json_object(folder / BASE)
            base = BaseWeights(Path(saved["folder"]), str(saved["sha256"]))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{folder / CONFIG}: a setting is missing or has the wrong type: {error!r}") from None
    if rank < 1 or not math.isfinite(scale):
        raise ModelError(f"{folder / CONFIG}: r must be at least 1 and lora_alpha finite, got {rank} and {alpha}")
    lora = Lora(rank=rank, alpha=alpha, scale=scale, base=base)
    return AdapterFiles(lora, base_name, _read_tensors(folder / WEIGHTS))


def _read_tensors(path: Path) -> dict[tuple[str, str], Tensor]:
    if not path.is_file():
        has_pickle = path.with_name("adapter_model.bin").exists()
        reason = "adapter_model.bin is pickled and can run code; convert it" if has_pickle else "copy it there"
        raise ModelError(f"{path.parent} has no {path.name}; {reason}")
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None
    tensors = {}
    for name, tensor in loaded.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ModelError(f"{path}: tensor {name!r} is not a LoRA matrix of an attention or MLP projection")
        # float() first: of 8-bit floats torch cannot say whether they are finite.
        if not (tensor.is_floating_point() and bool(tensor.float().isfinite().all())):
            raise ModelError(f"{path}: tensor {name!r} holds NaN, infinity or integers")
        tensors[match[1], match[2]] = tensor
    return tensors


def _check_shapes(model: Transformer, files: AdapterFiles, *, folder: Path) -> None:
    """Before adapters are allocated: a file of a few bytes can name any rank."""
    for prefix, projection in adaptable(model):
        for name, rows in part_rows(projection, prefix=prefix).items():
            needed = {
                "A": (files.lora.rank, projection.weight.shape[1]),
                "B": (len(range(*rows.indices(len(projection.weight)))), files.lora.rank),
            }
            for letter, shape in needed.items():
                tensor = files.tensors.get((name, letter))
                if tensor is not None and tuple(tensor.shape) != shape:
                    found = tuple(tensor.shape)
                    raise ModelError(
                        f"{folder}: tensor {name}.lora_{letter} has shape {found}, the model needs {shape}"
                    )


@torch.no_grad()
def _copy_tensors(model: Transformer, tensors: Mapping[tuple[str, str], Tensor], *, folder: Path) -> None:
    """Copy every tensor into its place; each must have one, and each place must be filled."""
    targets = {}
    for _, low_rank in adapters(model):
        for name, a, b in low_rank.parts():
            targets[name, "A"], targets[name, "B"] = a, b
    if not targets or targets.keys() != tensors.keys():
        odd = sorted(".lora_".join(key) for key in targets.keys() ^ tensors.keys())
        raise ModelError(f"{folder}: the adapter does not fit the model: {odd[0] if odd else 'it is empty'}")
    for key, target in targets.items():
        if target.shape != tensors[key].shape:
            raise ModelError(
                f"{folder}: tensor {'.lora_'.join(key)} has shape {tuple(tensors[key].shape)}, the model needs "
                f"{tuple(target.shape)}"
            )
        target.copy_(tensors[key])
    model.weight_version += 1


def _check_base(expected: BaseWeights | None, found: BaseWeights, *, folder: Path) -> None:
    if expected is not None and expected.sha256 != found.sha256:
        raise ModelError(
            f"{folder}: the adapter belongs to base weights with sha256 {expected.sha256[:12]}…, those of "
            f"{found.folder} have {found.sha256[:12]}…; put the old base back, or train a new adapter"
        )
