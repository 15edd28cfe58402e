"""Endpoints that refuse, stall, lie, cut streams and redirect: what is retried, what it costs, what the user reads."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aha.client import Client, Endpoint, EndpointError
from aha.client.retries import backoff_seconds, retry_after_seconds
from aha.types import Message, SamplingParams
from tests.client.conftest import (
    COST,
    KEY,
    PRICE,
    QUESTION,
    SAMPLING,
    USAGE,
    WORST,
    Behaviour,
    FakeClock,
    LiveEndpoint,
    Request,
    chunk,
    completion,
    events,
    ok,
    refuse,
    reset,
    stall,
)

MakeClient = Callable[..., Client]


def trickle(request: Request) -> None:
    """A byte now and then, headers included, for ever."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(100):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.02)


def trickle_body(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b" ")
        time.sleep(0.02)


def raw(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        request.wfile.write(data)
        request.close_connection = True

    return answer


WHOLE = json.dumps(completion("7")).encode()
FREE: dict[str, Behaviour] = {
    "429": refuse(429, "slow down"),
    "503": refuse(503, "overloaded"),
    "500": refuse(500, "oops"),
    "408": refuse(408),
    "409": refuse(409),
    "error body without end": lambda r: r.say(b"x" * 100_000, status=503),
    "error body that breaks": lambda r: r.say(b"x", status=503, length=500),
}
PAID: dict[str, Behaviour] = {
    "502": refuse(502, "bad gateway"),
    "504": refuse(504, "gateway timeout"),
    "reset": reset,
    "stall": stall(1.5),
    "trickled headers": trickle,
    "trickled body": trickle_body,
    "cut body": lambda r: r.say(WHOLE[:50], length=len(WHOLE)),
    "cut stream": lambda r: r.say_events(events(chunk("7"), done=False)),
    "broken chunk": lambda r: r.say_events(b"data: {oops\n\n"),
    "error in a stream": lambda r: r.say_events(events(chunk("7"), {"error": {"message": "died"}}, done=False)),
    "not JSON": lambda r: r.say(b"<html>welcome</html>", content_type="text/html"),
    "JSON, not an object": lambda r: r.say(b"[1]"),
    "empty": lambda r: r.say(b""),
    "204": lambda r: r.say(b"", status=204),
    "not HTTP": raw(b"hello\r\n\r\n"),
    "broken gzip": lambda r: r.say(b"nonsense", headers={"Content-Encoding": "gzip"}),
    "error in a 200": lambda r: r.say(b'{"error": {"message": "upstream", "code": 502}}'),
    "choices null": ok(choices=None, usage=None),
    "choices of nonsense": ok(choices=["x"], usage=None),
    "choice without a message": ok(choices=[{}], usage=None),
}


@pytest.mark.parametrize("name", [*FREE, *PAID])
def test_what_may_pass_is_tried_again(live: LiveEndpoint, make_client: MakeClient, clock: FakeClock, name: str) -> None:
    live.script = [(FREE | PAID)[name]]
    client = make_client(timeout_seconds=0.6)
    assert client.chat(QUESTION, SAMPLING).content == "7"
    assert (client.num_requests, client.num_retries) == (2, 1)
    assert clock.sleeps == [pytest.approx(0.375, abs=0.125)]
    # A lost reply may have been charged: it is entered at the most it can have cost.
    assert client.spent_nano_usd == COST + (WORST if name in PAID else 0)


def test_no_choices_cost_what_they_say_and_are_tried_again(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.script = [ok(choices=[])]
    client = make_client()
    assert client.chat(QUESTION, SAMPLING).content == "7"
    assert client.spent_nano_usd == 2 * COST


def test_a_dead_endpoint_costs_nothing_and_is_named(clock: FakeClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m", price=PRICE)
    with Client(endpoint, max_retries=2, clock=clock) as client:
        with pytest.raises(EndpointError, match=rf"127.0.0.1:{port}/v1, model 'm', cannot be reached.*\(3 attempts\)"):
            client.chat(QUESTION, SAMPLING)
        assert client.spent_nano_usd == 0
        assert len(clock.sleeps) == 2


def test_retries_end(live: LiveEndpoint, make_client: MakeClient, clock: FakeClock) -> None:
    live.default = refuse(500, "still broken")
    client = make_client(max_retries=3)
    with pytest.raises(
        EndpointError, match=r"answered 500 Internal Server Error: still broken \(4 attempts\)"
    ) as caught:
        client.chat(QUESTION, SAMPLING)
    assert (caught.value.status, caught.value.num_attempts) == (500, 4)
    assert len(clock.sleeps) == 3
    assert clock.sleeps[0] < clock.sleeps[1] < clock.sleeps[2]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_what_cannot_pass_is_not_tried_again(live: LiveEndpoint, make_client: MakeClient, status: int) -> None:
    live.default = refuse(status, f"the reason\x1b[31m\r\nis {KEY}" + " x" * 1000)
    client = make_client()
    with pytest.raises(EndpointError) as caught:
        client.chat(QUESTION, SAMPLING)
    said = str(caught.value)
    assert f"answered {status}" in said
    assert "the reason [31m is ***" in said
    assert len(said) < 600
    assert said.isprintable()
    assert KEY not in repr(caught.value)
    assert client.num_requests == 1
    assert client.spent_nano_usd == 0


def test_a_gateways_error_in_a_200_is_believed(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.default = lambda r: r.say(b'{"error": {"message": "context too long", "code": 400}}')
    client = make_client()
    with pytest.raises(EndpointError, match="answered with an error: context too long$"):
        client.chat(QUESTION, SAMPLING)
    assert client.num_requests == 1


def test_an_empty_account_is_not_a_rate_limit(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.default = refuse(429, "You exceeded your current quota", code="insufficient_quota")
    client = make_client()
    with pytest.raises(EndpointError, match="quota; top up the account"):
        client.chat(QUESTION, SAMPLING)
    assert client.num_requests == 1


def test_a_field_that_is_refused_is_said_otherwise_once_and_for_all(
    live: LiveEndpoint, make_client: MakeClient, clock: FakeClock, notices: list[str]
) -> None:
    live.script = [
        refuse(400, "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."),
        refuse(422, "extra field: seed"),
    ]
    sampling = SamplingParams(max_tokens=100, seed=3)
    client = make_client(max_retries=0)
    assert client.chat(QUESTION, sampling).content == "7"
    assert client.chat(QUESTION, sampling).content == "7"
    fields = [set(body) & {"max_tokens", "max_completion_tokens", "seed"} for body in live.bodies]
    assert fields == [{"max_tokens", "seed"}, {"max_completion_tokens", "seed"}, *[{"max_completion_tokens"}] * 2]
    assert len(notices) == 2
    live.default = refuse(400, "seed and max_completion_tokens are wrong")
    with pytest.raises(EndpointError, match="are wrong"):
        client.chat(QUESTION, sampling)
    assert clock.sleeps == []


@pytest.mark.parametrize("body", [b'{"detail": "no"}', b'{"error": "no"}', b'{"message": "no"}', b"no"])
def test_error_bodies_of_all_shapes_are_read(live: LiveEndpoint, make_client: MakeClient, body: bytes) -> None:
    live.default = lambda request: request.say(body, status=400)
    with pytest.raises(EndpointError, match=r"answered 400 Bad Request: no$"):
        make_client().chat(QUESTION, SAMPLING)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 2026 00:00:40 GMT", 40.0),
        ("Thu, 01 Jan 2026 00:00:40 -0000", 40.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("86400", 120.0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", 120.0),
        ("1" * 400, None),
        ("-3", None),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_read_and_capped(value: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": value}, now=FakeClock().now()) == seconds


@pytest.mark.parametrize("status", [429, 503])
def test_the_servers_wish_to_wait_is_granted(
    live: LiveEndpoint, make_client: MakeClient, clock: FakeClock, status: int
) -> None:
    live.script = [refuse(status, headers={"Retry-After": "7"}), refuse(status, headers={"Retry-After": "0"})]
    make_client().chat(QUESTION, SAMPLING)
    assert clock.sleeps[0] == 7.0
    assert 0.5 <= clock.sleeps[1] <= 1.0


def test_jitter_is_the_same_under_the_same_seed() -> None:
    waits = [backoff_seconds(attempt, seed="a") for attempt in range(10)]
    assert waits == [backoff_seconds(attempt, seed="a") for attempt in range(10)]
    assert waits != [backoff_seconds(attempt, seed="b") for attempt in range(10)]
    assert all(0.25 <= wait <= 30.0 for wait in waits)
    assert max(waits) > 15.0


def test_a_trickling_server_is_left_after_the_total_time(live: LiveEndpoint, make_client: MakeClient) -> None:
    live.default = trickle
    client = make_client(timeout_seconds=0.2, max_retries=0)
    started = time.monotonic()
    with pytest.raises(EndpointError, match="no complete answer within timeout_seconds=0.2"):
        client.chat(QUESTION, SAMPLING)
    assert time.monotonic() - started < 1.0


def test_a_redirect_is_not_followed_and_the_key_stays(live: LiveEndpoint, make_client: MakeClient) -> None:
    elsewhere = LiveEndpoint()
    target = elsewhere.base_url.replace("127.0.0.1", "localhost") + "/chat/completions"
    live.script = [lambda r: r.say(b"", status=307, headers={"Location": target})]
    live.script += [lambda r: r.say(b"", status=302, headers={"Location": "http://[broken"})]
    client = make_client(max_retries=0)
    with pytest.raises(EndpointError, match=r"answered 307.*redirect to http://localhost.*give the final address"):
        client.chat(QUESTION, SAMPLING)
    with pytest.raises(EndpointError):
        client.chat(QUESTION, SAMPLING)
    elsewhere.stop()
    assert elsewhere.bodies == []


def test_the_key_is_sent_as_a_header_and_shown_nowhere(
    live: LiveEndpoint, make_client: MakeClient, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    live.script = [ok(f"your key is {KEY}", model=KEY), refuse(500, KEY), refuse(401, KEY)]
    client = make_client(journal=tmp_path / "j.jsonl")
    reply = client.chat(QUESTION, SAMPLING)
    with pytest.raises(EndpointError) as caught:
        client.chat(QUESTION, SAMPLING, sample_index=1)
    client.close()
    assert live.headers[0]["authorization"] == f"Bearer {KEY}"
    shown = [repr(reply), repr(caught.value), repr(client.endpoint), caplog.text, (tmp_path / "j.jsonl").read_text()]
    assert not [text for text in shown if KEY in text]
    assert reply.content == "your key is ***"


def test_the_environments_proxy_does_not_stand_before_this_machine(
    live: LiveEndpoint, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert make_client().chat(QUESTION, SAMPLING).content == "7"


def test_a_stream_is_tried_again_only_before_its_first_piece(live: LiveEndpoint, make_client: MakeClient) -> None:
    good = events(chunk("7", finish_reason="stop"), {"choices": [], "usage": USAGE})
    live.script = [
        refuse(503),
        lambda r: r.say_events(events(chunk("<thi"), done=False)),  # held back, so nobody has seen it
        lambda r: r.say_events(good),
        lambda r: r.say_events(events(chunk("half"), done=False)),
    ]
    client = make_client()
    assert [delta.text for delta in client.stream(QUESTION, SAMPLING)] == ["7"]
    assert client.num_retries == 2
    stream = client.stream(QUESTION, SAMPLING)
    assert next(stream).text == "half"
    with pytest.raises(EndpointError, match="cut the stream before its end"):
        next(stream)
    assert client.num_retries == 2
    assert client.spent_nano_usd == COST + 2 * WORST


def test_a_stream_that_nobody_wants_any_more_ends_and_counts(live: LiveEndpoint, make_client: MakeClient) -> None:
    gone = threading.Event()

    def endless(request: Request) -> None:
        try:
            request.say_events(events(chunk("a"), done=False))
            for _ in range(500):
                request.wfile.write(events(chunk("a"), done=False))
                time.sleep(0.005)
        except OSError:
            gone.set()
            raise

    live.script = [endless]
    client = make_client()
    stream = client.stream(QUESTION, SAMPLING)
    assert next(stream).text == "a"
    stream.close()
    assert gone.wait(2.0)
    assert client.spent_nano_usd == WORST


# Made for this test alone, signed by nobody: openssl req -x509 -newkey ec -nodes -days 36500 -subj /CN=localhost
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrzkVQtaoQlE1BI/5
432GT8GeStKFSUlKIMlWetzwV0yhRANCAASURGweTAkV3mjG0sdD2lW1PUtXyPwV
RLOuo3Gh91bhMAxeKYuuX14uKAD6vvZOUkBwCV9eEr7P/6kTMvfsKw1d
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUXCecrszIfRWQ/Bmv3TQ0YKyktXwwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDIxMDM0M1oYDzIxMjYxMDMx
MjEwMzQzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASURGweTAkV3mjG0sdD2lW1PUtXyPwVRLOuo3Gh91bhMAxeKYuuX14u
KAD6vvZOUkBwCV9eEr7P/6kTMvfsKw1do28wbTAdBgNVHQ4EFgQUOcIjnF7DGWt/
sntw1s4sP7JGqH8wHwYDVR0jBBgwFoAUOcIjnF7DGWt/sntw1s4sP7JGqH8wDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSQAwRgIhAObWz7vbu0889D6zGVOzL2OoaiL4qnlfltLSU5cz876qAiEA
/sSdqBN1Xj7tWs+XsXIC9HVNHn86cnLNrkmrAlzv+Ak=
-----END CERTIFICATE-----
"""


def test_a_certificate_that_nobody_vouches_for_ends_it_before_the_key_is_sent(clock: FakeClock, tmp_path: Any) -> None:
    (tmp_path / "self_signed.pem").write_text(SELF_SIGNED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "self_signed.pem")
    heard: list[bytes] = []

    def listen(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            heard.append(tls.recv(100))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=listen, args=(listener,))
        thread.start()
        base_url = f"https://localhost:{listener.getsockname()[1]}/v1"
        with Client(Endpoint(base_url=base_url, model="m", api_key=KEY, price=PRICE), clock=clock) as client:
            with pytest.raises(EndpointError, match="cannot be reached.*CERTIFICATE_VERIFY_FAILED"):
                client.chat(QUESTION, SAMPLING)
            assert client.spent_nano_usd == 0
        thread.join()
    assert not any(heard)
    assert clock.sleeps == []


@pytest.fixture
def waiting(live: LiveEndpoint) -> Iterator[threading.Event]:
    """Set once a request that is never answered has arrived."""
    arrived, over = threading.Event(), threading.Event()

    def hang(_: Request) -> None:
        arrived.set()
        over.wait(5.0)

    live.default = hang
    yield arrived
    over.set()


def test_closing_ends_what_is_under_way_and_counts_it(make_client: MakeClient, waiting: threading.Event) -> None:
    client = make_client()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            client.chat(QUESTION, SAMPLING)
        except EndpointError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert waiting.wait(2.0)
    client.close()
    thread.join(2.0)
    assert "the client was closed" in str(failures[0])
    assert client.spent_nano_usd == WORST
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.chat(QUESTION, SAMPLING)


def test_through_any_weather_every_answer_arrives_once_and_the_books_are_right(
    live: LiveEndpoint, make_client: MakeClient, tmp_path: Any
) -> None:
    weather = random.Random(3)
    paid: list[int] = []
    lock = threading.Lock()

    def any_weather(request: Request) -> None:
        name = request.body["messages"][0]["content"]
        with lock:
            kind = weather.choice(["good"] * 30 + [*FREE] + [*PAID])
            paid.append(COST if kind == "good" else 0 if kind in FREE else WORST)
        (ok(f"answer to {name}") if kind == "good" else (FREE | PAID)[kind])(request)

    live.default = any_weather
    client = make_client(timeout_seconds=0.7, max_retries=100, budget_usd=1.0, journal=tmp_path / "j.jsonl")
    questions = [[Message("user", f"question {i:05}")] for i in range(40)]
    rows = client.respond(questions, SAMPLING)
    assert [row[0].answer for row in rows] == [f"answer to question {i:05}" for i in range(40)]
    assert client.spent_nano_usd == sum(paid)
    assert client.num_requests == len(paid) == 40 + client.num_retries
    client.close()
    resumed = make_client(journal=tmp_path / "j.jsonl")
    assert resumed.spent_nano_usd == sum(paid)
    assert resumed.respond(questions, SAMPLING) == rows


def test_a_caller_that_waits_for_retries_is_told_once_why(
    live: LiveEndpoint, make_client: MakeClient, notices: list[str]
) -> None:
    live.default = refuse(503, "the model is loading")
    client = make_client(max_retries=1)
    with pytest.raises(EndpointError):
        client.chat(QUESTION, SAMPLING)
    assert notices == []
    client = make_client(max_retries=4)
    with pytest.raises(EndpointError):
        client.chat(QUESTION, SAMPLING)
    assert len(notices) == 1
    assert "the model is loading; trying again" in notices[0]
