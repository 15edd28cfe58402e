"""Tokenizers as GGUF files tell them: lists of tokens, merges or scores, and the name of a way to cut text into words.

Source of the names and patterns: llama.cpp's src/llama-vocab.cpp; where its comment quotes the pattern of the model's
own tokenizer.json, that one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from aha.errors import ModelError, unknown_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""ggml's token types (llama.h, enum llama_token_type)."""
SPACE = "▁"
"""How SentencePiece writes a space."""
# SentencePiece makes pieces of 16 characters. Merges are found by trying every cut of every token, so one of a
# million characters would keep us busy for hours.
_MAX_PIECE = 256
# How Qwen and Llama 3 cut text into words; they differ in how many digits stay together.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_patterns(*patterns: str) -> pre_tokenizers.PreTokenizer:
    """Cut by the first pattern, the pieces by the second, and so on."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _by_gpt2(*before: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def _by_default() -> pre_tokenizers.PreTokenizer:
    """What llama.cpp does where a file names nothing: GPT-2's words, between cuts at punctuation and digits."""
    marks, gpt2 = r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return _by_patterns(marks, gpt2, r"\p{N}+", "[0-9][0-9][0-9]")


SPLITTERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": lambda: _by_gpt2(pre_tokenizers.Digits(individual_digits=True)),
    "gpt-2": _by_gpt2,
    "qwen2": lambda: _by_patterns(_WORDS % r"\p{N}"),
    "llama-bpe": lambda: _by_patterns(_WORDS % r"\p{N}{1,3}"),
    "smaug-bpe": lambda: _by_patterns(_WORDS % r"\p{N}{1,3}"),
    "tekken": lambda: _by_patterns(_TEKKEN),
    "deepseek-v3": lambda: _by_patterns(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_WORDS),
    "default": _by_default,
}
"""llama.cpp's name for a way to cut text into words -> how tokenizers does it."""
SAME_AS: dict[str, str] = {
    "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "kormo": "qwen2", "f2llmv2": "qwen2",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "pixtral": "llama-bpe",
    "midm-2.0": "llama-bpe", "lfm2": "llama-bpe", "olmo": "gpt-2", "mellum": "gpt-2", "starcoder": "smollm",
    "refact": "smollm",
}  # fmt: skip
"""Other names that llama.cpp has for one of SPLITTERS."""
# A word that is a token by itself is not built from merges; and a text begins with bos unless the file says otherwise.
_IGNORES_MERGES = _ADDS_BOS = frozenset({"llama-bpe", "tekken"})


def build_gguf_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Raises:
        ModelError: a kind that is not read, by its name.
        KeyError: metadata that is missing.
    """
    kind, tokens = str(fields["tokenizer.ggml.model"]), fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    ids = special_ids(fields)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelError("its list of tokens names one twice, or is not as long as that of their types")
    if kind == "llama":
        scores = fields["tokenizer.ggml.scores"]
        has_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
        tokenizer = assemble_sentencepiece(
            tokens, types=types, scores=scores, unknown_id=ids.get("unk"), prefix="space" if has_prefix else "none"
        )
        adds_bos = True
    elif kind == "gpt2":
        splitter = find_splitter(str(fields.get("tokenizer.ggml.pre", "default")))
        tokenizer = assemble_tokenizer(tokens, types=types, merges=fields["tokenizer.ggml.merges"], splitter=splitter)
        adds_bos = splitter in _ADDS_BOS
    else:
        raise ModelError(unknown_name("GGUF vocabulary", kind, ("gpt2", "llama")))
    if fields.get("tokenizer.ggml.add_bos_token", adds_bos) and "bos" in ids:
        bos = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, ids["bos"])]
        )
    return tokenizer


def special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Ids of "bos", "eos", "pad", "unk", "eot" and "eom", as far as the file names them.

    Raises:
        ModelError: an id that no token has.
    """
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot", "eom": "eom"}
    # llama.cpp's own, for the kind of vocabulary that Llama 2 has.
    ids = {"unk": 0, "bos": 1, "eos": 2} if fields["tokenizer.ggml.model"] == "llama" else {}
    ids |= {s: fields[key] for s, long in names.items() if (key := f"tokenizer.ggml.{long}_token_id") in fields}
    num_tokens = len(fields["tokenizer.ggml.tokens"])
    for short, token_id in ids.items():
        if not isinstance(token_id, int) or not 0 <= token_id < num_tokens:
            raise ModelError(f"its {short} token is {token_id!r}, but there are {num_tokens} tokens")
    return ids


def find_splitter(name: str) -> str:
    """The name in SPLITTERS of a way to cut words that llama.cpp calls `name`."""
    if name not in SPLITTERS and name not in SAME_AS:
        raise ModelError(unknown_name("GGUF pre-tokenizer", name, [*SPLITTERS, *SAME_AS]))
    return SAME_AS.get(name, name)


def assemble_tokenizer(
    tokens: Sequence[str], *, types: Sequence[int], merges: Sequence[str], splitter: str
) -> Tokenizer:
    """The byte-level BPE that a GGUF file's lists mean; `splitter` is a name in SPLITTERS."""
    vocabulary = {token: i for i, token in enumerate(tokens) if not _is_padding(token, types[i], i)}
    pairs = [_cut_merge(merge, vocabulary=vocabulary) for merge in merges]
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=splitter in _IGNORES_MERGES)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types=types)
    return tokenizer


def assemble_sentencepiece(
    tokens: Sequence[str], *, types: Sequence[int], scores: Sequence[float], unknown_id: int | None, prefix: str
) -> Tokenizer:
    """The BPE that a SentencePiece vocabulary with scores means: the pair that makes the best token is joined first.

    Source: llama.cpp's llm_tokenizer_spm_session; in the form of Llama 2's own tokenizer.json.

    Args:
        prefix: "space" puts one before every text that does not follow a control token, "none" does not.
    """
    if len(scores) != len(tokens):
        raise ModelError(f"it has {len(tokens)} tokens and {len(scores)} scores")
    longest = max(tokens, key=len)
    if len(longest) > _MAX_PIECE:
        raise ModelError(f"it has a token of {len(longest)} characters; SentencePiece has none over {_MAX_PIECE}")
    vocabulary = {token: i for i, token in enumerate(tokens) if not _is_padding(token, types[i], i)}
    unknown = None if unknown_id is None else tokens[unknown_id]
    merges = merges_from_scores(tokens, types=types, scores=scores)
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    starts = [normalizers.Prepend(SPACE)] if prefix == "space" else []
    tokenizer.normalizer = normalizers.Sequence([*starts, normalizers.Replace(" ", SPACE)])
    ends = [decoders.Strip(" ", 1, 0)] if prefix == "space" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    _add_tokens(tokenizer, tokens, types=types)
    return tokenizer


def merges_from_scores(
    tokens: Sequence[str], *, types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, best first: by the score of what it makes, then the longer left half."""
    words = {token: i for i, token in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, i in words.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        found += [(scores[i], len(a), len(b), a, b) for a, b in cuts if a in words and b in words]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _cut_merge(merge: str, *, vocabulary: Mapping[str, int]) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        raise ModelError(f"its merge {merge!r} is not of two tokens that make a third")
    return left, right


def _is_padding(token: str, kind: int, token_id: int) -> bool:
    """Whether this only fills a vocabulary up to the model's size."""
    return kind == UNUSED and token == f"[PAD{token_id}]"


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], *, types: Sequence[int]) -> None:
    control = [t for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN)]
    added = [t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
