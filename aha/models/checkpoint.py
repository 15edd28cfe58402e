"""Hugging Face folders in and out: safetensors only, every tensor accounted for."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aha.errors import ModelError
from aha.models.config import ModelConfig
from aha.models.config_files import dump_config, read_config
from aha.models.internvl import InternVL, published_name, short_name
from aha.models.lora import adapters
from aha.models.projection import HasStoredParts
from aha.models.transformer import Transformer

DType = Literal["auto", "float32", "bfloat16"]

# Buffers that old checkpoints carry and that follow from the configuration.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_SHARED_WITH_MTP = re.compile(r"model\.layers\.(\d+)\.(?:embed_tokens|shared_head\.head)\.weight")
_FLOAT32_SUFFIXES = ("e_score_correction_bias",)
_FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the dtypes that are weights; integers and 8-bit floats are somebody's quantisation."""


def choose_dtype(dtype: DType, *, device: torch.device) -> torch.dtype:
    """What "auto" means: bfloat16 where the processor multiplies it in hardware, else float32.

    Emulated bfloat16 is five times slower than float32 on a CPU without AVX512-BF16 or AMX (docs/LOG.md).
    """
    if dtype == "auto":
        if device.type != "cpu":
            return torch.bfloat16
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(device: str) -> torch.device:
    """What "auto" means: the first GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}; choose from: auto, cpu, cuda, cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} asked for, but this machine or this torch build has no CUDA; use cpu")
    return chosen


def build_model(config: ModelConfig, *, dtype: DType = "auto", device: str = "auto") -> Transformer:
    """A model of this shape with uninitialised weights; device "meta" allocates nothing."""
    target = torch.device("meta") if device == "meta" else choose_device(device)
    # By way of the meta device: PyTorch would draw random weights first, which takes minutes for billions of them.
    with torch.device("meta"):
        model = Transformer(config) if config.vision is None else InternVL(config)
    model.to(choose_dtype(dtype, device=target))
    return model if target.type == "meta" else model.to_empty(device=target)


def load_model(
    folder: Path | str, *, dtype: DType = "auto", device: str = "auto", resolve: Callable[[str], Path] = Path
) -> Transformer:
    """Load a Hugging Face folder tensor by tensor; or a LoRA adapter's folder in PEFT's layout, with its base.

    Args:
        resolve: where the name of an adapter's base leads, if it is not a folder of this machine.

    Raises:
        ModelError: naming the file or tensor that is missing, left over, misshapen, truncated or not finite.
    """
    from aha.models.adapter_files import is_adapter_folder, load_adapter_folder  # here: it imports this module

    folder = Path(folder)
    if is_adapter_folder(folder):
        return load_adapter_folder(folder, dtype=dtype, device=device, resolve=resolve)
    files = weight_files(folder)
    config = _without_absent_mtp(read_config(folder), files=files)
    _check_tensors(build_model(config, device="meta"), folder=folder, files=files)
    model = build_model(config, dtype=dtype, device=device)
    targets = dict(stored_tensors(model))
    with torch.no_grad():
        for path in files:
            with _open(path) as file:
                for name, ours in _names(file, config=config):
                    if ours in targets:
                        targets[ours].copy_(_finite(file.get_tensor(name), name=name, path=path))
    model.weight_version += 1
    return model


def _without_absent_mtp(config: ModelConfig, *, files: list[Path]) -> ModelConfig:
    """Files without any tensor of multi-token prediction, as transformers saves them, are the model without it."""
    if not config.num_mtp_layers:
        return config
    behind = f"model.layers.{config.num_layers}."
    for path in files:
        with _open(path) as file:
            if any(ours.startswith(behind) for _, ours in _names(file, config=config)):
                return config
    return dataclasses.replace(config, num_mtp_layers=0)


def _names(file: Any, *, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The names of a file's tensors: as they stand there, and as `stored_tensors` says them."""
    for name in file.keys():  # noqa: SIM118 - a safe_open handle is not a dict
        yield name, name if config.vision is None else short_name(name)


def _is_ignored(name: str, *, config: ModelConfig) -> bool:
    """What follows from the configuration or is written twice, and is not read."""
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    # Multi-token prediction shares embedding and head; files repeat them.
    match = _SHARED_WITH_MTP.fullmatch(name)
    is_repeated = match is not None and int(match[1]) >= config.num_layers
    return is_repeated or name.endswith(_IGNORED_SUFFIXES)


