"""A GGUF file of a Llama, Qwen2 or Qwen3, turned into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from aha.errors import ModelError, unknown_name
from aha.models.config import ModelConfig, ModelType
from aha.models.config_files import dump_config

# ggml's token types (llama.h, enum llama_token_type).
CONTROL, USER_DEFINED = 3, 4
ARCHITECTURES: tuple[ModelType, ...] = ("llama", "qwen2", "qwen3")
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How Qwen and Llama 3 cut text into words; they differ in how many digits stay together.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _by_gpt2(*before: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


SPLITTERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": lambda: _by_gpt2(pre_tokenizers.Digits(individual_digits=True)),
    "gpt-2": _by_gpt2,
    "qwen2": lambda: _by_pattern(_WORDS % r"\p{N}"),
    "llama-bpe": lambda: _by_pattern(_WORDS % r"\p{N}{1,3}"),
}
"""llama.cpp's name for a way to cut text into words -> how tokenizers does it."""


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


def convert_gguf(
    source: Path, *, folder: Path, base_model: str, origin: str, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> str:
    """Write config.json, model.safetensors, the tokenizer's files and a model card of a GGUF model.

    Quantised tensors are dequantised in float32 and rounded to nearest even, one at a time.

    Args:
        source: a GGUF file of one of ARCHITECTURES with a byte-level BPE vocabulary.
        folder: where the files go; made if it is not there.
        base_model: Hugging Face id of the model before it was quantised, for the card.
        origin: where the file comes from, in Markdown, for the card.
        dtype: of the folder's weights.

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
    _write_safetensors(entries, path=folder / "model.safetensors", dtype=dtype)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", dump_config(config, dtype=dtype))
    _write_tokenizer_files(fields, folder=folder)
    counts = Counter(str(tensor.tensor_type.name) for tensor in tensors.values())
    card = _model_card(source, fields=fields, counts=counts, base_model=base_model, origin=origin)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return counts.most_common(1)[0][0]


def _read_config(fields: dict[str, Any], *, source: Path, is_tied: bool) -> ModelConfig:
    architecture = str(fields["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise ModelError(f"{source}: " + unknown_name("GGUF architecture", architecture, ARCHITECTURES))
    fields = {key.replace(f"{architecture}.", "model.", 1): value for key, value in fields.items()}
    scaling = fields.get("model.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{source}: rotary scaling {scaling!r} is not supported in GGUF files; only 'none' is")
    hidden_size, num_heads = int(fields["model.embedding_length"]), int(fields["model.attention.head_count"])
    eos = fields.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        model_type=architecture,
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=hidden_size,
        intermediate_size=int(fields["model.feed_forward_length"]),
        num_layers=int(fields["model.block_count"]),
        num_heads=num_heads,
        num_kv_heads=int(fields.get("model.attention.head_count_kv", num_heads)),
        head_dim=int(fields.get("model.attention.key_length", hidden_size // num_heads)),
        max_position_embeddings=int(fields["model.context_length"]),
        # Stored as float32: 1e-5 comes back as 9.999999747378752e-06.
        rms_norm_eps=float(f"{fields['model.attention.layer_norm_rms_epsilon']:.7g}"),
        rope_theta=float(fields.get("model.rope.freq_base", 10_000.0)),
        tie_word_embeddings=is_tied,
        has_qkv_bias=architecture == "qwen2",
        has_qk_norm=architecture == "qwen3",
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (int(eos),),
    )


def _entry(tensor: Any, *, config: ModelConfig, source: Path) -> _Entry:
    if tensor.name in TOP_NAMES:
        return _Entry(TOP_NAMES[tensor.name], tensor, 0)
    parts = tensor.name.split(".")
    has_bias = config.has_qkv_bias and parts[2:3] in (["attn_q"], ["attn_k"], ["attn_v"])
    kinds = ("weight", "bias") if has_bias else ("weight",)
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in LAYER_NAMES or parts[3] not in kinds:
        raise ModelError(f"{source}: tensor {tensor.name!r} has no place in a plain {config.model_type} model")
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if config.model_type == "llama" else {}
    return _Entry(f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}", tensor, heads.get(parts[2], 0))


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


def _write_safetensors(
    entries: Iterable[_Entry], *, path: Path, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> None:
    """Stream the tensors out, so that the model is never in memory as a whole."""
    entries = sorted(entries, key=lambda entry: entry.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + (2 if dtype == "bfloat16" else 4) * int(np.prod(entry.shape))
        kind = "BF16" if dtype == "bfloat16" else "F32"
        header[entry.name] = {"dtype": kind, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    console = Console(stderr=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in track(entries, "converting", console=console, disable=not console.is_terminal):
            values = _read_values(entry)
            file.write((_round_to_bfloat16(values) if dtype == "bfloat16" else values.astype("<f4")).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _build_tokenizer(fields: dict[str, Any], *, source: Path) -> Tokenizer:
    """The byte-level BPE that the vocabulary and merges describe."""
    kind, split = str(fields["tokenizer.ggml.model"]), str(fields["tokenizer.ggml.pre"])
    if kind != "gpt2":
        raise ModelError(f"{source}: " + unknown_name("GGUF vocabulary", kind, ("gpt2",)))
    if split not in SPLITTERS:
        raise ModelError(f"{source}: " + unknown_name("GGUF pre-tokenizer", split, SPLITTERS))
    return assemble_tokenizer(
        fields["tokenizer.ggml.tokens"],
        types=fields["tokenizer.ggml.token_type"],
        merges=fields["tokenizer.ggml.merges"],
        splitter=split,
    )


def assemble_tokenizer(
    tokens: Sequence[str], *, types: Sequence[int], merges: Sequence[str], splitter: str
) -> Tokenizer:
    """The tokenizer that a GGUF file's lists mean; `splitter` is a name in SPLITTERS."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # As llama.cpp does: a word that is a token by itself is not built from merges.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=splitter == "llama-bpe"))
    tokenizer.pre_tokenizer = SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    added = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
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
        "model_max_length": int(fields[f"{fields['general.architecture']}.context_length"]),
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
