"""The splitter alone: cuts anywhere, nothing held back longer than it must be."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from aha.errors import ModelError
from aha.models.tokenizer import build_tokenizer
from aha.streaming import (
    CLOSE_MARK,
    CLOSE_TAG,
    OPEN_MARK,
    OPEN_TAG,
    Delta,
    Detokenizer,
    StopFilter,
    StreamSplitter,
    TokenBytes,
    undecided_from,
)

TINY = build_tokenizer()
TAG_IDS = {TINY.token_to_id(OPEN_TAG): OPEN_MARK, TINY.token_to_id(CLOSE_TAG): CLOSE_MARK}


def table(tokenizer: Tokenizer = TINY, *, marks: dict[int, str] | None = None) -> TokenBytes:
    return TokenBytes(tokenizer, spec=json.loads(tokenizer.to_str()), marks=marks or {})


PLAIN = table()
MARKED = table(marks=TAG_IDS)
ID_OF_BYTE = {PLAIN[token_id]: token_id for token_id in range(TINY.get_vocab_size()) if len(PLAIN[token_id]) == 1}


def splitter(*, is_open: bool, tags: tuple[str, str] = (OPEN_TAG, CLOSE_TAG)) -> StreamSplitter:
    return StreamSplitter(MARKED if tags[0] == OPEN_MARK else PLAIN, tags=tags, starts_in_thinking=is_open)


def joined(deltas: list[Delta], kind: str) -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 60), max_size=8), is_open=st.booleans())
def test_any_cut_of_a_text_gives_the_same_split(text: str, cuts: list[int], is_open: bool) -> None:
    text = text.replace("0", OPEN_TAG).replace("1", CLOSE_TAG).replace("\x00", "</think")
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = splitter(is_open=is_open)
    deltas = [delta for a, b in pairwise(bounds) for delta in stream.push_text(text[a:b])] + stream.finish()
    whole = splitter(is_open=is_open).push_text(text, is_final=True)
    for kind in ("reasoning", "content"):
        assert joined(deltas, kind) == joined(whole, kind)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab<", max_size=30), stops=st.lists(st.text(alphabet="ab<", max_size=4), max_size=3))
def test_stop_filter_gives_the_same_text_for_every_cut(text: str, stops: list[str]) -> None:
    whole = StopFilter(stops)
    expected = whole.push(text) + whole.finish()
    single = StopFilter(stops)
    assert "".join(map(single.push, text)) + single.finish() == expected
    assert not any(stop in expected for stop in stops if stop)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=24))
def test_detokenizer_equals_decoding_the_bytes_at_once(data: bytes) -> None:
    assert Detokenizer(PLAIN).text([ID_OF_BYTE[bytes([byte])] for byte in data]) == data.decode("utf-8", "replace")


def test_text_is_held_back_only_while_undecided() -> None:
    assert undecided_from("abc</th", marks=(CLOSE_TAG,)) == 3
    assert undecided_from("abc</thx", marks=(CLOSE_TAG,)) == 8
    stream = splitter(is_open=True)
    assert stream.push_text("so") == [Delta("reasoning", "so")]
    assert stream.push_text(" </thin") == []
    assert stream.push_text("g") == [Delta("reasoning", " </thing")]
    assert stream.push_text("\n</think>\n") == []
    assert stream.push_text("12") == [Delta("content", "12")]
    assert stream.finish() == []


def test_single_token_tags_are_decided_at_once() -> None:
    stream = splitter(is_open=False, tags=(OPEN_MARK, CLOSE_MARK))
    ids = TINY.encode("<think>ab</think>c", add_special_tokens=False).ids
    assert [[delta.kind for delta in stream.push(i)] for i in ids] == [
        [],
        ["reasoning"],
        ["reasoning"],
        [],
        ["content"],
    ]


def test_endless_broken_bytes_stream_in_linear_time() -> None:
    stream = splitter(is_open=False)
    assert sum(len(delta.text) for _ in range(20_000) for delta in stream.push(ID_OF_BYTE[b"\xff"])) == 20_000


def test_unknown_decoder_is_named() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ModelError, match="decoder none; supported: ByteLevel"):
        table(tokenizer)
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="decoder WordPiece; supported: ByteLevel"):
        table(tokenizer)