def _check_tensors(model: Transformer, *, folder: Path, files: list[Path]) -> None:
    """Compare what the files declare with what the model needs, before anything is allocated."""
    targets = dict(stored_tensors(model))
    seen: set[str] = set()
    for path in files:
        with _open(path) as file:
            for name, ours in _names(file, config=model.config):
                if _is_ignored(ours, config=model.config):
                    continue
                if ours not in targets:
                    raise ModelError(f"{path}: unexpected tensor {name!r}; is config.json of another model?")
                if ours in seen:
                    raise ModelError(f"{path}: tensor {name!r} is in another file of {folder} too")
                declared = file.get_slice(name)
                shape, dtype = tuple(declared.get_shape()), declared.get_dtype()
                if shape != tuple(targets[ours].shape):
                    raise ModelError(
                        f"{path}: tensor {name!r} has shape {shape}, config.json says {tuple(targets[ours].shape)}"
                    )
                if dtype not in _FLOATS:
                    raise ModelError(f"{path}: tensor {name!r} has dtype {dtype}; choose from: {', '.join(_FLOATS)}")
                seen.add(ours)
    missing = sorted(targets.keys() - seen)
    if missing:
        raise ModelError(f"{folder}: {len(missing)} of {len(targets)} tensors are missing, the first is {missing[0]!r}")


def save_model(model: Transformer, *, folder: Path, dtype: DType = "auto") -> None:
    """Write config.json and model.safetensors; a file is complete or absent, never half-written.

    Adapters are merged into what is written: W + scale * B A, in float32 and then rounded.

    Args:
        dtype: of the file; "auto" takes the model's.

    Raises:
        ModelError: the folder cannot be written, or the disk is full.
    """
    target = model.dtype if dtype == "auto" else choose_dtype(dtype, device=model.device)
    tensors = {
        # What is float32 in a bfloat16 model is so for a reason: a gate's selection bias.
        name if model.config.vision is None else published_name(name): values.to(
            "cpu", torch.float32 if name.endswith(_FLOAT32_SUFFIXES) else target
        ).contiguous()
        for name, values in merged_tensors(model)
    }
    config = dump_config(model.config, dtype=str(target).removeprefix("torch."))
    temporary = folder / f".model.safetensors.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes its files private; a model is for others to read too
        os.replace(temporary, folder / "model.safetensors")
        temporary = folder / f".config.json.{os.getpid()}"
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "config.json")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write the model to {folder}: {error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@torch.no_grad()
def merged_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, values) of a model's tensors; those that have an adapter merged, in float32."""
    deltas = {f"model.{name}.weight": (low_rank, name) for _, low_rank in adapters(model) for name in low_rank.rows}
    for hf_name, part in stored_tensors(model):
        values = part.detach()
        if hf_name in deltas:
            low_rank, name = deltas[hf_name]
            values = values.float() + low_rank.delta(name)
        yield hf_name, values


def weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read: {error}") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise ModelError(f"{index} names {name!r}, which is not a file of {folder}")
        return [folder / name for name in names]
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    if pickled:
        raise ModelError(f"{folder} has only {pickled[0]}; pickled weights can run code, convert it to safetensors")
    raise ModelError(f"{folder} has no model.safetensors")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A safetensors file; a torn one is the user's error, not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None


def _finite(tensor: Tensor, *, name: str, path: Path) -> Tensor:
    if not all(math.isfinite(float(extreme)) for extreme in tensor.aminmax()):
        raise ModelError(f"{path}: tensor {name!r} holds NaN or infinity; the training that wrote it diverged")
    return tensor


def stored_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, the view of our parameter or buffer that holds it); adapters are not among them."""
    for ours, module in model.named_modules():
        if isinstance(module, HasStoredParts) and ".adapter" not in ours:
            prefix = _place(ours, num_layers=model.config.num_layers)
            yield from ((prefix + part.hf_name, part.view) for part in module.stored_parts())


def _place(ours: str, *, num_layers: int) -> str:
    """What the names of a module's tensors begin with: multi-token prediction is numbered behind the layers."""
    kind, _, rest = ours.partition(".")
    if kind not in ("layers", "mtp"):
        return ""
    index = int(rest.partition(".")[0]) + (num_layers if kind == "mtp" else 0)
    return f"model.layers.{index}."
