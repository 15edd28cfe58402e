"""Server-sent events: from bytes to events, and from the chunks of a stream to a whole response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aha.client.wire import message_texts

DONE = "[DONE]"


class SseParser:
    """Cuts bytes into the data of events (HTML Living Standard §9.2.6), however they arrive.

    Lines end in LF, CRLF or CR; comments and other fields are skipped; a UTF-8 sequence may be split between pieces.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._is_after_cr = False

    def push(self, piece: bytes) -> list[str]:
        """The data of the events that this piece completes."""
        events: list[str] = []
        if self._is_after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._is_after_cr = False
        self._is_after_cr = piece.endswith(b"\r")
        *lines, rest = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line += line
            events += self._end_line()
        self._line += rest
        return events

    def finish(self) -> list[str]:
        """The data of an event whose blank line never came: some servers leave it out."""
        return [*self._end_line(), *self._end_event()]

    def _end_line(self) -> list[str]:
        line, self._line = bytes(self._line), bytearray()
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        if name.removeprefix(b"\xef\xbb\xbf") == b"data":
            self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        return []

    def _end_event(self) -> list[str]:
        data, self._data = self._data, []
        return ["\n".join(data)] if data else []


class ChunkFold:
    """Puts the chunks of a stream together to the response that the same request would get without streaming."""

    def __init__(self) -> None:
        self.is_ended = False
        """Whether the stream said that it is complete: a finish reason, or [DONE]."""
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._finish_reason: object = None
        self._usage: object = None
        self._model: object = None

    def push(self, chunk: Mapping[str, Any]) -> None:
        """One more chunk. The last usage counts: some servers send a running one with every chunk."""
        self._usage = chunk.get("usage") or self._usage
        self._model = chunk.get("model") or self._model
        for choice in first_choices(chunk):
            delta = choice.get("delta") or choice.get("message")
            reasoning, content = message_texts(delta if isinstance(delta, Mapping) else {})
            self._reasoning.append(reasoning)
            self._content.append(content)
            if choice.get("finish_reason") is not None:
                self._finish_reason = choice["finish_reason"]
                self.is_ended = True

    def whole(self) -> dict[str, Any]:
        """A response as /chat/completions writes it."""
        message = {"content": "".join(self._content), "reasoning_content": "".join(self._reasoning)}
        return {
            "model": self._model,
            "choices": [{"index": 0, "message": message, "finish_reason": self._finish_reason}],
            "usage": self._usage,
        }


def first_choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The choices of a chunk that belong to the one completion we asked for."""
    choices = chunk.get("choices")
    listed = choices if isinstance(choices, list) else []
    return [choice for choice in listed if isinstance(choice, Mapping) and choice.get("index") in (0, None)]
