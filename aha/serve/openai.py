"""The request and response bodies of /v1/chat/completions, field by field.

Fields that would change the answer and that this server cannot honour are refused by name; fields that change nothing
here are accepted and ignored (`IGNORED`). Defaults are OpenAI's: temperature 1, top_p 1, one completion.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aha.errors import RequestError
from aha.serve.comparison import ListedCost
from aha.types import FinishReason, Message, Picture, SamplingParams, Usage

MAX_SAMPLES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 64
DEFAULT_MAX_TOKENS = 4096
"""Tokens of one completion, thinking included, when the request does not say; always cut to the model's window."""

IGNORED = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
"""Fields that say nothing about the answer."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields that cannot be honoured, with the values that ask for nothing."""

_NEUTRAL_IN_MESSAGE: Mapping[str, tuple[Any, ...]] = {"annotations": ([],), "tool_calls": ([],), "refusal": ("",)}
# Clients send back the assistant message as they got it, its empty fields included.
# JSON leaves these three as they are, but clients that cut a stream with str.splitlines() would cut there.
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character (U+0000); remove it")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]


class ImageUrl(BaseModel):
    """Where a picture is: in the request itself, as a data URI."""

    model_config = ConfigDict(strict=True, frozen=True)

    url: Text
    detail: Literal["auto", "low", "high"] | None = None
    """"low" sees the whole picture in one tile; the others cut a large one into several."""


class ContentPart(BaseModel):
    """One part of a message that is given in parts: text or a picture."""

    model_config = ConfigDict(strict=True, frozen=True)

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _holds_what_it_says(self) -> ContentPart:
        for name in ("text", "image_url"):
            if (getattr(self, name) is None) == (self.type == name):
                raise ValueError(
                    f"has type {self.type!r}, so it must {'hold' if self.type == name else 'not hold'} {name}"
                )
        return self


class ChatMessage(BaseModel):
    """One turn, as OpenAI writes it. `name` is ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart]
    reasoning_content: Text | None = None
    name: str | None = None

    @property
    def parts(self) -> list[ContentPart]:
        """Of a message that is given in parts; of another, nothing."""
        return [] if isinstance(self.content, str) else self.content

    def to_message(self, pictures: Sequence[Picture] = ()) -> Message:
        """Texts are joined as they stand; "developer" is OpenAI's newer word for "system"."""
        text = self.content if isinstance(self.content, str) else "".join(part.text or "" for part in self.content)
        role = "system" if self.role == "developer" else self.role
        reasoning = self.reasoning_content if role == "assistant" else None
        return Message(role, text, reasoning, pictures=tuple(pictures))


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Ignored: a padding of chunks against listeners who count bytes."""


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)] = None
    top_k: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    """0 is off."""
    min_p: Annotated[float | None, Field(ge=0, lt=1, allow_inf_nan=False)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_SAMPLES)] = None
    stop: Text | list[Text] | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None

    def sampling(self, *, room: int) -> SamplingParams:
        """How to sample when the window still has `room` tokens: a larger max_tokens is cut to it."""
        asked = self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS
        return SamplingParams(
            num_samples=self.n or 1,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            max_tokens=min(asked, room),
            stop=self.stops,
            seed=self.seed,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True


def read_chat_request(body: bytes) -> ChatRequest:
    """Check a body.

    Raises:
        RequestError: anything that is not as documented, naming the field.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from None
    _check_extra_fields(request, prefix="", neutral=NEUTRAL)
    for index, message in enumerate(request.messages):
        _check_extra_fields(message, prefix=f"messages[{index}].", neutral=_NEUTRAL_IN_MESSAGE)
    _check_combinations(request)
    return request


