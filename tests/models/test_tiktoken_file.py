"""Kimi's tiktoken file as a tokenizer.json, against the algorithm written out and a second engine of expressions."""

from __future__ import annotations

import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import regex  # comes with transformers
from tokenizers import Tokenizer

from aha.chat import ChatFormat
from aha.errors import ModelError
from aha.models.tiktoken_file import PATTERN, read_tiktoken
from aha.types import Message

WORDS = (
    "the they them then there He HTTP world's don't DON'T 12 123 4567 日本 日本語 你好 世界 naïve café  \n\n \r\n != "
    "aaaa aaaaa abab ababab été Ünïcode ελληνικά русский 🙂🙂 ॐ ０１２ x_y (a+b)*c\t\t;"
)
TEXTS = [
    WORDS,
    *("", " ", "a", "\n", "  leading and trailing  \n", "tabs\t\tand\r\nlines\n\n\n x", "'s 'S ''re", "ABCdefGHI"),
    "Hello世界abc你好 it's O'Neil'S 1234567890",
    "ǅ ﬁ ʰ ⅷ ́a",
    "🙂👩‍👩‍👧 !?…",
]


def make_ranks() -> dict[bytes, int]:
    """Bytes in an order of their own, then merges learned from the words as byte-pair encoding learns them."""
    order = list(range(256))
    random.Random(0).shuffle(order)
    ranks = {bytes([byte]): rank for rank, byte in enumerate(order)}
    pieces = [[bytes([b]) for b in piece.encode()] for piece in regex.findall(PATTERN, WORDS * 3, flags=regex.V1)]
    while len(ranks) < 420:
        pairs: dict[bytes, int] = {}
        for piece in pieces:
            for left, right in itertools.pairwise(piece):
                pairs[left + right] = pairs.get(left + right, 0) + 1
        fresh = {pair: count for pair, count in pairs.items() if pair not in ranks}
        if not fresh:
            break
        best = max(fresh, key=lambda pair: (fresh[pair], pair))
        ranks[best] = len(ranks)
        pieces = [slow_merge(b"".join(piece), ranks) for piece in pieces]
    return ranks


def slow_merge(text: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Tiktoken's byte_pair_merge: while any two neighbours make a token, join those of the lowest rank, leftmost."""
    parts = [bytes([byte]) for byte in text]
    while len(parts) > 1:
        found = [(ranks[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not found:
            break
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def slow_encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    pieces = regex.findall(PATTERN, text, flags=regex.V1)
    assert "".join(pieces) == text
    return [
        ranks[token]
        for piece in (p.encode() for p in pieces)
        for token in ([piece] if piece in ranks else slow_merge(piece, ranks))
    ]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return make_ranks()


def write(folder: Path, ranks: dict[bytes, int], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    names = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"]
    added = {str(len(ranks) + i): {"content": name, "special": True} for i, name in enumerate(names)}
    added |= {
        str(len(ranks) + 20 + i): {"content": name, "special": False} for i, name in enumerate(("<think>", "</think>"))
    }
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "added_tokens_decoder": added,
        "bos_token": "[BOS]",
        "eos_token": "<|im_end|>",
        "chat_template": (Path(__file__).parents[1] / "chat_templates" / "kimi_k2.jinja").read_text(encoding="utf-8"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


def test_tokens_are_those_of_the_algorithm_written_out(ranks: dict[bytes, int], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(read_tiktoken(write(tmp_path, ranks))))
    draw = random.Random(1)
    alphabet = "abteHT' \n世日é🙂12.'sS\r"
    texts = [*TEXTS, *("".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(300))]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == slow_encode(text, ranks), repr(text)
        assert tokenizer.decode(ids) == text


def test_chat_format_reads_the_folder_and_writes_one_that_everybody_reads(
    ranks: dict[bytes, int], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    chat = ChatFormat.load(write(tmp_path / "kimi", ranks))
    messages = [Message("user", "Hello世界 <|im_end|>")]
    ids = chat.render(messages)
    assert chat.decode(ids).endswith("Hello世界 <|im_end|>assistant")
    assert [i for i in ids if i >= len(ranks)] == [len(ranks) + i for i in (5, 6, 2, 3, 6, 2, 4, 6)]
    assert chat.stop_token_ids == (len(ranks) + 2,)
    chat.save(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8")
    again = ChatFormat.load(tmp_path / "saved")
    assert again.render(messages) == ids
    reference = AutoTokenizer.from_pretrained(tmp_path / "saved")
    turns = [{"role": "user", "content": "Hello世界"}]
    expected = reference.apply_chat_template(turns, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert chat.render([Message("user", "Hello世界")]) == expected


def test_tags_are_text_and_other_control_tokens_are_not(ranks: dict[bytes, int], tmp_path: Path) -> None:
    chat = ChatFormat.load(write(tmp_path, ranks))
    base = len(ranks)
    assert chat.vocabulary["<think>"] == base + 20
    assert chat.vocabulary[f"<|reserved_token_{base + 9}|>"] == base + 9
    assert chat.decode([base + 20, ranks[b"a"], base + 21, base + 2, base + 9]) == "<think>a</think>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YQ== 0\n", "a token for every byte"),
        (b"!!! 0\n", "no tiktoken file"),
        (b"YQ==\n", "no tiktoken file"),
        (b"YQ== x\n", "no tiktoken file"),
        (b"YQ== 0\nYg== 7\n", "every rank from 0 to 1"),
        (b"YQ== 0\nYQ== 1\n", "every rank from 0 to 1"),
        (b"\xff\xfe\x00 0\n", "no tiktoken file"),
    ],
)
def test_file_of_another_form_is_one_clear_line(
    ranks: dict[bytes, int], tmp_path: Path, content: bytes, message: str
) -> None:
    folder = write(tmp_path, ranks)
    (folder / "tiktoken.model").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        ChatFormat.load(folder)
    assert "\n" not in str(caught.value)


def test_long_token_is_refused(ranks: dict[bytes, int], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="more than 1024 bytes"):
        read_tiktoken(write(tmp_path, ranks | {b"a" * 2000: len(ranks)}))


def test_other_tokenizer_classes_are_refused_since_their_pattern_is_code(
    ranks: dict[bytes, int], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"'QWenTokenizer', whose pattern is not known.*Put a tokenizer\.json"):
        ChatFormat.load(write(tmp_path, ranks, tokenizer_class="QWenTokenizer"))
