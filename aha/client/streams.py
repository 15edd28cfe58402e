"""From the chunks of a stream to the pieces that the caller sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aha.client.endpoint import Reply
from aha.client.sse import first_choices
from aha.client.thinking import ThinkingStream
from aha.client.wire import message_texts
from aha.types import Delta


class StreamSink:
    """Where the chunks of a stream go.

    Args:
        put: gets the pieces, in order.
        starts_in_thinking: as for `ThinkingStream`.
    """

    def __init__(self, put: Callable[[Delta], None], *, starts_in_thinking: bool) -> None:
        self.has_begun = False
        """Whether the caller has seen a piece."""
        self._put = put
        self._starts_in_thinking = starts_in_thinking
        self._thinking = ThinkingStream(starts_in_thinking=starts_in_thinking)

    def restart(self) -> None:
        """Another attempt begins: nothing that was held back of the last one counts."""
        self._thinking = ThinkingStream(starts_in_thinking=self._starts_in_thinking)

    def push(self, chunk: Mapping[str, Any]) -> None:
        """One more chunk."""
        for choice in first_choices(chunk):
            delta = choice.get("delta") or choice.get("message")
            reasoning, content = message_texts(delta if isinstance(delta, Mapping) else {})
            if reasoning:
                self._thinking.pass_through()
                self._give([Delta("reasoning", reasoning)])
            self._give(self._thinking.push(content) if content else [])

    def finish(self, reply: Reply) -> None:
        """What was held back; everything, where the server answered in one piece."""
        self._give(self._thinking.finish())
        if not self.has_begun:
            whole = (Delta("reasoning", reply.reasoning), Delta("content", reply.content))
            self._give([delta for delta in whole if delta.text])

    def _give(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.has_begun = True
            self._put(delta)
