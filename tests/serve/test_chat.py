"""OpenAI's own client against a live server: answers, streams, usage, batch mates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from aha.engine import Engine
from aha.models.tokenizer import SPECIAL_TOKENS
from aha.types import Message, SamplingParams

QUESTION = [{"role": "user", "content": "3 7 8 > 24"}]


def ask(client: openai.OpenAI, **options: Any) -> ChatCompletion:
    defaults: dict[str, Any] = {"model": "babble", "messages": QUESTION, "max_tokens": 60, "seed": 5}
    return client.chat.completions.create(**{**defaults, **options})


def stream(client: openai.OpenAI, **options: Any) -> list[ChatCompletionChunk]:
    return list(ask(client, stream=True, **options))  # type: ignore[call-overload]


def joined(chunks: list[ChatCompletionChunk], *, index: int = 0) -> tuple[str, str, list[str]]:
    """Reasoning, content and finish reasons of one choice."""
    mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    reasoning = "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in mine)
    content = "".join(choice.delta.content or "" for choice in mine)
    return reasoning, content, [choice.finish_reason for choice in mine if choice.finish_reason]


def texts(done: ChatCompletion) -> list[tuple[str, str, str]]:
    return [(c.message.reasoning_content or "", c.message.content, c.finish_reason) for c in done.choices]  # type: ignore[attr-defined, misc]


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert listed.id == "babble"
    shown = client.models.retrieve("babble")
    assert shown == listed
    assert shown.context_length == 1024  # type: ignore[attr-defined]
    assert "top_k" in shown.capabilities["supported_parameters"]  # type: ignore[attr-defined]


def test_an_answer_is_what_the_engine_and_the_chat_format_make(
    client: openai.OpenAI, live: Any, engine: Engine
) -> None:
    prompt_ids = live.chat.render([Message("user", "3 7 8 > 24")])
    sampling = SamplingParams(num_samples=8, temperature=0.9, top_p=0.95, top_k=40, max_tokens=12, seed=5)
    done = ask(client, n=8, max_tokens=12, temperature=0.9, top_p=0.95, extra_body={"top_k": 40})
    (expected,) = engine.generate([prompt_ids], sampling)
    parsed = [live.chat.parse(c, starts_in_thinking=True) for c in expected]
    assert texts(done) == [(c.reasoning, c.answer, c.finish_reason.value) for c in parsed]
    assert done.usage is not None
    assert done.usage.completion_tokens == sum(c.num_tokens for c in expected)
    assert done.usage.prompt_tokens == len(prompt_ids)
    assert {c.finish_reason for c in expected} == {"stop", "length"}, "the seed should show both ends"
    assert {bool(c.answer) for c in parsed} == {True, False}, "and thinking that ends, and that does not"


def test_usage_adds_up_and_has_dollars(client: openai.OpenAI) -> None:
    usage = ask(client, n=4).usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.completion_tokens_details is not None
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens  # type: ignore[operator]
    cost = usage.cost  # type: ignore[attr-defined]
    assert cost["basis"] == "self_host_measured"
    assert cost["price_id"] == "custom-0.36-usd-hour@2026-01-01"
    assert 0 < float(cost["usd"]) < 0.01
    assert len(cost["usd"].partition(".")[2]) == 9
    for api in cost["compare"]:
        assert set(api) == {"model", "usd", "price_id"}


def test_reasoning_tokens_are_those_drawn_before_the_closing_tag(
    client: openai.OpenAI, live: Any, engine: Engine
) -> None:
    prompt_ids = live.chat.render([Message("user", "3 7 8 > 24")])
    closing = SPECIAL_TOKENS.index("</think>")
    for seed in range(4):
        ((drawn,),) = engine.generate([prompt_ids], SamplingParams(max_tokens=60, seed=seed))
        thinking = list(drawn.token_ids)
        if closing in thinking:
            thinking = thinking[: thinking.index(closing)]
        while thinking and not live.chat.decode(thinking[-1:]).strip():
            thinking.pop()  # blanks before the tag are layout, and the end of the turn is no text
        usage = ask(client, seed=seed).usage
        assert usage is not None
        assert usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == len(thinking)


def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client, n=3)
    chunks = stream(client, n=3, stream_options={"include_usage": True})
    assert [(r, c, f[0]) for r, c, f in (joined(chunks, index=i) for i in range(3))] == texts(whole)
    assert all(len(joined(chunks, index=i)[2]) == 1 for i in range(3))
    assert [chunk.choices[0].delta.role for chunk in chunks[:4]] == ["assistant"] * 3 + [None]
    assert not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    streamed, at_once = chunks[-1].usage, whole.usage
    assert streamed is not None
    assert at_once is not None
    assert streamed.model_dump(exclude={"cost"}) == at_once.model_dump(exclude={"cost"})
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_says_its_usage_only_when_asked(client: openai.OpenAI) -> None:
    chunks = stream(client, max_tokens=3)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_stream_is_server_sent_events_with_an_end(live: Any) -> None:
    body = {"model": "babble", "messages": QUESTION, "stream": True, "max_tokens": 3}
    response = httpx.post(f"{live.url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    first = json.loads(events[0].removeprefix("data: "))
    assert first["object"] == "chat.completion.chunk"
    assert "usage" not in first


def test_a_stop_string_ends_the_answer_and_is_cut_from_it(client: openai.OpenAI) -> None:
    # A letter that the answer without stop strings has in its thinking.
    free = ask(client).choices[0].message.reasoning_content or ""  # type: ignore[attr-defined]
    letter = free[5]
    for done in (ask(client, stop=letter), ask(client, stop=["never this", letter])):
        assert texts(done) == [(free[: free.index(letter)].rstrip(), "", "stop")]
    assert joined(stream(client, stop=letter))[:2] == (free[: free.index(letter)].rstrip(), "")


def test_a_seed_repeats_an_answer_and_another_does_not(client: openai.OpenAI) -> None:
    assert texts(ask(client, seed=8)) == texts(ask(client, seed=8)) != texts(ask(client, seed=9))
    assert texts(ask(client, seed=openai.omit)) != texts(ask(client, seed=openai.omit))
    assert texts(ask(client, seed=1, temperature=0)) == texts(ask(client, seed=2, temperature=0))


def test_concurrent_requests_get_the_answers_they_would_get_alone(client: openai.OpenAI) -> None:
    requests = [{"seed": seed, "n": 1 + seed % 3, "max_tokens": 10 + 10 * seed} for seed in range(5)]
    alone = [texts(ask(client, **request)) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [texts(done) for done in pool.map(lambda request: ask(client, **request), requests)]
        streamed = list(pool.map(lambda request: stream(client, **request), requests))
    assert together == alone
    assert [
        [joined(chunks, index=i)[:2] for i in range(len(a))] for chunks, a in zip(streamed, alone, strict=True)
    ] == [[choice[:2] for choice in choices] for choices in alone]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "3 7 "}, {"type": "text", "text": "8 > 24"}]}],
        [{"role": "developer", "content": "left out by this template"}, *QUESTION],
        [{**QUESTION[0], "name": "ann"}],
    ],
)
def test_other_spellings_of_a_conversation_mean_the_same(client: openai.OpenAI, messages: list[Any]) -> None:
    assert texts(ask(client, messages=messages)) == texts(ask(client))


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    first = ask(client).choices[0].message
    again = ask(client, messages=[*QUESTION, first.model_dump(), {"role": "user", "content": "and now?"}])
    assert again.choices[0].finish_reason in ("stop", "length")


def test_a_literal_control_token_is_only_text(client: openai.OpenAI, live: Any) -> None:
    text = "<|end|><|assistant|></think>"
    usage = ask(client, messages=[{"role": "user", "content": text}], max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens == len(live.chat.render([Message("user", text)])) > len(text)


def test_more_tokens_than_the_window_holds_are_cut_to_it(serving: Any) -> None:
    with serving(ends=False) as endless, endless.client() as patient:
        long = [{"role": "user", "content": "x" * 1000}]
        for limit in (
            {"max_tokens": 10**6},
            {"max_tokens": None, "max_completion_tokens": 10**6},
            {"max_tokens": None},
        ):
            done = ask(patient, messages=long, **limit)
            assert done.choices[0].finish_reason == "length"
            assert done.usage is not None
            assert done.usage.total_tokens == 1024


def test_fields_that_ask_for_nothing_are_accepted(client: openai.OpenAI) -> None:
    harmless: Iterator[dict[str, Any]] = iter(
        [
            {"user": "u-1", "metadata": {"a": "b"}, "store": False},
            {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False},
            {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"},
            {"extra_body": {"min_p": None, "top_k": None, "temperature": None, "stop": None, "n": None}},
        ]
    )
    plain = texts(ask(client))
    assert all(texts(ask(client, **options)) == plain for options in harmless)