def _check_extra_fields(model: BaseModel, *, prefix: str, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in (model.model_extra or {}).items():
        if value is None or (name in IGNORED and not prefix):
            continue
        # JSON's false is not its 0, but Python's is.
        same_kind = [known for known in neutral.get(name, ()) if isinstance(known, bool) == isinstance(value, bool)]
        if value in same_kind:
            continue
        param = _shorten(f"{prefix}{name}")
        if name in neutral:
            said = f"{param}={_show(value)} is not supported by this server; leave it out"
            raise RequestError(said, param=param, code="unsupported_parameter")
        near = difflib.get_close_matches(name, list(type(model).model_fields), n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else "leave it out"
        raise RequestError(f"unknown field {param}; {hint}", param=param, code="unknown_parameter")


def _check_combinations(request: ChatRequest) -> None:
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise RequestError("max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is only for stream=true; leave it out", param="stream_options")
    if len(request.stops) > MAX_STOPS:
        raise RequestError(f"stop takes at most {MAX_STOPS} strings, got {len(request.stops)}", param="stop")
    for text in request.stops:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise RequestError(f"a stop string has 1 to {MAX_STOP_CHARS} characters, got {len(text)}", param="stop")


def explain(error: ValidationError) -> RequestError:
    """What is wrong with a body: the first of the deepest complaints, with those about the other types of its field."""
    problems = error.errors(include_url=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}")
    params = [_param(problem["loc"]) for problem in problems]
    param = max(params, key=lambda param: param.count(".") + param.count("["))
    mine = [problem for problem, of in zip(problems, params, strict=True) if of == param]
    # A string with a fault in it is also "not an array"; only the fault helps.
    mine = [problem for problem in mine if problem["type"] == "value_error"] or mine
    if mine[0]["type"] == "missing":
        return RequestError(f"{param} is required", param=param)
    if mine[0]["type"] == "extra_forbidden":
        return RequestError(f"unknown field {_shorten(param)}; leave it out", param=_shorten(param))
    said = " or ".join(dict.fromkeys(_complaint(problem["msg"]) for problem in mine)).replace(" or should be", " or")
    return RequestError(f"{param or 'the body'} {said}, got {_show(mine[0]['input'])}", param=param or None)


def _complaint(message: str) -> str:
    """Pydantic's words as the end of a sentence that begins with the field."""
    for start in ("Value error, ", "Input ", "List "):
        message = message.removeprefix(start)
    return message.removesuffix(" after validation, not 0")


def _param(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "str") as "messages[0].content": pydantic adds the member of a union at the end."""
    param = ""
    for part in loc:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not part.startswith(("list[", "function-after[")) and part != "str":
            param += f".{part}" if param else part
    return param


def _show(value: object) -> str:
    return _shorten(json.dumps(value, default=str, ensure_ascii=False))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def usage_body(usage: Usage, *, cost_nano_usd: int, price_id: str, listed: Sequence[ListedCost] = ()) -> dict[str, Any]:
    """The `usage` of a response: tokens, and dollars as a decimal string so that no digit is lost.

    Args:
        listed: what APIs would have charged for these tokens.
    """
    compared = [
        {"model": api.model, "usd": None if api.nano_usd is None else show_usd(api.nano_usd), "price_id": api.price_id}
        for api in listed
    ]
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
        "cost": {
            "usd": show_usd(cost_nano_usd),
            "basis": "self_host_measured",
            "price_id": price_id,
            "compare": compared,
        },
    }


def show_usd(nano_usd: int) -> str:
    """E.g. 123 as "0.000000123"."""
    return f"{nano_usd // 10**9}.{nano_usd % 10**9:09d}"


def message_choice(index: int, *, reasoning: str, content: str, finish_reason: FinishReason) -> dict[str, Any]:
    """One element of `choices` of a whole response. `reasoning_content` is null when there was no thinking."""
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning or None, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason.value}


def delta_choice(index: int, delta: Mapping[str, str], *, finish_reason: FinishReason | None = None) -> dict[str, Any]:
    """One element of `choices` of a chunk."""
    reason = None if finish_reason is None else finish_reason.value
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}


def event_bytes(body: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(body).translate(_LINE_ENDS).encode() + b"\n\n"


def to_json(body: Mapping[str, Any]) -> str:
    """Compact JSON whose text stays readable."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
