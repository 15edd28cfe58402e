"""POST /v1/chat/completions: from a checked request to an answer, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from fastapi.concurrency import run_in_threadpool

from aha.chat import ChatFormat
from aha.engine import EngineEvent
from aha.errors import AhaError, RequestError
from aha.images import stack_pixels
from aha.serve.engine_thread import EngineThread, Job
from aha.serve.errors import ApiError, to_api_error
from aha.serve.metering import Meter
from aha.serve.openai import ChatRequest, delta_choice, event_bytes, message_choice, usage_body
from aha.serve.pictures import PictureIntake
from aha.streaming import Delta, StreamSplitter
from aha.types import FinishReason, Usage

PATH = "/v1/chat/completions"
KEEP_ALIVE_SECONDS = 15.0
"""Longest silence of a stream: proxies and clients give up on connections that say nothing."""
_FIELDS = {"reasoning": "reasoning_content", "content": "content"}


class ChatCompletions:
    """Answers chat requests with one model."""

    def __init__(
        self, engine: EngineThread, *, chat: ChatFormat, intake: PictureIntake, meter: Meter, model_name: str
    ) -> None:
        self._engine = engine
        self._chat = chat
        self._intake = intake
        self._meter = meter
        self._model_name = model_name
        self._window = engine.engine.model.config.max_position_embeddings

    async def begin(self, request: ChatRequest) -> Answer:
        """Render the conversation and hand it to the engine.

        Raises:
            ApiError: another model is asked for.
            RequestError: the conversation does not fit the model's window or its template, or has a picture that
                cannot be used.
            ServerBusyError, EngineUnavailableError: it cannot be taken now.
        """
        if request.model != self._model_name:
            said = f"the model {request.model[:60]!r} is not served here; choose from: {self._model_name}"
            raise ApiError(404, said, param="model", code="model_not_found")
        self._engine.check_open(request.n or 1)
        messages = await self._intake.messages(request)
        # In a thread: two megabytes of text take the tokenizer a while, and streams must flow meanwhile.
        prompt_ids = await run_in_threadpool(self._chat.render, messages)
        room = self._window - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"prompt has {len(prompt_ids)} tokens, the model's window is {self._window} and must hold an answer "
                "too; shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )
        sampling = request.sampling(room=room)
        is_thinking = self._chat.starts_in_thinking(prompt_ids)
        splitters = [self._chat.splitter(is_thinking, stop=sampling.stop) for _ in range(sampling.num_samples)]
        job = self._engine.submit(prompt_ids, sampling, pixels_M3YX=stack_pixels(messages))
        return Answer(job, splitters=splitters, engine=self._engine, meter=self._meter, model_name=self._model_name)


class Piece(NamedTuple):
    """Something new about one completion: text, or that it has ended."""

    choice_index: int
    delta: Delta | None = None
    finish_reason: FinishReason | None = None


class Answer:
    """A request under way and what is known of its completions."""

    def __init__(
        self, job: Job, *, splitters: Sequence[StreamSplitter], engine: EngineThread, meter: Meter, model_name: str
    ) -> None:
        self._job = job
        self._engine = engine
        self._meter = meter
        self._choices = [_Choice(index, splitter) for index, splitter in enumerate(splitters)]
        self._entry: Future[None] | None = None
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model_name,
        }

    def cancel(self) -> None:
        """Withdraw the request, which ends `whole` and `chunks`; one that has ended stays as it is."""
        self._engine.cancel(self._job)

    def close(self) -> None:
        """Call once, at the end: withdraws what still runs and enters what was used, also when the caller has gone."""
        self.cancel()
        self._job.ended.add_done_callback(lambda _: self._book())

    async def whole(self) -> dict[str, Any]:
        """The body of the response, once every completion has ended. Raises as `Job.events`."""
        async for _ in self._pieces():
            pass
        choices = [choice.to_body() for choice in self._choices]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": await self._usage_body()}

    async def chunks(self, *, includes_usage: bool) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events. An error in the middle is the last event: no [DONE] follows it."""
        extra: dict[str, Any] = {"usage": None} if includes_usage else {}
        head = {**self._head, "object": "chat.completion.chunk", **extra}
        try:
            for choice in self._choices:
                first = delta_choice(choice.index, {"role": "assistant", "content": ""})
                yield event_bytes({**head, "choices": [first]})
            async for piece in self._pieces():
                if piece is None:
                    yield b": keep-alive\n\n"
                    continue
                text = {} if piece.delta is None else {_FIELDS[piece.delta.kind]: piece.delta.text}
                choice_body = delta_choice(piece.choice_index, text, finish_reason=piece.finish_reason)
                yield event_bytes({**head, "choices": [choice_body]})
            if self._job.is_cancelled:
                return
            usage = await self._usage_body()
            if includes_usage:
                yield event_bytes({**head, "choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
        except AhaError as error:
            yield event_bytes(to_api_error(error).body)

    async def _pieces(self) -> AsyncIterator[Piece | None]:
        """What becomes known, as it does; None after a silence of KEEP_ALIVE_SECONDS."""
        async for events in self._job.events(idle_seconds=KEEP_ALIVE_SECONDS):
            if not events:
                yield None
            for event in events:
                for piece in self._choices[event.sample_index].push(event):
                    yield piece

    def _book(self) -> Future[None]:
        """Enter what was used, once, when the job has ended."""
        if self._entry is None:
            self._entry = self._meter.record(
                self._usage(),
                engine_ns=self._job.engine_ns,
                path=PATH,
                request_id=self._head["id"],
                weight_version=self._engine.engine.model.weight_version,
            )
        return self._entry

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self._job.prompt_ids),
            completion_tokens=self._job.num_drawn_tokens,
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self._choices),
            accepted_prediction_tokens=self._job.num_accepted_drafts,
            rejected_prediction_tokens=self._job.num_rejected_drafts,
        )

    async def _usage_body(self) -> dict[str, Any]:
        await self._job.ended
        # An answer is final only when it is in the books: this is the last thing before its end is sent.
        # Shielded: a caller who leaves now does not take the entry along.
        await asyncio.shield(asyncio.wrap_future(self._book()))
        cost = self._meter.cost_nano_usd(self._job.engine_ns)
        usage = self._usage()
        listed = self._meter.listed_costs(usage)
        return usage_body(usage, cost_nano_usd=cost, price_id=self._meter.price.price_id, listed=listed)


class _Choice:
    """One completion: its text so far, by kind."""

    def __init__(self, index: int, splitter: StreamSplitter) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        """Tokens up to the last one that added to the thinking; the closing tag does not count."""
        self._splitter = splitter
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._finish_reason: FinishReason | None = None

    def push(self, event: EngineEvent) -> list[Piece]:
        assert event.token_id is not None, "a withdrawn completion reaches nobody: its job fails"
        self.num_tokens += 1
        deltas = self._splitter.push(event.token_id)
        if event.finish_reason is not None:
            deltas += self._splitter.finish()
        for delta in deltas:
            self._texts[delta.kind].append(delta.text)
            if delta.kind == "reasoning":
                self.num_reasoning_tokens = self.num_tokens
        pieces = [Piece(self.index, delta) for delta in deltas]
        if event.finish_reason is not None:
            self._finish_reason = event.finish_reason
            pieces.append(Piece(self.index, finish_reason=event.finish_reason))
        return pieces

    def to_body(self) -> dict[str, Any]:
        reasoning, content = ("".join(self._texts[kind]) for kind in ("reasoning", "content"))
        reason = self._finish_reason or FinishReason.ABORT
        return message_choice(self.index, reasoning=reasoning, content=content, finish_reason=reason)
