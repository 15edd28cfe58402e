"""The calculator in a browser: it answers from its address, follows its form, and works by keyboard and on a phone.

Chromium is driven by its own protocol over a pipe, so that no further package is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import uvicorn

from aha.serve import create_calculator_app
from aha.serve.calculator import words

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--remote-debugging-pipe", "about:blank"]  # fmt: skip
PATIENCE_SECONDS = 30.0
STATE = {
    "model": "Qwen/Qwen2.5-7B", "gpu": "h800", "on": "2025-01-31", "api": "deepseek-r1", "requests_per_day": "10000",
    "input_tokens": "2000", "cached_tokens": "1000", "output_tokens": "800", "training_usd": "500", "lang": "en",
}  # fmt: skip
VERDICT = "document.querySelector('.view:not([hidden]) .verdict').textContent"
IS_ANSWERED = (
    "document.querySelector('.view:not([hidden]) .result table') !== null && !document.querySelector('[aria-busy]')"
)


class ProtocolError(Exception):
    """What Chromium would not do, e.g. evaluate in a page that it is leaving."""


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, profile: Path) -> None:
        child_reads, self._commands = os.pipe()
        self._answers, child_writes = os.pipe()
        # The protocol's pipe is file descriptors 3 and 4.
        command = ["bash", "-c", f'exec "$@" 3<&{child_reads} 4>&{child_writes}', "chromium", str(CHROMIUM)]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", *FLAGS],
            pass_fds=(child_reads, child_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """Exceptions of the page's scripts, and what its policy has refused."""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for room in ("Page", "Runtime", "Log"):
            self.call(f"{room}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise ProtocolError(answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._answers, 1 << 16)
            assert piece, "Chromium has gone"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))
        entry = event.get("params", {}).get("entry", {})
        # Refused requests are what some tests are about; browsers ask for an icon that the page does not have.
        if entry.get("level") == "error" and entry.get("source") != "network" and "favicon" not in str(entry):
            self.complaints.append(entry["text"])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until it is true; while a page is being left or loaded, nothing is."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        asked = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        while time.monotonic() < deadline:
            with contextlib.suppress(ProtocolError):
                if self.evaluate(asked):
                    return
            time.sleep(0.02)
        pytest.fail(f"never: {expression}; {self.evaluate(VERDICT)}")

    def write(self, field: str, text: str) -> None:
        """Replace what a field holds, as by hand."""
        self.evaluate(f"document.getElementById('{field}').select()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.evaluate("location.href")).query).items()}

    def close(self) -> None:
        os.close(self._commands)  # Chromium ends when its pipe does
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Fails the test when the page's scripts have."""
    chromium.complaints.clear()
    yield chromium
    chromium.evaluate("0")  # lets late events in
    assert not chromium.complaints


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    yield from serve(())


def serve(api_keys: tuple[str, ...]) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_calculator_app(api_keys=api_keys), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/cost"
        finally:
            server.should_exit = True
            thread.join()


def open_state(browser: Browser, url: str, **changes: str) -> None:
    browser.open(f"{url}?{urlencode({**STATE, **changes})}")
    browser.wait(IS_ANSWERED)


@pytest.mark.slow
def test_page_answers_from_its_address_alone_and_follows_its_form(browser: Browser, url: str) -> None:
    open_state(browser, url)
    verdict = browser.evaluate(VERDICT)
    assert verdict.startswith("Call the API. For this load deepseek-r1 costs $743 a month; your own Qwen2.5-7B")
    assert "at our token counts" in browser.evaluate("document.body.innerText")
    browser.write("d-requests", "1M")
    browser.wait(f"{VERDICT}.startsWith('Train and serve your own.')")
    assert browser.query["requests_per_day"] == "1M"
    # The address alone gives the same answer again.
    verdict = browser.evaluate(VERDICT)
    browser.open(browser.evaluate("location.href"))
    browser.wait(IS_ANSWERED)
    assert browser.evaluate(VERDICT) == verdict


@pytest.mark.slow
def test_changing_the_language_keeps_the_question(browser: Browser, url: str) -> None:
    open_state(browser, url, requests_per_day="1000000")
    browser.evaluate("document.querySelector('[data-lang=ja]').click()")
    browser.wait(f"document.documentElement.lang === 'ja' && {IS_ANSWERED}")
    assert browser.evaluate(VERDICT).startswith(words()["verdict-own"]["ja"])
    assert browser.query["requests_per_day"] == "1000000"
    left = browser.evaluate("document.querySelector('.view:not([hidden])').innerText.match(/[a-z]+-[a-z-]+\\b/g)") or []
    assert not set(left) & set(words()), "a name of a text is shown in the place of the text"


@pytest.mark.slow
def test_page_shows_the_training_bill_and_the_prices_of_a_day(browser: Browser, url: str) -> None:
    browser.open(f"{url}?lang=en&view=train&tokens=1T")
    browser.wait(IS_ANSWERED)
    assert "GPU hours, $" in browser.evaluate(VERDICT)
    assert "multi-token prediction" in browser.evaluate("document.body.innerText")
    browser.evaluate("document.querySelector('[data-view=prices]').click()")
    browser.wait("!document.getElementById('prices').hidden")
    assert browser.evaluate("document.activeElement.closest('section').id") == "prices"
    browser.open(f"{url}?lang=en&view=prices&on=2025-01-31&compare=openai-o1,deepseek-r1")
    browser.wait(IS_ANSWERED)
    assert "openai-o1 asked 27.4 times what deepseek-r1 did" in browser.evaluate(VERDICT)


@pytest.mark.slow
def test_page_names_the_field_that_is_wrong_and_shows_hostile_text_as_text(browser: Browser, url: str) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    browser.open(f"{url}?{urlencode({**STATE, 'api': hostile, 'requests_per_day': hostile})}")
    browser.wait("document.querySelector('[aria-invalid]') !== null")
    assert "cannot be used" in browser.evaluate(VERDICT)
    assert browser.evaluate("document.images.length") == 0
    described = "document.getElementById(document.querySelector('[aria-invalid]').getAttribute('aria-describedby'))"
    assert browser.evaluate(f"{described}.textContent")
    browser.write("d-requests", "-5")
    browser.wait("document.getElementById('d-requests').getAttribute('aria-invalid') === 'true'")
    open_state(browser, url)  # and it recovers
    assert browser.evaluate("document.querySelector('[aria-invalid]')") is None


@pytest.mark.slow
def test_assumption_is_a_link_to_the_field_that_sets_it(browser: Browser, url: str) -> None:
    open_state(browser, url)
    browser.evaluate("document.querySelector('[data-edit=\"d-assume-memory\"]').click()")
    assert browser.evaluate("document.activeElement.id") == "d-assume-memory"
    before = browser.evaluate("document.querySelector('#decide .result').textContent")
    browser.write("d-assume-memory", "0.4")
    browser.wait("location.search.includes('assume.memory=0.4')")
    browser.wait(f"{IS_ANSWERED} && document.querySelector('#decide .result').textContent !== {json.dumps(before)}")


@pytest.mark.slow
def test_key_is_asked_for_and_kept_nowhere(browser: Browser) -> None:
    for locked in serve(("secret-key",)):
        browser.open(f"{locked}?lang=en")
        browser.wait("!document.getElementById('key-form').hidden")
        assert browser.evaluate("document.activeElement.id") == "key"
        browser.write("key", "wrong")
        browser.press("Enter", code=13, text="\r")
        browser.wait("!document.getElementById('key-form').hidden")
        browser.write("key", "secret-key")
        browser.press("Enter", code=13, text="\r")
        browser.wait(IS_ANSWERED)
        kept = "JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}, history.state])"
        assert "secret-key" not in browser.evaluate(kept)
        browser.open(f"{locked}?lang=en")
        browser.wait("!document.getElementById('key-form').hidden")


@pytest.mark.slow
def test_everything_can_be_reached_by_keyboard(browser: Browser, url: str) -> None:
    open_state(browser, url)
    reached = []
    for _ in range(60):
        browser.press("Tab", code=9)
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached[0] == "skip"
    fields = browser.evaluate(
        "[...document.querySelectorAll('#decide [name]')].filter((field) => field.checkVisibility()).map((f) => f.id)"
    )
    assert set(fields) <= set(reached)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("view", ["decide", "train", "prices"])
def test_page_is_no_wider_than_a_phone(browser: Browser, url: str, view: str, language: str) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    try:
        browser.open(f"{url}?lang={language}&view={view}")
        browser.wait(IS_ANSWERED)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
def test_answer_is_copied_as_json_and_as_csv(browser: Browser, url: str) -> None:
    open_state(browser, url)
    # Without a clipboard the text is shown to be copied by hand: that way it can be read here.
    browser.evaluate("navigator.clipboard.writeText = () => Promise.reject(new Error('no clipboard'))")
    copied = "document.querySelector('#by-hand textarea').value"
    browser.evaluate("document.querySelector('[data-copy=json]').click()")
    browser.wait("!document.getElementById('by-hand').hidden")
    assert json.loads(browser.evaluate(copied))["verdict"] == "api"
    browser.evaluate("document.querySelector('[data-copy=csv]').click()")
    browser.wait(f"{copied}.startsWith('name,value')")
    assert "\nverdict,api\n" in browser.evaluate(copied)
