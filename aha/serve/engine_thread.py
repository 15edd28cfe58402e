"""One thread owns the engine: requests reach it through a queue, and their tokens come back to asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aha.engine import Engine, EngineEvent
from aha.errors import AhaError
from aha.serve.errors import EngineUnavailableError, ServerBusyError
from aha.types import SamplingParams

MAX_PENDING = 128
"""Completions under way, running and waiting, beyond which requests are refused."""
MAX_PIXEL_BYTES = 2**30
"""Tiles of pictures under way (2.4 MB each for 448 pixels) beyond which requests with pictures are refused."""
MAX_PREFILL_TOKENS = 8192
"""Prompt tokens let in before the running completions get their next token, unless one prompt alone is longer."""
STALL_SECONDS = 120.0
"""A step that takes longer means that the engine hangs: the longest prefill on a slow CPU stays below it."""
_log = logging.getLogger(__name__)


class Job:
    """One request under way, made by `EngineThread.submit`. Everything public belongs to the event loop."""

    def __init__(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, pixels_M3YX: NDArray[np.float32] | None = None
    ) -> None:
        self.prompt_ids = prompt_ids
        self.sampling = sampling
        self.pixels_M3YX = pixels_M3YX
        """Tiles of the prompt's pictures, if it has any, until the engine has taken them."""
        self.num_pixel_bytes = 0 if pixels_M3YX is None else pixels_M3YX.nbytes
        self.engine_ns = 0
        """Nanoseconds of the engine's time that this request has used: its share of every step it took part in."""
        self.num_drawn_tokens = 0
        """Tokens drawn for all its completions, whether anybody read them or not."""
        self.num_accepted_drafts = 0
        """Of these, tokens that had been drafted."""
        self.num_rejected_drafts = 0
        self.is_cancelled = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the engine has let go of the request and `engine_ns` is final."""
        self._inbox: asyncio.Queue[list[EngineEvent] | AhaError | None] = asyncio.Queue()
        self._num_unfinished = sampling.num_samples

    async def events(self, *, idle_seconds: float) -> AsyncIterator[list[EngineEvent]]:
        """The tokens as they are drawn, step by step, until every completion has ended or the job is cancelled.

        Args:
            idle_seconds: after as much silence comes an empty list, so that the caller can show it is alive.

        Raises:
            RequestError: the engine cannot take the prompt.
            EngineUnavailableError: the engine stopped before the end.
        """
        while True:
            try:
                async with asyncio.timeout(idle_seconds):
                    received = await self._inbox.get()
            except TimeoutError:
                received = []
            if received is None:
                return
            if isinstance(received, AhaError):
                raise received
            yield received


class _Command(NamedTuple):
    kind: Literal["run", "cancel", "stop"]
    job: Job | None = None


class _News(NamedTuple):
    """What the engine thread tells the event loop about one job."""

    job: Job
    events: list[EngineEvent]
    error: AhaError | None = None
    has_ended: bool = False


class EngineThread:
    """Runs an engine for many requests. All methods are for the event loop in which `start` was called.

    Args:
        engine: from `start` to `stop`, nobody else may touch it.
        max_pending: see MAX_PENDING.
    """

    def __init__(self, engine: Engine, *, max_pending: int = MAX_PENDING) -> None:
        self.engine = engine
        self.max_pending = max_pending
        self.has_failed = False
        """Whether only a restart helps."""
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._live: set[Job] = set()
        self._thread = threading.Thread(target=self._run, name="aha-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem = "the server is not started"
        self._step_began: float | None = None
        # From here on the engine thread's own.
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._has_just_prefilled = False

    @property
    def problem(self) -> str:
        """Why no request can be answered now; "" when the engine is well."""
        began = self._step_began
        if not self._problem and began is not None and time.monotonic() - began > STALL_SECONDS:
            return f"the engine has been busy with one step for more than {STALL_SECONDS:.0f} seconds"
        return self._problem

    @property
    def num_pending(self) -> int:
        """Completions under way, running and waiting."""
        return sum(job.sampling.num_samples for job in self._live)

    def start(self) -> None:
        """Begin to take requests."""
        self._loop = asyncio.get_running_loop()
        self._problem = ""
        self._thread.start()

    async def stop(self) -> None:
        """Fail what is under way and wait for the thread; the step it is in is finished."""
        self._problem = "the server is shutting down"
        self._commands.put(_Command("stop"))
        await asyncio.to_thread(self._thread.join, STALL_SECONDS)

    def check_open(self, num_samples: int = 1) -> None:
        """Whether a request for so many completions would be taken now.

        Raises:
            ServerBusyError: too much is under way.
            EngineUnavailableError: the engine is not well.
        """
        if self.problem:
            raise EngineUnavailableError(self.problem)
        if self._live and self.num_pending + num_samples > self.max_pending:
            raise ServerBusyError(f"{self.num_pending} completions are under way, the most this server takes; retry")

    def submit(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, pixels_M3YX: NDArray[np.float32] | None = None
    ) -> Job:
        """Hand a request to the engine, with the tiles of its pictures. Raises as `check_open`."""
        self.check_open(sampling.num_samples)
        job = Job(prompt_ids, sampling, pixels_M3YX=pixels_M3YX)
        held = sum(other.num_pixel_bytes for other in self._live)
        if job.num_pixel_bytes and held and held + job.num_pixel_bytes > MAX_PIXEL_BYTES:
            raise ServerBusyError("the pictures of other requests take all the memory there is for them; retry")
        self._live.add(job)
        self._commands.put(_Command("run", job))
        return job

    def cancel(self, job: Job) -> None:
        """Withdraw a request: its rows are free after the step that is being computed. Ended ones stay as they are."""
        if not job.ended.done() and not job.is_cancelled:
            job.is_cancelled = True
            self._commands.put(_Command("cancel", job))
            job._inbox.put_nowait(None)

    def _run(self) -> None:
        try:
            while self._obey():
                self._let_in()
                if self.engine.has_work:
                    self._step()
        except Exception:  # noqa: BLE001 - the thread's boundary: nobody above catches, and every caller waits
            _log.exception("the engine failed; the server must be restarted")
            self.has_failed = True
            self._problem = "the engine failed; the server must be restarted"
        self._in_loop(self._fail_all)

    def _obey(self) -> bool:
        """Carry out the commands that have come, waiting for one if there is nothing to compute. False: stop."""
        is_idle = not self._waiting and not self._running
        while is_idle or not self._commands.empty():
            kind, job = self._commands.get()
            is_idle = False
            if job is None:
                return False
            if kind == "run":
                self._waiting.append(job)
            else:
                self._withdraw(job)
        return True

    def _withdraw(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
            self._tell([_News(job, [], has_ended=True)])
        for request_id in [i for i, running in self._running.items() if running is job]:
            self.engine.abort(request_id)
            del self._running[request_id]
            self._tell([_News(job, [], has_ended=True)])

    def _let_in(self) -> None:
        """Give waiting requests to the engine, a bounded number of prompt tokens at a time.

        Between two prefills every running completion gets a token, so that long prompts of some do not stop others.
        """
        if self.engine.num_waiting or (self._has_just_prefilled and self.engine.num_running):
            return
        num_tokens = 0
        while self._waiting:
            job = self._waiting[0]
            num_tokens += len(job.prompt_ids)
            if num_tokens > MAX_PREFILL_TOKENS and num_tokens > len(job.prompt_ids):
                return
            self._waiting.popleft()
            try:
                pixels_M3YX = None if job.pixels_M3YX is None else torch.from_numpy(job.pixels_M3YX)
                request_id = self.engine.submit(job.prompt_ids, job.sampling, pixels_M3YX=pixels_M3YX)
                self._running[request_id] = job
                job.pixels_M3YX = None
            except AhaError as error:
                self._tell([_News(job, [], error, has_ended=True)])

    def _step(self) -> None:
        num_prefilled = self.engine.num_prefilled_tokens
        self._step_began = time.monotonic()
        began_ns = time.perf_counter_ns()
        events = self.engine.step()
        elapsed_ns = time.perf_counter_ns() - began_ns
        self._step_began = None
        self._has_just_prefilled = self.engine.num_prefilled_tokens > num_prefilled
        by_request: dict[int, list[EngineEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        look = self.engine.queue.unseen.last_look
        if look is not None:
            self._running[look.request_id].engine_ns += look.elapsed_ns
            elapsed_ns -= look.elapsed_ns
        self._charge(by_request, elapsed_ns=elapsed_ns)
        self._tell([self._news(request_id, of_request) for request_id, of_request in by_request.items()])

    def _charge(self, by_request: dict[int, list[EngineEvent]], *, elapsed_ns: int) -> None:
        """Divide the step's time among those it worked for: by prompt tokens in a prefill, else by rows."""
        shares = {
            request_id: len(self._running[request_id].prompt_ids)
            if self._has_just_prefilled
            else len({event.sample_index for event in events})  # a row whose drafts were right has several events
            for request_id, events in by_request.items()
        }
        for request_id, share in shares.items():
            self._running[request_id].engine_ns += elapsed_ns * share // sum(shares.values())

    def _news(self, request_id: int, events: list[EngineEvent]) -> _News:
        job = self._running[request_id]
        job._num_unfinished -= sum(1 for event in events if event.finish_reason is not None)
        error = None
        if any(event.token_id is None for event in events):
            self.engine.abort(request_id)
            error = EngineUnavailableError("the model's weights changed while it was answering; ask again")
        has_ended = error is not None or job._num_unfinished == 0
        if has_ended:
            del self._running[request_id]
        return _News(job, events, error, has_ended)

    def _tell(self, news: list[_News]) -> None:
        self._in_loop(lambda: self._deliver(news))

    def _in_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None, "start() sets the loop before the thread runs"
        # RuntimeError: the loop is closed because the process is being torn down; nobody listens any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _deliver(self, news: list[_News]) -> None:
        """In the event loop: hand tokens to those who wait for them."""
        for job, events, error, has_ended in news:
            job.num_drawn_tokens += sum(1 for event in events if event.token_id is not None)
            job.num_accepted_drafts += sum(event.was_drafted for event in events)
            job.num_rejected_drafts += sum(event.num_rejected_drafts for event in events)
            if not job.is_cancelled:
                job._inbox.put_nowait(error or events)
            if has_ended and not job.ended.done():
                self._live.discard(job)
                job._inbox.put_nowait(None)
                job.ended.set_result(None)

    def _fail_all(self) -> None:
        """In the event loop, after the last step: `_live` also holds jobs whose command was never read."""
        error = EngineUnavailableError(self._problem)
        self._deliver([_News(job, [], error, has_ended=True) for job in self._live])
