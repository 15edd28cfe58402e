"""What a reply says: thinking, content, ends and counts, from servers that write them in every way and wrongly."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.client import Client, EndpointError
from aha.client.sse import SseParser
from aha.client.thinking import ThinkingStream, split_thinking
from aha.client.wire import read_json, read_usage
from aha.types import FinishReason, Message, SamplingParams, Usage
from tests.client.conftest import COST, QUESTION, SAMPLING, USAGE, WORST, LiveEndpoint, chunk, completion, events, ok

MakeClient = Callable[..., Client]


def test_a_plain_answer_has_its_text_tokens_and_dollars(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.script = [ok("7", usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 4}})]
    client = make_client()
    reply = client.chat(QUESTION, SAMPLING)
    assert (reply.content, reply.reasoning, reply.text, reply.model) == ("7", "", "7", "m-1")
    assert reply.finish_reason is FinishReason.STOP
    assert reply.usage == Usage(12, 30, cached_tokens=4)
    assert reply.cost_nano_usd == client.spent_nano_usd == COST - 4 * 500
    assert not reply.is_from_journal
    assert not reply.is_usage_estimated
    assert (client.num_requests, client.num_retries) == (1, 0)


def test_the_request_says_how_to_sample_and_asks_for_one_completion(
    live: LiveEndpoint, make_client: MakeClient
) -> None:
    sampling = SamplingParams(num_samples=3, temperature=0, top_p=1, top_k=5, stop=("END",), max_tokens=9, seed=40)
    turns = [Message("system", "s"), Message("user", "\ud800 é"), Message("assistant", "a", "thought"), *QUESTION]
    make_client().chat(turns, sampling, sample_index=2)
    (body,) = live.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "\ud800 é"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "What is 3 + 4?"},
        ],
        "temperature": 0,
        "top_p": 1,
        "top_k": 5,
        "stop": ["END"],
        "max_tokens": 9,
        "seed": 42,
    }


@pytest.mark.parametrize(
    ("message", "reasoning", "content"),
    [
        ({"content": "7", "reasoning_content": "3+4"}, "3+4", "7"),
        ({"content": "7", "reasoning": "3+4"}, "3+4", "7"),
        ({"content": "<think>\n3+4\n</think>\n\n7"}, "3+4", "7"),
        ({"content": "  <think>3+4"}, "3+4", ""),
        ({"content": "3+4\n</think>\n7"}, "3+4", "7"),
        ({"content": "a <think> b </think> c"}, "", "a <think> b </think> c"),
        ({"content": "<think></think>7 </think>"}, "", "7 </think>"),
        ({"content": " 7\n"}, "", " 7\n"),
        ({"content": "<think>x</think>", "reasoning_content": "3+4"}, "3+4", "<think>x</think>"),
        ({"content": None, "reasoning_content": "3+4"}, "3+4", ""),
        ({"content": None}, "", ""),
        ({}, "", ""),
        ({"content": 7, "reasoning_content": ["3"]}, "", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, 3, {"type": "text", "text": "b"}]}, "", "ab"),
        (
            {"content": [{"type": "thinking", "thinking": [{"text": "3+4"}]}, {"type": "text", "text": "7"}]},
            "3+4",
            "7",
        ),
    ],
)
def test_thinking_is_found_where_servers_put_it(
    live: LiveEndpoint, make_client: MakeClient, message: dict[str, Any], reasoning: str, content: str
) -> None:
    live.script = [ok(message=message)]
    reply = make_client().chat(QUESTION, SAMPLING)
    assert (reply.reasoning, reply.content) == (reasoning, content)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", " ", "\n", "é", "a"]), max_size=12), st.data())
@settings(deadline=None, max_examples=300)
def test_the_pieces_of_a_stream_are_the_whole(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    starts_in_thinking = not text.lstrip().startswith("<think>") and "</think>" in text
    starts_in_thinking &= "<think>" not in text.partition("</think>")[0]
    splitter = ThinkingStream(starts_in_thinking=starts_in_thinking)
    deltas = [
        delta
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
        for delta in splitter.push(text[start:end])
    ]
    deltas += splitter.finish()
    joined = tuple("".join(d.text for d in deltas if d.kind == kind) for kind in ("reasoning", "content"))
    assert joined == split_thinking(text)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("length", FinishReason.LENGTH),
        ("max_tokens", FinishReason.LENGTH),
        ("content_filter", FinishReason.ABORT),
        ("tired", FinishReason.STOP),
        (["?"], FinishReason.STOP),
        (None, FinishReason.STOP),
    ],
)
def test_every_finish_reason_becomes_one_we_know(
    live: LiveEndpoint, make_client: MakeClient, notices: list[str], said: Any, expected: FinishReason
) -> None:
    live.script = [ok(finish_reason=said)]
    assert make_client().chat(QUESTION, SAMPLING).finish_reason is expected
    assert any("unknown finish_reason" in notice for notice in notices) == (said in ("tired", ["?"]))


def test_an_answer_of_max_tokens_without_a_reason_was_cut_off(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.script = [ok(finish_reason=None, usage={"prompt_tokens": 9, "completion_tokens": 100})]
    assert make_client().chat(QUESTION, SAMPLING).finish_reason is FinishReason.LENGTH


LIES = [
    None,
    "many",
    [],
    {},
    {"prompt_tokens": "12", "completion_tokens": "30"},
    {"prompt_tokens": -12, "completion_tokens": 30},
    {"prompt_tokens": 12, "completion_tokens": -30},
    {"prompt_tokens": 12, "completion_tokens": 10**12},
    {"prompt_tokens": 10**300, "completion_tokens": 1},
    {"prompt_tokens": 12, "completion_tokens": 2.5},
    {"prompt_tokens": True, "completion_tokens": True},
    {"prompt_tokens": 0, "completion_tokens": 30},
    {"prompt_tokens": 12, "completion_tokens": 0},
    {"prompt_tokens": 12, "completion_tokens": float("nan")},
    {"prompt_tokens": 12, "completion_tokens": float("inf")},
]


@pytest.mark.parametrize("usage", LIES, ids=str)
def test_counts_that_cannot_be_true_cost_the_worst_case(
    live: LiveEndpoint, make_client: MakeClient, notices: list[str], usage: Any
) -> None:
    live.script = [ok(usage=usage)]
    client = make_client(budget_usd=1.0)
    reply = client.chat(QUESTION, SAMPLING)
    assert reply.is_usage_estimated
    assert 1 <= reply.usage.completion_tokens <= 100
    assert reply.cost_nano_usd == client.spent_nano_usd == WORST
    assert "no token counts that can be true" in notices[0]


def test_a_text_that_its_tokens_cannot_hold_is_not_believed(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.script = [ok("x" * 1000, usage={"prompt_tokens": 12, "completion_tokens": 2})]
    assert make_client().chat(QUESTION, SAMPLING).usage.completion_tokens == 100


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    )
)
def test_usage_is_never_negative_nor_absurd(raw: dict[str, Any]) -> None:
    usage = read_usage(raw, worst=Usage(300, 100), num_text_bytes=1)
    if usage is not None:
        assert usage.prompt_tokens >= 1
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens
        assert 1 <= usage.completion_tokens < 10**6


def test_thinking_that_a_vendor_counts_apart_is_counted() -> None:
    worst = Usage(300, 100)
    apart = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 40}}
    assert read_usage(apart, worst=worst, num_text_bytes=1) == Usage(10, 45, reasoning_tokens=40)
    in_total = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 55}
    assert read_usage(in_total, worst=worst, num_text_bytes=1) == Usage(10, 45)
    deepseek = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 8}
    assert read_usage(deepseek, worst=worst, num_text_bytes=1) == Usage(10, 5, cached_tokens=8)


def test_a_stream_gives_thinking_then_content_and_returns_the_whole(
    live: LiveEndpoint, make_client: MakeClient
) -> None:
    data = events(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="3"),
        chunk(reasoning_content="+4"),
        chunk("7"),
        chunk(finish_reason="stop"),
        {"choices": [], "usage": USAGE},
    )
    live.script = [lambda request: request.say_events(data)]
    client = make_client()
    deltas, reply = drain(client)
    assert deltas == [("reasoning", "3"), ("reasoning", "+4"), ("content", "7")]
    assert (reply.reasoning, reply.content, reply.cost_nano_usd) == ("3+4", "7", COST)
    assert client.spent_nano_usd == COST
    assert live.bodies[0]["stream"] is True
    assert live.bodies[0]["stream_options"] == {"include_usage": True}


def drain(client: Client, **options: Any) -> tuple[list[tuple[str, str]], Any]:
    stream = client.stream(QUESTION, SAMPLING, **options)
    deltas = []
    while True:
        try:
            delta = next(stream)
        except StopIteration as end:
            return deltas, end.value
        deltas.append((delta.kind, delta.text))


def test_a_stream_splits_tags_that_come_in_pieces(live: LiveEndpoint, make_client: MakeClient) -> None:
    pieces = ["<th", "ink>", "3+4</", "think>\n\n", "7 é"]
    data = events(*map(chunk, pieces), chunk(finish_reason="stop"), {"choices": [], "usage": USAGE})
    live.script = [lambda request: request.say_events(data)] * 2
    deltas, reply = drain(make_client())
    assert deltas == [("reasoning", "3+4"), ("content", "7 é")]
    assert (reply.reasoning, reply.content) == ("3+4", "7 é")


def test_a_stream_whose_prompt_opened_the_thinking_can_be_told_so(live: LiveEndpoint, make_client: MakeClient) -> None:
    data = events(chunk("3+4"), chunk("</think>7"), chunk(finish_reason="stop"))
    live.script = [lambda request: request.say_events(data)]
    deltas, _ = drain(make_client(), starts_in_thinking=True)
    assert deltas == [("reasoning", "3+4"), ("content", "7")]


MESSY = (
    b"\xef\xbb\xbf: keep-alive\r\n\r\nevent: message\rid: 4\r"
    b"data:"
    + json.dumps(chunk("4é"), ensure_ascii=False).encode()
    + b"\r\rdata: {\r\ndata: "
    + json.dumps(chunk("5", finish_reason="stop"))[1:].encode()
    + b"\n\n:x\n\ndata: "
    + json.dumps({"choices": [], "usage": USAGE}).encode()
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_a_messy_stream_is_read_whatever_its_line_ends_and_cuts(size: int) -> None:
    parser = SseParser()
    found = [e for at in range(0, len(MESSY), size) for e in parser.push(MESSY[at : at + size])] + parser.finish()
    parsed = [read_json(event.encode()) for event in found]
    assert parsed == [chunk("4é"), chunk("5", finish_reason="stop"), {"choices": [], "usage": USAGE}]


def test_a_stream_without_done_or_an_answer_in_one_piece_will_do(live: LiveEndpoint, make_client: MakeClient) -> None:
    def slowly(request: Any) -> None:
        request.say_events(MESSY[:90])
        request.wfile.flush()
        time.sleep(0.02)
        request.wfile.write(MESSY[90:])

    live.script = [slowly, ok("<think>3+4</think>7")]
    client = make_client()
    deltas, reply = drain(client)
    assert "".join(text for _, text in deltas) == reply.content == "4é5"
    assert reply.usage == Usage(12, 30)
    deltas, reply = drain(client)
    assert deltas == [("reasoning", "3+4"), ("content", "7")]


@pytest.mark.parametrize("content_type", ["text/plain", "text/html; charset=latin-1", "", "text/event-stream"])
def test_the_body_counts_not_what_it_is_called(live: LiveEndpoint, make_client: MakeClient, content_type: str) -> None:
    data = completion("é")
    whole = json.dumps(data, ensure_ascii=False).encode()
    if "event" in content_type:  # a stream that nobody asked for
        whole = events(chunk("é"), chunk(finish_reason="stop"), {"choices": [], "usage": USAGE})
    live.script = [
        lambda request: request.say(whole, content_type=content_type),
        lambda request: request.say_events(events(chunk("é", finish_reason="stop")), content_type="application/json"),
    ]
    client = make_client()
    assert client.chat(QUESTION, SAMPLING).content == "é"
    assert client.chat(QUESTION, SAMPLING).content == "é"
    assert client.num_retries == 0


def test_gzip_that_was_not_asked_for_is_read(live: LiveEndpoint, make_client: MakeClient) -> None:
    data = gzip.compress(json.dumps(completion("7")).encode())
    live.script = [lambda request: request.say(data, headers={"Content-Encoding": "gzip"})]
    assert make_client().chat(QUESTION, SAMPLING).content == "7"
    assert live.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("is_bomb", [True, False])
def test_a_body_without_end_is_cut(live: LiveEndpoint, make_client: MakeClient, is_bomb: bool) -> None:
    data = gzip.compress(b" " * (40 * 1024 * 1024), compresslevel=1) if is_bomb else b" " * (33 * 1024 * 1024)
    headers = {"Content-Encoding": "gzip"} if is_bomb else {}
    live.default = lambda request: request.say(data, headers=headers)
    client = make_client()
    with pytest.raises(EndpointError, match=r"answered with more than 32,768 KiB"):
        client.chat(QUESTION, SAMPLING)
    assert client.num_requests == 1
    assert client.spent_nano_usd == WORST


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, '{"choices": ' + '{"a":' * 50_000, "[1]", "null"])
def test_json_that_would_hurt_the_parser_is_only_not_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the parser says; what counts is the type
        read_json(text.encode())
