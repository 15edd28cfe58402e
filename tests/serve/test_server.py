"""`run`: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from aha.errors import AhaError, ConfigError
from aha.serve import run
from aha.serve.server import served_name


@pytest.fixture(autouse=True)
def _ledger_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path))


def run_and_visit(folder: Path, visit: Callable[[int], None], **options: object) -> None:
    """Run the server here, where signals arrive, and a visitor in a thread as soon as it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    failures: list[BaseException] = []

    def wait_and_visit() -> None:
        try:
            transport = httpx.HTTPTransport(retries=50)
            with httpx.Client(transport=transport, timeout=30) as client:
                client.get(f"http://127.0.0.1:{port}/health/ready").raise_for_status()
            visit(port)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread below
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=wait_and_visit)
    visitor.start()
    try:
        run(folder, port=port, device="cpu", **options)  # type: ignore[arg-type]
    finally:
        visitor.join()
        assert not failures, failures


def test_the_printed_curl_works_and_sigterm_finishes_what_is_under_way(
    model_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHA_API_KEY", "secret")
    seen = []

    def visit(port: int) -> None:
        printed = capfd.readouterr().out
        assert f"babble is served at http://127.0.0.1:{port}/v1" in printed
        assert "$0.08 an hour" in printed
        assert f"http://127.0.0.1:{port}/cost\n" in printed
        command = printed.partition("try: ")[2]
        curl = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert '"finish_reason"' in curl.stdout
        body = {"model": "babble", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 200}
        headers = {"Authorization": "Bearer secret"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            seen.extend(lines)

    run_and_visit(model_folder, visit, api_key="secret")
    assert "data: [DONE]" in seen


def test_ctrl_c_ends_it_as_a_keyboard_interrupt(model_folder: Path) -> None:
    # A test run in the background inherits an ignored SIGINT, which Python then leaves ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_and_visit(model_folder, lambda _: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken; .*--port {port + 1}"):
            run(tmp_path / "no-such-model", port=port)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "0.0.0.0"}, "lets other machines in; set a key"),
        ({"host": "::"}, "lets other machines in"),
        ({"host": "no.such.host.invalid"}, "unknown host"),
        ({"host": "203.0.113.7", "api_key": "k"}, "no address of this machine"),
        ({"api_key": "with space"}, "printable ASCII"),
        ({"api_key": "schlüssel"}, "printable ASCII"),
        ({"price": "gold"}, "unknown machine price 'gold'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_served_is_refused_in_one_line(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(AhaError, match=said) as caught:
        run(tmp_path, port=0, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AhaError, match=str(tmp_path)):
        run(tmp_path, port=0)


def test_a_model_is_called_by_its_runs_name(tmp_path: Path) -> None:
    model = tmp_path / "countdown-2" / "model"
    model.mkdir(parents=True)
    assert served_name(model) == served_name(model.parent) == served_name(f"{model}/") == "countdown-2"
    assert served_name("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"
