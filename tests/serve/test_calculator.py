"""The calculator's page and its JSON: what it answers, what it refuses, and that it needs neither a model nor torch."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from aha.cost.prices import custom_machine_price
from aha.estimate.breakeven import ApiRate, BreakEven, Owning, Workload
from aha.estimate.hardware import find_gpu
from aha.estimate.serving import ServingPlan, predict_serving
from aha.models.counts import count_parameters
from aha.models.known import known_config
from aha.serve import calculator, create_calculator_app
from aha.serve.calculator import choose_language, render_page, words
from aha.serve.calculator_answers import find_known_shape
from aha.serve.calculator_questions import read_question

TRAINING = {
    "model": "deepseek-v3", "tokens": "14.8T", "gpu": "h800", "num_gpus": 2048, "on": "2024-12-27",
    "precision": "float8",
}  # fmt: skip
SERVING = {"model": "Qwen/Qwen2.5-7B", "gpu": "h800", "on": "2025-01-31", "input_tokens": 2000, "output_tokens": 800}
DECISION = {**SERVING, "cached_tokens": 1000, "requests_per_day": 10_000, "api": "deepseek-r1", "training_usd": 500}
PRICES = {"on": "2025-01-31"}
QUESTIONS = {"prices": PRICES, "training": TRAINING, "serving": SERVING, "decision": DECISION}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    # A bug of ours must come back as the 500 that a caller would see, so that the tests below can refuse it.
    with TestClient(create_calculator_app(), raise_server_exceptions=False) as made:
        yield made


def ask(client: TestClient, path: str, body: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return client.post(f"/cost/api/{path}", content=content, headers=headers)


def answer(client: TestClient, path: str, **changes: object) -> dict[str, Any]:
    response = ask(client, path, {**QUESTIONS[path], **changes})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = json.loads(response.text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return found


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def test_prices_of_the_letters_month_have_its_ratio(client: TestClient) -> None:
    found = answer(client, "prices", compare=["openai-o1", "deepseek-r1"])
    cheap, dear = found["prices"]
    assert (cheap["name"], cheap["usd_per_million_output"]) == ("deepseek-r1", 2.19)
    assert (dear["name"], dear["usd_per_million_output"]) == ("openai-o1", 60.0)
    assert dear["times_cheapest_output"] == pytest.approx(27.397, abs=1e-3)
    assert "snapshot" in found["note"]
    assert all(price["source"] and price["confidence"] for price in found["prices"])


def test_all_prices_of_a_day_come_cheapest_output_first(client: TestClient) -> None:
    found = answer(client, "prices")
    outputs = [price["usd_per_million_output"] for price in found["prices"]]
    assert outputs == sorted(outputs)
    assert {"openai-o1", "deepseek-r1"} <= {price["name"] for price in found["prices"]}
    assert any(hour["name"] == "h800-hour" and hour["usd_per_hour"] == 2.0 for hour in found["machine_hours"])


def test_price_that_may_have_ended_is_marked_and_sets_no_ratio(client: TestClient) -> None:
    rows = answer(client, "prices", on="2026-11-25")["prices"]
    stale = {row["name"] for row in rows if row["may_have_ended"]}
    assert "openai-gpt-4-32k" in stale
    assert min(row["times_cheapest_output"] for row in rows if not row["may_have_ended"]) == 1.0
    compared = answer(client, "decision", on="2026-11-25", gpu="h100", api="openai-gpt-6-luna")["compared"]
    assert not stale & {row["name"] for row in compared}


@pytest.mark.parametrize(("given", "is_read"), [("14.8T", True), ("10,000", True), ("14,8T", False)])
def test_comma_stands_between_thousands_only(client: TestClient, given: str, is_read: bool) -> None:
    response = ask(client, "training", {**TRAINING, "tokens": given})
    assert response.status_code == (200 if is_read else 400), response.text


def test_training_answers_with_the_documented_keys_and_terms_that_add_up(client: TestClient) -> None:
    found = answer(client, "training")
    assert {"gpu_hours", "wall_hours", "cost_usd", "flops_per_token", "mfu"} <= set(found)
    assert found["question"]["tokens"] == 14.8e12
    assert found["model"]["num_parameters"] == pytest.approx(671e9, rel=1e-3)
    assert sum(term["cost_usd"] for term in found["terms"]) == pytest.approx(found["cost_usd"])
    assert sum(term["share"] for term in found["terms"]) == pytest.approx(1)
    assert found["cost_usd"] == pytest.approx(2.0 * found["gpu_hours"])
    assert all(row["source"] for row in found["assumptions"])


def test_your_own_price_of_a_gpu_scales_the_bill(client: TestClient) -> None:
    one, three = (answer(client, "training", usd_per_gpu_hour=usd)["cost_usd"] for usd in (1.0, 3.0))
    assert three == pytest.approx(3 * one)


def test_decision_is_the_break_even_of_the_estimate(client: TestClient) -> None:
    found = answer(client, "decision", usd_per_gpu_hour=2.0, overhead=1.35)
    plan = ServingPlan(gpu=find_gpu("h800"), input_tokens=2000, output_tokens=800, cache_hits=0.5)
    price = custom_machine_price("2.0", on=date(2025, 1, 31))
    rate = predict_serving(known_config("Qwen/Qwen2.5-7B"), plan=plan, price=price, overhead=1.35).rate
    work = Workload(input_tokens=2000, cached_tokens=1000, output_tokens=800, requests_per_day=10_000)
    api = ApiRate(
        name="deepseek-r1", usd_per_million_input=0.55, usd_per_million_cached=0.14, usd_per_million_output=2.19,
        price_id="", source="", confidence="",
    )  # fmt: skip
    owning = Owning(rate=rate, training_usd=500, overhead=1.35, max_utilisation=0.8)
    expected = BreakEven(work=work, owning=owning, api=api, horizon_months=12).to_dict()
    for key in ("verdict", "break_even_requests_per_day", "usd_per_month", "api_usd_per_month", "num_replicas"):
        assert found["break_even"][key] == expected[key], key
    # By hand: 1000 x 0.55 + 1000 x 0.14 + 800 x 2.19 dollars a million requests.
    assert found["sides"]["api"]["usd_per_request"] == pytest.approx(2442e-6)


def test_verdict_turns_with_the_load_and_with_who_is_right(client: TestClient) -> None:
    needed = answer(client, "decision")["break_even"]["break_even_requests_per_day"]
    assert answer(client, "decision", requests_per_day=0.9 * needed)["verdict"] == "api"
    assert answer(client, "decision", requests_per_day=1.1 * needed)["verdict"] == "own"
    assert answer(client, "decision", requests_per_day=1.1 * needed, pass_at_1_own=0.0)["verdict"] == "api"
    assert answer(client, "decision", requests_per_day=1, pass_at_1_api=0)["verdict"] == "own"
    assert answer(client, "decision", pass_at_1_own=0, pass_at_1_api=0)["verdict"] == "unclear"


def test_a_close_call_is_named_and_a_clear_one_is_not(client: TestClient) -> None:
    needed = answer(client, "decision")["break_even"]["break_even_requests_per_day"]
    close = answer(client, "decision", requests_per_day=0.95 * needed)["close_call"]
    assert 0.8 < close["factor"] < 1.25
    assert answer(client, "decision", requests_per_day=0.2 * needed)["close_call"] is None


def test_demand_that_grows_as_prices_fall_keeps_the_spend_at_elasticity_1(client: TestClient) -> None:
    rows = answer(client, "decision", elasticity=1.0)["demand"]
    stays = next(row for row in rows if row["api_price_fall_per_year"] == 0)
    grows = [row for row in rows if row["elasticity"] == 1.0]
    assert grows
    for row in grows:
        assert row["requests_per_day_at_horizon"] > stays["requests_per_day_at_horizon"]
        assert row["api_total_usd"] == pytest.approx(stays["api_total_usd"])


def test_every_api_is_compared_at_our_token_counts(client: TestClient) -> None:
    rows = answer(client, "decision", api_output_ratio=3.0)["compared"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["deepseek-r1"]["usd_per_thousand_requests"] == pytest.approx(2.442)
    assert by_name["openai-o1"]["usd_per_thousand_requests"] == pytest.approx(15 + 7.5 + 48)


def test_prices_of_your_own_need_no_price_book(client: TestClient) -> None:
    own = {"api": "custom", "usd_per_million_input": 1.0, "usd_per_million_output": 3.0}
    assert answer(client, "decision", **own)["sides"]["api"]["usd_per_request"] == pytest.approx((2000 + 2400) / 1e6)
    error = error_of(ask(client, "decision", {**DECISION, "api": "custom", "usd_per_million_input": 1.0}))
    assert error["param"] == "usd_per_million_output"


def test_assumptions_of_the_roofline_can_be_set_one_by_one(client: TestClient) -> None:
    slow, fast = (
        answer(client, "serving", assume={"memory": share})["decode_tokens_per_second"] for share in (0.4, 0.8)
    )
    assert slow < fast
    named = {row["name"]: row for row in answer(client, "serving", assume={"memory": 0.4})["assumptions"]}
    assert (named["memory"]["value"], named["memory"]["confidence"]) == (0.4, "user")


def test_a_dense_model_can_be_asked_for_by_its_size(client: TestClient) -> None:
    found = answer(client, "training", model=None, parameters="7B", tokens="1T")
    assert found["model"]["num_parameters"] == pytest.approx(7e9, rel=0.05)
    assert "assumed" in found["model"]["source"]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("training", {"tokens": -1}, "tokens"),
    ("training", {"tokens": 0}, "tokens"),
    ("training", {"tokens": 1.1e18}, "tokens"),
    ("training", {"tokens": "many"}, "tokens"),
    ("training", {"tokens": "1e999"}, "tokens"),
    ("training", {"tokens": "9" * 29 + "T"}, "tokens"),
    ("training", {"tokens": True}, "tokens"),
    ("training", {"tokens": [1]}, "tokens"),
    ("training", {"tokens": None}, "tokens"),
    ("training", {"num_gpus": 0}, "num_gpus"),
    ("training", {"num_gpus": 2.5}, "num_gpus"),
    ("training", {"num_gpus": 10**30}, "num_gpus"),
    ("training", {"gpu": "abacus"}, "gpu"),
    ("training", {"gpu": "a100"}, "usd_per_gpu_hour"),
    ("training", {"gpu": "a100", "usd_per_gpu_hour": 1.0}, "precision"),
    ("training", {"usd_per_gpu_hour": 0}, "usd_per_gpu_hour"),
    ("training", {"usd_per_gpu_hour": 1e300}, "usd_per_gpu_hour"),
    ("training", {"precision": "int3"}, "precision"),
    ("training", {"on": "yesterday"}, "on"),
    ("training", {"on": "9999-12-31"}, "on"),
    ("training", {"on": 5}, "on"),
    ("training", {"model": "gpt-17"}, "model"),
    ("training", {"model": "/etc/passwd"}, "model"),
    ("training", {"model": "../../runs"}, "model"),
    ("training", {"model": "https://example.com/config.json"}, "model"),
    ("training", {"model": "someone/DeepSeek-V3"}, "model"),
    ("training", {"model": "x" * 101}, "model"),
    ("training", {"model": "\u202e\u0000"}, "model"),
    ("training", {"model": None}, "model"),
    ("training", {"parameters": 7e9}, "model"),
    ("training", {"model": None, "parameters": 1}, "parameters"),
    ("training", {"model": None, "parameters": 1e30}, "parameters"),
    ("training", {"spare": 1}, "spare"),
    ("serving", {"input_tokens": 0}, "input_tokens"),
    ("serving", {"input_tokens": 10**8}, "input_tokens"),
    ("serving", {"cached_tokens": 2001}, "cached_tokens"),
    ("serving", {"output_tokens": "-5"}, "output_tokens"),
    ("serving", {"gpus_per_replica": 5000}, "gpus_per_replica"),
    ("serving", {"gpus_per_replica": 1, "model": "deepseek-v3"}, "gpus_per_replica"),
    ("serving", {"model": None, "parameters": "10T"}, "gpu"),
    ("serving", {"overhead": 0.5}, "overhead"),
    ("serving", {"assume": {"luck": 1.0}}, "assume"),
    ("serving", {"assume": {"memory": 2.0}}, "assume"),
    ("serving", {"assume": {"memory": "fast"}}, "assume.memory"),
    ("serving", {"assume": [1]}, "assume"),
    ("training", {"assume": {"overlap_multiprocessors": 1e16}}, "assume"),
    ("decision", {"requests_per_day": 0}, "requests_per_day"),
    ("decision", {"requests_per_day": 1e13}, "requests_per_day"),
    ("decision", {"api": "nobody"}, "api"),
    ("decision", {"api": "../prices.toml"}, "api"),
    ("decision", {"training_usd": -1}, "training_usd"),
    ("decision", {"training_usd": 1e13}, "training_usd"),
    ("decision", {"horizon_months": 0}, "horizon_months"),
    ("decision", {"horizon_months": 1e6}, "horizon_months"),
    ("decision", {"pass_at_1_own": 1.5}, "pass_at_1_own"),
    ("decision", {"pass_at_1_api": -0.1}, "pass_at_1_api"),
    ("decision", {"pass_at_1_own": 1e-300}, "pass_at_1_own"),
    ("decision", {"max_utilisation": 0}, "max_utilisation"),
    ("decision", {"elasticity": 11}, "elasticity"),
    ("decision", {"pay": "never"}, "pay"),
    ("decision", {"api": "custom"}, "usd_per_million_input"),
    ("prices", {"on": "2025-02-30"}, "on"),
    ("prices", {"compare": ["nobody"]}, "compare"),
    ("prices", {"compare": ["x"] * 21}, "compare"),
    ("prices", {"compare": "openai-o1"}, "compare"),
]


@pytest.mark.parametrize(("path", "changes", "param"), BAD, ids=[f"{p}:{json.dumps(c)[:50]}" for p, c, _ in BAD])
def test_a_wrong_field_is_named(client: TestClient, path: str, changes: dict[str, Any], param: str) -> None:
    response = ask(client, path, {**QUESTIONS[path], **changes})
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert len(error["message"]) <= 480


def test_what_the_price_book_does_not_have_is_unpriced(client: TestClient) -> None:
    error = error_of(ask(client, "training", {**TRAINING, "on": "2020-01-01"}))
    assert (error["param"], error["code"]) == ("usd_per_gpu_hour", "unpriced")


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b'{"on": NaN}', b'{"tokens": Infinity}',
        b"[" * 10_000, b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_a_body_that_is_no_question_is_refused(client: TestClient, path: str, body: bytes) -> None:
    assert ask(client, path, body).status_code in (400, 413)


@pytest.mark.parametrize("path", QUESTIONS)
def test_nan_and_infinity_are_no_figures(client: TestClient, path: str) -> None:
    numbers = {name: value for name, value in QUESTIONS[path].items() if isinstance(value, int)}
    for name in numbers:
        for word in ("NaN", "Infinity", "-Infinity"):
            body = json.dumps({**QUESTIONS[path], name: "?"}).replace('"?"', word).encode()
            assert error_of(ask(client, path, body))["param"] in (name, None)


def test_a_long_body_is_refused_before_it_is_read_whole(client: TestClient) -> None:
    assert ask(client, "prices", b" " * 40_000).status_code == 413


def test_only_json_is_taken_and_only_by_post(client: TestClient) -> None:
    form = client.post("/cost/api/decision", content=b"{}", headers={"Content-Type": "text/plain"})
    assert form.status_code == 400
    assert client.get("/cost/api/decision").status_code == 405
    assert client.get("/cost/api/nothing").status_code == 404


FIELDS = sorted(calculator.DecisionQuestion.model_fields)
VALUES = [0, 1, 1e-3, 0.5, 120, 1e6, 1e12, "1T", "second", "custom", "h100", "float8", "Qwen/Qwen3-0.6B", "2025-06-01"]


@settings(max_examples=60)
@given(
    changes=st.dictionaries(
        st.sampled_from(FIELDS),
        st.sampled_from(VALUES)
        | st.one_of(
            st.integers(), st.floats(), st.text(max_size=12), st.none(), st.booleans(), st.just({"memory": 0.5})
        ),
        max_size=4,
    )
)
def test_whatever_is_asked_the_answer_is_figures_or_a_named_field(client: TestClient, changes: dict[str, Any]) -> None:
    response = ask(client, "decision", {**DECISION, **changes})
    assert response.status_code in (200, 400), response.text
    json.loads(response.text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON: {changes}"))


def test_choices_are_all_that_a_form_needs(client: TestClient) -> None:
    found = client.get("/cost/api/choices").json()
    assert {"Qwen/Qwen2.5-7B", "deepseek-ai/DeepSeek-V3"} <= {model["id"] for model in found["models"]}
    assert {"h100", "h800"} <= {gpu["name"] for gpu in found["gpus"]}
    for model in found["models"]:
        question = read_question(json.dumps({**TRAINING, "model": model["id"]}).encode(), calculator.TrainingQuestion)
        assert count_parameters(find_known_shape(question).config).total == model["num_parameters"]
    for kind, path in (("serving", "decision"), ("training", "training")):
        stated = {row["name"]: row["value"] for row in found["assumptions"][kind]}
        assert (
            answer(client, path, assume=stated)["verdict" if kind == "serving" else "gpu_hours"]
            == (answer(client, path)["verdict" if kind == "serving" else "gpu_hours"])
        ), f"setting each assumption of {kind} to what it is changes something"


GUIDE = Path(__file__).parents[2] / "docs" / "calculator.md"


def test_examples_of_the_guide_are_answered(client: TestClient) -> None:
    found = re.findall(
        r"^### POST /cost/api/(\w+)\n+```json\n(.*?)```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert {path for path, _ in found} == set(QUESTIONS)
    for path, body in found:
        assert ask(client, path, json.loads(body)).status_code == 200, path


def test_guide_names_every_field(client: TestClient) -> None:
    guide = GUIDE.read_text("utf-8")
    for kind in (calculator.DecisionQuestion, calculator.TrainingQuestion, calculator.PricesQuestion):
        assert not [name for name in kind.model_fields if f"`{name}`" not in guide and f'"{name}"' not in guide]


def test_every_part_of_the_page_comes_with_a_strict_policy(client: TestClient) -> None:
    for path in ("/cost", *(f"/cost/{name}" for name in calculator.PARTS)):
        headers = client.get(path).headers
        policy = dict(rule.strip().partition(" ")[::2] for rule in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert all(policy[kind] == "'self'" for kind in ("script-src", "style-src", "connect-src"))
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "name", ["calculator.py", "app.py", "../cost/prices.toml", "%2e%2e/app.py", "calculator_words.toml"]
)
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/cost/{name}").status_code == 404


def own_file(name: str) -> str:
    return resources.files("aha.serve").joinpath(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in calculator.PARTS if name.endswith(".js")])
def test_script_writes_text_and_never_markup(name: str) -> None:
    script = own_file(name)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "localStorage",
                "sessionStorage", "document.cookie"):  # fmt: skip
        assert way not in script, way
    assert "http://" not in script
    assert "https://" not in script


@pytest.mark.parametrize("language", calculator.LANGUAGES)
def test_page_has_no_inline_code_and_loads_nothing_from_elsewhere(language: calculator.Language) -> None:
    page = render_page(language)
    assert not re.findall(r"<script(?![^>]*\bsrc=)", page)
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:|\{\{", page)
    assert all(url.startswith(("/cost", "?", "#")) for url in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_every_text_is_there_in_both_languages() -> None:
    for name, text in words().items():
        assert set(text) == {"en", "ja"}, name
        assert all(spoken.strip() for spoken in text.values()), name
        figures = [set(re.findall(r"\{\w+\}", spoken)) for spoken in text.values()]
        assert figures[0] == figures[1], f"{name} has other figures in the other language"
        is_same = text["en"] == text["ja"]
        assert not is_same or text["en"] in ("GPU", "API", "bf16", "FP8"), f"{name} is not translated"


def test_every_text_that_page_and_script_name_exists() -> None:
    named = set(re.findall(r"\{\{ ([\w-]+) \}\}", own_file("calculator.html"))) - {"language", "words"}
    for script in ("calculator.js", "calculator_answer.js"):
        named |= set(re.findall(r'\bsay\("([\w-]+)"', own_file(script)))
    assert named <= set(words()), named - set(words())


def test_every_name_in_an_answer_is_translated(client: TestClient) -> None:
    found = answer(client, "decision")
    slug = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")  # noqa: E731
    names = {f"assume-{slug(row['name'])}" for row in found["assumptions"]}
    for load in (100, 10**6, 10**8):
        flips = answer(client, "decision", requests_per_day=load)["flips"]
        names |= {f"flip-{slug(flip['assumption'])}" for flip in flips}
        names |= {f"unit-{slug(flip['unit'])}" for flip in flips if slug(flip["unit"])}
    names |= {f"confidence-{row['confidence']}" for row in found["assumptions"] if row["confidence"]}
    for model, num_gpus in (("deepseek-v3", 2048), ("Llama-3.1-405B", 16_384), ("Qwen2.5-7B", 64)):
        bill = answer(client, "training", model=model, num_gpus=num_gpus)
        names |= {f"term-{slug(term['name'])}" for term in bill["terms"]}
        names |= {f"assume-{slug(row['name'])}" for row in bill["assumptions"]}
        names |= {f"confidence-{row['confidence']}" for row in bill["assumptions"] if row["confidence"]}
    assert names <= set(words()), names - set(words())


def test_defaults_of_the_form_are_those_of_the_questions() -> None:
    page = own_file("calculator.html")
    forms = {"d": calculator.DecisionQuestion, "t": calculator.TrainingQuestion}
    found = re.findall(r'id="([dt])-[\w-]+" name="(\w+)" type="number"[^>]*\bvalue="([^"]*)"', page)
    assert len(found) > 8
    for form, name, value in found:
        field = forms[form].model_fields[name]
        if not (field.is_required() or field.default is None):
            assert float(value) == field.default, name


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        (None, "", "en"),
        (None, "ja", "ja"),
        (None, "ja-JP,ja;q=0.9,en;q=0.8", "ja"),
        (None, "en-US,en;q=0.9,ja;q=0.8", "en"),
        (None, "fr,ja;q=0.5,en;q=0.3", "ja"),
        (None, "ja;q=0", "en"),
        (None, "de;q=1;q=2,,;;,\x00" + "x" * 5000, "en"),
        ("ja", "en", "ja"),
        ("en", "ja", "en"),
        ("xx", "ja", "ja"),
        ("<script>", "", "en"),
    ],
)
def test_language_is_what_was_asked_for_or_what_the_browser_prefers(
    asked: str | None, accepted: str, language: str
) -> None:
    assert choose_language(asked, accepted) == language


def test_page_speaks_the_browsers_language(client: TestClient) -> None:
    page = client.get("/cost", headers={"Accept-Language": "ja"})
    assert '<html lang="ja">' in page.text
    assert words()["title"]["ja"] in page.text
    assert page.headers["vary"] == "Accept-Language"
    assert '<html lang="en">' in client.get("/cost?lang=en", headers={"Accept-Language": "ja"}).text


def test_every_field_has_a_label(client: TestClient) -> None:
    page = client.get("/cost").text
    ids = re.findall(r'<(?:input|select)[^>]*\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 20
    assert set(ids) <= set(re.findall(r'<label for="([^"]+)"', page))
    assert page.count('aria-live="polite"') >= 3


def test_numbers_ask_for_the_key_and_the_empty_page_does_not() -> None:
    with TestClient(create_calculator_app(api_keys=("secret",))) as client:
        assert client.get("/cost").status_code == 200
        assert all(client.get(f"/cost/{name}").status_code == 200 for name in calculator.PARTS)
        refused = client.get("/cost/api/choices")
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
        assert ask(client, "decision", DECISION).status_code == 401
        assert client.get("/").status_code == 401
        allowed = client.get("/cost/api/choices", headers={"Authorization": "Bearer secret"})
        assert allowed.status_code == 200


def test_page_is_served_while_an_answer_is_computed_and_a_crowd_gets_429(monkeypatch: pytest.MonkeyPatch) -> None:
    is_released = threading.Event()

    def wait(_: calculator.PricesQuestion) -> dict[str, Any]:
        assert is_released.wait(timeout=30)
        return {}

    monkeypatch.setitem(calculator._QUESTIONS, "prices", (calculator.PricesQuestion, wait))  # type: ignore[index]
    app = create_calculator_app()

    async def crowd() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [asyncio.create_task(client.post("/cost/api/prices", json=PRICES)) for _ in range(40)]
            for _ in range(1000):
                if sum(task.done() for task in asked) == 40 - 1 - calculator.MAX_WAITING:
                    break
                await asyncio.sleep(0.005)
            assert (await client.get("/cost")).status_code == 200
            is_released.set()
            return [(await task).status_code for task in asked]

    statuses = asyncio.run(crowd())
    assert (statuses.count(200), statuses.count(429)) == (1 + calculator.MAX_WAITING, 40 - 1 - calculator.MAX_WAITING)


def test_calculator_is_a_part_of_the_service(live: Any) -> None:
    assert httpx.get(f"{live.url}/cost").status_code == 200
    response = httpx.post(f"{live.url}/cost/api/decision", json=DECISION)
    assert response.json()["verdict"] in ("own", "api")
    assert httpx.get(f"{live.url}/").json()["endpoints"]["calculator"] == "GET /cost"


def test_calculator_needs_no_torch() -> None:
    program = (
        "import sys; from starlette.testclient import TestClient; from aha.serve import create_calculator_app\n"
        "client = TestClient(create_calculator_app())\n"
        f"assert client.post('/cost/api/decision', json={DECISION!r}).status_code == 200\n"
        f"assert client.post('/cost/api/training', json={TRAINING!r}).status_code == 200\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_command_serves_on_a_free_port_and_ends_on_sigterm(tmp_path: Path) -> None:
    environment = {**os.environ, "AHA_HOME": str(tmp_path)}
    environment.pop("AHA_API_KEY", None)
    command = [sys.executable, "-m", "aha", "cost", "calculator", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/cost", greeting)
            assert found, greeting
            assert "Should I train or call?" in httpx.get(found[0], timeout=30).text
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_words_are_read_as_data() -> None:
    table = tomllib.loads(own_file("calculator_words.toml"))
    assert not [name for name in table if not re.fullmatch(r"[a-z0-9-]+", name)]
    assert not [text for spoken in table.values() for text in spoken.values() if "<" in text]
