"""Naming an endpoint: addresses, keys that stay secret, and what vendors' terms say."""

from __future__ import annotations

import re

import pytest

from aha.client import Client, Endpoint, terms_notice
from aha.client.terms import VENDORS
from aha.errors import ConfigError
from tests.client.conftest import KEY


def endpoint(base_url: str = "https://api.example.com/v1", *, model: str = "m", api_key: str = "") -> Endpoint:
    return Endpoint(base_url=base_url, model=model, api_key=api_key)


@pytest.mark.parametrize(
    ("base_url", "problem"),
    [
        ("api.deepseek.com/v1", "must begin with http:// or https://"),
        ("ftp://x/v1", "must begin with http:// or https://"),
        ("https://", "names no host"),
        ("https:///v1", "names no host"),
        ("https://x:99999/v1", "is not a URL"),
        ("https://[::1/v1", "is not a URL"),
        ("https://user:hunter2@x/v1", "may not hold a user name or password"),
        ("https://x/v1?key=hunter2", "may not have a query or a fragment"),
        ("https://x/v1#hunter2", "may not have a query or a fragment"),
        ("https://x/v1/chat/completions", "must end before /chat/completions"),
        ("https://x y/v1", "may not hold blanks"),
        ("https://x\\y/v1", "may not hold blanks, backslashes"),
        ("", "must begin with http:// or https://"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_showing_secrets(base_url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"base_url {problem}.*") as caught:
        endpoint(base_url)
    assert "hunter2" not in str(caught.value)


def test_a_slash_at_the_end_changes_nothing() -> None:
    assert endpoint("https://x/v1/") == endpoint("https://x/v1")


@pytest.mark.parametrize("model", ["", "a\nb"])
def test_a_model_needs_a_name(model: str) -> None:
    with pytest.raises(ConfigError, match="model must be the name"):
        endpoint(model=model)


@pytest.mark.parametrize("key", [f"{KEY}\n", f'"{KEY} "', "schlüssel-0123456789"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key must be printable ASCII") as caught:
        endpoint(api_key=key)
    assert key.strip() not in str(caught.value)


def test_the_key_comes_from_the_environment_and_is_not_in_the_repr() -> None:
    def read(**environ: str) -> str:
        return Endpoint.from_env("https://x/v1", model="m", environ=environ).api_key

    assert read(AHA_ENDPOINT_KEY=f" {KEY}\n", OPENAI_API_KEY="other") == KEY
    assert read(AHA_ENDPOINT_KEY="", OPENAI_API_KEY="other") == "other"
    assert read() == ""
    assert KEY not in repr(endpoint(api_key=KEY))


def test_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_ENDPOINT_KEY", KEY)
    assert Endpoint.from_env("https://x/v1", model="m").api_key == KEY


@pytest.mark.parametrize(
    ("base_url", "is_loopback"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.3.2.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000", True),
        ("http://a.localhost/v1", True),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
    ],
)
def test_this_machine_is_known_by_its_names(base_url: str, is_loopback: bool) -> None:
    assert endpoint(base_url).is_loopback is is_loopback


def test_a_key_on_an_open_wire_is_warned_of() -> None:
    notices: list[str] = []
    for base_url in ("http://10.0.0.1/v1", "https://10.0.0.1/v1", "http://127.0.0.1/v1"):
        Client(endpoint(base_url, api_key=KEY), on_notice=notices.append).close()
    assert notices == ["http://10.0.0.1/v1 is not encrypted: others on the network can read the key"]


def test_proxy_settings_that_make_no_sense_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://x")
    with pytest.raises(ConfigError, match="the environment's proxy or certificates cannot be used.*HTTPS_PROXY"):
        Client(endpoint())


@pytest.mark.parametrize(
    ("base_url", "model", "said"),
    [
        ("https://api.openai.com/v1", "o1", "OpenAI's terms restrict training on outputs: .*compete with OpenAI"),
        ("https://me.openai.azure.com/v1", "x", "OpenAI's terms restrict"),
        ("https://api.anthropic.com/v1", "claude-x", "Anthropic's terms restrict"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-x", "Google's terms restrict"),
        ("https://us-central1-aiplatform.googleapis.com/v1", "x", "Google's terms restrict"),
        ("https://api.x.ai/v1", "grok-x", "xAI's terms restrict.*unverified"),
        ("https://api.deepseek.com/v1", "deepseek-reasoner", "DeepSeek's terms: .*MIT.*distillation.*allowed"),
        ("http://127.0.0.1:4000/v1", "openai/gpt-4o", "looks like one of OpenAI's; if it is, its terms may restrict"),
        ("https://openrouter.ai/api/v1", "anthropic/Claude-X", "looks like one of Anthropic's"),
    ],
)
def test_vendors_terms_are_told_with_their_source_and_date(base_url: str, model: str, said: str) -> None:
    notice = terms_notice(endpoint(base_url, model=model))
    assert re.search(said, notice), notice
    assert "https://" in notice
    assert "2026-11-24, not legal advice" in notice


@pytest.mark.parametrize(
    ("base_url", "model"),
    [
        ("http://127.0.0.1:8000/v1", "tiny"),
        ("https://api.example.com/v1", "Qwen/Qwen3-8B"),
        ("https://api.openai.com.example.com/v1", "m"),
        ("http://localhost/v1", "o1ympus"),
        ("http://localhost/v1", "gpt-oss-20b"),
        ("http://localhost/v1", "deepseek-r1"),
    ],
)
def test_nothing_is_said_where_nothing_is_known(base_url: str, model: str) -> None:
    assert terms_notice(endpoint(base_url, model=model)) == ""


def test_every_rule_has_a_source_and_says_what_it_rests_on() -> None:
    for terms in VENDORS:
        assert terms.source.startswith("https://")
        assert terms.evidence
        assert terms.hosts
