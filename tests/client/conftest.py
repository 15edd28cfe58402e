"""An endpoint that misbehaves as told, on a free loopback port, and a clock that does not wait."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aha.client import Client, Endpoint
from aha.client.clock import Clock
from aha.cost import custom_token_price
from aha.types import Message, SamplingParams

KEY = "sk-very-secret-0123456789"
PRICE = custom_token_price("1", usd_per_million_output="10", usd_per_million_cached="0.5", on=date(2026, 1, 1))
QUESTION = [Message("user", "What is 3 + 4?")]
SAMPLING = SamplingParams(max_tokens=100, temperature=0.6, top_p=0.95)
# One token of the price above costs 1,000 (in) or 10,000 (out) nano-dollars.
WORST = (len("What is 3 + 4?") + 256 + 16) * 1_000 + 100 * 10_000
USAGE = {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}
COST = 12 * 1_000 + 30 * 10_000

Behaviour = Callable[["Request"], None]


class FakeClock(Clock):
    """Waiting moves its time at once."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds - 1000.0)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)


class Request(BaseHTTPRequestHandler):
    """One request to the endpoint; behaviours answer it with these words."""

    protocol_version = "HTTP/1.1"
    server: ThreadingHTTPServer

    def setup(self) -> None:
        super().setup()
        self.body: dict[str, Any] = {}

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        endpoint: LiveEndpoint = self.server.endpoint  # type: ignore[attr-defined]
        try:
            endpoint.next_behaviour(self)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def say(
        self,
        data: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] = {},
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        if length is not None and length != len(data):
            self.close_connection = True

    def say_events(self, data: bytes, *, content_type: str = "text/event-stream") -> None:
        """A stream that ends with its connection."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up are what these tests are about; other errors are shown."""

    daemon_threads = True
    request_queue_size = 128  # the default of 5 drops connections of a batch
    block_on_close = False  # no waiting for connections that a client keeps alive

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class LiveEndpoint:
    """The server: `script` says how the next requests are answered, `default` how all others."""

    def __init__(self) -> None:
        self.script: list[Behaviour] = []
        self.default: Behaviour = ok()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._server = QuietServer(("127.0.0.1", 0), Request)
        self._server.endpoint = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def next_behaviour(self, request: Request) -> Behaviour:
        with self._lock:
            self.bodies.append(request.body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            return self.script.pop(0) if self.script else self.default

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def completion(content: Any = "7", **fields: Any) -> dict[str, Any]:
    """A response as the API documents it; `message` and `usage` replace their parts."""
    message = fields.pop("message", {"role": "assistant", "content": content})
    choice = {"index": 0, "message": message, "finish_reason": fields.pop("finish_reason", "stop")}
    return {"id": "x", "object": "chat.completion", "model": "m-1", "choices": [choice], "usage": USAGE, **fields}


def ok(content: Any = "7", **fields: Any) -> Behaviour:
    data = json.dumps(completion(content, **fields)).encode()
    return lambda request: request.say(data)


def refuse(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None, **error: Any) -> Behaviour:
    data = json.dumps({"error": {"message": message, **error}}).encode()
    return lambda request: request.say(data, status=status, headers=headers or {})


def reset(request: Request) -> None:
    """The connection breaks without a word."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.close_connection = True


def stall(seconds: float = 1.0) -> Behaviour:
    """Nothing at all, for longer than the client's patience in these tests."""
    return lambda request: time.sleep(seconds)


def events(*chunks: Any, done: bool = True) -> bytes:
    """A stream as the API documents it."""
    data = [json.dumps(chunk) for chunk in chunks] + (["[DONE]"] if done else [])
    return "".join(f"data: {one}\n\n" for one in data).encode()


def chunk(content: str | None = None, *, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    delta = {**({} if content is None else {"content": content}), **delta}
    return {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


@pytest.fixture
def live() -> Iterator[LiveEndpoint]:
    server = LiveEndpoint()
    yield server
    server.stop()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def make_client(live: LiveEndpoint, clock: FakeClock, notices: list[str]) -> Iterator[Callable[..., Client]]:
    """Clients of the live endpoint, closed at the end."""
    made: list[Client] = []

    def make(**options: Any) -> Client:
        price = options.pop("price", PRICE)
        endpoint = Endpoint(base_url=live.base_url, model="m", api_key=KEY, price=price)
        made.append(
            Client(endpoint, **{"clock": clock, "on_notice": notices.append, "timeout_seconds": 5.0, **options})
        )
        return made[-1]

    yield make
    for client in made:
        client.close()
