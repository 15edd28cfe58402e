"""Tokenizers out of GGUF metadata, against a slow SentencePiece and what transformers makes of the same file."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import Regex, Tokenizer, pre_tokenizers

from aha.chat import ChatFormat
from aha.errors import ModelError
from aha.models.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SAME_AS,
    SPLITTERS,
    UNKNOWN,
    USER_DEFINED,
    build_gguf_tokenizer,
    merges_from_scores,
)

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁t", "he", "▁the", "in", "▁in", "ing", "▁a", "er", "ab", "bc", "abc", "▁▁", "▁▁▁▁", "12", "é", "ée", "日本"]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", ".", ",", "日", "本"]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, *WORDS, *LETTERS, "<tool>"]
TYPES = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(WORDS + LETTERS) + [USER_DEFINED]
SCORES = [0.0] * 259 + [-float(rank) for rank in range(len(WORDS + LETTERS))] + [0.0]
TEXTS = [
    "the inner abc abcabc thing", "a  b    c", "née 日本日 12123", "tab\tnew\nline 🙂 é", "x<s>y</s> <tool>z <unk>", "",
    "ababcbcab", "The END.",
]  # fmt: skip


def sentencepiece_fields(**others: Any) -> dict[str, Any]:
    fields = {"model": "llama", "tokens": PIECES, "token_type": TYPES, "scores": SCORES, "bos_token_id": 1,
              "eos_token_id": 2, "unknown_token_id": 0}  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | others).items()}


def encode_slowly(text: str) -> list[int]:
    """SentencePiece's BPE as its paper has it: again and again, the adjacent pair that makes the best piece."""
    ids = {piece: i for i, piece in enumerate(PIECES)}
    symbols = list(("▁" + text.replace(" ", "▁")) if text else "")
    while True:
        joined = [(a + b, at) for at, (a, b) in enumerate(itertools.pairwise(symbols))]
        known = [(SCORES[ids[piece]], -at) for piece, at in joined if piece in ids and TYPES[ids[piece]] == NORMAL]
        if not known:
            break
        at = -max(known)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_sentencepiece_joins_the_best_pair_first() -> None:
    tokenizer = build_gguf_tokenizer(sentencepiece_fields())
    generator = random.Random(0)
    texts = ["".join(generator.choices("abct heinrg12é日本🙂", k=generator.randrange(1, 40))) for _ in range(300)]
    for text in [*texts, "   leading", "trailing  "]:
        assert encode(tokenizer, text) == encode_slowly(text), text
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_sentencepiece_equals_transformers_own_reading_of_the_file(tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    fields = sentencepiece_fields()
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_types(TYPES)
    writer.add_token_scores(SCORES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf"), build_gguf_tokenizer(fields)
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    merges = generate_merges(vocabulary, dict(zip(PIECES, SCORES, strict=True)))
    assert merges_from_scores(PIECES, types=TYPES, scores=SCORES) == merges
    # After a control token transformers' class adds no space; Llama 2's own tokenizer.json and llama.cpp do.
    for text in (text for text in TEXTS if "<" not in text):
        assert ours.encode(text).ids == theirs.encode(text), text


def test_sentencepiece_file_becomes_a_chat_format(tmp_path: Path) -> None:
    build_gguf_tokenizer(sentencepiece_fields()).save(str(tmp_path / "tokenizer.json"))
    chat = ChatFormat.load(tmp_path)
    for text in TEXTS:
        assert chat.decode(chat.encode(text)) == text
    assert not set(chat.encode("<s>the</s>")) & {1, 2}, "a text cannot write a control token"


def test_file_says_whether_texts_begin_with_bos_and_a_space() -> None:
    assert build_gguf_tokenizer(sentencepiece_fields()).encode("the").tokens == ["<s>", "▁the"]
    plain = build_gguf_tokenizer(sentencepiece_fields(add_bos_token=False, add_space_prefix=False))
    assert plain.encode("the").tokens == ["t", "he"]
    assert plain.decode(plain.encode(" the").ids) == " the"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": SCORES[:-1]}, "it has .* tokens and .* scores"),
        ({"token_type": TYPES[:-1]}, "names one twice, or is not as long as"),
        ({"tokens": [*PIECES[:-1], "abc"]}, "names one twice"),
        ({"tokens": [*PIECES[:-1], "a" * 300]}, "a token of 300 characters; SentencePiece has none over 256"),
        ({"bos_token_id": -1}, "its bos token is -1"),
        ({"unknown_token_id": "0"}, "its unk token is '0'"),
    ],
)
def test_lists_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_gguf_tokenizer(sentencepiece_fields(**fields))


def cut(splitter: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "tekken", "smaug-bpe", "deepseek-r1-qwen"])
def test_words_are_cut_by_the_pattern_that_transformers_has_for_the_name(name: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    words = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    theirs = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    generator = random.Random(name)
    for _ in range(200):
        text = "".join(generator.choices("aB'sSl  \n\r\t1234.,/-éÀ日本ー🙂½", k=30))
        assert cut(SPLITTERS[SAME_AS.get(name, name)](), text) == cut(theirs, text)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("deepseek-v3", ["abc", "Ġ", "123", "45", "Ġ(", "x", ")."]),
        ("smollm", ["abc", "Ġ", "1", "2", "3", "4", "5", "Ġ(", "x", ")."]),
        ("gpt-2", ["abc", "Ġ12345", "Ġ(", "x", ")."]),
        ("default", ["abc", "Ġ", "123", "45", "Ġ", "(", "x", ")."]),
    ],
)
def test_words_of_other_names_are_cut_as_llama_cpp_does(name: str, pieces: list[str]) -> None:
    # What llama.cpp itself makes of many texts is asked in test_gguf_llama_cpp.py.
    assert cut(SPLITTERS[name](), "abc 12345 (x).") == pieces


def test_every_other_name_leads_to_a_splitter() -> None:
    assert set(SAME_AS.values()) <= set(SPLITTERS)
    assert not set(SAME_AS) & set(SPLITTERS)
