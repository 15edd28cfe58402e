"""Dollars by token class from the ledger: what can be told apart is, what cannot is not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from aha.cost.ledger import EntryKind, Ledger, LedgerRow
from aha.cost.prices import custom_machine_price
from aha.errors import DataError
from aha.estimate.serving.measured import measure_serving
from aha.estimate.serving.rate import ServingRate

PRICE = custom_machine_price("3.6", on=date(2025, 1, 1))
"""A dollar for each thousand seconds."""
START = datetime(2026, 1, 5, 12, tzinfo=UTC)
ROOFLINE = ServingRate(
    usd_per_hour=1, seconds_per_input_token=1, seconds_per_cached_token=0, seconds_per_output_token=9, basis="roofline"
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        yield opened


class Server:
    """Books requests at moments of its own."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *, name: str = "serve tiny") -> None:
        self.ledger, self.monkeypatch, self.name = ledger, monkeypatch, name

    def answer(self, *, at_seconds: float, prompt: int, cached: int = 0, output: int, wall_ms: int) -> None:
        moment = int((START.timestamp() + at_seconds) * 1e9)
        self.monkeypatch.setattr(time, "time_ns", lambda: moment)
        self.ledger.record(
            LedgerRow(
                kind=EntryKind.REQUEST, run_id=self.name, phase="/v1/chat/completions", price=PRICE,
                cost_nano_usd=PRICE.cost_nano_usd(wall_ms), wall_ms=wall_ms, prompt_tokens=prompt,
                cached_tokens=cached, completion_tokens=output,
            )
        )  # fmt: skip


