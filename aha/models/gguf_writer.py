"""A model and its tokenizer, written as a GGUF file for llama.cpp and its kin.

Names and layouts: llama.cpp's convert_hf_to_gguf.py. What it writes is read back by aha.models.gguf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType, quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from aha.errors import ModelError, unknown_name
from aha.models.checkpoint import merged_tensors
from aha.models.config import Llama3Rope, ModelConfig, YarnRope
from aha.models.gguf_names import ARCHITECTURES, EXPERT_NAMES, LAYER_NAMES, ROPE_FACTORS, TOP_NAMES
from aha.models.gguf_rope import llama3_factors
from aha.models.gguf_tokenizer import CONTROL, NORMAL, SPLITTERS, UNUSED, USER_DEFINED, assemble_tokenizer
from aha.models.transformer import Transformer

GGUF_KINDS: dict[str, GGMLQuantizationType] = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
"""How matrices are stored; norms and biases are always float32."""
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
_FAMILIES = {ours: theirs for theirs, ours in ARCHITECTURES.items()}
_WRITTEN_SPLITTERS = tuple(name for name in SPLITTERS if name != "default")  # which only says that nobody looked
_PROBES = (
    "What is 12 + 345 = 6789? 1234567, 3.14159, 1e-5 and 0x1F.",
    "don't they're WE'LL\n\n  def f(x):\n\treturn x  # déjà vu\r\n\n",
    "日本語 🙂 ﬁ naïve Straße, café  two  spaces   three",
    " leading, trailing ",
    "<think>a</think> <|im_start|>user\nhi<|im_end|>",
)


class Vocabulary(NamedTuple):
    """What a GGUF file says about a tokenizer."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    splitter: str
    """Name in SPLITTERS."""
    special_ids: dict[str, int]
    """"bos", "eos", "eot", "eom", "pad" and "unk", as far as there are any."""
    adds_bos: bool
    """Whether text that is encoded as a whole begins with bos."""
    chat_template: str


def write_gguf(model: Transformer, path: Path, *, tokenizer_folder: Path, kind: str, name: str) -> None:
    """Write one GGUF file; adapters are merged in float32 first.

    Args:
        tokenizer_folder: a Hugging Face folder with tokenizer.json and what belongs to it.
        kind: name in GGUF_KINDS.
        name: of the model, for the file's metadata.

    Raises:
        ModelError: the model or its tokenizer cannot be told in GGUF without changing what they do.
    """
    if kind not in GGUF_KINDS:
        raise ModelError(unknown_name("gguf type", kind, GGUF_KINDS))
    config = model.config
    _refuse_what_gguf_cannot_say(config)
    vocabulary = read_vocabulary(tokenizer_folder, size=config.vocab_size, eos_ids=config.eos_token_ids)
    writer = GGUFWriter(path, _FAMILIES[config.model_type])
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    _add_shape(writer, config)
    _add_vocabulary(writer, vocabulary, config=config)
    entries = [_entry(source, kind=kind) for source in _sources(model)]
    for entry in entries:
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), entry.num_bytes, raw_dtype=entry.stored_as
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, source in zip(entries, _sources(model), strict=True):
            writer.write_tensor_data(_stored_values(entry, source))
    finally:
        writer.close()


