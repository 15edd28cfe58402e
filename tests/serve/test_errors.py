"""What a caller hears when something is wrong, always in OpenAI's shape, and that the server lives on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

USER = {"role": "user", "content": "hi"}
PATH = "/v1/chat/completions"


def post(live: Any, body: object, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **options.pop("headers", {})}
    return httpx.post(f"{live.url}{PATH}", content=content, headers=headers, timeout=30, **options)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": "1"}, "temperature", 'temperature should be a valid number, got "1"'),
    ({"temperature": 2.5}, "temperature", "less than or equal to 2, got 2.5"),
    ({"temperature": True}, "temperature", "got true"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_k": -1}, "top_k", "got -1"),
    ({"min_p": 1}, "min_p", "less than 1"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 5.5}, "max_tokens", "valid integer"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
    ({"n": 9}, "n", "less than or equal to 8, got 9"),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"stop": [""]}, "stop", "1 to 64 characters"),
    ({"stop": {"a": 1}}, "stop", "valid string or a valid array"),
    ({"seed": 2**63}, "seed", "less than 9223372036854775808"),
    ({"stream": "yes"}, "stream", "valid boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only for stream=true"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    ({"messages": []}, "messages", "at least 1 item, got []"),
    ({"messages": "hi"}, "messages", "valid array"),
    ({"messages": [5]}, "messages[0]", "should be an object"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user' or 'assistant'"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "is required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "got null"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", "'text'"),
    ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content", "NUL"),
    ({"messages": [{**USER, "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls", "not supported"),
    ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour", "unknown field"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"logprobs": True}, "logprobs", "not supported"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
    ({"frequency_penalty": False}, "frequency_penalty", "not supported"),
    ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ({"x" * 10_000: 1}, "x" * 57 + "...", "unknown field"),
    ({"model": 5}, "model", "valid string"),
]


@pytest.mark.parametrize(("fields", "param", "said"), FIELDS, ids=[f"{param}:{said[:20]}" for _, param, said in FIELDS])
def test_a_wrong_field_is_named(live: Any, fields: dict[str, Any], param: str, said: str) -> None:
    response = post(live, {"model": "babble", "messages": [USER], **fields})
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "\xff"}',
        b'{"model": "babble", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"model": "a\0"}',
        b'{"temperature": NaN, "model": "babble", "messages": [{"role": "user", "content": "x"}]}',
        b'{"seed": ' + b"9" * 5000 + b', "model": "babble", "messages": [{"role": "user", "content": "x"}]}',
        b"[" * 100_000,
        '{"model": "babble"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_broken_body_is_refused(live: Any, body: bytes) -> None:
    response = post(live, body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_refused_and_the_answer_can_be_read(live: Any) -> None:
    response = post(live, b" " * 2 * 2**20)
    assert (response.status_code, "not valid JSON" in error_of(response)["message"]) == (400, True)
    for body in (b" " * (2 * 2**20 + 1), b"{" * 5 * 2**20):
        response = post(live, body)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_only_json_is_read(live: Any) -> None:
    body = {"model": "babble", "messages": [USER]}
    response = post(live, body, headers={"Content-Type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in error_of(response)["message"]


def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(live: Any) -> None:
    with live.client() as client, pytest.raises(openai.BadRequestError) as caught:
        messages: Any = [{"role": "user", "content": "x" * 2000}]
        client.chat.completions.create(model="babble", messages=messages, stream=True)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "prompt has 2004 tokens, the model's window is 1024" in caught.value.message


def test_another_model_is_not_found(live: Any) -> None:
    with live.client() as client:
        with pytest.raises(openai.NotFoundError, match="choose from: babble") as caught:
            client.chat.completions.create(model="gpt-4o", messages=[USER])  # type: ignore[list-item]
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError, match="choose from: babble"):
            client.models.retrieve("a/b")


def test_unknown_paths_and_methods_are_refused(live: Any) -> None:
    response = httpx.get(f"{live.url}/v1/unknown")
    assert (response.status_code, error_of(response)["code"]) == (404, "unknown_url")
    response = httpx.get(f"{live.url}{PATH}")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_the_front_page_and_health_need_no_reading_of_manuals(live: Any) -> None:
    assert PATH in httpx.get(live.url).text
    assert httpx.get(f"{live.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{live.url}/health/ready").json()["status"] == "ready"


def test_with_keys_every_path_but_health_asks_for_one(serving: Any) -> None:
    with serving(api_keys=("first-key", "second-key")) as live:
        for path in ("/", "/v1/models", PATH, "/nowhere"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key"}):
                response = httpx.get(f"{live.url}{path}", headers=headers)
                assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{live.url}/health/ready").status_code == 200
        for key in ("first-key", "second-key"):
            with live.client(api_key=key) as client:
                assert client.models.list().data[0].id == "babble"


def test_an_engine_that_breaks_says_so_to_everyone(serving: Any) -> None:
    with serving() as live:
        body = {"model": "babble", "messages": [USER]}
        del live.engine.model.final_norm  # stands for memory that ran out, a driver that crashed
        response = post(live, body)
        assert (response.status_code, error_of(response)["type"]) == (503, "server_error")
        assert "restart" in error_of(response)["message"]
        assert post(live, {**body, "stream": True}).status_code == 503
        assert httpx.get(f"{live.url}/health/ready").status_code == 503
        assert httpx.get(f"{live.url}/health/live").status_code == 503
