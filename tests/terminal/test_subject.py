"""An endpoint as the model of an evaluation: our own server on a loopback port, and one that misbehaves."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from aha.client import BudgetExceededError, EndpointError
from aha.cost import EntryKind, Ledger, LedgerFilter, LedgerTotals
from aha.evaluate import EvalResult, load_result, select_problems
from aha.serve import create_app
from aha.tasks import get_task
from aha.terminal import open_model
from aha.terminal.evaluation import EvalOptions, run_comparison, run_evaluation
from aha.terminal.subject import open_endpoint


@dataclass
class Scripted:
    """An endpoint that answers sums rightly except where the last digit is 3, and counts what it was asked."""

    url: str = ""
    fails_after: int = 10**9
    """Requests that are answered before it refuses everything."""
    keys: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> str:
        gold = {problem.prompt: problem.answer for problem in PROBLEMS}[body["messages"][-1]["content"]]
        return "wrong" if gold.endswith("3") else gold


PROBLEMS = select_problems(get_task("arithmetic"), num_problems=12, seed=0)


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    script, lock = Scripted(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                is_refused = len(script.bodies) >= script.fails_after
                if not is_refused:
                    script.bodies.append(body)
                script.keys.add(self.headers.get("Authorization", ""))
            message = {"role": "assistant", "content": script.answer(body), "reasoning_content": "let me see"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
            reply: dict[str, Any] = {"model": "scripted", "choices": [choice], "usage": usage}
            data = json.dumps({"error": {"message": "out of credit"}} if is_refused else reply).encode()
            self.send_response(402 if is_refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def options(endpoint: Scripted, tmp_path: Path) -> EvalOptions:
    return EvalOptions(
        model=f"openai:scripted@{endpoint.url}", task="arithmetic", num_problems=12, protocol="default", num_samples=2,
        temperature=None, top_p=None, max_tokens=32, seed=0, device="cpu", price="1/10", budget_usd=None,
        concurrency=3, out=tmp_path / "out",
    )  # fmt: skip


def measured(options: EvalOptions) -> EvalResult:
    run_evaluation(options, form="json")
    assert options.out is not None
    return load_result(options.out / "eval.json")


def test_endpoint_is_measured_with_dollars_per_right_answer(endpoint: Scripted, options: EvalOptions) -> None:
    result = measured(options)
    num_right = sum(not problem.answer.endswith("3") for problem in PROBLEMS)
    assert result.pass_at_1 == pytest.approx(num_right / 12)
    # 20 tokens in at $1 and 10 out at $10 a million.
    assert result.cost_usd == pytest.approx(24 * 0.000120)
    assert result.usd_per_solved == pytest.approx(24 * 0.000120 / (2 * num_right))
    assert result.mean_tokens == 10
    assert result.manifest["model"] == options.model
    assert len({(b["messages"][-1]["content"], b["seed"]) for b in endpoint.bodies}) == 24, "samples have own seeds"
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in endpoint.bodies} == {(0.6, 0.95, 32)}


def test_endpoint_that_fails_is_gone_on_with_and_paid_once(endpoint: Scripted, options: EvalOptions) -> None:
    endpoint.fails_after = 10
    with pytest.raises(EndpointError, match="out of credit"):
        measured(options)
    assert options.out is not None
    partial = options.out / "eval.jsonl.partial"
    assert partial.read_bytes().count(b"\n") == 1 + 10, "every answer that was paid for is kept"
    endpoint.fails_after = 10**9
    result = measured(options)
    assert len(endpoint.bodies) == 24
    assert result.cost_usd == pytest.approx(24 * 0.000120)


def ledger_totals() -> LedgerTotals:
    with Ledger.open() as ledger:
        assert ledger.verify() == []
        return ledger.totals(LedgerFilter(kind=EntryKind.EVALUATION))


def test_evaluation_at_an_endpoint_is_booked_once_whatever_its_sessions(
    endpoint: Scripted, options: EvalOptions
) -> None:
    """Stopped, gone on with, asked again: each session adds what was newly asked, in tokens and in dollars."""
    endpoint.fails_after = 10
    with pytest.raises(EndpointError, match="out of credit"):
        measured(options)
    booked = ledger_totals()
    assert (booked.cost_nano_usd, booked.prompt_tokens, booked.completion_tokens) == (1_200_000, 200, 100)
    endpoint.fails_after = 10**9
    measured(options)
    booked = ledger_totals()
    assert (booked.cost_nano_usd, booked.prompt_tokens, booked.completion_tokens) == (2_880_000, 480, 240)
    measured(options)
    again = ledger_totals()
    assert (again.cost_nano_usd, again.prompt_tokens, again.completion_tokens) == (2_880_000, 480, 240)
    with Ledger.open() as ledger:
        assert list(ledger.grouped(LedgerFilter(), by="model")) == [options.model]


def test_evaluation_without_a_price_is_booked_as_unpriced(options: EvalOptions) -> None:
    measured(replace(options, price="", num_problems=1))
    booked = ledger_totals()
    assert (booked.num_unpriced, booked.cost_nano_usd, booked.prompt_tokens) == (1, 0, 40)


def test_asking_again_is_free(endpoint: Scripted, options: EvalOptions) -> None:
    first = measured(options)
    again = measured(options)
    assert len(endpoint.bodies) == 24
    assert replace(again, wall_seconds=0) == replace(first, wall_seconds=0)


def test_budget_is_kept_and_raising_it_goes_on(endpoint: Scripted, options: EvalOptions) -> None:
    with pytest.raises(BudgetExceededError):
        measured(replace(options, budget_usd=0.0015))
    num_paid = len(endpoint.bodies)
    assert 0 < num_paid * 0.000120 <= 0.0015
    measured(replace(options, budget_usd=1.0))
    assert len(endpoint.bodies) == 24


def test_unknown_price_claims_no_dollars(options: EvalOptions, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(replace(options, price="", num_problems=1))
    assert (result.cost_usd, result.usd_per_solved) == (None, None)
    assert "without --price there are no dollars" in capsys.readouterr().err


def test_price_of_the_price_book_is_found_by_its_id(options: EvalOptions) -> None:
    result = measured(replace(options, price="deepseek-r1@2025-01-20", num_problems=1, num_samples=1))
    assert result.cost_usd == pytest.approx(20 * 0.55e-6 + 10 * 2.19e-6)
    assert result.manifest["price"] == "deepseek-r1@2025-01-20"


def test_key_comes_from_the_environment_and_is_written_nowhere(
    endpoint: Scripted, options: EvalOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general-key-1234")
    measured(replace(options, num_problems=1, out=options.out and options.out / "a"))
    monkeypatch.setenv("AHA_ENDPOINT_KEY", "sk-special-key-1234")
    measured(replace(options, num_problems=1, out=options.out and options.out / "b"))
    assert endpoint.keys == {"Bearer sk-general-key-1234", "Bearer sk-special-key-1234"}
    assert options.out is not None
    written = b"".join(path.read_bytes() for path in options.out.rglob("*") if path.is_file())
    assert b"key-1234" not in written


def test_interrupt_ends_the_requests_under_way(endpoint: Scripted, tmp_path: Path) -> None:
    subject = open_endpoint(
        f"openai:m@{endpoint.url}", price="", budget_usd=None, concurrency=2, max_tokens=8, journal=None,
        on_notice=lambda _: None,
    )  # fmt: skip

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    from aha.types import Message, SamplingParams

    conversations = [[Message("user", problem.prompt)] for problem in PROBLEMS]
    respond: Any = subject.respond
    with pytest.raises(KeyboardInterrupt):
        respond.respond_each(conversations, [SamplingParams(max_tokens=8)] * 12, on_completion=interrupt)
    assert len(endpoint.bodies) < 12


@pytest.mark.slow
def test_our_own_server_and_this_process_stand_in_one_table(
    model_folder: Path, options: EvalOptions, tmp_path: Path
) -> None:
    opened = open_model(str(model_folder), device="cpu")
    local, served = tmp_path / "local", tmp_path / "served"
    with serving(create_app(opened.engine, opened.chat, model_name="noise")) as url:
        measured(replace(options, model=f"openai:noise@{url}/v1", out=served))
    measured(replace(options, model=str(model_folder), price="", out=local))
    found = json.loads(run_comparison([str(local), str(served)], form="json"))
    assert [row["cost_usd"] > 0 for row in found["evaluations"]] == [True, True]
    assert found["pairs"][0]["num_problems"] == 12


@contextlib.contextmanager
def serving(app: Callable[..., Any]) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
