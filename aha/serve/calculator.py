"""The calculator: should I train or call? A page, and the JSON that it shows. Imports no torch.

`calculator_router` is a part of every service; `run_calculator` serves it alone, for people without a model.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal, get_args

import anyio
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response

from aha.serve.asgi import RequireKey, add_errors, json_response, read_body
from aha.serve.calculator_answers import answer_choices, answer_prices, answer_training
from aha.serve.calculator_decision import answer_decision, answer_serving
from aha.serve.calculator_questions import (
    Asked,
    DecisionQuestion,
    PricesQuestion,
    ServingQuestion,
    TrainingQuestion,
    read_question,
)
from aha.serve.errors import ServerBusyError
from aha.serve.listener import Server, bind, check_key, quiet_sigterm

PATH = "/cost"
PARTS = {
    "calculator.js": "text/javascript",
    "calculator_answer.js": "text/javascript",
    "calculator.css": "text/css",
}
"""What the page loads, from the folder of this module; nothing else is served from there."""
Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
MAX_QUESTION_BYTES = 2**14
MAX_WAITING = 32
"""Questions waiting for the one that is computed; beyond these, 429."""
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
API_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_QUESTIONS: Mapping[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "prices": (PricesQuestion, answer_prices),
    "training": (TrainingQuestion, answer_training),
    "serving": (ServingQuestion, answer_serving),
    "decision": (DecisionQuestion, answer_decision),
}


def calculator_router() -> APIRouter:
    """GET /cost with scripts and style; GET /cost/api/choices; POST /cost/api/{prices,training,serving,decision}."""
    router = APIRouter()
    desk = _Desk()
    _add_page(router)

    @router.get(f"{PATH}/api/choices")
    async def choices() -> Response:
        return await desk.answer(answer_choices)

    def add(name: str, kind: type[Asked], answer: Callable[[Asked], dict[str, Any]]) -> None:
        @router.post(f"{PATH}/api/{name}")
        async def ask(request: Request) -> Response:
            question = read_question(await read_body(request, max_bytes=MAX_QUESTION_BYTES), kind)
            return await desk.answer(lambda: answer(question))

    for name, (kind, answer) in _QUESTIONS.items():
        add(name, kind, answer)
    return router


class _Desk:
    """Where questions are computed, off the event loop and one at a time.

    Answers take a fraction of a second, and on a server with a model they may not take the engine's cores.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)
        self._num_asked = 0  # not the limiter's own count, which callers that come together all see at 0

    async def answer(self, compute: Callable[[], dict[str, Any]]) -> Response:
        if self._num_asked > MAX_WAITING:
            raise ServerBusyError("the calculator has too many questions waiting; ask again in a moment")
        self._num_asked += 1
        try:
            found = await anyio.to_thread.run_sync(compute, limiter=self._limiter)
        finally:
            self._num_asked -= 1
        return json_response(_without_infinity(found), headers=API_HEADERS)


def _without_infinity(value: Any) -> Any:
    """What is never reached is null: JSON has no infinity, and no number that is none."""
    match value:
        case dict():
            return {key: _without_infinity(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_infinity(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _add_page(router: APIRouter) -> None:
    @router.get(PATH)
    async def page(request: Request) -> Response:
        language = choose_language(request.query_params.get("lang"), request.headers.get("accept-language", ""))
        headers = {**POLICY, "Vary": "Accept-Language", "Content-Language": language}
        return Response(render_page(language), headers=headers, media_type="text/html; charset=utf-8")

    def add(name: str, media_type: str) -> None:
        @router.get(f"{PATH}/{name}")
        async def part() -> Response:
            return Response(_read(name), headers=POLICY, media_type=f"{media_type}; charset=utf-8")

    for name, media_type in PARTS.items():
        add(name, media_type)


def choose_language(asked: str | None, accepted: str) -> Language:
    """?lang= where it names one of ours; else the browser's favourite of them (RFC 9110 section 12.5.4); else English.

    Args:
        accepted: the Accept-Language header.
    """
    for language in LANGUAGES:
        if asked == language:
            return language
    weights: dict[Language, float] = {}
    for choice in accepted[:1000].split(","):
        tag, _, parameter = choice.strip().partition(";")
        weight = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", parameter)
        for language in LANGUAGES:
            if tag.lower().partition("-")[0] == language and language not in weights:
                weights[language] = float(weight[1]) if weight else 1.0
    return max(weights, key=weights.__getitem__, default="en") if any(weights.values()) else "en"


@cache
def words() -> dict[str, dict[Language, str]]:
    """Every text of the page in every language, by name."""
    table: dict[str, dict[Language, str]] = tomllib.loads(_read("calculator_words.toml"))
    return table


@cache
def render_page(language: Language) -> str:
    """The page in one language. The script finds the texts that it needs later in the template `words`."""
    said = {name: escape(text[language]) for name, text in words().items()}
    later = "".join(f'<data value="{name}">{text}</data>' for name, text in said.items())
    fixed = {**said, "language": language, "words": later}
    return re.sub(r"\{\{ ([\w-]+) \}\}", lambda found: fixed[found[1]], _read("calculator.html"))


def _read(name: str) -> str:
    return resources.files("aha.serve").joinpath(name).read_text(encoding="utf-8")


def create_calculator_app(*, api_keys: tuple[str, ...] = ()) -> FastAPI:
    """An ASGI application that is the calculator and nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    add_errors(app)
    app.include_router(calculator_router())

    @app.get("/")
    async def index() -> Response:
        return Response(status_code=307, headers={"Location": PATH})

    if api_keys:
        app.add_middleware(RequireKey, api_keys=api_keys)
    return app


def run_calculator(*, host: str = "127.0.0.1", port: int = 8000, api_key: str = "") -> None:
    """Serve the calculator until SIGTERM or Ctrl-C.

    Args:
        host: an address beyond loopback needs an api_key.
        port: 0 takes a free one.
        api_key: what callers must send; "" asks nothing.

    Raises:
        ConfigError: a host, port or key that cannot be used.
        KeyboardInterrupt: it was Ctrl-C that ended it.
    """
    check_key(api_key)
    with bind(host, port=port, has_key=bool(api_key)) as listener:
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        app = create_calculator_app(api_keys=(api_key,) if api_key else ())
        server = Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2),
            greeting=f"the calculator is at http://{shown}:{bound}{PATH} (Ctrl-C ends it)",
        )
        with quiet_sigterm():
            server.run(sockets=[listener])
