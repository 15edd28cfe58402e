"""Chat templates: Jinja programs out of downloaded files, rendered in a sandbox and within limits."""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Filter, For, Name, Node, Template
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aha.errors import ModelError, RequestError
from aha.types import Message

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_MESSAGES = 4096
MAX_CONTENT_CHARS = 16 * 1024 * 1024
# What a template may add to the contents: instructions and dates, not a flood.
MAX_ADDED_CHARS = 1024 * 1024
_MAX_REPEATED_CHARS = 10_000
_MAX_ARGUMENT = 1_000_000
MAX_RENDER_SECONDS = 10.0
"""The longest conversation takes a published template less than one."""
_deadline: ContextVar[float] = ContextVar("deadline")
"""When the rendering that is going on must be done, by time.monotonic."""

Thinking = Literal["default", "on", "off"]
"""Whether a model that can answer with or without thinking should think; "default" is as its template has it."""
THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What templates call the switch: Qwen3 and its kin, DeepSeek-V3.1."""


class ChatTemplate:
    """One model's template, compiled at its first use.

    Args:
        source: the Jinja text; empty when the model has none, which only matters once something is rendered.
        origin: where it comes from, for errors.
        named_tokens: what the template may name, e.g. {"bos_token": "<s>"}.
    """

    def __init__(self, source: str, *, origin: str, named_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._origin = origin
        self._named_tokens = dict(named_tokens)
        self._switches: dict[str, bool] = {}

    def with_thinking(self, thinking: Thinking) -> ChatTemplate:
        """The same template with its switch for thinking thrown: Qwen3's `enable_thinking`, DeepSeek-V3.1's `thinking`.

        Raises:
            ModelError: the template has no such switch, so that nothing would change.
        """
        copied = copy.copy(self)
        copied._switches = {}
        if thinking != "default":
            found = self._compiled_switches
            if not found:
                named = " or ".join(THINKING_SWITCHES)
                raise ModelError(f"{self._origin}: the chat template has no switch for thinking ({named})")
            copied._switches = dict.fromkeys(found, thinking == "on")
        return copied

    @cached_property
    def _compiled_switches(self) -> tuple[str, ...]:
        """Names of switches for thinking that the template reads."""
        self._compiled  # noqa: B018 - refuses what cannot be compiled
        names = {node.name for node in _environment().parse(self._source).find_all(Name)}
        return tuple(switch for switch in THINKING_SWITCHES if switch in names)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as the template writes it.

        Raises:
            RequestError: too many or too long messages, or a conversation that the template refuses.
            ModelError: no template, or one that fails or floods.
        """
        if not messages or len(messages) > MAX_MESSAGES:
            raise RequestError(f"messages must hold 1 to {MAX_MESSAGES} turns, got {len(messages)}", param="messages")
        num_chars = sum(len(message.content) + len(message.reasoning_content or "") for message in messages)
        if num_chars > MAX_CONTENT_CHARS:
            said = f"at most {MAX_CONTENT_CHARS} characters, got {num_chars}"
            raise RequestError(f"messages must hold {said}", param="messages")
        turns = [_turn(message) for message in messages]
        names = {"messages": turns, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return self._generate({**self._named_tokens, **self._switches, **names}, limit=2 * num_chars + MAX_ADDED_CHARS)

    def _generate(self, names: dict[str, Any], *, limit: int) -> str:
        pieces: list[str] = []
        num_chars = 0
        _deadline.set(time.monotonic() + MAX_RENDER_SECONDS)
        try:
            for piece in self._compiled.generate(**names):
                num_chars += len(piece)
                if num_chars > limit:
                    raise ModelError(f"{self._origin}: the chat template wrote more than {limit} characters")
                pieces.append(piece)
        except _RefusalError as error:
            raise RequestError(f"the model's chat template refuses: {error}", param="messages") from None
        except _TooSlowError:
            raise ModelError(f"{self._origin}: the chat template takes more than {MAX_RENDER_SECONDS:g} s") from None
        except (RecursionError, MemoryError) as error:
            kind = type(error).__name__
            raise ModelError(f"{self._origin}: the chat template failed: it calls itself or grows ({kind})") from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise ModelError(f"{self._origin}: the chat template failed: {error}") from None
        return "".join(pieces)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if not self._source:
            raise ModelError(f"{self._origin} has no chat template; add chat_template.jinja or use an instruct model")
        if len(self._source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"{self._origin}: the chat template is larger than {MAX_TEMPLATE_CHARS} characters")
        try:
            return _environment().from_string(self._source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"{self._origin}: the chat template is wrong at line {error.lineno}: {error}") from None
        except (RecursionError, MemoryError, SyntaxError):  # the last from Python, of what Jinja makes of the nesting
            raise ModelError(f"{self._origin}: the chat template is nested too deeply") from None


def _turn(message: Message) -> dict[str, Any]:
    """A message as templates know it: its content is text, or with pictures a list of parts."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.pictures:
        turn["content"] = _parts(message)
    return turn


def _parts(message: Message) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for piece in message.pieces:
        if piece:
            parts.append({"type": "text", "text": piece})
        parts.append({"type": "image"})
    return parts[:-1]


class _RefusalError(Exception):
    """A template called raise_exception: the conversation is at fault, not the template."""


class _TooSlowError(Exception):
    """A template would loop for hours."""


def _in_time(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, as long as there is time for them."""
    for item in items:
        _check_time()
        yield item


def _refuse_large(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_ARGUMENT for value in (*args, *kwargs.values())):
        raise jinja2.TemplateRuntimeError(f"numbers above {_MAX_ARGUMENT} are refused in chat templates")


def _only_small(call: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes no widths of a billion."""

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _refuse_large(args, kwargs)
        return call(*args, **kwargs)

    return checked


def _check_time() -> None:
    if time.monotonic() > _deadline.get():
        raise _TooSlowError


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, and no operator that makes gigabytes out of a few characters.

    Every turn of a loop and every call looks at the clock: three loops of a legal length each would run for hours.
    """

    def _parse(self, source: str, name: str | None, filename: str | None) -> Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(For):
            loop.iter = Filter(loop.iter, "_in_time", [], [], None, None, lineno=loop.lineno)
        return template

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_time()
        _refuse_large(args, kwargs)  # 'a'.ljust(10**9) is no operator
        if isinstance(obj, LoopContext) and args:  # a recursive loop goes on with other items
            args = (_in_time(args[0]), *args[1:])
        return super().call(context, obj, *args, **kwargs)

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = [value for value in (left, right) if isinstance(value, int | float)]
        num_chars = [len(value) * max(numbers, default=0) for value in (left, right) if isinstance(value, str | list)]
        is_small = all(abs(number) < 10**9 for number in numbers) and len(numbers) + len(num_chars) == 2
        can_repeat = operator == "*" and len(num_chars) == 1 and num_chars[0] <= _MAX_REPEATED_CHARS
        if operator == "**" or not is_small or (num_chars and not can_repeat):
            raise jinja2.TemplateRuntimeError(f"operator {operator} is only for small values in chat templates")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words in some templates; here they are rendered as they are."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """What transformers renders chat templates in (its utils/chat_template_utils.py)."""

    def refuse(message: str) -> None:
        raise _RefusalError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.filters["_in_time"] = _in_time
    for name in ("center", "indent", "batch", "slice"):
        environment.filters[name] = _only_small(environment.filters[name])
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment
