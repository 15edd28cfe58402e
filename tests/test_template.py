"""Templates from downloaded files: what transformers offers them, and what they may not do."""

from __future__ import annotations

import pytest

from aha.errors import ModelError, RequestError
from aha.template import ChatTemplate
from aha.types import Message


def render(source: str, messages: list[Message] | None = None) -> str:
    template = ChatTemplate(source, origin="models/x", named_tokens={"bos_token": "<s>"})
    messages = [Message("user", "é")] if messages is None else messages
    return template.render(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses: roles must alternate"),
        ("{{ ''.__class__.__mro__ }}{{ x.y.z }}", "failed"),
        ("{{ messages.append(1) }}", "failed"),
        ("{{ 'a' * 999999999 }}", "small values"),
        ("{{ [1] * 999999999 }}", "small values"),
        ("{{ 9 ** 9 ** 9 }}", "small values"),
        ("{{ 'a'.ljust(2000000000) }}", "numbers above"),
        ("{{ messages | slice(2000000000) }}", "numbers above"),
        ("{{ bos_token | indent(width=2000000000) }}", "numbers above"),
        ("{{ '%0999999999d' % 1 }}", "small values"),
        ("{% for i in range(100000) %}{{ '0123456789' * 100 }}{% endfor %}", "wrote more than"),
        ("{% for i in range(999999) %}{% endfor %}", "failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself"),
        ("{% if %}", "wrong at line 1"),
        ("a" * 300_000, "larger than"),
        ("", "has no chat template"),
    ],
)
def test_bad_template_is_one_clear_line(template: str, message: str) -> None:
    with pytest.raises((ModelError, RequestError), match=message) as caught:
        render(template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}" + "{% endfor %}" * 3,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 4 }}{% endfor %}",
    ],
)
def test_template_that_would_run_for_hours_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aha.template.MAX_RENDER_SECONDS", 0.2)
    with pytest.raises(ModelError, match=r"takes more than 0.2 s"):
        render(template)


def test_loops_still_know_their_length_and_neighbours() -> None:
    facts = "{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.nextitem }}"
    source = "{% for a in [3, 4, 5] if a > 3 %}" + facts + "{% endfor %}"
    assert render(source) == "1/2False52/2True"


def test_refusal_of_the_conversation_names_the_messages() -> None:
    with pytest.raises(RequestError) as caught:
        render("{{ raise_exception('no system role') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0] | tojson }}", '<s>{"role": "user", "content": "é"}'),
        ("{% generation %}a{% endgeneration %}{{ 7 % 4 }}{{ '-' * 3 }}", "a3---"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% if tools %}no{% endif %}{% if add_generation_prompt %}\nyes{% endif %}", "yes"),
    ],
)
def test_what_transformers_offers_templates_is_there(template: str, text: str) -> None:
    assert render(template) == text


def test_too_many_and_too_long_messages_are_refused() -> None:
    for messages in ([], [Message("user", "a")] * 5000, [Message("user", "a" * 17_000_000)]):
        with pytest.raises(RequestError, match="messages must hold"):
            render("{{ messages[0].content }}", messages)