def _add_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if isinstance(scaling, float):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)
    elif isinstance(scaling, YarnRope):
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
    if config.experts is not None:
        writer.add_expert_count(config.experts.num_experts)
        writer.add_expert_used_count(config.experts.num_experts_per_token)
        writer.add_expert_feed_forward_length(config.experts.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _refuse_what_gguf_cannot_say(config: ModelConfig) -> None:
    """Refuse what llama.cpp has no architecture for, or would compute otherwise (its src/models/*.cpp)."""
    family, scaling, experts = config.model_type, config.rope_scaling, config.experts
    problem = ""
    if family not in _FAMILIES:
        problem = f"{family} is not among the families that are written: {', '.join(sorted(_FAMILIES))}"
    elif isinstance(scaling, Llama3Rope) and family != "llama":
        problem = f"llama.cpp has no llama3 rotary scaling for {family}"
    elif isinstance(scaling, YarnRope) and not _is_plain_yarn(scaling):
        problem = "its yarn rotary scaling is not the plain one that llama.cpp computes"
    elif family != "llama" and (config.has_output_bias or config.has_qkv_bias != (family == "qwen2")):
        problem = f"its biases are not those of a plain {family} model"
    elif config.has_qkv_bias != config.has_output_bias and family == "llama":
        problem = "it has biases on some of the attention's projections only"
    elif family == "qwen2" and config.num_heads * config.head_dim != config.hidden_size:
        problem = f"llama.cpp's qwen2 has heads of hidden_size / num_heads channels, these have {config.head_dim}"
    elif experts is not None and not (
        experts.renormalises and all(config.is_sparse(layer) for layer in range(config.num_layers))
    ):
        problem = f"llama.cpp's {family} has experts in every layer, and divides their weights by their sum"
    if problem:
        raise ModelError(f"the model cannot be written as gguf: {problem}; export it with --to hf")


def _is_plain_yarn(scaling: YarnRope) -> bool:
    """llama.cpp knows a factor and a window; it reads no betas for these families (found by comparing logits)."""
    return scaling == YarnRope(
        factor=scaling.factor, original_max_position_embeddings=scaling.original_max_position_embeddings
    )


class _Source(NamedTuple):
    """What a tensor of the file is made of."""

    name: str
    """llama.cpp's."""
    parts: tuple[Tensor, ...]
    """One, or a matrix of every expert, which are stacked."""
    num_rotary_heads: int
    """Heads whose rows llama.cpp wants in the order of its rotary embedding; 0 for all other tensors."""


class _Entry(NamedTuple):
    """Where a tensor goes and in which form."""

    name: str
    shape: tuple[int, ...]
    stored_as: GGMLQuantizationType

    @property
    def num_bytes(self) -> int:
        return math.prod(quant_shape_to_byte_shape(self.shape, self.stored_as))


def _sources(model: Transformer) -> Iterator[_Source]:
    """Every tensor of the file, in its order; adapters are merged as it goes."""
    config = model.config
    if isinstance(config.rope_scaling, Llama3Rope):
        factors = llama3_factors(config.rope_scaling, theta=config.rope_theta, head_dim=config.head_dim)
        yield _Source(ROPE_FACTORS, (torch.from_numpy(factors),), 0)
    names = {theirs: ours for ours, theirs in TOP_NAMES.items()}
    layer_names = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
    expert_names = {theirs: ours for ours, theirs in EXPERT_NAMES.items()}
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if config.model_type == "llama" else {}
    collected: dict[str, list[Tensor]] = {}
    for hf_name, tensor in merged_tensors(model):
        if hf_name in names:
            yield _Source(names[hf_name], (tensor,), 0)
            continue
        _, _, index, rest = hf_name.split(".", 3)
        module, _, suffix = rest.rpartition(".")
        if module in layer_names:
            name = layer_names[module]
            yield _Source(f"blk.{index}.{name}.{suffix}", (tensor,), heads.get(name, 0))
            continue
        assert config.experts is not None
        name = f"blk.{index}.{expert_names[module.rpartition('.')[2]]}.{suffix}"
        matrices = collected.setdefault(name, [])
        matrices.append(tensor)
        if len(matrices) == config.experts.num_experts:
            yield _Source(name, tuple(collected.pop(name)), 0)


def _entry(source: _Source, *, kind: str) -> _Entry:
    shape = tuple(source.parts[0].shape)
    if "_exps." in source.name:
        shape = (len(source.parts), *shape)
    # A gate is small, and which experts it chooses turns on its last digits; llama.cpp keeps it whole too.
    is_small = len(shape) == 1 or source.name.endswith("ffn_gate_inp.weight")
    stored_as = GGMLQuantizationType.F32 if is_small else GGUF_KINDS[kind]
    if stored_as is GGMLQuantizationType.Q8_0 and shape[-1] % 32:
        stored_as = GGMLQuantizationType.F16  # blocks of 32 do not fit into its rows
    return _Entry(source.name, shape, stored_as)


def _stored_values(entry: _Entry, source: _Source) -> NDArray[Any]:
    """A tensor as llama.cpp orders and stores it."""
    values: NDArray[np.float32] = np.stack([part.float().cpu().numpy() for part in source.parts]).reshape(entry.shape)
    if source.num_rotary_heads:
        # llama.cpp rotates neighbours, transformers rotates halves.
        half = len(values) // source.num_rotary_heads // 2
        halves = values.reshape(source.num_rotary_heads, 2, half, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    # Q8_0 keeps a block's scale, its largest value divided by 127, in float16.
    most = {GGMLQuantizationType.F16: 65504.0, GGMLQuantizationType.Q8_0: 127 * 65504.0}.get(entry.stored_as)
    if most is not None and not np.abs(values).max() <= most:
        kind = entry.stored_as.name.lower()
        raise ModelError(f"tensor {entry.name!r} holds values beyond {kind}'s largest, {most:g}; choose --type bf16")
    stored: NDArray[Any] = quantize(np.ascontiguousarray(values), entry.stored_as)
    return stored


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, *, config: ModelConfig) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splitter)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    bos = config.bos_token_id
    ids = vocabulary.special_ids if bos is None else {"bos": bos, **vocabulary.special_ids}
    setters = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "eom": writer.add_eom_token_id,
        "pad": writer.add_pad_token_id,
        "unk": writer.add_unk_token_id,
    }
    for short, token_id in ids.items():
        setters[short](token_id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def read_vocabulary(folder: Path, *, size: int, eos_ids: tuple[int, ...]) -> Vocabulary:
    """What a Hugging Face tokenizer is in llama.cpp's words; found by trying, and checked on probe texts.

    Raises:
        ModelError: not a byte-level BPE, or one that cuts text in a way that llama.cpp has no name for.
    """
    spec = _read_json(folder / "tokenizer.json")
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    model, added = spec.get("model") or {}, spec.get("added_tokens") or []
    if model.get("type", "BPE") != "BPE" or (spec.get("decoder") or {}).get("type") != "ByteLevel":
        raise ModelError(f"{folder / 'tokenizer.json'} is not a byte-level BPE, the only kind that gguf export writes")
    ids: dict[str, int] = {**model["vocab"], **{token["content"]: int(token["id"]) for token in added}}
    by_id = {token_id: token for token, token_id in ids.items()}
    if max(by_id) >= size:
        raise ModelError(f"{folder / 'tokenizer.json'} has token ids up to {max(by_id)}, the model knows {size}")
    kinds = {int(token["id"]): CONTROL if token.get("special") else USER_DEFINED for token in added}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    types = [kinds.get(i, NORMAL if i in by_id else UNUSED) for i in range(size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    special = {short: _token_id(settings.get(f"{short}_token"), ids=ids) for short in ("bos", "eos", "pad", "unk")}
    special |= dict(zip(("eos", "eot", "eom"), eos_ids, strict=False))
    template_file = folder / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else settings.get("chat_template")
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=merges,
        splitter=_find_splitter(folder, spec=spec, tokens=tokens, merges=merges, types=types),
        special_ids={short: token_id for short, token_id in special.items() if token_id is not None},
        adds_bos=special["bos"] is not None
        and Tokenizer.from_str(json.dumps(spec)).encode("a").ids[0] == special["bos"],
        chat_template=template if isinstance(template, str) else "",
    )


def _find_splitter(
    folder: Path, *, spec: dict[str, Any], tokens: list[str], merges: list[str], types: list[int]
) -> str:
    """The first of SPLITTERS under which every probe text has the tokens that it should have."""
    theirs = Tokenizer.from_str(json.dumps(spec))
    theirs.normalizer = None  # the probes are in normal form
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in _PROBES]
    for name in _WRITTEN_SPLITTERS:
        ours = assemble_tokenizer(tokens, types=types, merges=merges, splitter=name)
        if [ours.encode(text, add_special_tokens=False).ids for text in _PROBES] == expected:
            return name
    raise ModelError(
        f"{folder / 'tokenizer.json'} cuts text into words in a way that gguf export has no name for; it knows: "
        f"{', '.join(_WRITTEN_SPLITTERS)}"
    )


def _token_id(token: object, *, ids: dict[str, int]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return raw
