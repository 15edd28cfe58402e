"""The HTTP application: routes, keys and errors of the OpenAI-compatible service."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request, Response

from aha.chat import ChatFormat
from aha.cost import Ledger, MachinePrice, machine_price
from aha.engine import Engine
from aha.models.devices import device_words
from aha.serve.asgi import (
    MAX_BODY_BYTES,
    EventStream,
    RequireKey,
    add_errors,
    json_response,
    on_disconnect,
    read_body,
)
from aha.serve.calculator import calculator_router
from aha.serve.comparison import choose_apis
from aha.serve.completions import PATH, ChatCompletions
from aha.serve.engine_thread import MAX_PENDING, EngineThread
from aha.serve.errors import ApiError, EngineUnavailableError
from aha.serve.metering import Meter
from aha.serve.openai import IGNORED, ChatRequest, read_chat_request
from aha.serve.pictures import MAX_PICTURE_BODY_BYTES, PictureIntake

DEFAULT_PRICE = "cpu-2core-hour"


def create_app(
    engine: Engine,
    chat: ChatFormat,
    *,
    model_name: str,
    api_keys: Sequence[str] = (),
    price: MachinePrice | None = None,
    ledger: Ledger | None = None,
    apis: Sequence[str] = (),
    max_pending: int = MAX_PENDING,
) -> FastAPI:
    """An ASGI application that serves one model. From its start to its end the engine belongs to it.

    Args:
        engine: made with `decode=chat.decode` and `stop_token_ids=chat.stop_token_ids`.
        model_name: what callers ask for.
        api_keys: any of them opens every path; with none, nothing is asked.
        price: of the machine; None is today's price of DEFAULT_PRICE.
        ledger: gets a row per request; None keeps no books.
        apis: names in the price book whose charge stands beside each request's cost; none takes the cheapest and the
            dearest closed model of the day.
        max_pending: completions under way beyond which requests get 429.
    """
    price = price or machine_price(DEFAULT_PRICE, on=datetime.now(UTC).date())
    thread = EngineThread(engine, max_pending=max_pending)
    device = device_words(engine.model.device)
    meter = Meter(
        price,
        ledger=ledger,
        server_id=f"serve {model_name}",
        model=model_name,
        device=device,
        apis=choose_apis(apis, on=datetime.now(UTC)),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        thread.start()
        yield
        await thread.stop()
        meter.close()

    # No /docs: its page loads scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    add_errors(app)
    app.include_router(calculator_router())
    _add_information(app, thread, model_name=model_name)
    vision = engine.model.config.vision
    intake = PictureIntake.of_model(vision, folder=chat.folder, model_name=model_name)
    completions = ChatCompletions(thread, chat=chat, intake=intake, meter=meter, model_name=model_name)
    _add_completions(app, completions, max_bytes=MAX_BODY_BYTES if vision is None else MAX_PICTURE_BODY_BYTES)
    if api_keys:
        app.add_middleware(RequireKey, api_keys=api_keys)
    return app


def _add_completions(app: FastAPI, completions: ChatCompletions, *, max_bytes: int) -> None:
    @app.post(PATH)
    async def chat_completions(request: Request) -> Response:
        asked = read_chat_request(await read_body(request, max_bytes=max_bytes))
        answer = await completions.begin(asked)
        if asked.stream:
            events = answer.chunks(includes_usage=asked.includes_usage)
            return EventStream(events, on_hang_up=answer.cancel, on_close=answer.close)
        try:
            async with on_disconnect(request.receive, answer.cancel):
                body = await answer.whole()
        finally:
            answer.close()
        return json_response(body, headers={"x-request-cost-usd": body["usage"]["cost"]["usd"]})


def _add_information(app: FastAPI, thread: EngineThread, *, model_name: str) -> None:
    fields = sorted(ChatRequest.model_fields)
    card: dict[str, Any] = {
        "id": model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "aha",
        "context_length": thread.engine.model.config.max_position_embeddings,
        "capabilities": {"supported_parameters": fields, "ignored_parameters": sorted(IGNORED)},
        "input_modalities": ["text"] if thread.engine.model.config.vision is None else ["text", "image"],
    }

    @app.get("/")
    async def index() -> Response:
        paths = {"chat": f"POST {PATH}", "models": "GET /v1/models", "health": "GET /health/live, GET /health/ready"}
        paths["calculator"] = "GET /cost"
        return json_response({"service": "aha", "model": model_name, "api": "OpenAI-compatible", "endpoints": paths})

    @app.get("/v1/models")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [card]})

    @app.get("/v1/models/{model_id:path}")
    async def show_model(model_id: str) -> Response:
        if model_id != model_name:
            said = f"the model {model_id[:60]!r} is not served here; choose from: {model_name}"
            raise ApiError(404, said, param="model", code="model_not_found")
        return json_response(card)

    @app.get("/health/live")
    async def live() -> Response:
        if thread.has_failed:
            raise EngineUnavailableError(thread.problem)
        return json_response({"status": "live"})

    @app.get("/health/ready")
    async def ready() -> Response:
        if thread.problem:
            raise EngineUnavailableError(thread.problem)
        return json_response({"status": "ready", "pending": thread.num_pending})
