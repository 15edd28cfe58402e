"""Thinking that stands between tags inside an answer's content, for endpoints that do not separate it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from aha.types import Delta

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"


class Split(NamedTuple):
    """An answer in two."""

    reasoning: str
    content: str


def split_thinking(text: str) -> Split:
    """Take apart a content with tags; text without tags is content, untouched.

    Three forms: `<think>…</think>answer`; the same cut off before the closing tag, which is all reasoning; and
    `…</think>answer` of models whose prompt has already opened the thinking. Whitespace around the tags is layout.
    Tags after the first closing one, or inside an answer that began without them, belong to the answer.
    """
    body = text.lstrip()
    if body.startswith(OPEN_TAG):
        reasoning, tag, content = body.removeprefix(OPEN_TAG).partition(CLOSE_TAG)
        return Split(reasoning.strip(), content.lstrip() if tag else "")
    head, tag, content = text.partition(CLOSE_TAG)
    if tag and OPEN_TAG not in head:
        return Split(head.strip(), content.lstrip())
    return Split("", text)


class ThinkingStream:
    """`split_thinking` piece by piece; what is given out is never taken back.

    Args:
        starts_in_thinking: whether the prompt has opened the thinking. A stream cannot tell from its beginning, so
            without it a closing tag that was never opened stays in the content.
    """

    def __init__(self, *, starts_in_thinking: bool) -> None:
        self._state: Literal["start", "reasoning", "content"] = "start"
        self._starts_in_thinking = starts_in_thinking
        self._buffer = ""
        self._skips_whitespace = False

    def push(self, text: str) -> list[Delta]:
        """What the next piece of content makes known."""
        return self._read(text, is_final=False)

    def finish(self) -> list[Delta]:
        """What was held back; call once, at the end."""
        return self._read("", is_final=True)

    def pass_through(self) -> None:
        """The endpoint separates thinking itself: its content is content."""
        self._state = "content"

    def _read(self, text: str, *, is_final: bool) -> list[Delta]:
        self._buffer += text
        if self._state == "start":
            self._leave_start(is_final=is_final)
        deltas = self._read_reasoning(is_final=is_final) if self._state == "reasoning" else []
        if self._state == "content":
            deltas += self._emit("content", end=len(self._buffer))
        return deltas

    def _leave_start(self, *, is_final: bool) -> None:
        body = self._buffer.lstrip()
        if not body.startswith(OPEN_TAG):
            if not is_final and OPEN_TAG.startswith(body):
                return
            if not self._starts_in_thinking:
                self._state = "content"
                return
        self._buffer = body.removeprefix(OPEN_TAG)
        self._state = "reasoning"
        self._skips_whitespace = True

    def _read_reasoning(self, *, is_final: bool) -> list[Delta]:
        at = self._buffer.find(CLOSE_TAG)
        if at < 0:
            end = len(self._buffer) if is_final else _undecided_from(self._buffer)
            return self._emit("reasoning", end=len(self._buffer[:end].rstrip()))
        rest = self._buffer[at + len(CLOSE_TAG) :]
        deltas = self._emit("reasoning", end=len(self._buffer[:at].rstrip()))
        self._buffer = rest
        self._state = "content"
        self._skips_whitespace = True
        return deltas

    def _emit(self, kind: Literal["reasoning", "content"], *, end: int) -> list[Delta]:
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        if self._skips_whitespace:
            text = text.lstrip()
            self._skips_whitespace = not text
        return [Delta(kind, text)] if text else []


def _undecided_from(text: str) -> int:
    """Where an end of the text starts that could still become the closing tag."""
    for start in range(max(0, len(text) - len(CLOSE_TAG) + 1), len(text)):
        if CLOSE_TAG.startswith(text[start:]):
            return start
    return len(text)
