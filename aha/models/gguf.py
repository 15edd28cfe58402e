"""A GGUF file of a Llama, Qwen2, Qwen3 or Qwen3-MoE, turned into a Hugging Face folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from aha.errors import ModelError, unknown_name
from aha.models.checkpoint import build_model, stored_tensors
from aha.models.config import ExpertsShape, ModelConfig
from aha.models.config_files import dump_config
from aha.models.config_values import shortened, whole_number
from aha.models.gguf_file import GgufFile, GgufTensor, read_gguf
from aha.models.gguf_names import ARCHITECTURES, EXPERT_KEYS, EXPERT_NAMES, LAYER_NAMES, ROPE_FACTORS, TOP_NAMES
from aha.models.gguf_rope import read_scaling
from aha.models.gguf_tokenizer import build_gguf_tokenizer, special_ids
from aha.models.json_file import write_json_object
from aha.models.shards import ShardedWriter

# What `_read_config` and `read_scaling` understand of an architecture's metadata, and what changes nothing.
_UNDERSTOOD = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon",
    "attention.value_length", "block_count", "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.factor", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "rope.scaling.type", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "vocab_size",
}  # fmt: skip
# Metadata that says "as usual" with this value, and otherwise asks for another computation.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_gating_func": (1,),  # softmax
    "expert_used_count": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}
_CHUNK_BYTES = 32 << 20
"""Of float32 values that are in memory at a time."""


class _Entry(NamedTuple):
    """One tensor on its way."""

    name: str
    """Hugging Face's."""
    shape: tuple[int, ...]
    tensor: GgufTensor
    first_row: int
    """Where it begins in a tensor that holds a matrix of every expert; else 0."""
    num_rotary_heads: int
    """Heads whose rows llama.cpp has reordered for its rotary embedding; 0 for all other tensors."""


def convert_gguf(
    source: Path,
    *,
    folder: Path,
    base_model: str,
    origin: str,
    dtype: Literal["auto", "bfloat16", "float32"] = "bfloat16",
) -> str:
    """Write config.json, model.safetensors, the tokenizer's files and a model card of a GGUF model.

    Quantised tensors are dequantised in float32 and rounded to nearest even, some rows at a time.

    Args:
        source: a GGUF file of one of ARCHITECTURES with a byte-level BPE or a SentencePiece vocabulary.
        folder: where the files go; made if it is not there.
        base_model: Hugging Face id of the model before it was quantised, for the card.
        origin: where the file comes from, in Markdown, for the card.
        dtype: of the folder's weights; "auto" is float32 for a file of F32 or F16, which bfloat16 would round, and
            bfloat16 for the others.

    Returns:
        The type that most tensors were stored in, e.g. "Q4_1".

    Raises:
        ModelError: not a GGUF file, or one of another kind, naming what it is.
    """
    file = read_gguf(source)
    fields = file.fields
    try:
        config = _read_config(file)
        if dtype == "auto":
            kinds = Counter(tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) > 1)
            dtype = "float32" if kinds.most_common(1)[0][0] in ("F32", "F16") else "bfloat16"
        tensors = [tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS]
        entries = [entry for tensor in tensors for entry in _entries(tensor, config=config)]
        _check_shapes(entries, config=config)
        tokenizer = build_gguf_tokenizer(fields)
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(entries, folder=folder, dtype=dtype)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None
    except KeyError as error:
        raise ModelError(f"{source}: metadata {error} is missing") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{source}: its metadata has a value of the wrong type: {error}") from None
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json_object(folder / "config.json", dump_config(config, dtype=dtype))
    _write_tokenizer_files(fields, folder=folder)
    counts = Counter(tensor.kind.name for tensor in file.tensors.values())
    card = _model_card(source, fields=fields, counts=counts, base_model=base_model, origin=origin)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return counts.most_common(1)[0][0]


