"""Rate limits on our side: at most so many requests and tokens in any 60 seconds."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from aha.client.clock import Clock

WINDOW_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 1.0  # a reply that used fewer tokens than feared makes room before the window moves on


@dataclass
class Admission:
    """A request that was let through."""

    at: float
    """On the clock's monotonic scale."""
    num_tokens: int
    """At first the most that the request can use; set it to what it did use once that is known."""


class RateLimiter:
    """A sliding window over the requests of the last minute, first come, first served. For one event loop.

    Args:
        requests_per_minute: 0 is no limit. Retries count.
        tokens_per_minute: prompt and completion together; 0 is no limit. A request that alone is larger waits until
            nothing else is in the window.
    """

    def __init__(self, clock: Clock, *, requests_per_minute: int = 0, tokens_per_minute: int = 0) -> None:
        self._clock = clock
        self._max_requests = requests_per_minute
        self._max_tokens = tokens_per_minute
        self._recent: deque[Admission] = deque()
        self._paused_until = 0.0
        self._turn = asyncio.Lock()  # fair: waiters are woken in the order in which they came

    async def admit(self, num_tokens: int) -> Admission:
        """Wait until a request that may use so many tokens keeps both limits, and count it."""
        async with self._turn:
            while (wait := self._seconds_to_wait(num_tokens)) > 0:
                await self._clock.sleep(min(wait, LOOK_AGAIN_SECONDS) if self._max_tokens else wait)
            admission = Admission(self._clock.monotonic(), num_tokens)
            if self._max_requests or self._max_tokens:
                self._recent.append(admission)
            return admission

    def pause(self, seconds: float) -> None:
        """Let nothing through for a while: the server has asked for it, and means all of us."""
        self._paused_until = max(self._paused_until, self._clock.monotonic() + seconds)

    def _seconds_to_wait(self, num_tokens: int) -> float:
        now = self._clock.monotonic()
        while self._recent and self._recent[0].at + WINDOW_SECONDS <= now:
            self._recent.popleft()
        ready_at = self._paused_until
        if self._max_requests and len(self._recent) >= self._max_requests:
            ready_at = max(ready_at, self._recent[-self._max_requests].at + WINDOW_SECONDS)
        if self._max_tokens:
            ready_at = max(ready_at, self._tokens_free_at(num_tokens))
        return ready_at - now

    def _tokens_free_at(self, num_tokens: int) -> float:
        num_used = sum(admission.num_tokens for admission in self._recent)
        free_at = 0.0
        for admission in self._recent:
            if num_used + num_tokens <= self._max_tokens:
                break
            num_used -= admission.num_tokens
            free_at = admission.at + WINDOW_SECONDS
        return free_at
