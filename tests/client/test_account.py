"""Money: a budget that holds under concurrency, lies, losses and restarts; a journal that never pays twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aha.client import BudgetExceededError, Client, EndpointError
from aha.client.account import Account
from aha.client.wire import worst_usage
from aha.errors import AhaError, ConfigError, DataError
from aha.types import Message, SamplingParams, Usage
from tests.client.conftest import (
    COST,
    PRICE,
    QUESTION,
    SAMPLING,
    USAGE,
    WORST,
    LiveEndpoint,
    Request,
    chunk,
    events,
    ok,
    refuse,
    reset,
    stall,
)

MakeClient = Callable[..., Client]
NANO = 10**9


def questions(num: int) -> list[list[Message]]:
    return [[Message("user", f"What is {i:02} +4?")] for i in range(num)]


def test_a_request_that_could_break_the_budget_is_not_sent(live: LiveEndpoint, make_client: MakeClient) -> None:
    client = make_client(budget_usd=(WORST - 1) / NANO)
    with pytest.raises(
        BudgetExceededError, match=r"budget_usd=\$0.001\d+ has \$0.001\d+ left and this request may cost"
    ):
        client.chat(QUESTION, SAMPLING)
    assert live.bodies == []
    assert make_client(budget_usd=WORST / NANO).chat(QUESTION, SAMPLING).content == "7"


def test_the_budget_is_used_up_and_not_one_request_more(live: LiveEndpoint, make_client: MakeClient) -> None:
    budget = WORST + 5 * COST
    client = make_client(budget_usd=budget / NANO)
    with pytest.raises(BudgetExceededError):
        client.respond(questions(50), SAMPLING)
    assert len(live.bodies) == 6
    assert client.spent_nano_usd == 6 * COST <= budget


def test_sixteen_threads_never_exceed_the_budget(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.default = ok(usage={"prompt_tokens": 286, "completion_tokens": 100})  # as dear as can be
    client = make_client(budget_usd=10.5 * WORST / NANO, max_concurrency=16)
    seen: list[int] = []

    def ask(index: int) -> bool:
        try:
            client.chat(QUESTION, SAMPLING, sample_index=index)
        except BudgetExceededError:
            return False
        finally:
            seen.append(client.spent_nano_usd)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(40))) == len(live.bodies) == 10
    assert client.spent_nano_usd == 10 * WORST
    assert max(seen) <= 10.5 * WORST


def test_lost_requests_count_and_stop_at_the_budget(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.default = reset
    client = make_client(budget_usd=3.5 * WORST / NANO, max_retries=50)
    with pytest.raises(BudgetExceededError):
        client.chat(QUESTION, SAMPLING)
    assert client.spent_nano_usd == 3 * WORST
    assert len(live.bodies) == 3


def test_counts_beyond_the_worst_case_are_entered_but_never_beyond_the_budget(
    live: LiveEndpoint, make_client: MakeClient, notices: list[str]
) -> None:
    hidden_instructions = {"prompt_tokens": 5_000, "completion_tokens": 30}
    live.script = [ok(usage=hidden_instructions)]
    free = make_client(journal=None)
    assert free.chat(QUESTION, SAMPLING).cost_nano_usd == 5_000 * 1_000 + 30 * 10_000
    assert "more tokens than a request can have" in notices[0]

    live.script = [ok(usage=hidden_instructions)]
    client = make_client(budget_usd=2 * WORST / NANO)
    client.chat(QUESTION, SAMPLING)
    assert client.spent_nano_usd == 2 * WORST
    with pytest.raises(BudgetExceededError):
        client.chat(QUESTION, SAMPLING)


def test_a_server_that_counts_more_than_can_be_makes_later_requests_reserve_more(
    live: LiveEndpoint, make_client: MakeClient
) -> None:
    live.default = ok(usage={"prompt_tokens": 5_000, "completion_tokens": 100})
    cost = 5_000 * 1_000 + 100 * 10_000
    client = make_client(budget_usd=(3 * cost + WORST) / NANO)
    for index in range(3):
        client.chat(QUESTION, SAMPLING, sample_index=index)
    with pytest.raises(BudgetExceededError):
        client.chat(QUESTION, SAMPLING, sample_index=3)  # WORST would fit, what it will cost would not
    assert client.spent_nano_usd == 3 * cost


def test_a_token_is_at_least_a_byte_whatever_the_tokenizer_normalises() -> None:
    assert worst_usage([Message("user", "é")], max_tokens=1).prompt_tokens == 2 + 256 + 16
    assert worst_usage([Message("user", "\ufdfa")], max_tokens=1).prompt_tokens == 33 + 256 + 16
    assert worst_usage([Message("user", "\ud800")], max_tokens=1).prompt_tokens == 3 + 256 + 16


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf"), 1e12])
def test_a_budget_that_is_none_is_refused(make_client: MakeClient, budget: float) -> None:
    with pytest.raises(ConfigError, match="budget_usd must be a number from 0"):
        make_client(budget_usd=budget)


def test_a_budget_needs_a_price_and_without_one_all_costs_are_0(make_client: MakeClient) -> None:
    with pytest.raises(
        ConfigError,
        match=r"budget_usd needs the endpoint's price.*price=NAME.*deepseek-r1.*custom_token_price",
    ):
        make_client(price=None, budget_usd=1.0)
    client = make_client(price=None)
    assert client.chat(QUESTION, SAMPLING).cost_nano_usd == client.spent_nano_usd == 0


def test_a_budget_of_0_pays_for_nothing_but_lets_free_models_answer(make_client: MakeClient) -> None:
    with pytest.raises(BudgetExceededError):
        make_client(budget_usd=0).chat(QUESTION, SAMPLING)
    free = replace(PRICE, pico_usd_per_input_token=0, pico_usd_per_cached_token=0, pico_usd_per_output_token=0)
    assert make_client(budget_usd=0, price=free).chat(QUESTION, SAMPLING).content == "7"


def test_prompt_longer_than_its_price_is_for_is_refused_where_there_is_a_budget() -> None:
    short = replace(PRICE, prompt_tokens_up_to=100)
    told: list[str] = []
    account = Account(short, budget_nano_usd=10**12, journal=None, say=lambda kind, _: told.append(kind))
    with pytest.raises(BudgetExceededError, match=r"up to 101 tokens has no price: .* is of prompts of up to 100"):
        asyncio.run(account.reserve(Usage(101, 1), waits=False))
    asyncio.run(account.reserve(Usage(100, 1), waits=False))
    account.claim(Usage(101, 1), worst_nano_usd=10**9)
    assert told == ["unpriced"]


def test_what_is_not_read_from_a_cache_is_taken_as_written_to_it_where_that_costs_more() -> None:
    dear = replace(PRICE, pico_usd_per_cache_write_token=1_250_000)
    account = Account(dear, budget_nano_usd=None, journal=None, say=lambda *_: None)
    assert account.claim(Usage(100, 0, cached_tokens=40), worst_nano_usd=10**9) == 60 * 1_250 + 40 * 500


def test_cached_tokens_that_cost_more_are_reserved_for() -> None:
    dear = replace(PRICE, pico_usd_per_cached_token=5_000_000)
    account = Account(dear, budget_nano_usd=None, journal=None, say=lambda *_: None)
    assert account._worst_cost(Usage(10, 0)) == 50_000


def test_a_paid_reply_is_never_paid_again(live: LiveEndpoint, make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    live.script = [ok("<think>\ud800 3+4</think>7 é", finish_reason="length"), ok("8")]
    client = make_client(journal=path)
    first = client.chat(QUESTION, SAMPLING)
    again = client.chat(QUESTION, SAMPLING)
    other = client.chat(QUESTION, SAMPLING, sample_index=1)
    client.close()
    resumed = make_client(journal=path, budget_usd=2 * COST / NANO)
    assert resumed.spent_nano_usd == 2 * COST
    kept = resumed.chat(QUESTION, SAMPLING)
    assert first.reasoning == "\ud800 3+4"
    assert again == kept == replace(first, is_from_journal=True)
    assert resumed.chat(QUESTION, SAMPLING, sample_index=1).content == other.content == "8"
    assert len(live.bodies) == 2
    assert resumed.spent_nano_usd == 2 * COST
    assert (resumed.num_requests, path.stat().st_mode & 0o777) == (0, 0o600)
    with pytest.raises(BudgetExceededError):
        resumed.chat(QUESTION, SAMPLING, sample_index=2)


def test_whatever_changes_the_request_is_another_request(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(journal=tmp_path / "j.jsonl")
    for sampling in (
        SAMPLING,
        replace(SAMPLING, temperature=0.7),
        replace(SAMPLING, max_tokens=99),
        replace(SAMPLING, seed=1),
    ):
        assert not client.chat(QUESTION, sampling).is_from_journal
    assert not client.chat([Message("user", "Why?")], SAMPLING).is_from_journal
    assert client.chat(QUESTION, replace(SAMPLING, num_samples=5)).is_from_journal  # not on the wire
    assert len(live.bodies) == 5


def test_equal_requests_at_the_same_time_are_paid_once(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(journal=tmp_path / "j.jsonl")
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: client.chat(QUESTION, SAMPLING), range(8)))
    assert len(live.bodies) == 1
    assert sum(not reply.is_from_journal for reply in replies) == 1


def test_lost_and_streamed_requests_count_across_runs(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Path
) -> None:
    path = tmp_path / "j.jsonl"
    stream = events(chunk("7", finish_reason="stop"), {"choices": [], "usage": USAGE})
    live.script = [refuse(504), refuse(429), ok("7"), lambda r: r.say_events(stream)]
    client = make_client(journal=path)
    client.chat(QUESTION, SAMPLING)
    list(client.stream(QUESTION, SAMPLING))
    client.close()
    assert client.spent_nano_usd == WORST + 2 * COST
    assert make_client(journal=path).spent_nano_usd == WORST + 2 * COST
    assert "What is 3" not in path.read_text()


@pytest.mark.parametrize("num_cut", [1, 5, 200])
def test_a_torn_last_line_is_cut(live: LiveEndpoint, make_client: MakeClient, tmp_path: Path, num_cut: int) -> None:
    path = tmp_path / "j.jsonl"
    client = make_client(journal=path)
    client.chat(QUESTION, SAMPLING)
    client.chat(QUESTION, SAMPLING, sample_index=1)
    client.close()
    path.write_bytes(path.read_bytes()[:-num_cut])
    client = make_client(journal=path)
    # Its "sent" is whole, so that it counts at its worst case and is asked again.
    assert client.spent_nano_usd == COST + WORST
    assert client.chat(QUESTION, SAMPLING).is_from_journal
    assert not client.chat(QUESTION, SAMPLING, sample_index=1).is_from_journal
    client.close()
    assert make_client(journal=path).spent_nano_usd == 2 * COST + WORST


def test_every_cut_of_a_journal_opens_and_never_counts_less_than_was_paid(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Path
) -> None:
    path = tmp_path / "j.jsonl"
    live.script = [ok("7"), refuse(502), ok("8")]
    client = make_client(journal=path)
    client.chat(QUESTION, SAMPLING)
    client.chat(QUESTION, SAMPLING, sample_index=1)
    client.close()
    whole = path.read_bytes()
    spent = []
    for end in range(0, len(whole), 11):
        path.write_bytes(whole[:end])
        client = make_client(journal=path)
        spent.append(client.spent_nano_usd)
        client.close()
        assert path.read_bytes() == (whole[: whole[:end].rfind(b"\n") + 1] or whole[: whole.find(b"\n") + 1])
    assert set(spent) == {0, WORST, COST, COST + WORST, COST + 2 * WORST}


@pytest.mark.parametrize(
    "text",
    [
        "# Notes\n",
        "no line end",
        '{"kind":"journal","format":9}\n{"kind":"free","id":0,"cost_nano_usd":0}\n',
        '{"kind":"journal","format":1}\nbroken\n{"kind":"free","id":0,"cost_nano_usd":0}\n',
        '{"kind":"journal","format":1}\n{"kind":"spent","id":0,"cost_nano_usd":-5}\n{"kind":"free","id":0,"cost_nano_usd":0}\n',
        '{"kind":"free","id":0,"cost_nano_usd":0}\n{"kind":"free","id":0,"cost_nano_usd":0}\n',
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    make_client: MakeClient, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "notes.md"
    path.write_text(text)
    with pytest.raises(DataError, match=r"notes\.md"):
        make_client(journal=path)
    assert path.read_text() == text


def test_a_journal_belongs_to_one_client_at_a_time(make_client: MakeClient, tmp_path: Path) -> None:
    first = make_client(journal=tmp_path / "j.jsonl")
    with pytest.raises(DataError, match="in use by another process; give each its own"):
        make_client(journal=tmp_path / "j.jsonl")
    first.close()
    make_client(journal=tmp_path / "j.jsonl")
    with pytest.raises(DataError, match="cannot open the journal"):
        make_client(journal=tmp_path)


def test_a_full_disk_is_said_and_blocks_nobody(
    live: LiveEndpoint, make_client: MakeClient, monkeypatch: Any, tmp_path: Path
) -> None:
    client = make_client(journal=tmp_path / "j.jsonl")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]) if b'"reply"' in data else real(fd, data))
    with pytest.raises(DataError, match=r"cannot write the journal.*disk is full.*free some space"):
        client.respond(questions(20), SAMPLING)
    monkeypatch.undo()
    num_lost = len(live.bodies)
    assert client.spent_nano_usd == num_lost * WORST
    client.close()
    assert make_client(journal=tmp_path / "j.jsonl").spent_nano_usd == num_lost * WORST


CHILD = """
    import sys
    from pathlib import Path
    from aha.client import Client, Endpoint
    from tests.client.conftest import PRICE, SAMPLING
    from tests.client.test_account import questions
    endpoint = Endpoint(base_url=sys.argv[1], model="m", price=PRICE)
    with Client(endpoint, journal=Path(sys.argv[2]), max_concurrency=4) as client:
        client.respond(questions(12), SAMPLING)