def _read_config(file: GgufFile) -> ModelConfig:
    architecture = str(file.fields["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise ModelError(unknown_name("GGUF architecture", architecture, ARCHITECTURES))
    _refuse_other_maths(file, architecture)
    fields = {key.removeprefix(f"{architecture}."): value for key, value in file.fields.items()}
    hidden_size, num_heads = whole_number(fields, "embedding_length"), whole_number(fields, "attention.head_count")
    num_layers = whole_number(fields, "block_count")
    if num_layers > len(file.tensors):
        raise ModelError(f"it says that it has {num_layers} layers, and has {len(file.tensors)} tensors")
    head_dim = whole_number(fields, "attention.key_length", default=hidden_size // max(1, num_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole_number(fields, key, default=head_dim) != head_dim:
            raise ModelError(f"metadata {key!r} is {fields[key]}; only the width of a head, {head_dim}, is supported")
    theta = float(fields.get("rope.freq_base", 10_000.0))
    is_qwen3 = architecture in ("qwen3", "qwen3moe")
    ids = special_ids(fields)
    ends = [ids[short] for short in ("eos", "eot", "eom") if short in ids]
    return ModelConfig(
        model_type=ARCHITECTURES[architecture],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=hidden_size,
        intermediate_size=whole_number(fields, "feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=whole_number(fields, "attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        max_position_embeddings=whole_number(fields, "context_length"),
        # Stored as float32: 1e-5 comes back as 9.999999747378752e-06.
        rms_norm_eps=float(f"{fields['attention.layer_norm_rms_epsilon']:.7g}"),
        rope_theta=theta,
        rope_scaling=read_scaling(fields, factors=_rope_factors(file, architecture), theta=theta, head_dim=head_dim),
        tie_word_embeddings="output.weight" not in file.tensors,
        has_qkv_bias="blk.0.attn_q.bias" in file.tensors,
        has_output_bias="blk.0.attn_output.bias" in file.tensors,
        has_mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        has_qk_norm=is_qwen3,
        experts=_read_experts(fields) if architecture == "qwen3moe" else None,
        bos_token_id=ids.get("bos"),
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )


def _read_experts(fields: Mapping[str, Any]) -> ExpertsShape:
    """As llama.cpp's src/models/qwen3moe.cpp: experts in every layer, their weights always divided by their sum."""
    per_token = whole_number(fields, "expert_used_count")
    default = whole_number(fields, "feed_forward_length") // max(1, per_token)
    return ExpertsShape(
        num_experts=whole_number(fields, "expert_count"),
        num_experts_per_token=per_token,
        intermediate_size=whole_number(fields, "expert_feed_forward_length", default=default),
        scoring="softmax",
        has_selection_bias=False,
    )


def _refuse_other_maths(file: GgufFile, architecture: str) -> None:
    """Refuse by name whatever asks for a computation that is not the plain one of this architecture."""
    fields = file.fields
    if (kind := fields.get("general.type", "model")) != "model":
        raise ModelError(f"it holds a {kind!r}, not a model")
    if (parts := fields.get("split.count", 0)) > 1:
        raise ModelError(f"it is one of {parts} parts of a model; join them with llama-gguf-split --merge")
    for name, value in fields.items():
        key = name.removeprefix(f"{architecture}.")
        is_understood = key in _UNDERSTOOD or (architecture == "qwen3moe" and key in EXPERT_KEYS)
        if key != name and not is_understood and value not in _NEUTRAL.get(key, ()):
            raise ModelError(
                f"metadata {name!r} = {shortened(value)} is not supported: it could change what the model computes"
            )


def _rope_factors(file: GgufFile, architecture: str) -> NDArray[np.float32] | None:
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if architecture != "llama":  # llama.cpp would not read it there either
        raise ModelError(f"tensor {ROPE_FACTORS!r} has no place in a plain {architecture} model")
    return tensor.values(slice(None)).reshape(-1)


def _entries(tensor: GgufTensor, *, config: ModelConfig) -> Iterator[_Entry]:
    """The tensors of a Hugging Face file that one of a GGUF file holds: itself, or a matrix of every expert."""
    if tensor.name in TOP_NAMES:
        yield _Entry(TOP_NAMES[tensor.name], tensor.shape, tensor, 0, 0)
        return
    prefix, index, name, suffix = [*tensor.name.split("."), "", "", "", ""][:4]
    is_known = prefix == "blk" and tensor.name == f"blk.{index}.{name}.{suffix}" and suffix in ("weight", "bias")
    layer = f"model.layers.{index}."
    if is_known and name in LAYER_NAMES:
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if config.model_type == "llama" else {}
        yield _Entry(f"{layer}{LAYER_NAMES[name]}.{suffix}", tensor.shape, tensor, 0, heads.get(name, 0))
    elif is_known and name in EXPERT_NAMES and len(tensor.shape) == 3:
        for expert in range(tensor.shape[0]):
            hf_name = f"{layer}mlp.experts.{expert}.{EXPERT_NAMES[name]}.{suffix}"
            yield _Entry(hf_name, tensor.shape[1:], tensor, expert * tensor.shape[1], 0)
    else:
        raise ModelError(f"tensor {tensor.name!r} has no place in a plain {config.model_type} model")


def _check_shapes(entries: Iterable[_Entry], *, config: ModelConfig) -> None:
    """Every tensor that the model has, and no other, in the shape that it has there."""
    if config.model_type == "llama" and config.has_qkv_bias != config.has_output_bias:
        raise ModelError("it has biases on some of the attention's projections; only on all or on none is supported")
    expected = {name: tuple(part.shape) for name, part in stored_tensors(build_model(config, device="meta"))}
    for entry in entries:
        shape = expected.pop(entry.name, None)
        if shape is None:
            raise ModelError(f"tensor {entry.tensor.name!r} has no place in a plain {config.model_type} model")
        if shape != entry.shape:
            raise ModelError(f"tensor {entry.tensor.name!r} has shape {entry.tensor.shape}, its metadata says {shape}")
    if expected:
        raise ModelError(f"{len(expected)} tensors are missing, the first is {min(expected)!r}")


def _read_values(entry: _Entry) -> Iterator[NDArray[np.float32]]:
    """Values as Hugging Face orders them: llama.cpp rotates neighbours, transformers rotates halves."""
    tensor, num_heads = entry.tensor, entry.num_rotary_heads
    if len(entry.shape) == 1:  # a norm or a bias is one row
        values = tensor.values(slice(None))
        yield values[:, _halves(values.size, num_heads)] if num_heads else values
        return
    num_rows = entry.shape[0]
    order = _halves(num_rows, num_heads) if num_heads else np.arange(num_rows) + entry.first_row
    step = max(1, _CHUNK_BYTES // (4 * entry.shape[-1]))
    for start in range(0, num_rows, step):
        yield tensor.values(order[start : start + step])


def _halves(num_rows: int, num_heads: int) -> NDArray[np.int64]:
    """Where the rows lie in the file that transformers wants one after the other."""
    return np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _write_weights(entries: Sequence[_Entry], *, folder: Path, dtype: Literal["bfloat16", "float32"]) -> None:
    """Stream the tensors out: no more than one is in memory, and some of its rows in float32 beside it."""
    stored_as = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    console = Console(stderr=True)
    with ShardedWriter(folder, shapes={entry.name: (stored_as, entry.shape) for entry in entries}) as writer:
        for entry in track(entries, "converting", console=console, disable=not console.is_terminal):
            values = torch.empty(entry.shape, dtype=stored_as)
            start = 0
            for rows in _read_values(entry):
                part = torch.from_numpy(rows.reshape(-1, *entry.shape[1:]))
                values[start : start + len(part)] = part
                start += len(part)
            writer.write(entry.name, values)
        writer.put_in_place()


def _write_tokenizer_files(fields: Mapping[str, Any], *, folder: Path) -> None:
    tokens, ids = fields["tokenizer.ggml.tokens"], special_ids(fields)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(fields[f"{fields['general.architecture']}.context_length"]),
        **{f"{short}_token": tokens[ids[short]] for short in ("bos", "eos", "pad", "unk") if short in ids},
    }
    write_json_object(folder / "tokenizer_config.json", tokenizer_config)
    stops: dict[str, Any] = {f"{short}_token_id": ids[short] for short in ("bos", "eos", "pad") if short in ids}
    ends = list(dict.fromkeys(ids[short] for short in ("eos", "eot", "eom") if short in ids))
    if len(ends) > 1:
        stops["eos_token_id"] = ends
    write_json_object(folder / "generation_config.json", stops)
    if "tokenizer.chat_template" in fields:
        (folder / "chat_template.jinja").write_text(str(fields["tokenizer.chat_template"]), encoding="utf-8")


def _model_card(source: Path, *, fields: Mapping[str, Any], counts: Counter[str], base_model: str, origin: str) -> str:
    kinds = counts.most_common()
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return f"""---
license: {fields.get("general.license", "unknown")}
base_model: {base_model}
pipeline_tag: text-generation
---

# {base_model.rpartition("/")[2]}, dequantised from {kinds[0][0]}

The weights of [{base_model}](https://huggingface.co/{base_model}),
dequantised from {kinds[0][0]} and rounded to bfloat16. They are not the original weights: each differs from its
original by the rounding of the quantisation.

- Tensors by type: {", ".join(f"{number} {kind}" for kind, number in kinds)}
- Source: {origin}
- sha256 of the GGUF file: `{sha256}`
- Licence: {fields.get("general.license", "unknown")}, as the original
"""
