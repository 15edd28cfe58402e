"""The client: chat, respond and stream on one endpoint, within limits, within a budget, and never paid twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import queue
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakValueDictionary

from aha.client.account import Account, Charge, read_budget
from aha.client.clock import Clock
from aha.client.endpoint import Endpoint, EndpointError, Reply
from aha.client.journal import Journal
from aha.client.limits import RateLimiter
from aha.client.loop import LoopThread
from aha.client.retries import FailedAttempt, backoff_seconds
from aha.client.streams import StreamSink
from aha.client.transport import Transport
from aha.client.wire import (
    MAX_NAME_CHARS,
    estimate_usage,
    read_answer,
    request_body,
    reword,
    rewording_for,
    worst_usage,
)
from aha.errors import AhaError, ConfigError
from aha.types import Completion, Delta, Message, SamplingParams, Usage

_log = logging.getLogger(__name__)

QUIET_RETRIES = 1
"""Attempts that are made again without a word; they are over within a second or two."""


class Client:
    """Asks one endpoint. A context manager; threads may share it, processes make their own.

    Args:
        max_retries: attempts after the first; errors that cannot pass (most 4xx) are not retried.
        timeout_seconds: of one attempt from connecting to the last byte, by the wall clock.
        requests_per_minute, tokens_per_minute: in any 60 seconds; 0 is no limit.
        budget_usd: never exceeded, what the journal already holds included; None is no budget, 0 pays for nothing.
        max_concurrency: requests under way at a time, over all threads.
        journal: file that keeps every paid reply and every cost; None keeps nothing.
        on_notice: gets what the user should know, once a kind, from another thread; None logs it as warnings.
        seed: of the jitter between retries.
        clock: for tests.

    Raises:
        ConfigError: a number out of range, or a budget without a price.
        DataError: a journal that cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        max_retries: int = 5,
        timeout_seconds: float = 120.0,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        budget_usd: float | None = None,
        max_concurrency: int = 8,
        journal: Path | None = None,
        on_notice: Callable[[str], None] | None = None,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        checks = (
            (max_retries >= 0, "max_retries must be 0 or more", max_retries),
            (0 < timeout_seconds < math.inf, "timeout_seconds must be above 0", timeout_seconds),
            (requests_per_minute >= 0, "requests_per_minute must be 0 (no limit) or more", requests_per_minute),
            (tokens_per_minute >= 0, "tokens_per_minute must be 0 (no limit) or more", tokens_per_minute),
            (max_concurrency >= 1, "max_concurrency must be at least 1", max_concurrency),
        )
        for is_ok, rule, value in checks:
            if not is_ok:
                raise ConfigError(f"{rule}, got {value!r}")
        budget = read_budget(budget_usd, price=endpoint.price)
        self.endpoint = endpoint
        self.num_requests = 0
        """Attempts that went out."""
        self.num_retries = 0
        """Attempts after the first of their request."""
        self._max_retries = max_retries
        self._max_concurrency = max_concurrency
        self._seed = seed
        self._on_notice = on_notice or _log.warning
        self._noticed: set[str] = set()
        self._rewordings: frozenset[str] = frozenset()
        self._clock = clock or Clock()
        self._limiter = RateLimiter(
            self._clock, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
        )
        self._slots = asyncio.Semaphore(max_concurrency)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._transport = Transport(
            endpoint, timeout_seconds=timeout_seconds, max_connections=max_concurrency, clock=self._clock
        )
        self._journal = Journal.open(journal) if journal else None
        self._account = Account(endpoint.price, budget_nano_usd=budget, journal=self._journal, say=self._say)
        self._loop = LoopThread(on_close=self._transport.close)
        self._say_what_is_odd()

    @property
    def spent_nano_usd(self) -> int:
        """Entered as spent, what the journal held at the start included; 0 without a price. Never becomes less."""
        return self._account.spent_nano_usd

    def chat(self, messages: Sequence[Message], sampling: SamplingParams, *, sample_index: int = 0) -> Reply:
        """One answer. `sampling.num_samples` is not looked at.

        Args:
            sample_index: tells samples of one conversation apart, in the journal and in the seed.

        Raises:
            BudgetExceededError: its worst case does not fit what is left of the budget.
            EndpointError: no usable answer.
            DataError: the journal cannot be written.
        """
        request = self._request(messages, sampling=sampling, sample_index=sample_index)
        return self._loop.call(self._ask(request)).wait()

    def respond(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        """`num_samples` completions of each conversation, in order: an `aha.evaluate.Respond`.

        A conversation that occurs twice gets other samples the second time. At the first failure nothing new is sent;
        what is under way is waited for, since it is paid for, and kept in the journal. Ctrl-C waits for nothing.

        Raises:
            BudgetExceededError, EndpointError, DataError: as `chat`; the budget only once nothing is reserved that
                may turn out cheaper.
        """
        return self._loop.call(self._respond(conversations, sampling)).wait()

    def stream(
        self, messages: Sequence[Message], sampling: SamplingParams, *, starts_in_thinking: bool = False
    ) -> Generator[Delta, None, Reply]:
        """Pieces of one answer as they come; the generator's return value is the whole. Its cost is journaled, its
        text is not. A stream that breaks after its first piece is not retried.

        Args:
            starts_in_thinking: whether the endpoint's prompt opens the thinking, so that the content begins with it.

        Raises:
            BudgetExceededError, EndpointError, DataError: as `chat`, while it is iterated over.
        """
        pieces: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        request = self._request(messages, sampling=sampling, sample_index=0)
        body = {**request.body, "stream": True, "stream_options": {"include_usage": True}}
        sink = StreamSink(pieces.put, starts_in_thinking=starts_in_thinking)
        call = self._loop.call(self._ask(request._replace(body=body), sink=sink))
        call.future.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            return call.wait()
        finally:
            call.cancel()

    def close(self) -> None:
        """End what is under way, entered at its worst case, and free the journal for others."""
        self._loop.close()
        if self._journal:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, messages: Sequence[Message], *, sampling: SamplingParams, sample_index: int) -> _Request:
        body = request_body(messages, sampling=sampling, endpoint=self.endpoint, sample_index=sample_index)
        identity = {"base_url": self.endpoint.base_url, "body": body, "sample_index": sample_index}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii")).hexdigest()
        return _Request(key, body, worst_usage(messages, max_tokens=sampling.max_tokens))

    async def _respond(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        jobs = _spread(conversations, num_samples=sampling.num_samples)
        done: dict[tuple[int, int], Completion] = {}
        failures: list[AhaError] = []

        async def work() -> None:
            for job in jobs:  # shared: each worker takes the next one
                if failures:
                    return
                index = sampling.first_sample + job.sample_index
                request = self._request(job.messages, sampling=sampling, sample_index=index)
                try:
                    done[job.row, job.column] = _to_completion(await self._ask(request, waits=True))
                except AhaError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as workers:
            for _ in range(self._max_concurrency):
                workers.create_task(work())
        if failures:
            raise failures[0]
        columns = range(sampling.num_samples)
        return [[done[row, column] for column in columns] for row in range(len(conversations))]

    async def _ask(self, request: _Request, *, waits: bool = False, sink: StreamSink | None = None) -> Reply:
        """From the journal, else from the endpoint. Equal requests go one after the other, so the second finds it."""
        if self._journal is None or sink is not None:
            async with self._slots:
                return await self._try(request, waits=waits, sink=sink)
        async with self._turns.setdefault(request.key, asyncio.Lock()):
            paid = self._journal.find(request.key)
            if paid is not None:
                return paid
            async with self._slots:
                return await self._try(request, waits=waits, sink=None)

    async def _try(self, request: _Request, *, waits: bool, sink: StreamSink | None) -> Reply:
        attempt = 0
        while True:
            rewordings = self._rewordings
            body = reword(request.body, rewordings=rewordings)
            try:
                return await self._attempt(request._replace(body=body), waits=waits, sink=sink)
            except FailedAttempt as failure:
                has_begun = sink is not None and sink.has_begun
                asked = failure.retry_after_seconds
                if asked:
                    self._limiter.pause(asked)
                if self._learns_from(failure, body=request.body, rewordings=rewordings):
                    continue
                if attempt == self._max_retries or not failure.is_retryable or has_begun:
                    raise self._give_up(failure, num_attempts=attempt + 1) from None
                if attempt == QUIET_RETRIES:  # from here on a caller waits for seconds and should know why
                    said = self.endpoint.quote(failure.reason)
                    self._say("retrying", f"{self.endpoint.base_url} {said}; trying again")
            await self._clock.sleep(backoff_seconds(attempt, seed=f"{self._seed}/{request.key}", asked_seconds=asked))
            attempt += 1
            self.num_retries += 1

    async def _attempt(self, request: _Request, *, waits: bool, sink: StreamSink | None) -> Reply:
        charge = await self._account.reserve(request.worst, waits=waits)
        if sink:
            sink.restart()
        try:
            admission = await self._limiter.admit(request.worst.prompt_tokens + request.worst.completion_tokens)
            charge.send(request.key)
            self.num_requests += 1
            started = self._clock.monotonic()
            try:
                body = await self._transport.post(request.body, on_chunk=sink.push if sink else None)
                reply = self._read(body, request=request, charge=charge, started=started)
            except FailedAttempt as failure:
                cost = charge.cost_of(failure.usage) if failure.is_paid else 0
                if not failure.is_paid:
                    admission.num_tokens = 0
                charge.lose(cost, why=self.endpoint.quote(failure.reason))
                raise
            charge.pay(reply, key=request.key, is_kept=sink is None)
            admission.num_tokens = reply.usage.prompt_tokens + reply.usage.completion_tokens
            if sink:
                sink.finish(reply)
            return reply
        finally:
            charge.close()

    def _read(self, body: Mapping[str, Any], *, request: _Request, charge: Charge, started: float) -> Reply:
        answer = read_answer(body, worst=request.worst)
        if answer.usage is None:
            self._say("usage", f"{self.endpoint.base_url} gives no token counts that can be true; its answers are "
                      "counted by their length and entered at the most they can cost")  # fmt: skip
        if answer.unknown_finish_reason:
            said = self.endpoint.quote(answer.unknown_finish_reason)
            self._say("finish_reason", f"unknown finish_reason {said!r} is taken for 'stop'")
        hide = self.endpoint.hide_key
        return Reply(
            content=hide(answer.content),
            reasoning=hide(answer.reasoning),
            finish_reason=answer.finish_reason,
            usage=answer.usage or estimate_usage(answer, worst=request.worst),
            cost_nano_usd=charge.cost_of(answer.usage),
            model=hide(answer.model)[:MAX_NAME_CHARS] or self.endpoint.model,
            latency_seconds=self._clock.monotonic() - started,
            is_usage_estimated=answer.usage is None,
        )

    def _learns_from(self, failure: FailedAttempt, *, body: Mapping[str, Any], rewordings: frozenset[str]) -> bool:
        """Whether the server refused words, not the request, and it can be sent again in others."""
        wanted = rewording_for(failure.reason, body=body) if failure.status in (400, 422) else ""
        if not wanted or wanted in rewordings:
            return False
        self._rewordings |= {wanted}
        self._say(wanted, f"{self.endpoint.base_url} refuses a field; its requests are sent with {wanted}")
        return True

    def _give_up(self, failure: FailedAttempt, *, num_attempts: int) -> EndpointError:
        tried = f" ({num_attempts} attempts)" if num_attempts > 1 else ""
        fix = f"; {failure.fix}" if failure.fix else ""
        said = self.endpoint.quote(failure.reason)
        message = f"{self.endpoint.base_url}, model {self.endpoint.model!r}, {said}{tried}{fix}"
        return EndpointError(message, status=failure.status, num_attempts=num_attempts)

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._noticed:
            self._noticed.add(kind)
            self._on_notice(text)

    def _say_what_is_odd(self) -> None:
        if self.endpoint.sends_key_in_clear:
            self._say("clear", f"{self.endpoint.base_url} is not encrypted: others on the network can read the key")
        if self._journal and self._journal.num_unsettled:
            usd = self._journal.unsettled_nano_usd / 1e9
            self._say("unsettled", f"{self._journal.num_unsettled} requests were under way when {self._journal.path} "
                      f"was last written; they count with the most they can have cost, ${usd:.6f}")  # fmt: skip


class _Request(NamedTuple):
    """What goes out for one completion."""

    key: str
    """Hash of everything that makes it this request; what the journal knows it by."""
    body: dict[str, Any]
    worst: Usage
    """The most tokens it can use."""


class _Job(NamedTuple):
    """One completion of `respond`."""

    row: int
    column: int
    messages: list[Message]
    sample_index: int


def _spread(conversations: list[list[Message]], *, num_samples: int) -> Iterator[_Job]:
    seen: Counter[tuple[Message, ...]] = Counter()
    for row, messages in enumerate(conversations):
        first = seen[tuple(messages)] * num_samples
        seen[tuple(messages)] += 1
        for column in range(num_samples):
            yield _Job(row, column, messages, first + column)


def _to_completion(reply: Reply) -> Completion:
    return Completion(
        token_ids=(),
        logprobs=(),
        finish_reason=reply.finish_reason,
        text=reply.text,
        reasoning=reply.reasoning,
        answer=reply.content,
        reported_tokens=reply.usage.completion_tokens,
        cost_nano_usd=reply.cost_nano_usd,
        usage=reply.usage,
        is_paid_before=reply.is_from_journal,
    )
