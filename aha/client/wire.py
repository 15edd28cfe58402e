"""The OpenAI wire format: what we send, and how we read what comes back without believing any of it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aha.client.endpoint import Endpoint
from aha.client.retries import FailedAttempt, is_retryable_status
from aha.client.thinking import Split, split_thinking
from aha.errors import RequestError
from aha.types import FinishReason, Message, SamplingParams, Usage

PROMPT_OVERHEAD_TOKENS = 256
"""Most that a chat template adds to a conversation (gpt-oss's default system turn is the longest known, about 100)."""
MESSAGE_OVERHEAD_TOKENS = 16
"""Most that a chat template adds to a turn: role, separators."""
MAX_BYTES_PER_TOKEN = 128
"""Longest token in wide use: a run of blanks. Counts that would need longer ones are not true."""
MAX_EXCESS_TOKENS = 131_072
"""What a count may exceed its bound by and still be believed: a window full of hidden instructions or thinking."""
MAX_NAME_CHARS = 200
_MAX_SEED = 2**63
_COMPLETION_LIMIT_HOSTS = ("api.openai.com", ".openai.azure.com")
"""Their reasoning models refuse max_tokens; all their chat models take max_completion_tokens."""
_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "abort": FinishReason.ABORT,
    "content_filter": FinishReason.ABORT,
    "insufficient_system_resource": FinishReason.ABORT,  # DeepSeek: it ran out of machines in the middle
}


class Answer(NamedTuple):
    """What a response says, read."""

    content: str
    reasoning: str
    finish_reason: FinishReason
    usage: Usage | None
    """None where the server's counts are missing or cannot be true."""
    model: str
    unknown_finish_reason: str
    """A word for the end that we do not know and took for "stop"; else ""."""


def request_body(
    messages: Sequence[Message], *, sampling: SamplingParams, endpoint: Endpoint, sample_index: int
) -> dict[str, Any]:
    """The fields of a request for one completion.

    One, because servers ignore `n`. The seed moves with the sample, or all samples would be the same one. The
    thinking of earlier turns is left out, as DeepSeek's API demands. `top_k` and `min_p` are not OpenAI's and go only
    where they are asked for.
    """
    if not messages:
        raise RequestError("messages must hold at least one turn", param="messages")
    is_completion_limit = endpoint.host.endswith(_COMPLETION_LIMIT_HOSTS)
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens" if is_completion_limit else "max_tokens": sampling.max_tokens,
    }
    optional = {"top_k": sampling.top_k, "min_p": sampling.min_p, "stop": list(sampling.stop)}
    body |= {name: value for name, value in optional.items() if value}
    if sampling.seed is not None:
        body["seed"] = (sampling.seed + sample_index) % _MAX_SEED
    return body


def rewording_for(refusal: str, *, body: Mapping[str, Any]) -> str:
    """How a refused request can be said otherwise without asking for anything else; "" where it cannot.

    OpenAI's reasoning models know only max_completion_tokens, and some vendors refuse a seed.
    """
    if "max_completion_tokens" in refusal and "max_tokens" in body:
        return "max_completion_tokens"
    return "no seed" if "seed" in body and re.search(r"\bseed\b", refusal) else ""


def reword(body: Mapping[str, Any], *, rewordings: frozenset[str]) -> dict[str, Any]:
    """A body with the rewordings that `rewording_for` has asked for."""
    words = dict(body)
    if "max_completion_tokens" in rewordings and "max_tokens" in words:
        words["max_completion_tokens"] = words.pop("max_tokens")
    if "no seed" in rewordings:
        words.pop("seed", None)
    return words


def worst_usage(messages: Sequence[Message], *, max_tokens: int) -> Usage:
    """The most tokens that a request can use: no token is shorter than a byte.

    Some tokenizers expand characters before they cut them (NFKC makes 33 bytes of U+FDFA's 3), so the longer form
    counts.
    """
    num_bytes = sum(max(_num_bytes(m.content), _num_bytes(unicodedata.normalize("NFKC", m.content))) for m in messages)
    overhead = PROMPT_OVERHEAD_TOKENS + MESSAGE_OVERHEAD_TOKENS * len(messages)
    return Usage(prompt_tokens=num_bytes + overhead, completion_tokens=max_tokens)


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a response's body. Broken UTF-8 is replaced, not refused.

    Raises:
        ValueError: not JSON, too deep, or not an object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_answer(body: Mapping[str, Any], *, worst: Usage) -> Answer:
    """Content, thinking, end and usage of a whole response.

    Args:
        worst: the most tokens that the request can have used.

    Raises:
        FailedAttempt: an error in place of an answer, or no choices.
    """
    if body.get("error"):
        usage = read_usage(body.get("usage"), worst=worst, num_text_bytes=0)
        status = _count(_mapping(body["error"]).get("code"))  # a gateway's word for what its upstream answered
        is_retryable = status is None or not 400 <= status < 500 or is_retryable_status(status)
        failure = f"answered with an error: {error_message(body)}"
        raise FailedAttempt(failure, is_retryable=is_retryable, is_paid=True, usage=usage)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        usage = read_usage(body.get("usage"), worst=worst, num_text_bytes=0)
        raise FailedAttempt("answered without any choices", is_retryable=True, is_paid=True, usage=usage)
    reasoning, content = message_texts(message)
    if not reasoning:
        reasoning, content = split_thinking(content)
    usage = read_usage(body.get("usage"), worst=worst, num_text_bytes=_num_bytes(reasoning) + _num_bytes(content))
    said = choice.get("finish_reason")
    if said is None and usage is not None and usage.completion_tokens >= worst.completion_tokens:
        said = "length"
    reason = _FINISH_REASONS.get(said) if isinstance(said, str) else None
    model = body.get("model")
    return Answer(
        content=content,
        reasoning=reasoning,
        finish_reason=reason or FinishReason.STOP,
        usage=usage,
        model=model if isinstance(model, str) else "",
        unknown_finish_reason="" if reason or said is None else str(said)[:MAX_NAME_CHARS],
    )


