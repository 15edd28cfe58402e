"""An event loop in a thread of its own, and calls into it that any thread can wait for and any interrupt ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, Generic, TypeVar

from aha.client.endpoint import EndpointError

STOP_SECONDS = 5.0
T = TypeVar("T")


class Call(Generic[T]):
    """A coroutine under way in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: Future[T] = Future()
        """Done only when the coroutine has ended, its clean-up included."""
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._begin)

    def wait(self) -> T:
        """The result. An interrupt (Ctrl-C) of the waiting thread ends the coroutine too.

        Raises:
            EndpointError: the client was closed in the meantime.
        """
        try:
            return self.future.result()
        except CancelledError:
            raise EndpointError("the client was closed while a request was under way") from None
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End the coroutine and wait until it has ended; nothing to do when it has."""
        if not self.future.done():
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
            wait([self.future], timeout=STOP_SECONDS)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        error = CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class LoopThread:
    """Starts at the first call; `close` ends it.

    One loop for all callers: a total time limit and an interrupt can end an `await` wherever it is, which no blocking
    read can promise, and what runs in it needs no locks.

    Args:
        on_close: awaited in the loop at its end.
    """

    def __init__(self, *, on_close: Callable[[], Awaitable[None]]) -> None:
        self._on_close = on_close
        self._start_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        # A daemon: a script that forgets to close its client ends all the same.
        self._thread = threading.Thread(target=self._run, name="aha-client", daemon=True)
        self._is_ready = threading.Event()
        self._is_closed = False

    def call(self, coroutine: Coroutine[Any, Any, T]) -> Call[T]:
        """Start a coroutine."""
        with self._start_lock:
            if self._is_closed:
                coroutine.close()
                raise RuntimeError("the client is closed; make a new one")
            if self._loop is None:
                self._thread.start()
                self._is_ready.wait()
            assert self._loop is not None
            return Call(self._loop, coroutine)

    def close(self) -> None:
        """End what is under way and the thread."""
        with self._start_lock:
            self._is_closed = True
            loop = self._loop
        if loop is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_ready.set()
        await self._stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._on_close()
