"""Which parts of a rendered conversation the chat template wrote, and which the messages said."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from aha.errors import ModelError, RequestError
from aha.streaming import CLOSE_TAG, OPEN_TAG
from aha.template import ChatTemplate
from aha.types import Message

_LEADING_THINKING = re.compile(rf"(\s*{OPEN_TAG})(.*?)({CLOSE_TAG})(.*)", re.DOTALL)


class Segment(NamedTuple):
    """A stretch of the rendered text."""

    text: str
    is_template: bool
    """Written by the template, so that control tokens in it count; else spelled out."""


def replace_contents(messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """The same conversation with a random word for every text, and what each word stands for.

    Random, so that no message can contain one; empty texts stay empty, since templates ask for that. The thinking
    block that an assistant's content begins with keeps its tags: clients send it back so, and templates look for it.
    """
    contents: dict[str, str] = {}

    def stand_in(text: str) -> str:
        if not text:
            return text
        word = _random_word()
        contents[word] = text
        return word

    def outline(message: Message) -> Message:
        is_plain = message.role != "assistant" or message.pictures
        block = None if is_plain else _LEADING_THINKING.fullmatch(message.content)
        if block is None:
            return message.with_pieces([stand_in(piece) for piece in message.pieces])
        content = block[1] + stand_in(block[2]) + block[3] + stand_in(block[4])
        return dataclasses.replace(message, content=content)

    replaced = [
        dataclasses.replace(
            outline(message),
            reasoning_content=None if message.reasoning_content is None else stand_in(message.reasoning_content),
        )
        for message in messages
    ]
    return replaced, contents


def align(text: str, *, outline: str, contents: dict[str, str]) -> list[Segment]:
    """Find in the rendered text what the template wrote and what the messages said.

    Templates may trim contents, or drop the thinking of earlier turns; anything else cannot be followed.
    """
    pieces = re.split("(" + "|".join(contents) + ")", outline)
    segments = [Segment(pieces[0], is_template=True)]
    position = len(pieces[0])
    is_found = text.startswith(pieces[0])
    for word, following in zip(pieces[1::2], pieces[2::2], strict=True):
        content = next((c for c in _variants(contents[word]) if text.startswith(c + following, position)), None)
        is_found = is_found and content is not None
        segments += [Segment(content or "", is_template=False), Segment(following, is_template=True)]
        position += len(content or "") + len(following)
    if not is_found or position != len(text):
        raise RequestError(
            "a message contains a control token of this model, and its chat template rewrites messages in a way that "
            "cannot be followed safely; remove tokens such as <|...|> or <think> from the messages",
            param="messages",
        )
    return segments


def _variants(content: str) -> Iterator[str]:
    """What templates make of a content: as it is, trimmed, or without the thinking before its last tag."""
    for text in (content, content.rpartition(CLOSE_TAG)[2]):
        yield from (text, text.strip(), text.strip("\n"), text.lstrip("\n"), text.lstrip(), text.rstrip())


class Frame(NamedTuple):
    """What a template writes around a message that follows an assistant's turn."""

    before: str
    """From the end of the assistant's words to the message: the end of that turn, and the head of the message."""
    after: str
    """From the message to where the assistant goes on."""
    is_trimmed: bool
    """Whether the template drops the white space around the message."""


def find_frame(template: ChatTemplate, *, role: Literal["tool", "user"]) -> Frame:
    """The frame of a message of that role, or of the user's where the template does not know the role.

    Raises:
        RequestError: the template shows neither after an assistant's turn.
    """
    said, shown = _random_word(), _random_word()
    for name in dict.fromkeys((role, "user")):
        # Words for all contents, so that nothing depends on what the conversation was.
        messages = [Message("user", "x"), Message("assistant", said), Message(name, f" {shown} ")]
        try:
            text = template.render(messages, add_generation_prompt=True)
        except (RequestError, ModelError):  # a template that allows user and assistant only, or wants a call's id
            if name == "user":
                raise
            continue
        _, _, text = text.partition(said)
        if text.count(shown) == 1:
            is_trimmed = f" {shown} " not in text
            before, _, after = text.partition(shown if is_trimmed else f" {shown} ")
            return Frame(before, after, is_trimmed)
    raise RequestError(
        "the model's chat template does not show what follows an assistant's turn; tasks with several turns need one "
        "that does",
        param="messages",
    )


def _random_word() -> str:
    """A word that no message contains and no template changes."""
    return f"x{secrets.token_hex(12)}x"
