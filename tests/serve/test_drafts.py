"""A server whose model drafts: the same answers, the drafts in its usage, and a fair division of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from aha.chat import ChatFormat
from aha.engine import EngineEvent
from aha.models import Transformer
from aha.serve.engine_thread import EngineThread, Job
from aha.types import SamplingParams
from tests.serve.conftest import Live, make_engine, make_model, serve

Drafting = tuple[Transformer, Live]
QUESTION: list[Any] = [{"role": "user", "content": "3 7 8 > 24"}]


@pytest.fixture(scope="module")
def drafting(chat: ChatFormat) -> Iterator[Drafting]:
    """A model whose module sees the last token's embedding alone, as most of what the model itself says goes by."""
    model = make_model(chat, num_mtp_layers=1)
    width = model.config.hidden_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("eh_proj.weight"):
                parameter.copy_(torch.eye(width, 2 * width))
            elif "o_proj" in name or "down_proj" in name:
                parameter.zero_()
    with serve(chat, model, speculation="always") as live:
        yield model, live


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="babble", messages=QUESTION, max_tokens=60, seed=1, n=3, **fields)


def test_drafts_change_no_answer_and_are_counted_in_the_usage(chat: ChatFormat, drafting: Drafting) -> None:
    model, live = drafting
    with serve(chat, model) as plain, plain.client() as one, live.client() as other:
        expected, done = ask(one), ask(other)
    assert [c.message.model_dump() for c in done.choices] == [c.message.model_dump() for c in expected.choices]
    assert done.usage.completion_tokens == expected.usage.completion_tokens
    details = done.usage.completion_tokens_details
    assert details.accepted_prediction_tokens == live.engine.num_accepted_tokens > 0
    assert details.rejected_prediction_tokens == live.engine.num_drafted_tokens - live.engine.num_accepted_tokens
    none = expected.usage.completion_tokens_details
    assert (none.accepted_prediction_tokens, none.rejected_prediction_tokens) == (0, 0)


def test_a_stream_of_drafted_tokens_joined_is_the_whole_answer(drafting: Drafting) -> None:
    _, live = drafting
    with live.client() as client:
        whole = ask(client)
        texts = ["", "", ""]
        for chunk in ask(client, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
                texts[choice.index] += choice.delta.content or ""
    assert texts == [(c.message.reasoning_content or "") + (c.message.content or "") for c in whole.choices]


def test_a_step_is_charged_by_rows_however_many_tokens_each_wrote(chat: ChatFormat, drafting: Drafting) -> None:
    model, _ = drafting

    async def main() -> list[int]:
        thread = EngineThread(make_engine(chat, model))
        jobs = [Job([1, 2], SamplingParams()) for _ in range(2)]
        thread._running = dict(enumerate(jobs))
        events = [EngineEvent(0, 0, 5, -1.0, None) for _ in range(3)] + [EngineEvent(1, 0, 5, -1.0, None)]
        thread._charge({0: events[:3], 1: events[3:]}, elapsed_ns=100)
        return [job.engine_ns for job in jobs]

    assert asyncio.run(main()) == [50, 50]
