"""What stands between HTTP and the answers: keys, body limits, event streams, callers that hang up.

Plain ASGI, and no BaseHTTPMiddleware: that one hides a caller's disconnect from the handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from aha.errors import AhaError
from aha.serve.errors import ApiError, to_api_error
from aha.serve.openai import to_json

_log = logging.getLogger(__name__)
MAX_BODY_BYTES = 2 * 2**20
_MAX_DISCARDED_BYTES = 7 * MAX_BODY_BYTES
OPEN_PATHS = frozenset(
    {
        "/health/live",
        "/health/ready",
        "/cost",
        "/cost/calculator.css",
        "/cost/calculator.js",
        "/cost/calculator_answer.js",
    }
)
"""Need no key: orchestrators ask for health, and a browser must show the calculator's page before it can be given one.
The page holds nothing of its own: every number comes from /cost/api, which asks for the key."""


def json_response(body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole JSON response."""
    # "replace": a lone surrogate, which UTF-8 cannot carry, must not turn an answer into an error.
    content = to_json(body).encode("utf-8", "replace")
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    return json_response(error.body, status=error.status, headers=error.headers)


class RequireKey:
    """Lets requests pass whose bearer token is one of the keys; every path but OPEN_PATHS, known or not, asks."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        said = "a valid API key is needed; send it as the header 'Authorization: Bearer KEY'"
        error = ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error_response(error)(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        # All keys are compared, each in constant time: how long it takes says nothing about them.
        matches = [secrets.compare_digest(token.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


async def read_body(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: it is larger than `max_bytes`, or declared as something else than JSON.
    """
    declared = request.headers.get("content-type", "")
    # A page in a browser can send every other type to a server on this machine without asking it first.
    if declared and declared.partition(";")[0].strip().lower() != "application/json":
        said = f"Content-Type must be application/json, got {declared[:60]!r}"
        raise ApiError(400, said, code="invalid_content_type")
    body = bytearray()
    num_bytes = 0
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes <= max_bytes:
            body += piece
        elif num_bytes > max_bytes + _MAX_DISCARDED_BYTES:
            break  # a caller who is still sending is heard out for a while, else it would not read the answer
    if num_bytes > max_bytes:
        limit = f"the body may have {max_bytes} bytes, got {num_bytes} or more"
        raise ApiError(413, f"{limit}; send a shorter conversation", code="request_too_large")
    return bytes(body)


@contextlib.asynccontextmanager
async def on_disconnect(receive: Receive, call: Callable[[], None]) -> AsyncIterator[None]:
    """While the block runs, call `call` when the caller hangs up. The request's body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        call()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class EventStream(Response):
    """Server-sent events.

    Not Starlette's StreamingResponse: with some servers that one learns of a disconnect only by writing.

    Args:
        events: closed at the end, whatever happens.
        on_hang_up: told that the caller has gone; should make `events` end.
        on_close: called once at the end.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, on_hang_up: Callable[[], None], on_close: Callable[[], None]
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = "text/event-stream"
        # X-Accel-Buffering: nginx would hold the events back.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events
        self._on_hang_up = on_hang_up
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._events) as events, on_disconnect(receive, self._on_hang_up):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._on_close()


def add_errors(app: FastAPI) -> None:
    """Whatever is raised is answered in OpenAI's shape."""

    async def refuse(_: Request, error: Exception) -> Response:
        known = to_api_error(error)
        if known.status >= 500:
            _log.error("%s", error, exc_info=None if isinstance(error, AhaError) else error)
        return error_response(known)

    async def no_such_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for this class"
        said = f"{request.method} {request.url.path[:60]} does not exist; GET / lists the endpoints"
        if error.status_code == 405:
            said = f"{request.url.path} does not take {request.method}; it takes {(error.headers or {}).get('Allow')}"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return error_response(ApiError(error.status_code, said, code=code, headers=error.headers))

    async def nobody_listens(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(AhaError, refuse)
    app.add_exception_handler(Exception, refuse)
    app.add_exception_handler(HTTPException, no_such_path)
    app.add_exception_handler(ClientDisconnect, nobody_listens)