"""


def run_child(live: LiveEndpoint, path: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), live.base_url, str(path)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_run_goes_on_without_paying_twice(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Path, number: int
) -> None:
    """Six answers are given, four requests hang, then the process dies."""
    over = threading.Event()

    def hang(_: Request) -> None:
        over.wait(10)

    path = tmp_path / "j.jsonl"
    live.script = [ok("first")] * 6
    live.default = hang
    child = run_child(live, path)
    while len(live.bodies) < 10:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.01)
    time.sleep(0.1)
    sent_at = time.monotonic()
    child.send_signal(number)
    _, errors = child.communicate(timeout=10)
    assert time.monotonic() - sent_at < 3.0
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    over.set()

    live.default = ok("second")
    client = make_client(journal=path, max_concurrency=4)
    assert client.spent_nano_usd == 6 * COST + 4 * WORST
    answers = [row[0].answer for row in client.respond(questions(12), SAMPLING)]
    assert sorted(answers) == ["first"] * 6 + ["second"] * 6
    assert len(live.bodies) == 16
    assert client.spent_nano_usd == 12 * COST + 4 * WORST


def test_samples_come_in_order_and_differ(live: LiveEndpoint, make_client: MakeClient) -> None:
    def echo(request: Request) -> None:
        said = f"{request.body['messages'][0]['content'][8:10]}/{request.body['seed']}"
        time.sleep(0.01 * (request.body["seed"] % 3))
        ok(said)(request)

    live.default = echo
    twice = [*questions(3), questions(1)[0]]
    sampling = SamplingParams(num_samples=2, max_tokens=100, seed=5)
    rows = make_client().respond(twice, sampling)
    assert [[c.answer for c in row] for row in rows] == [
        ["00/5", "00/6"],
        ["01/5", "01/6"],
        ["02/5", "02/6"],
        ["00/7", "00/8"],
    ]
    assert {c.reported_tokens for row in rows for c in row} == {30}
    assert {c.cost_nano_usd for row in rows for c in row} == {COST}
    assert rows[0][0].num_tokens == 30
    assert make_client().respond([], sampling) == []


def test_completions_have_their_thinking_in_the_text(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.script = [
        ok(message={"content": "7", "reasoning_content": "3+4"}),
        ok(message={"content": "", "reasoning_content": "3+"}, finish_reason="length"),
    ]
    rows = make_client(max_concurrency=1).respond(questions(2), SAMPLING)
    assert rows[0][0].text == "<think>\n3+4\n</think>\n\n7"
    assert (rows[0][0].reasoning, rows[0][0].answer) == ("3+4", "7")
    assert rows[1][0].text == "<think>\n3+"


def test_no_more_requests_than_allowed_are_under_way(live: LiveEndpoint, make_client: MakeClient) -> None:
    under_way, most = [0], [0]
    lock = threading.Lock()

    def count(request: Request) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        with lock:
            under_way[0] -= 1
        ok()(request)

    live.default = count
    make_client(max_concurrency=3).respond(questions(12), SAMPLING)
    assert most == [3]


def test_a_failure_sends_nothing_new_and_keeps_what_was_paid(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Path
) -> None:
    live.script = [ok(), ok(), refuse(401)]
    client = make_client(max_concurrency=1, journal=tmp_path / "j.jsonl")
    with pytest.raises(EndpointError, match="answered 401"):
        client.respond(questions(20), SAMPLING)
    assert len(live.bodies) == 3
    assert client.spent_nano_usd == 2 * COST


def test_a_stalled_server_does_not_hold_a_batch(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.script = [stall(1.5)] * 2
    client = make_client(timeout_seconds=0.6)
    assert len(client.respond(questions(6), SAMPLING)) == 6
    assert client.spent_nano_usd == 6 * COST + 2 * WORST


def test_every_error_is_one_line_for_users() -> None:
    assert issubclass(BudgetExceededError, AhaError)
    assert issubclass(EndpointError, AhaError)


def test_journal_lines_are_json(live: LiveEndpoint, make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(journal=tmp_path / "j.jsonl")
    client.chat(QUESTION, SAMPLING)
    client.close()
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["journal", "sent", "reply"]
    assert rows[1]["cost_nano_usd"] == WORST
    assert rows[2]["reply"]["usage"]["completion_tokens"] == 30
