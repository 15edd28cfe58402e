"""From sampled tokens to reasoning and content, piece by piece. Each piece is emitted once and never taken back."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenizers import Tokenizer

from aha.errors import ModelError
from aha.types import Delta as Delta

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
# Stand-ins for tags that are single tokens. Lone surrogates: no decoded text can contain them.
OPEN_MARK = "\ud800"
CLOSE_MARK = "\ud801"
_PIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def show_tags(text: str) -> str:
    """Marks of single-token tags as the tags people know."""
    return text.replace(OPEN_MARK, OPEN_TAG).replace(CLOSE_MARK, CLOSE_TAG)


class TokenBytes:
    """The bytes of every token, from the decoder that tokenizer.json declares.

    A table, and not the tokenizers library's `decode`: that one replaces a whole run of byte tokens when its last
    byte is wrong, so what it has said about a prefix may change, and a stream cannot take text back.
    """

    def __init__(self, tokenizer: Tokenizer, *, spec: dict[str, Any], marks: Mapping[int, str]) -> None:
        added = spec.get("added_tokens") or []
        self.marks = marks
        self._tokenizer = tokenizer
        self._hidden = {int(t["id"]) for t in added if t.get("special") and int(t["id"]) not in marks}
        self._literal = {int(t["id"]): str(t["content"]) for t in added}
        decoders = _flatten(spec.get("decoder"))
        kinds = {str(decoder["type"]) for decoder in decoders}
        self._is_byte_level = "ByteLevel" in kinds
        if not self._is_byte_level and (not kinds or not kinds <= _PIECE_DECODERS):
            named = ", ".join(sorted(kinds)) or "none"
            raise ModelError(f"tokenizer.json has decoder {named}; supported: ByteLevel, {', '.join(_PIECE_DECODERS)}")
        self._has_byte_tokens = "ByteFallback" in kinds
        self._replacements = [pair for decoder in decoders for pair in _replacement(decoder)]
        self.strips_first_space = any(_strips_first_space(decoder) for decoder in decoders)
        self._cache: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for control tokens and for ids that are not in the vocabulary."""
        found = self._cache.get(token_id)
        if found is None:
            found = self._cache[token_id] = self._look_up(token_id)
        return found

    def _look_up(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None or token_id in self._hidden:
            return b""
        if self._is_byte_level:
            if token_id in self._literal or any(char not in _BYTE_OF_CHAR for char in token):
                return token.encode("utf-8", "replace")
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        byte = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")


class Detokenizer:
    """Text of a growing sequence of tokens. The pieces joined are the text of the whole."""

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_space = table.strips_first_space

    def push(self, token_id: int) -> str:
        """Characters that this token completes; a tag that is one token comes as its mark."""
        mark = self._table.marks.get(token_id)
        if mark is not None:
            self._strips_space = False
            return self._utf8.decode(b"", True) + mark
        piece = self._table[token_id]
        if self._strips_space and piece:
            self._strips_space = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", True)

    def text(self, token_ids: Sequence[int]) -> str:
        """All at once: for a completion that is finished."""
        return "".join(map(self.push, token_ids)) + self.finish()


class StopFilter:
    """Cuts a text at the stop string that is complete first, holding back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self._is_cut = False

    def push(self, text: str) -> str:
        """The part of the text so far that no stop string can touch any more and that is not yet given out."""
        if self._is_cut:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self._is_cut = True
            end = min(found)[1]
        else:
            end = undecided_from(self._held, marks=self._stop)
        safe, self._held = self._held[:end], "" if self._is_cut else self._held[end:]
        return safe

    def finish(self) -> str:
        """What was held back: the beginning of a stop string that never ended."""
        held, self._held = self._held, ""
        return held


class StreamSplitter:
    """Splits a completion into reasoning and content while it streams.

    Holds back what is not decided yet: the bytes of an unfinished character, the beginning of what may be a tag or
    a stop string, and whitespace that may turn out to stand before the closing tag.

    Args:
        table: bytes of the tokens.
        tags: the opening and the closing tag, or their marks where each is a single token.
        starts_in_thinking: whether the prompt has already opened the thinking.
        stop: strings that end the completion and are cut from it.
    """

    def __init__(
        self, table: TokenBytes, *, tags: tuple[str, str], starts_in_thinking: bool, stop: Sequence[str] = ()
    ) -> None:
        self._open, self._close = tags
        self._starts_in_thinking = starts_in_thinking
        self._state: Literal["start", "reasoning", "content"] = "start"
        self._detokenizer = Detokenizer(table)
        self._stop_filter = StopFilter(stop)
        self._buffer = ""
        self._skips_whitespace = False

    def push(self, token_id: int) -> list[Delta]:
        """What the next token makes known: often one piece, sometimes none, sometimes the end of the thinking too."""
        return self.push_text(self._stop_filter.push(self._detokenizer.push(token_id)))

    def finish(self) -> list[Delta]:
        """What was held back; call once, after the last token."""
        text = self._stop_filter.push(self._detokenizer.finish()) + self._stop_filter.finish()
        return self.push_text(text, is_final=True)

    def push_text(self, text: str, *, is_final: bool = False) -> list[Delta]:
        """As `push`, for text that is already decoded and free of stop strings."""
        self._buffer += text
        if self._state == "start":
            self._leave_start(is_final)
        deltas = self._read_reasoning(is_final) if self._state == "reasoning" else []
        if self._state == "content":
            deltas += self._emit("content", len(self._buffer))
        return deltas

    def _leave_start(self, is_final: bool) -> None:
        """Choose what comes first, once it is known whether the completion opens the thinking itself."""
        body = self._buffer.lstrip()
        if not body.startswith(self._open):
            if not is_final and self._open.startswith(body):
                return
            if not self._starts_in_thinking:
                self._state = "content"
                return
        self._buffer = body.removeprefix(self._open)
        self._state = "reasoning"
        self._skips_whitespace = True

    def _read_reasoning(self, is_final: bool) -> list[Delta]:
        position = self._buffer.find(self._close)
        if position < 0:
            end = len(self._buffer) if is_final else undecided_from(self._buffer, marks=(self._close,))
            return self._emit("reasoning", len(self._buffer[:end].rstrip()))
        rest = self._buffer[position + len(self._close) :]
        deltas = self._emit("reasoning", len(self._buffer[:position].rstrip()))
        self._buffer = rest
        self._state = "content"
        self._skips_whitespace = True
        return deltas

    def _emit(self, kind: Literal["reasoning", "content"], end: int) -> list[Delta]:
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        if self._skips_whitespace:
            text = text.lstrip()
            self._skips_whitespace = not text
        return [Delta(kind, show_tags(text))] if text else []


def undecided_from(text: str, *, marks: Sequence[str]) -> int:
    """Where the longest end of the text starts that could still grow into one of the marks."""
    longest = max(map(len, marks), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        end = text[start:]
        if any(mark.startswith(end) for mark in marks):
            return start
    return len(text)


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return [leaf for child in decoder["decoders"] for leaf in _flatten(child)] if "decoders" in decoder else [decoder]


def _replacement(decoder: dict[str, Any]) -> list[tuple[str, str]]:
    if decoder["type"] == "Metaspace":
        return [(str(decoder["replacement"]), " ")]
    if decoder["type"] != "Replace":
        return []
    pattern = decoder["pattern"].get("String")
    if pattern is None:
        raise ModelError(
            f"tokenizer.json has a decoder that replaces {decoder['pattern']}; only plain strings are supported"
        )
    return [(str(pattern), str(decoder["content"]))]


def _strips_first_space(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return decoder.get("prepend_scheme", "always") != "never" and decoder.get("add_prefix_space") is not False
    return decoder["type"] == "Strip" and decoder.get("content") == " " and decoder.get("start", 0) > 0


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character for every byte (openai/gpt-2, encoder.py, bytes_to_unicode), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_level_alphabet()
