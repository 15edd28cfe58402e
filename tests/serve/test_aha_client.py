"""Our own client against our own server: answers, streams, thinking, usage and price."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from aha.client import Client, Endpoint, EndpointError, Reply
from aha.cost import custom_token_price
from aha.evaluate import evaluate
from aha.types import Delta, FinishReason, Message, SamplingParams

QUESTION = [Message("user", "3 7 8 > 24")]
SAMPLING = SamplingParams(max_tokens=60, seed=5, temperature=0.9, top_p=0.95, top_k=40)
PRICE = custom_token_price("1", usd_per_million_output="10", on=date(2026, 1, 1))


@pytest.fixture(scope="module")
def asking(live: Any) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(*, model: str = "babble", price: Any = PRICE, **options: Any) -> Client:
        made.append(Client(Endpoint(base_url=f"{live.url}/v1", model=model, price=price), **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_an_answer_is_what_the_engine_draws(asking: Callable[..., Client], live: Any, engine: Any) -> None:
    client = asking(budget_usd=1.0)
    reply = client.chat(QUESTION, SAMPLING)
    prompt_ids = live.chat.render(QUESTION)
    ((drawn,),) = engine.generate([prompt_ids], SAMPLING)
    parsed = live.chat.parse(drawn, starts_in_thinking=live.chat.starts_in_thinking(prompt_ids))
    assert (reply.reasoning, reply.content, reply.model) == (parsed.reasoning, parsed.answer, "babble")
    assert reply.finish_reason is parsed.finish_reason
    assert reply.reasoning
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt_ids), drawn.num_tokens)
    assert reply.usage.reasoning_tokens > 0
    assert not reply.is_usage_estimated
    assert reply.cost_nano_usd == len(prompt_ids) * 1_000 + drawn.num_tokens * 10_000 == client.spent_nano_usd


def drain(stream: Any) -> tuple[list[Delta], Reply]:
    deltas: list[Delta] = []
    while True:
        try:
            deltas.append(next(stream))
        except StopIteration as end:
            return deltas, end.value


def test_a_stream_joins_to_the_whole_answer(asking: Callable[..., Client]) -> None:
    client = asking()
    whole = client.chat(QUESTION, SAMPLING)
    deltas, reply = drain(client.stream(QUESTION, SAMPLING))
    assert len(deltas) > 2
    assert "".join(delta.text for delta in deltas if delta.kind == "reasoning") == whole.reasoning == reply.reasoning
    assert "".join(delta.text for delta in deltas if delta.kind == "content") == whole.content == reply.content
    assert reply.usage == whole.usage
    assert client.spent_nano_usd == 2 * whole.cost_nano_usd


def test_samples_of_a_batch_differ_and_come_from_the_journal_next_time(
    asking: Callable[..., Client], tmp_path: Path
) -> None:
    sampling = SamplingParams(num_samples=3, max_tokens=20, seed=1)
    conversations = [QUESTION, [Message("user", "2 2 > 4")]]
    client = asking(journal=tmp_path / "j.jsonl")
    first = client.respond(conversations, sampling)
    client.close()
    assert len({completion.text for row in first for completion in row}) == 6
    again = asking(journal=tmp_path / "j.jsonl")
    assert again.respond(conversations, sampling) == first
    assert again.num_requests == 0
    assert all(
        completion.finish_reason in FinishReason and completion.num_tokens for row in first for completion in row
    )


def test_the_servers_words_reach_the_user(asking: Callable[..., Client]) -> None:
    with pytest.raises(
        EndpointError, match=r"answered 404 Not Found: the model 'no' is not served here.*choose from: babble"
    ):
        asking(model="no").chat(QUESTION, SAMPLING)


def test_an_endpoint_is_evaluated_like_any_model(asking: Callable[..., Client]) -> None:
    client = asking()
    sampling = SamplingParams(max_tokens=16)
    result = evaluate("countdown", client.respond, num_problems=2, num_samples=2, sampling=sampling)
    assert result.num_completions == 4
    assert 0 < result.mean_tokens <= 16