def message_texts(message: Mapping[str, Any]) -> Split:
    """Thinking and content of a message or of a delta; whatever is not text counts as none."""
    reasoning = _text_of(message.get("reasoning_content")) or _text_of(message.get("reasoning"))
    content = message.get("content")
    if not isinstance(content, list):
        return Split(reasoning, _text_of(content))
    parts = [part for part in content if isinstance(part, dict)]
    thoughts = [part for part in parts if part.get("type") in ("thinking", "reasoning")]
    texts = [part for part in parts if part.get("type") in ("text", "output_text")]
    reasoning = reasoning or "".join(_part_text(part.get("thinking") or part.get("text")) for part in thoughts)
    return Split(reasoning, "".join(_text_of(part.get("text")) for part in texts))


def read_usage(raw: object, *, worst: Usage, num_text_bytes: int) -> Usage | None:
    """The server's counts; None where they are missing or cannot be true.

    Servers that count thinking apart from the completion are read so that it is counted. Where two readings are
    possible, the dearer one holds.
    """
    if not isinstance(raw, Mapping):
        return None
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    reasoning = _count(_mapping(raw.get("completion_tokens_details")).get("reasoning_tokens")) or 0
    completion = max(completion, (_count(raw.get("total_tokens")) or 0) - prompt)
    if reasoning > completion:
        completion += reasoning
    cached = _count(_mapping(raw.get("prompt_tokens_details")).get("cached_tokens"))
    cached = _count(raw.get("prompt_cache_hit_tokens")) if cached is None else cached
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached if cached is not None and cached <= prompt else 0,
        reasoning_tokens=reasoning,
    )
    return usage if _is_plausible(usage, worst=worst, num_text_bytes=num_text_bytes) else None


def estimate_usage(answer: Answer, *, worst: Usage) -> Usage:
    """Counts where the server gave none: two bytes a token, which errs high for English and code."""
    num_bytes = _num_bytes(answer.content) + _num_bytes(answer.reasoning)
    is_truncated = answer.finish_reason is FinishReason.LENGTH
    completion = worst.completion_tokens if is_truncated else min(worst.completion_tokens, max(1, (num_bytes + 1) // 2))
    return Usage(prompt_tokens=(worst.prompt_tokens + 1) // 2, completion_tokens=completion)


def error_message(body: Mapping[str, Any]) -> str:
    """The server's words in an error body of any of the usual shapes; "" where there are none."""
    error = body.get("error")
    for value in (_mapping(error).get("message"), error, body.get("message"), body.get("detail")):
        if isinstance(value, str) and value.strip():
            return value
    return json.dumps(error or body.get("detail") or "", default=str)[:MAX_NAME_CHARS] if error else ""


def error_code(body: Mapping[str, Any]) -> str:
    """The machine-readable reason in an error body; "" without one."""
    error = _mapping(body.get("error"))
    return next((value for name in ("code", "type") if isinstance(value := error.get(name), str)), "")


def _is_plausible(usage: Usage, *, worst: Usage, num_text_bytes: int) -> bool:
    """Neither more tokens than the request can have used, nor fewer than its text needs."""
    fixed = PROMPT_OVERHEAD_TOKENS + MESSAGE_OVERHEAD_TOKENS
    return (
        1 <= usage.prompt_tokens <= worst.prompt_tokens + MAX_EXCESS_TOKENS
        and usage.completion_tokens <= worst.completion_tokens + MAX_EXCESS_TOKENS
        and usage.prompt_tokens * MAX_BYTES_PER_TOKEN >= (worst.prompt_tokens - fixed) // 2
        and usage.completion_tokens * MAX_BYTES_PER_TOKEN >= num_text_bytes
    )


def _count(value: object) -> int | None:
    """A number of tokens, from 0; None for anything else. JSON from JavaScript may write 12.0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not value.is_integer():  # false for NaN and infinities too
        return None
    return int(value) if value >= 0 else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def _part_text(value: object) -> str:
    """Text of a thinking part: a string, or again a list of parts (Mistral)."""
    if isinstance(value, list):
        return "".join(_text_of(part.get("text")) for part in value if isinstance(part, dict))
    return _text_of(value)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
