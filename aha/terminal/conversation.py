"""A model in a terminal: its thinking dimmed, then its answer, as they are sampled."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from aha import hub
from aha.chat import ChatFormat
from aha.engine import Engine, Quantize, Speculation
from aha.errors import ModelError, RequestError
from aha.images import PictureReader, read_file, stack_pixels
from aha.models import Transformer, load_model
from aha.streaming import Delta
from aha.template import Thinking
from aha.train.console import printable
from aha.types import Message, Picture, SamplingParams

Stats = Literal["hidden", "shown"]

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class OpenModel:
    """A model with its chat format and the engine that samples from it."""

    folder: Path
    model: Transformer
    chat: ChatFormat
    engine: Engine


def open_model(
    name: str,
    *,
    device: str = "auto",
    quantize: Quantize = "none",
    thinking: Thinking = "default",
    speculation: Speculation = "off",
) -> OpenModel:
    """Load what MODEL names: a folder, a run, a built-in or fetched model.

    Args:
        thinking: "on" or "off" throws the switch that the chat templates of some models have.
        quantize: "int8" speeds up a conversation on a CPU, see `aha.engine.PackedWeights`.
        speculation: see `aha.engine.Engine`.

    Raises:
        AhaError: no such model, or its files cannot be used.
    """
    folder = hub.resolve(name)
    # Between 8-bit products float32 is the faster: bfloat16 would be converted there and back each time.
    model = load_model(folder, dtype="float32" if quantize == "int8" else "auto", device=device, resolve=hub.resolve)
    chat = ChatFormat.load(folder).with_thinking(thinking)
    engine = Engine(
        model, decode=chat.decode, stop_token_ids=chat.stop_token_ids, quantize=quantize, speculation=speculation
    )
    return OpenModel(folder, model, chat, engine)


def read_pictures(opened: OpenModel, paths: Sequence[Path]) -> tuple[Picture, ...]:
    """Pictures to stand before the text of a message.

    Raises:
        AhaError: the model sees no pictures, or a file is not one that it can see.
    """
    vision = opened.model.config.vision
    if paths and vision is None:
        raise ModelError(f"{opened.folder} is a model without a vision tower and sees no pictures; leave out --image")
    if vision is None:
        return ()
    reader = PictureReader.load(opened.folder, tile_size=vision.image_size, tokens_per_tile=vision.tokens_per_tile)
    return tuple(_read_picture(reader, path) for path in paths)


def _read_picture(reader: PictureReader, path: Path) -> Picture:
    try:
        return reader.read(read_file(path))
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None


def stream_answer(opened: OpenModel, messages: Sequence[Message], *, sampling: SamplingParams) -> Iterator[Delta]:
    """Sample one answer, piece by piece; closing the iterator early withdraws the request.

    Raises:
        RequestError: the conversation does not fit the model's window.
    """
    prompt_ids = opened.chat.render(messages)
    splitter = opened.chat.splitter(opened.chat.starts_in_thinking(prompt_ids), stop=sampling.stop)
    pixels_M3YX = stack_pixels(messages)
    request_id = opened.engine.submit(
        prompt_ids, sampling, pixels_M3YX=None if pixels_M3YX is None else torch.from_numpy(pixels_M3YX)
    )
    try:
        while opened.engine.has_work:
            for event in opened.engine.step():
                if event.token_id is not None:
                    yield from splitter.push(event.token_id)
        yield from splitter.finish()
    finally:
        opened.engine.abort(request_id)


def answer(opened: OpenModel, messages: Sequence[Message], *, sampling: SamplingParams) -> Message:
    """One whole answer, as the assistant's turn."""
    return _turn(list(stream_answer(opened, messages, sampling=sampling)))


def ask(
    opened: OpenModel, messages: Sequence[Message], *, sampling: SamplingParams, stats: Stats = "hidden"
) -> Message:
    """Show one answer on stdout while it is sampled; returns it as the assistant's turn.

    Args:
        stats: whether a line on stderr says then how fast it was, and how many drafts were right.
    """
    deltas: list[Delta] = []
    began, before = time.perf_counter(), _counts(opened.engine)
    for delta in stream_answer(opened, messages, sampling=sampling):
        if deltas and deltas[-1].kind != delta.kind:
            print("\n")
        deltas.append(delta)
        shown = printable(delta.text)
        is_dim = delta.kind == "reasoning" and sys.stdout.isatty()
        print(f"{_DIM}{shown}{_PLAIN}" if is_dim else shown, end="", flush=True)
    print(flush=True)
    if stats == "shown":
        spent = [now - then for now, then in zip(_counts(opened.engine), before, strict=True)]
        print(describe_speed(*spent, seconds=time.perf_counter() - began), file=sys.stderr, flush=True)
    return _turn(deltas)


def _counts(engine: Engine) -> tuple[int, int, int]:
    return engine.num_decoded_tokens, engine.num_drafted_tokens, engine.num_accepted_tokens


def describe_speed(num_tokens: int, num_drafted: int, num_accepted: int, *, seconds: float) -> str:
    """E.g. "37 tokens in 1.2 s, 30.8 tokens/s; 12 of 20 drafts accepted (60%)"."""
    line = f"{num_tokens} tokens in {seconds:.1f} s, {num_tokens / seconds:.1f} tokens/s"
    if not num_drafted:
        return line
    return f"{line}; {num_accepted} of {num_drafted} drafts accepted ({num_accepted / num_drafted:.0%})"


def _turn(deltas: Sequence[Delta]) -> Message:
    reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
    content = "".join(delta.text for delta in deltas if delta.kind == "content")
    return Message("assistant", content, reasoning or None)


def converse(
    opened: OpenModel,
    messages: Sequence[Message],
    *,
    sampling: SamplingParams,
    pictures: Sequence[Picture] = (),
    stats: Stats = "hidden",
) -> None:
    """Talk until the end of the input, after `messages`. Ctrl-C stops an answer, and at the prompt the program.

    Args:
        pictures: stand before the first question.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401  (gives input() line editing and history)

        print("Ctrl-C stops an answer, Ctrl-D ends.")
    turns = list(messages)
    while (line := _read_line("> " if is_terminal else "")) is not None:
        if not line.strip():
            continue
        question = Message("user", line, pictures=tuple(pictures))
        try:
            reply = ask(opened, [*turns, question], sampling=sampling, stats=stats)
        except KeyboardInterrupt:
            print("\n(stopped; this turn is forgotten)")
            continue
        turns += [question, reply]
        pictures = ()


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None
