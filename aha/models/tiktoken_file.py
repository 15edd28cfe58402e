"""Kimi's and Moonlight's tokenizer, published as a tiktoken file and code, as the tokenizer.json it comes to.

The file lists every token's bytes with its rank; what the repository's code adds is a pattern and the names of the
control tokens, and both are written down here or in tokenizer_config.json. So nothing of that code is executed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aha.errors import ModelError
from aha.models.json_file import read_json_object

TIKTOKEN_FILE = "tiktoken.model"
TOKENIZER_CLASS = "TikTokenTokenizer"
"""Of tokenizer_config.json: the only class whose pattern is known here."""
# Source: tokenization_kimi.py of moonshotai/Kimi-Linear-48B-A3B-Instruct, revision 919416f (`pat_str`): runs of Chinese
# characters, words with their English endings, numbers of up to three digits, signs, line ends, other white space.
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDINGS}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDINGS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
NUM_RESERVED = 256
"""Control tokens behind the last rank; those without a name in tokenizer_config.json are <|reserved_token_ID|>."""
_MAX_FILE_BYTES = 1 << 24
"""Kimi's has 2.8 MB."""
_MAX_TOKEN_BYTES = 1024


def read_tiktoken(folder: Path) -> dict[str, Any]:
    """The content of the tokenizer.json that a folder with a tiktoken file does not have.

    Source: byte-level BPE (arXiv:1508.07909 §3.2) merges the pair whose result has the lowest rank; a tokenizer.json
    lists pairs, so every split of a token into two tokens becomes a merge, in the order of the results' ranks.

    Raises:
        ModelError: a file that is not of this form, or a tokenizer class whose pattern is not known.
    """
    path, config = folder / TIKTOKEN_FILE, _read_config(folder)
    if config.get("tokenizer_class") != TOKENIZER_CLASS:
        raise ModelError(
            f"{path} is a tiktoken file of tokenizer_class {str(config.get('tokenizer_class'))[:60]!r}, whose pattern "
            f"is not known; only {TOKENIZER_CLASS} is (Kimi, Moonlight). Put a tokenizer.json beside it"
        )
    ranks = _read_ranks(path)
    pretokenizers = [
        {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _control_tokens(config, num_base=len(ranks)),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pretokenizers},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _byte_pairs(ranks),
    }


def save_converted(source: Path, *, folder: Path) -> None:
    """Write tokenizer.json and a tokenizer_config.json that names no code, beside a model that is saved."""
    text = json.dumps(read_tiktoken(source), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {key: value for key, value in _read_config(source).items() if key != "auto_map"}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json_object(path) if path.exists() else {}


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Bytes of each token -> its rank, in the order of the ranks."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelError(f"{path} is larger than {_MAX_FILE_BYTES >> 20} MiB")
        lines = path.read_bytes().split(b"\n")
        pairs = [line.split() for line in lines if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (OSError, ValueError, binascii.Error) as error:
        raise ModelError(f"{path} is no tiktoken file (a base64 token and its rank in each line): {error}") from None
    ordered = dict(sorted(ranks.items(), key=lambda item: item[1]))
    if list(ordered.values()) != list(range(len(pairs))):
        raise ModelError(f"{path} must give every rank from 0 to {len(pairs) - 1} to one token")
    if any(bytes([byte]) not in ordered for byte in range(256)):
        raise ModelError(f"{path} must have a token for every byte")
    if max(map(len, ordered)) > _MAX_TOKEN_BYTES:
        raise ModelError(f"{path} has a token of more than {_MAX_TOKEN_BYTES} bytes")
    return ordered


def _byte_pairs(ranks: Mapping[bytes, int]) -> dict[str, Any]:
    """The model of a tokenizer.json; tokens that stand alone are never taken apart, as tiktoken has it."""
    merges = [(_spell(token[:at]), _spell(token[at:])) for token in ranks for at in _splits(token, ranks)]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {_spell(token): rank for token, rank in ranks.items()},
        "merges": merges,
    }


def _splits(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Where a token falls into two tokens, those of the lowest ranks first."""
    found = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
    return sorted(found, key=lambda at: (ranks[token[:at]], ranks[token[at:]]))


def _control_tokens(config: Mapping[str, Any], *, num_base: int) -> list[dict[str, Any]]:
    named = config.get("added_tokens_decoder")
    listed = named if isinstance(named, dict) else {}
    tokens = []
    for token_id in range(num_base, num_base + NUM_RESERVED):
        entry = listed.get(str(token_id))
        content = entry.get("content") if isinstance(entry, dict) else None
        tokens.append(
            {
                "id": token_id,
                "content": content if isinstance(content, str) and content else f"<|reserved_token_{token_id}|>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                # Of what is named, tags such as <think> are text that is shown; the rest steers.
                "special": bool(entry.get("special", True)) if isinstance(entry, dict) else True,
            }
        )
    return tokens


def _spell(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _byte_characters() -> list[str]:
    """GPT-2's printable character for every byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_CHARACTERS = _byte_characters()
