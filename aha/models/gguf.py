"""A llama-architecture GGUF file, turned into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from aha.errors import ModelError, unknown_name
from aha.models.config import ModelConfig, dump_config

# ggml's token types (llama.h, enum llama_token_type).
_CONTROL, _USER_DEFINED = 3, 4
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# llama.cpp's name for a way to cut text into words -> whether every digit is cut off alone before GPT-2's pattern.
_SPLITS_DIGITS = {"smollm": True, "gpt-2": False}


class _Entry(NamedTuple):
    """One tensor on its way."""

    name: str
    tensor: Any
    """gguf.ReaderTensor: its axes are listed innermost first."""
    num_rotary_heads: int
    """Heads whose rows llama.cpp has reordered for its rotary embedding; 0 for all other tensors."""

    @property
    def shape(self) -> list[int]:
        return [int(size) for size in reversed(self.tensor.shape)]


def convert_gguf(source: Path, *, folder: Path, base_model: str, origin: str) -> str:
    """Write config.json, model.safetensors (bfloat16), the tokenizer's files and a model card of a GGUF model.

    Quantised tensors are dequantised in float32 and rounded to nearest even, one at a time.

    Args:
        source: a GGUF file of architecture "llama" with a byte-level BPE vocabulary.
        folder: where the files go; made if it is not there.
        base_model: Hugging Face id of the model before it was quantised, for the card.
        origin: where the file comes from, in Markdown, for the card.

    Returns:
        The type that most tensors were stored in, e.g. "Q4_1".

    Raises:
        ModelError: not a GGUF file, or one of another kind, naming what it is.
    """
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{source} is not a readable GGUF file: {error}") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = _read_config(fields, source=source, is_tied="output.weight" not in tensors)
        tokenizer = _build_tokenizer(fields, source=source)
    except KeyError as error:
        raise ModelError(f"{source}: metadata {error} is missing") from None
    entries = [_entry(tensor, config=config, source=source) for tensor in tensors.values()]
    folder.mkdir(parents=True, exist_ok=True)
    _write_safetensors(entries, path=folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", dump_config(config, dtype="bfloat16"))
    _write_tokenizer_files(fields, folder=folder)
    counts = Counter(str(tensor.tensor_type.name) for tensor in tensors.values())
    card = _model_card(source, fields=fields, counts=counts, base_model=base_model, origin=origin)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return counts.most_common(1)[0][0]


def _read_config(fields: dict[str, Any], *, source: Path, is_tied: bool) -> ModelConfig:
    architecture = str(fields["general.architecture"])
    if architecture != "llama":
        raise ModelError(f"{source}: " + unknown_name("GGUF architecture", architecture, ("llama",)))
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{source}: rotary scaling {scaling!r} is not supported in GGUF files; only 'none' is")
    hidden_size, num_heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
    eos = fields.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        model_type="llama",
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=hidden_size,
        intermediate_size=int(fields["llama.feed_forward_length"]),
        num_layers=int(fields["llama.block_count"]),
        num_heads=num_heads,
        num_kv_heads=int(fields.get("llama.attention.head_count_kv", num_heads)),
        head_dim=int(fields.get("llama.attention.key_length", hidden_size // num_heads)),
        max_position_embeddings=int(fields["llama.context_length"]),
        # Stored as float32: 1e-5 comes back as 9.999999747378752e-06.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        tie_word_embeddings=is_tied,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (int(eos),),
    )


def _entry(tensor: Any, *, config: ModelConfig, source: Path) -> _Entry:
    if tensor.name in _TOP:
        return _Entry(_TOP[tensor.name], tensor, 0)
    parts = tensor.name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _LAYER or parts[3] != "weight":
        raise ModelError(f"{source}: tensor {tensor.name!r} has no place in a plain llama model")
    num_rotary_heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(parts[2], 0)
    return _Entry(f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.weight", tensor, num_rotary_heads)


def _read_values(entry: _Entry) -> NDArray[np.float32]:
    """Values as Hugging Face orders them: llama.cpp rotates neighbours, transformers rotates halves."""
    values: NDArray[np.float32] = dequantize(entry.tensor.data, entry.tensor.tensor_type).astype(np.float32)
    if entry.num_rotary_heads:
        rows, columns = values.shape
        pairs = values.reshape(entry.num_rotary_heads, rows // entry.num_rotary_heads // 2, 2, columns)
        values = pairs.swapaxes(1, 2).reshape(rows, columns)
    return values.reshape(entry.shape)


def _round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Upper halves of the floats, rounded to nearest even. Weights are finite, so no carry reaches a NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def _write_safetensors(entries: Iterable[_Entry], *, path: Path) -> None:
    """Stream the tensors out, so that the model is never in memory as a whole."""
    entries = sorted(entries, key=lambda entry: entry.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + 2 * int(np.prod(entry.shape))
        header[entry.name] = {"dtype": "BF16", "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    console = Console(stderr=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in track(entries, "converting", console=console, disable=not console.is_terminal):
            file.write(_round_to_bfloat16(_read_values(entry)).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _build_tokenizer(fields: dict[str, Any], *, source: Path) -> Tokenizer:
    """The byte-level BPE that the vocabulary and merges describe."""
    kind, split = str(fields["tokenizer.ggml.model"]), str(fields["tokenizer.ggml.pre"])
    if kind != "gpt2":
        raise ModelError(f"{source}: " + unknown_name("GGUF vocabulary", kind, ("gpt2",)))
    if split not in _SPLITS_DIGITS:
        raise ModelError(f"{source}: " + unknown_name("GGUF pre-tokenizer", split, _SPLITS_DIGITS))
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in fields["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    splitters = [digits, words] if _SPLITS_DIGITS[split] else [words]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    added = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer


def _write_tokenizer_files(fields: dict[str, Any], *, folder: Path) -> None:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {short: fields.get(f"tokenizer.ggml.{long}_token_id") for short, long in ids.items()}
    named = {f"{short}_token": tokens[token_id] for short, token_id in found.items() if token_id is not None}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(fields["llama.context_length"]),
        **named,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    stops = {f"{short}_token_id": found[short] for short in ("bos", "eos", "pad") if found[short] is not None}
    _write_json(folder / "generation_config.json", stops)
    if "tokenizer.chat_template" in fields:
        (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _model_card(source: Path, *, fields: dict[str, Any], counts: Counter[str], base_model: str, origin: str) -> str:
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
