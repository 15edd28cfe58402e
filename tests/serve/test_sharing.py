"""One engine for many callers: who leaves frees the place, who is too many is told, and the books balance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from aha.cost import Ledger, LedgerFilter, LedgerRow, custom_machine_price
from aha.cost.energy import Counter, EnergyMeter
from aha.cost.ledger import LedgerError
from aha.engine import Engine
from aha.errors import RequestError
from aha.serve.engine_thread import EngineThread, Job
from aha.serve.errors import EngineUnavailableError, ServerBusyError
from aha.serve.metering import Meter
from aha.serve.openai import show_usd
from aha.types import SamplingParams, Usage

PATH = "/v1/chat/completions"
LONG = {"model": "babble", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1000}


def test_a_stream_that_is_left_frees_its_place(serving: Any) -> None:
    with serving(ends=False) as live:
        with httpx.stream("POST", f"{live.url}{PATH}", json={**LONG, "stream": True, "n": 3}) as response:
            lines = (line for line in response.iter_lines() if line)
            assert len([next(lines) for _ in range(6)]) == 6
            assert live.engine.num_running == 3
        left_at = live.engine.num_decoded_tokens
        live.wait_until_idle()
        assert live.engine.num_decoded_tokens - left_at < 3 * 500, "it went on for long after the caller had gone"


def test_a_whole_answer_that_nobody_waits_for_frees_its_place(serving: Any, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        with serving(ends=False, ledger=ledger) as live:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{live.url}{PATH}", json=LONG, timeout=0.2)
            live.wait_until_idle()
            assert live.engine.num_decoded_tokens < 1000
        assert ledger.num_entries() == 1, "what was used is in the books all the same"
        assert ledger.total_nano_usd() > 0


def test_too_many_are_told_to_come_back(serving: Any) -> None:
    with serving(ends=False, max_pending=2) as live:
        with httpx.stream("POST", f"{live.url}{PATH}", json={**LONG, "stream": True, "n": 2}) as response:
            pieces = response.iter_raw()
            assert next(pieces)
            refused = httpx.post(f"{live.url}{PATH}", json=LONG)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "queue_full"
        live.wait_until_idle()
        time.sleep(0.05)  # the event loop hears of it a moment after the engine
        assert httpx.post(f"{live.url}{PATH}", json={**LONG, "max_tokens": 2}).status_code == 200


def test_every_request_is_in_the_ledger_at_the_price_it_was_told(serving: Any, tmp_path: Path) -> None:
    told = []
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        with serving(ledger=ledger) as live:
            for seed in range(3):
                done = httpx.post(f"{live.url}{PATH}", json={**LONG, "max_tokens": 20, "seed": seed})
                told.append(done.json()["usage"]["cost"]["usd"])
                assert done.headers["x-request-cost-usd"] == told[-1]
            body = {**LONG, "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
            lines = httpx.post(f"{live.url}{PATH}", json=body).text.split("\n\n")
            told.append(json.loads(lines[-3].removeprefix("data: "))["usage"]["cost"]["usd"])
        assert ledger.num_entries(run_id="serve babble") == 4
        assert ledger.total_nano_usd() == sum(int(usd.replace(".", "")) for usd in told)


class SlowLedger:
    """Books nothing until it is told to: a database that others have locked."""

    def __init__(self) -> None:
        self.opens = threading.Event()
        self.rows: list[LedgerRow] = []
        self.fails = False

    def record(self, row: LedgerRow) -> int:
        assert self.opens.wait(20)
        if self.fails:
            raise LedgerError("the disk is full")
        self.rows.append(row)
        return len(self.rows)


def test_an_answer_ends_only_when_it_is_in_the_books(serving: Any) -> None:
    ledger = SlowLedger()
    with serving(ledger=ledger) as live, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(httpx.post, f"{live.url}{PATH}", json={**LONG, "max_tokens": 3}) for _ in range(3)]
        body = {**LONG, "max_tokens": 3, "stream": True}
        with httpx.stream("POST", f"{live.url}{PATH}", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            # Its beginning, and a text or an end: three tokens may come in one piece.
            seen = [next(lines) for _ in range(2)]
            assert "[DONE]" not in "".join(seen), "tokens flow while the books are locked"
            live.wait_until_idle()
            time.sleep(0.1)
            assert not any(future.done() for future in waiting)
            ledger.opens.set()
            assert list(lines)[-1] == "data: [DONE]"
        assert [future.result().status_code for future in waiting] == [200] * 3
        ids = {f"request:{future.result().json()['id']}" for future in waiting}
    assert len(ledger.rows) == 4
    assert ids < {row.key for row in ledger.rows}
    served = ("babble", "cpu", live.engine.model.weight_version)
    assert {(row.model, row.device, row.weight_version) for row in ledger.rows} == {served}
    assert all(row.device_ms == row.wall_ms for row in ledger.rows)


def test_energy_of_requests_is_their_share_where_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watts, clock = 10, [0.0]
    make = EnergyMeter.__init__
    counter = Counter(lambda: round(clock[0] * watts * 1e6))
    monkeypatch.setattr(EnergyMeter, "__init__", lambda self: make(self, [counter], clock=lambda: clock[0]))
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        meter = Meter(custom_machine_price("3.6", on=date(2026, 1, 1)), ledger=ledger, server_id="serve x")
        clock[0] = 10.0
        for engine_ms in (2000, 3000):
            meter.record(Usage(5, 1), engine_ns=engine_ms * 1_000_000, path=PATH).result()
        meter.close()
        assert ledger.totals(LedgerFilter()).energy_mj == 50_000, "five seconds at ten watts"


def test_a_ledger_that_fails_stops_no_answer(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    ledger = SlowLedger()
    ledger.fails = True
    ledger.opens.set()
    with serving(ledger=ledger) as live:
        assert httpx.post(f"{live.url}{PATH}", json={**LONG, "max_tokens": 3}).status_code == 200
    assert "a request is missing in the ledger: the disk is full" in caplog.text


def run_jobs(engine: Engine, prompts: list[list[int]], sampling: SamplingParams) -> list[Job]:
    """Hand all prompts to an engine thread at once and read every token."""

    async def read(job: Job) -> None:
        async for _ in job.events(idle_seconds=10):
            pass

    async def main() -> list[Job]:
        async with running(EngineThread(engine)) as thread:
            jobs = [thread.submit(prompt, sampling) for prompt in prompts]
            await asyncio.gather(*(read(job) for job in jobs))
            await asyncio.gather(*(job.ended for job in jobs))
            assert thread.num_pending == 0
        return jobs

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def running(thread: EngineThread) -> AsyncIterator[EngineThread]:
    thread.start()
    try:
        yield thread
    finally:
        await thread.stop()


def test_engine_seconds_add_up_to_no_more_than_the_time_that_passed(engine: Engine) -> None:
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=3))  # pays for what the first step alone sets up
    prompts = [[1, 2] * (50 * (index + 1)) for index in range(4)]
    began = time.perf_counter_ns()
    jobs = run_jobs(engine, prompts, SamplingParams(max_tokens=30, seed=1, num_samples=2))
    elapsed = time.perf_counter_ns() - began
    assert 0.3 * elapsed < sum(job.engine_ns for job in jobs) <= elapsed
    assert all(job.engine_ns > 0 for job in jobs)


def test_a_job_that_cannot_be_taken_fails_alone(engine: Engine) -> None:
    async def main() -> None:
        async with running(EngineThread(engine)) as thread:
            fine = thread.submit([1, 2], SamplingParams(max_tokens=5))
            wrong = thread.submit([1] * 5000, SamplingParams(max_tokens=5))
            with pytest.raises(RequestError, match="5000 tokens"):
                _ = [events async for events in wrong.events(idle_seconds=10)]
            drawn = [event async for events in fine.events(idle_seconds=10) for event in events]
            assert drawn[-1].finish_reason is not None

    asyncio.run(main())


def test_silence_shows_as_an_empty_list(engine: Engine) -> None:
    async def main() -> None:
        job = Job([1], SamplingParams())
        assert await anext(job.events(idle_seconds=0.01)) == []

    asyncio.run(main())


def test_new_weights_end_an_answer_with_an_error(engine: Engine) -> None:
    async def main() -> None:
        async with running(EngineThread(engine)) as thread:
            job = thread.submit([1, 2, 3], SamplingParams(max_tokens=900, num_samples=4))
            events = job.events(idle_seconds=10)
            await anext(events)
            engine.model.weight_version += 1
            with pytest.raises(EngineUnavailableError, match="weights changed"):
                _ = [later async for later in events]
            await job.ended
            again = thread.submit([1, 2, 3], SamplingParams(max_tokens=2))
            assert [e async for e in again.events(idle_seconds=10)]

    asyncio.run(main())


def test_a_stopped_thread_fails_what_is_under_way_and_takes_no_more(engine: Engine) -> None:
    async def main() -> None:
        thread = EngineThread(engine, max_pending=3)
        thread.start()
        job = thread.submit([1, 2, 3], SamplingParams(max_tokens=900))
        with pytest.raises(ServerBusyError, match="1 completions are under way"):
            thread.check_open(3)
        await thread.stop()
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            _ = [events async for events in job.events(idle_seconds=10)]
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            thread.submit([1], SamplingParams())

    asyncio.run(main())


def test_the_price_of_a_millisecond_is_the_least_a_request_costs() -> None:
    meter = Meter(custom_machine_price("3.6", on=date(2026, 1, 1)), ledger=None, server_id="serve x")
    assert [meter.cost_nano_usd(ns) for ns in (0, 1, 1_000_000, 1_000_001)] == [0, 1000, 1000, 2000]
    assert show_usd(1_234_567_890_123) == "1234.567890123"
    meter.close()
