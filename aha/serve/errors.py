"""What goes wrong, in the shape that OpenAI's clients know: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aha.errors import AhaError, RequestError

RETRY_AFTER_SECONDS = 2
"""What a 429 asks for: about the time in which some completion ends."""


class ServerBusyError(AhaError):
    """More completions are under way than the server takes on."""


class EngineUnavailableError(AhaError):
    """The engine has failed, is being stopped, or got new weights in the middle of an answer."""


class ApiError(AhaError):
    """An error with its HTTP status.

    Args:
        status: of the response.
        message: one line for the caller.
        kind: the "type" field, e.g. "invalid_request_error".
        param: the field that is wrong; None when no single field is.
        code: a stable machine-readable reason.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def to_api_error(error: Exception) -> ApiError:
    """The response that an error of ours deserves; for a bug, a message that gives nothing away."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case ServerBusyError():
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", headers=headers)
        case EngineUnavailableError():
            return ApiError(503, str(error), kind="server_error", code="unavailable")
        case AhaError():
            return ApiError(500, str(error), kind="server_error", code="model_error")
        case _:
            return ApiError(500, "the server failed; its log says why", kind="server_error", code="internal_error")
