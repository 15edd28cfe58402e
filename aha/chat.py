"""Between people's text and the model's tokens: chat templates, prompts, thinking tags.

Three promises:
- Text from users and models never becomes a control token: a literal `<|im_end|>` in a message is spelled out.
- For all other text the prompt is token for token what transformers' `apply_chat_template` makes.
- The pieces of a stream, joined, are exactly what `parse` reads from the finished completion.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer

from aha.errors import AhaError, DataError, ModelError, RequestError
from aha.models.config_values import token_id as checked_token_id
from aha.models.json_file import read_json_object
from aha.models.tiktoken_file import TIKTOKEN_FILE, read_tiktoken, save_converted
from aha.outline import Frame, Segment, align, find_frame, replace_contents
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
    show_tags,
)
from aha.template import ChatTemplate, Thinking
from aha.types import Completion, Message, Observation, Picture

__all__ = ["ChatFormat", "Delta", "StreamSplitter"]

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


class ChatFormat:
    """The tokenizer and chat template of one model folder. Immutable, and safe to share between threads."""

    def __init__(self, folder: Path, *, spec: dict[str, Any], template: str, named_tokens: dict[str, str]) -> None:
        self.folder = folder
        self._template = ChatTemplate(template, origin=str(folder), named_tokens=named_tokens)
        added = spec.get("added_tokens") or []
        control = {int(token["id"]): str(token["content"]) for token in added if _is_control(token)}
        # The second one knows no control tokens, so whatever it reads is spelled out. The library's switch
        # encode_special_tokens would not do: <think> and <｜User｜> are added but not "special" in Qwen and DeepSeek.
        self._tokenizer = _build_tokenizer(spec)
        self._plain_tokenizer = _build_tokenizer({**spec, "added_tokens": [t for t in added if not _is_control(t)]})
        self._unknown_token = str(spec["model"].get("unk_token") or "")
        self._control_ids = frozenset(control) - {self._token_id(self._unknown_token)}
        tags = {OPEN_TAG: OPEN_MARK, CLOSE_TAG: CLOSE_MARK}
        marks = {token_id: tags[text] for token_id, text in control.items() if text in tags}
        self._has_tag_tokens = len(marks) == len(tags)
        self._table = TokenBytes(self._tokenizer, spec=spec, marks=marks if self._has_tag_tokens else {})
        self.stop_token_ids = self._read_stop_ids(named_tokens.get("eos_token", ""))
        """Tokens that end a turn; the first is the one that this format writes itself."""
        self._frames: dict[str, Frame] = {}
        self._picture_tokens = self._find_picture_tokens(named_tokens)

    @classmethod
    def load(cls, folder: Path | str) -> ChatFormat:
        """Read tokenizer.json, tokenizer_config.json, the template and the stop tokens of a Hugging Face folder.

        Raises:
            ModelError: no tokenizer.json, or one that cannot be read.
        """
        folder = Path(folder)
        spec = _read_spec(folder)
        config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
        more = config.get("extra_special_tokens")
        config |= more if isinstance(more, dict) else {}  # where InternVL's tokenizers name their picture tokens
        tokens = {key: _token_text(value) for key, value in config.items() if key.endswith("_token") and value}
        try:
            return cls(folder, spec=spec, template=_read_template(folder, config), named_tokens=tokens)
        except AhaError:
            raise
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for a file it cannot use
            raise ModelError(f"{folder / 'tokenizer.json'} is not a tokenizer that can be used: {error}") from None

    def with_thinking(self, thinking: Thinking) -> ChatFormat:
        """The same format for a model that can do both: thinking before it answers, or answering at once.

        Raises:
            ModelError: the chat template has no switch for it.
        """
        copied = copy.copy(self)
        copied._template = self._template.with_thinking(thinking)
        copied._frames = {}
        return copied

    def render_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the template writes it, for people to read; prompts are made with `render`.

        Raises:
            RequestError: too many or too long messages, or a conversation that the template refuses.
        """
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the prompt. Only the template writes control tokens; contents are spelled out.

        One exception: the thinking block that an assistant's content begins with keeps its tags. A picture is as many
        tokens as it says, between the two that enclose it.

        Raises:
            RequestError: as `render_text`, a literal control token in a message that the template rewrites, or
                pictures that the template does not show.
        """
        messages = [_clean_message(message) for message in messages]
        pictures = [picture for message in messages for picture in message.pictures]
        if not pictures:
            return self._render(messages, add_generation_prompt=add_generation_prompt)
        if self._picture_tokens is None:
            said = f"{self.folder.name} has no tokens for pictures; use a model that was trained with them"
            raise RequestError(said, param="messages")
        token_ids = self._render(messages, add_generation_prompt=add_generation_prompt)
        return self._picture_tokens.spread(token_ids, pictures=pictures)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        """The prompt with one token for each picture."""
        text = self.render_text(messages, add_generation_prompt=add_generation_prompt)
        stand_ins, contents = replace_contents(messages)
        outline = self.render_text(stand_ins, add_generation_prompt=add_generation_prompt)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        outline_ids = self._tokenizer.encode(outline, add_special_tokens=False).ids
        names_unknown = self._unknown_token and any(self._unknown_token in text for text in contents.values())
        if self._controls(encoding.ids) == self._controls(outline_ids) and not names_unknown:
            return list(encoding.ids)
        return self._encode_segments(align(text, outline=outline, contents=contents))

    def continuation(self, observation: Observation, *, last_token_id: int) -> list[int]:
        """Token ids from the end of a sampled turn to the start of the next one, with the observation between them.

        What stands before is neither rendered nor tokenised again: prompt, sampled tokens and continuation, end to
        end, are the next prompt. The observation is spelled out as contents are in `render`, and shown as the user's
        where the template has no tool role.

        Args:
            last_token_id: of the sampled turn. A stop token is the end of the turn; else the template's own is added,
                as after a stop string.

        Raises:
            RequestError: the chat template cannot show a conversation of several turns.
        """
        frame = self._frames.get(observation.role)
        if frame is None:
            frame = self._frames[observation.role] = find_frame(self._template, role=observation.role)
        text = _clean(observation.text)
        parts = (
            Segment(frame.before, is_template=True),
            Segment(text.strip() if frame.is_trimmed else text, is_template=False),
            Segment(frame.after, is_template=True),
        )
        ids = self._encode_segments(parts)
        if last_token_id in self.stop_token_ids:
            before = self._encode_segments(parts[:1])
            end = next((at + 1 for at, token_id in enumerate(before) if token_id in self.stop_token_ids), 0)
            if not self.decode(ids[:end]).strip():
                return ids[end:]
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text: no control token is recognised in it, and none is added."""
        text = _clean(text)
        ids = self._plain_tokenizer.encode(text, add_special_tokens=False).ids
        # A vocabulary that lists control tokens as whole words can still hit one; single characters cannot.
        if self._controls(ids):
            ids = [i for char in text for i in self._plain_tokenizer.encode(char, add_special_tokens=False).ids]
        return list(ids)

    def encode_completion(self, *, reasoning: str, answer: str, starts_in_thinking: bool) -> list[int]:
        """Tokens of an assistant turn as the model should emit it: thinking, answer, end of turn.

        The inverse of `parse`. Without reasoning there are no tags, unless the prompt has opened the thinking.
        """
        parts: list[Segment] = []
        if reasoning and not starts_in_thinking:
            parts.append(Segment(OPEN_TAG, is_template=True))
        parts.append(Segment(reasoning, is_template=False))
        if reasoning or starts_in_thinking:
            parts.append(Segment(CLOSE_TAG, is_template=True))
        parts.append(Segment(answer, is_template=False))
        return [*self._encode_segments(parts), *self.stop_token_ids[:1]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens: control tokens left out, thinking tags kept, broken UTF-8 replaced by U+FFFD."""
        return show_tags(Detokenizer(self._table).text(token_ids))

    def starts_in_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside an opened thinking block, so that the completion begins with reasoning."""
        # 32 tokens hold the tag and the whitespace after it even where every byte is a token.
        return Detokenizer(self._table).text(prompt_ids[-32:]).rstrip().endswith(self._tags[0])

    def splitter(self, starts_in_thinking: bool, *, stop: Sequence[str] = ()) -> StreamSplitter:
        """A splitter for one completion as it streams; `stop` are the strings that are cut from its text."""
        stop = self._mark_stops(stop)
        return StreamSplitter(self._table, tags=self._tags, starts_in_thinking=starts_in_thinking, stop=stop)

    def parse(self, completion: Completion, *, starts_in_thinking: bool, stop: Sequence[str] = ()) -> Completion:
        """Fill in text, reasoning and answer from the tokens. Never raises on what a model wrote.

        Without a closing tag everything is reasoning if the thinking was opened (by the prompt or by the
        completion's own tag), else everything is answer. Whitespace around the tags is layout and dropped; tags
        after the first closing one are part of the answer.
        """
        stop_filter = StopFilter(self._mark_stops(stop))
        text = stop_filter.push(Detokenizer(self._table).text(completion.token_ids)) + stop_filter.finish()
        deltas = self.splitter(starts_in_thinking).push_text(text, is_final=True)
        reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
        answer = "".join(delta.text for delta in deltas if delta.kind == "content")
        return dataclasses.replace(completion, text=show_tags(text), reasoning=reasoning, answer=answer)

    def save(self, folder: Path | str) -> None:
        """Copy the tokenizer's files and the chat template next to a saved model."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                source, target = self.folder / name, folder / name
                if source.exists() and source.resolve() != target.resolve():
                    shutil.copyfile(source, target)
            if not (self.folder / "tokenizer.json").is_file():
                save_converted(self.folder, folder=folder)
        except OSError as error:
            raise DataError(f"cannot copy the tokenizer from {self.folder} to {folder}: {error}") from None

    def _controls(self, token_ids: Iterable[int]) -> list[int]:
        return [i for i in token_ids if i in self._control_ids]

    def _encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Encode with control tokens recognised in the template's text alone.

        Text between two control tokens is encoded in one piece, as transformers does: its tokens may span the seam
        between template and content.
        """
        ids: list[int] = []
        run = ""
        for segment in segments:
            if not segment.is_template:
                run += segment.text
                continue
            encoding = self._tokenizer.encode(segment.text, add_special_tokens=False)
            end = 0
            for token_id, (start, stop) in _control_offsets(encoding, self._control_ids):
                ids += [*self.encode(run + segment.text[end:start]), token_id]
                run, end = "", stop
            run += segment.text[end:]
        return ids + self.encode(run)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id: two models whose vocabularies are equal mean the same by an id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def _tags(self) -> tuple[str, str]:
        return (OPEN_MARK, CLOSE_MARK) if self._has_tag_tokens else (OPEN_TAG, CLOSE_TAG)

    def _mark_stops(self, stop: Sequence[str]) -> tuple[str, ...]:
        opening, closing = self._tags
        return tuple(text.replace(OPEN_TAG, opening).replace(CLOSE_TAG, closing) for text in stop)

    def _token_id(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text)

    def _find_picture_tokens(self, named_tokens: dict[str, str]) -> PictureTokens | None:
        """The picture's by its id in config.json, the two around it by their names in the tokenizer's files."""
        picture = _read_json(self.folder / "config.json").get("image_token_id")
        start = self._token_id(named_tokens.get("start_image_token", "<img>"))
        end = self._token_id(named_tokens.get("end_image_token", "</img>"))
        if not isinstance(picture, int) or start is None or end is None:
            return None
        return PictureTokens(picture, start, end)

    def _read_stop_ids(self, eos_token: str) -> tuple[int, ...]:
        """The tokenizer's end of turn, then the generation defaults; config.json only where those say nothing."""
        found: list[int] = []
        end_of_turn = self._token_id(eos_token)
        if end_of_turn is not None:
            found.append(end_of_turn)
        for name in ("generation_config.json", "config.json"):
            raw = _read_json(self.folder / name)
            text = raw.get("text_config")  # of a model that sees, whose outer part names no tokens
            value = raw.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
            given = value if isinstance(value, list) else [] if value is None else [value]
            try:
                found += [checked_token_id(one, "eos_token_id") for one in given]
            except TypeError as error:
                raise ModelError(f"{self.folder / name}: {error}") from None
            if value is not None:
                break
        return tuple(dict.fromkeys(found))


class PictureTokens(NamedTuple):
    """The tokens that a picture is in a prompt."""

    picture: int
    """As often as the picture has features."""
    start: int
    end: int

    def spread(self, token_ids: Sequence[int], *, pictures: Sequence[Picture]) -> list[int]:
        """A prompt in which each picture is its own number of tokens, not one.

        Raises:
            RequestError: the template has not written one for each picture.
        """
        num_shown = list(token_ids).count(self.picture)
        if num_shown != len(pictures):
            said = f"the chat template shows {num_shown} of {len(pictures)} pictures"
            raise RequestError(f"{said}; use the one that the model was trained with", param="messages")
        spread: list[int] = []
        remaining = iter(pictures)
        for token_id in token_ids:
            is_picture = token_id == self.picture
            spread += [self.start, *[token_id] * next(remaining).num_tokens, self.end] if is_picture else [token_id]
        return spread


def _control_offsets(encoding: Encoding, control_ids: frozenset[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    for token_id, offsets in zip(encoding.ids, encoding.offsets, strict=True):
        if token_id in control_ids:
            yield token_id, offsets


def _is_control(token: dict[str, Any]) -> bool:
    """Whether an added token steers; the others are runs of whitespace that some vocabularies list by hand."""
    return bool(token.get("special")) or bool(str(token["content"]).strip())


def _clean(text: str) -> str:
    """Join surrogate pairs and replace lone ones, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _clean_message(message: Message) -> Message:
    reasoning = message.reasoning_content
    cleaned = message.with_pieces([_clean(piece) for piece in message.pieces])
    return dataclasses.replace(cleaned, reasoning_content=None if reasoning is None else _clean(reasoning))


def _build_tokenizer(spec: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an absent file is an empty one."""
    return read_json_object(path) if path.exists() else {}


def _token_text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _read_spec(folder: Path) -> dict[str, Any]:
    """tokenizer.json, or what a tiktoken file comes to."""
    if (folder / "tokenizer.json").is_file():
        return _read_json(folder / "tokenizer.json")
    if (folder / TIKTOKEN_FILE).is_file():
        return read_tiktoken(folder)
    raise ModelError(f"{folder} has no tokenizer.json, which turns text into tokens; copy it from the base model")


def _read_template(folder: Path, config: dict[str, Any]) -> str:
    """chat_template.jinja, else the one in tokenizer_config.json (the one named "default" of several), else nothing."""
    path = folder / "chat_template.jinja"
    try:
        if path.exists():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        template = {str(one["name"]): one["template"] for one in template}.get("default", "")
    return str(template)
