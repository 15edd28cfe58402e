"""Hugging Face folders in and out: safetensors only, every tensor accounted for."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aha.errors import ModelError
from aha.models.config import ModelConfig
from aha.models.config_files import dump_config, read_config, read_fp8_format
from aha.models.fp8 import FP8, scale_shape
from aha.models.fp8_files import SCALE_SUFFIX, Form, Fp8Weights, fp8_format, fp8_tensors, is_converted
from aha.models.internvl import InternVL, published_name, short_name
from aha.models.json_file import write_json_object
from aha.models.lora import adapters
from aha.models.placement import DType, choose_device, choose_dtype
from aha.models.projection import HasStoredParts
from aha.models.safetensors_file import SafetensorsFile, open_safetensors
from aha.models.shards import ShardedWriter, weight_files
from aha.models.transformer import Transformer

# Buffers that old checkpoints carry and that follow from the configuration.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_SHARED_WITH_MTP = re.compile(r"model\.layers\.(\d+)\.(embed_tokens|shared_head\.head)\.weight")
_FLOAT32_SUFFIXES = ("e_score_correction_bias", SCALE_SUFFIX)
_FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the dtypes that are weights; integers and 8-bit floats are somebody's quantisation."""


def build_model(config: ModelConfig, *, dtype: DType = "auto", device: str = "auto") -> Transformer:
    """A model of this shape with uninitialised weights; device "meta" allocates nothing."""
    target = torch.device("meta") if device == "meta" else choose_device(device)
    # By way of the meta device: PyTorch would draw random weights first, which takes minutes for billions of them.
    try:
        with torch.device("meta"):
            model = Transformer(config) if config.vision is None else InternVL(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # a product of sizes beyond 63 bits
        raise ModelError(f"the sizes of this configuration are impossible: {str(error).splitlines()[0]}") from None
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
    fp8, repeats = _check_tensors(build_model(config, device="meta"), folder=folder, files=files)
    model = build_model(config, dtype=dtype, device=device)
    targets = dict(stored_tensors(model))
    with torch.no_grad():
        for path in files:
            with open_safetensors(path) as file:
                for name, ours in _names(file, config=config):
                    if name in fp8:
                        fp8.read_into(targets[ours], name=name, file=file)
                    elif ours in targets:
                        file.read_into(targets[ours], name=name)
                    else:
                        continue
                    _check_finite(targets[ours], name=name, path=path)
    _compare_repeats(repeats, model=model)
    model.repeats_shared = bool(repeats)
    model.weight_version += 1
    return model


def _without_absent_mtp(config: ModelConfig, *, files: list[Path]) -> ModelConfig:
    """Files without any tensor of multi-token prediction, as transformers saves them, are the model without it."""
    if not config.num_mtp_layers:
        return config
    behind = f"model.layers.{config.num_layers}."
    for path in files:
        with open_safetensors(path) as file:
            if any(ours.startswith(behind) for _, ours in _names(file, config=config)):
                return config
    return dataclasses.replace(config, num_mtp_layers=0)


def _names(file: SafetensorsFile, *, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The names of a file's tensors: as they stand there, and as `stored_tensors` says them."""
    for name in file.headers:
        yield name, name if config.vision is None else short_name(name)


class _Repeat(NamedTuple):
    """A tensor of a file that should hold the same as another."""

    name: str
    path: Path
    of: str
    """Name of the tensor that our model has."""


def _is_ignored(name: str, *, config: ModelConfig) -> bool:
    """What follows from the configuration and is not read."""
    return (name == "lm_head.weight" and config.tie_word_embeddings) or name.endswith(_IGNORED_SUFFIXES)


def _repeated(name: str, *, config: ModelConfig) -> str | None:
    """What a tensor repeats: the embedding or the head, which multi-token prediction shares and files hold again."""
    match = _SHARED_WITH_MTP.fullmatch(name)
    if match is None or not config.num_layers <= int(match[1]) < config.num_layers + config.num_mtp_layers:
        return None
    is_head = match[2] == "shared_head.head" and not config.tie_word_embeddings
    return "lm_head.weight" if is_head else "model.embed_tokens.weight"


def _check_tensors(model: Transformer, *, folder: Path, files: list[Path]) -> tuple[Fp8Weights, list[_Repeat]]:
    """Compare what the files declare with what the model needs, before anything is allocated.

    Returns:
        What is in FP8; and the tensors that repeat another's values, to be compared once the model is there.
    """
    fp8, repeats = Fp8Weights(read_fp8_format(folder)), []
    targets = dict(stored_tensors(model))
    seen: set[str] = set()
    for path in files:
        with open_safetensors(path) as file:
            for name, ours in _names(file, config=model.config):
                dtype, shape, _, num_bytes = file.headers[name]
                # transformers writes shared experts of no width; nothing is lost with them.
                if _is_ignored(ours, config=model.config) or (not num_bytes and ours not in targets):
                    continue
                if fp8.note(name, path=path, shape=shape, dtype=dtype) == "scale":
                    continue
                of = _repeated(ours, config=model.config)
                if of is not None:
                    repeats.append(_Repeat(name, path, of))
                elif ours not in targets:
                    raise ModelError(f"{path}: unexpected tensor {name!r}; {_why_unexpected(ours, model.config)}")
                if ours in seen:
                    raise ModelError(f"{path}: tensor {name!r} is in another file of {folder} too")
                expected = tuple(targets[of or ours].shape)
                if shape != expected:
                    raise ModelError(f"{path}: tensor {name!r} has shape {shape}, config.json says {expected}")
                if dtype not in _FLOATS and (name not in fp8 or of is not None):
                    raise ModelError(f"{path}: tensor {name!r} has dtype {dtype}; choose from: {', '.join(_FLOATS)}")
                seen.add(ours)
    missing = sorted(targets.keys() - seen)
    if missing:
        raise ModelError(f"{folder}: {len(missing)} of {len(targets)} tensors are missing, the first is {missing[0]!r}")
    fp8.check()
    return fp8, repeats


def _why_unexpected(name: str, config: ModelConfig) -> str:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    behind = config.num_layers + config.num_mtp_layers
    if config.mla is not None and match is not None and int(match[1]) >= behind:
        return (
            f"layer {match[1]} lies behind the {config.num_layers} that config.json has and its "
            f"{config.num_mtp_layers} of multi-token prediction; if it is such a one, set num_nextn_predict_layers to "
            f"{int(match[1]) + 1 - config.num_layers}"
        )
    return "is config.json of another model?"


def _compare_repeats(repeats: list[_Repeat], *, model: Transformer) -> None:
    targets = dict(stored_tensors(model)) if repeats else {}
    for name, path, of in repeats:
        with open_safetensors(path) as file:
            values = file.read(name)
        if not torch.equal(values.to(targets[of].device, targets[of].dtype), targets[of]):
            raise ModelError(
                f"{path}: tensor {name!r} differs from {of!r}, which multi-token prediction shares with the model; "
                "a module with a matrix of its own is not supported"
            )


def save_model(model: Transformer, *, folder: Path, dtype: DType = "auto", form: Form = "full") -> None:
    """Write config.json and model.safetensors; a file is complete or absent, never half-written.

    Adapters are merged into what is written: W + scale * B A, in float32 and then rounded.

    Args:
        dtype: of the file; "auto" takes the model's.
        form: "fp8" stores the layers' matrices in FP8, each rounded from the values as they are, not from `dtype`.

    Raises:
        ModelError: the folder cannot be written, or the disk is full.
    """
    target = model.dtype if dtype == "auto" else choose_dtype(dtype, device=model.device)
    config = dump_config(model.config, dtype=str(target).removeprefix("torch."))
    shapes = {name: tuple(view.shape) for name, view in _published(model, stored_tensors(model))}
    if form != "full":
        config["quantization_config"] = fp8_format(shapes.items(), form=form).to_json()
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ShardedWriter(folder, shapes=dict(_stored_forms(shapes, target=target, form=form))) as writer:
            merged = _published(model, merged_tensors(model))
            for name, values in merged if form == "full" else fp8_tensors(merged, form=form):
                writer.write(name, values)
            writer.put_in_place()
        write_json_object(folder / "config.json", config)
    except OSError as error:
        raise ModelError(f"cannot write the model to {folder}: {error}") from None
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # which an empty one alone can be


def _stored_forms(
    shapes: Mapping[str, tuple[int, ...]], *, target: torch.dtype, form: Form
) -> Iterator[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """Dtype and shape of every tensor of a file: of a model's tensors, and of the scales of those in FP8."""
    for name, shape in shapes.items():
        if form != "full" and is_converted(name, shape):
            yield name, (FP8, shape)
            yield name + SCALE_SUFFIX, (torch.float32, scale_shape(shape))
        else:
            # What is float32 in a bfloat16 model is so for a reason: a gate's selection bias.
            yield name, (torch.float32 if name.endswith(_FLOAT32_SUFFIXES) else target, shape)


def _published(model: Transformer, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same by the names that files have; embedding and head once more for each module of MTP, if files had them."""
    config = model.config
    num_modules = config.num_mtp_layers if model.repeats_shared else 0
    for name, values in tensors:
        yield name if config.vision is None else published_name(name), values
        for index in range(config.num_layers, config.num_layers + num_modules):
            for repeat in (f"model.layers.{index}.{part}.weight" for part in ("embed_tokens", "shared_head.head")):
                if _repeated(repeat, config=config) == name:
                    yield repeat, values


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


def _check_finite(values: Tensor, *, name: str, path: Path) -> None:
    if not all(math.isfinite(float(extreme)) for extreme in values.aminmax()):
        raise ModelError(f"{path}: tensor {name!r} holds NaN or infinity; the training that wrote it diverged")


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
