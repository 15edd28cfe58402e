"""Rate limits, in any 60 seconds of a clock that does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.client import Client
from aha.client.limits import RateLimiter
from aha.errors import ConfigError
from tests.client.conftest import QUESTION, SAMPLING, FakeClock, LiveEndpoint, refuse

MakeClient = Callable[..., Client]


def admitted_at(clock: FakeClock, limiter: RateLimiter, sizes: list[int], *, used: int | None = None) -> list[float]:
    async def run() -> list[float]:
        moments = []
        for size in sizes:
            admission = await limiter.admit(size)
            moments.append(clock.monotonic())
            if used is not None:
                admission.num_tokens = used
        return moments

    start = clock.monotonic()
    return [moment - start for moment in asyncio.run(run())]


def test_requests_beyond_the_limit_wait_for_the_window(clock: FakeClock) -> None:
    limiter = RateLimiter(clock, requests_per_minute=3)
    assert admitted_at(clock, limiter, [1] * 8) == [0, 0, 0, 60, 60, 60, 120, 120]


def test_tokens_beyond_the_limit_wait_for_the_window(clock: FakeClock) -> None:
    limiter = RateLimiter(clock, tokens_per_minute=100)
    assert admitted_at(clock, limiter, [60, 40, 10, 100, 500, 1]) == [0, 0, 60, 120, 180, 240]


def test_tokens_that_were_feared_and_not_used_make_room(clock: FakeClock) -> None:
    limiter = RateLimiter(clock, tokens_per_minute=100)
    assert admitted_at(clock, limiter, [90] * 4, used=3) == [0, 0, 0, 0]


def test_without_limits_nobody_waits(clock: FakeClock) -> None:
    assert admitted_at(clock, RateLimiter(clock), [10**9] * 50) == [0] * 50


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 90)), max_size=25), st.integers(1, 5), st.integers(50, 200))
def test_no_60_seconds_hold_more_than_allowed(
    steps: list[tuple[int, float]], max_requests: int, max_tokens: int
) -> None:
    clock = FakeClock()
    limiter = RateLimiter(clock, requests_per_minute=max_requests, tokens_per_minute=max_tokens)
    admitted: list[tuple[float, int]] = []

    async def run() -> None:
        for size, pause in steps:
            clock.seconds += pause
            await limiter.admit(size)
            admitted.append((clock.monotonic(), size))

    asyncio.run(run())
    for start, _ in admitted:
        window = [size for at, size in admitted if start <= at < start + 60.0]
        assert len(window) <= max_requests
        assert sum(window) <= max(max_tokens, max(window))


def test_the_client_keeps_its_limit_and_counts_retries(
    live: LiveEndpoint, make_client: MakeClient, clock: FakeClock
) -> None:
    live.script = [refuse(500)]
    client = make_client(requests_per_minute=2, max_concurrency=1)
    for index in range(3):
        client.chat(QUESTION, SAMPLING, sample_index=index)
    assert client.num_requests == 4
    # Two at the start, with the retry's wait between them; then each waits for one of them to be a minute old.
    assert sum(clock.sleeps) == pytest.approx(60.0 + clock.sleeps[0])


def test_one_answer_429_with_a_delay_holds_back_all(
    live: LiveEndpoint, make_client: MakeClient, clock: FakeClock
) -> None:
    live.script = [refuse(429, headers={"Retry-After": "20"})]
    client = make_client(max_concurrency=1, max_retries=0)
    with pytest.raises(Exception, match="429"):
        client.chat(QUESTION, SAMPLING)
    start = clock.monotonic()
    client.chat(QUESTION, SAMPLING)
    assert clock.monotonic() - start >= 20.0


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"timeout_seconds": 0},
        {"timeout_seconds": float("inf")},
        {"requests_per_minute": -1},
        {"tokens_per_minute": -1},
        {"max_concurrency": 0},
    ],
)
def test_limits_that_make_no_sense_are_named(make_client: MakeClient, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(options))} must be .*, got"):
        make_client(**options)