@pytest.fixture
def server(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(ledger, monkeypatch)


def answer_many(server: Server, *, count: int = 60, noise: float = 0.0) -> None:
    """A millisecond a new prompt token, ten an answered one, nothing for a cached one; a request every 10 s."""
    dice = random.Random(3)
    for index in range(count):
        prompt, output = dice.randint(20, 900), dice.randint(5, 120)
        cached = dice.randint(0, prompt)
        exact = (prompt - cached) + 10 * output
        wall_ms = round(exact * (1 + noise * dice.uniform(-1, 1)))
        server.answer(at_seconds=10 * index, prompt=prompt, cached=cached, output=output, wall_ms=wall_ms)


def test_seconds_of_prompt_and_answer_are_told_apart(ledger: Ledger, server: Server) -> None:
    answer_many(server)
    found = measure_serving(ledger, server="serve tiny")
    assert found.split == "least squares"
    assert found.rate.seconds_per_input_token == pytest.approx(1e-3, rel=1e-3)
    assert found.rate.seconds_per_output_token == pytest.approx(1e-2, rel=1e-3)
    assert found.rate.seconds_per_cached_token == 0
    assert found.rate.usd_per_hour == pytest.approx(3.6, rel=1e-6)
    assert found.rate.usd_per_million("output") == pytest.approx(10, rel=1e-3)  # 1e6 x 0.01 s at $1 a 1,000 s


def test_noise_of_a_fifth_leaves_them_apart_and_near(ledger: Ledger, server: Server) -> None:
    answer_many(server, count=120, noise=0.2)
    found = measure_serving(ledger)
    assert found.split == "least squares"
    assert found.rate.seconds_per_input_token == pytest.approx(1e-3, rel=0.2)
    assert found.rate.seconds_per_output_token == pytest.approx(1e-2, rel=0.2)


def test_dollars_of_all_tokens_are_the_dollars_of_the_busy_time(ledger: Ledger, server: Server) -> None:
    answer_many(server, noise=0.5)
    found = measure_serving(ledger)
    per_token = found.rate.usd_per_hour / 3600
    split = per_token * (
        found.new_tokens * found.rate.seconds_per_input_token
        + found.totals.completion_tokens * found.rate.seconds_per_output_token
    )
    assert split == pytest.approx(found.totals.cost_usd, rel=1e-9)


def test_utilisation_is_the_busy_share_of_the_window(ledger: Ledger, server: Server) -> None:
    server.answer(at_seconds=0, prompt=10, output=10, wall_ms=2000)
    server.answer(at_seconds=100, prompt=10, output=10, wall_ms=3000)
    found = measure_serving(ledger)
    assert found.window_seconds == 100
    assert found.utilisation == pytest.approx(0.05)
    assert found.window_usd == pytest.approx(0.1)  # 100 s at $1 a 1,000 s, idle ones too
    assert found.totals.cost_usd == pytest.approx(0.005)


def test_few_requests_are_not_told_apart_and_say_so(ledger: Ledger, server: Server) -> None:
    answer_many(server, count=5)
    found = measure_serving(ledger)
    assert found.split == "together"
    assert found.rate.seconds_per_input_token == found.rate.seconds_per_output_token
    assert any("only 5 requests" in note for note in found.notes)
    assert any("cannot be told apart" in note for note in found.notes)


def test_requests_all_alike_are_not_told_apart(ledger: Ledger, server: Server) -> None:
    for index in range(50):
        server.answer(at_seconds=index, prompt=100, output=50, wall_ms=600)
    assert measure_serving(ledger).split == "together"


def test_seconds_that_follow_no_tokens_are_not_told_apart(ledger: Ledger, server: Server) -> None:
    dice = random.Random(1)
    for index in range(60):
        server.answer(
            at_seconds=index, prompt=dice.randint(1, 999), output=dice.randint(1, 99), wall_ms=dice.randint(1, 9999)
        )
    assert measure_serving(ledger).split == "together"


def test_prompt_token_too_cheap_to_be_seen_is_still_told_from_an_answered_one(ledger: Ledger, server: Server) -> None:
    dice = random.Random(2)
    for index in range(80):
        output = dice.randint(5, 60)
        wall_ms = round(10 * output * dice.uniform(0.6, 1.4))
        server.answer(at_seconds=index, prompt=dice.randint(10, 300), output=output, wall_ms=wall_ms)
    found = measure_serving(ledger)
    assert found.split == "least squares"
    assert found.rate.seconds_per_output_token == pytest.approx(1e-2, rel=0.2)
    assert found.rate.seconds_per_input_token < 1e-3
    assert any("± " in note for note in found.notes)


def test_roofline_splits_what_cannot_be_told_apart(ledger: Ledger, server: Server) -> None:
    server.answer(at_seconds=0, prompt=100, output=100, wall_ms=1000)
    found = measure_serving(ledger, predicted=ROOFLINE)
    assert found.split == "roofline"
    assert found.rate.seconds_per_output_token == pytest.approx(9 * found.rate.seconds_per_input_token)
    assert 100 * (found.rate.seconds_per_input_token + found.rate.seconds_per_output_token) == pytest.approx(1)


def test_one_moment_has_no_utilisation(ledger: Ledger, server: Server) -> None:
    server.answer(at_seconds=0, prompt=10, output=10, wall_ms=100)
    shown = measure_serving(ledger).to_dict()
    assert shown["utilisation"] is None
    assert shown["measured_costs"] is None
    assert any("how busy the server was cannot be told" in note for note in shown["notes"])


def test_window_and_server_narrow_what_is_measured(ledger: Ledger, server: Server) -> None:
    answer_many(server)
    Server(ledger, server.monkeypatch, name="serve other").answer(at_seconds=5, prompt=1, output=1, wall_ms=1)
    half = datetime.fromtimestamp(START.timestamp() + 300, tz=UTC)
    assert measure_serving(ledger, server="serve tiny", until=half).totals.num_entries == 30
    assert measure_serving(ledger, server="serve other").totals.num_entries == 1
    assert measure_serving(ledger).totals.num_entries == 61


def test_overhead_is_paid_on_top(ledger: Ledger, server: Server) -> None:
    server.answer(at_seconds=0, prompt=10, output=10, wall_ms=1000)
    assert measure_serving(ledger, overhead=2).rate.usd_per_hour == pytest.approx(7.2)


def test_ledger_without_requests_is_refused_in_one_line(ledger: Ledger, server: Server) -> None:
    with pytest.raises(DataError, match="has no request in that time; serve some first: aha serve"):
        measure_serving(ledger)
    server.answer(at_seconds=0, prompt=5, cached=5, output=0, wall_ms=0)
    with pytest.raises(DataError, match="took no time or no tokens"):
        measure_serving(ledger)


def test_energy_is_summed_where_it_was_read(ledger: Ledger, server: Server) -> None:
    server.answer(at_seconds=0, prompt=10, output=10, wall_ms=100)
    assert measure_serving(ledger).to_dict()["energy_wh"] is None
    row = LedgerRow(
        kind=EntryKind.REQUEST, run_id="serve tiny", phase="/v1/chat/completions", price=PRICE,
        cost_nano_usd=PRICE.cost_nano_usd(100), wall_ms=100, completion_tokens=5, energy_mj=7_200_000,
    )  # fmt: skip
    ledger.record(row)
    found = measure_serving(ledger)
    assert found.to_dict()["energy_wh"] == pytest.approx(2)
    assert "energy is known for 1 of these requests only" in found.notes
