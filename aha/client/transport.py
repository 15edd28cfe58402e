"""One attempt over HTTP, with nothing unlimited: total time, bytes, decompression; and no redirects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from aha.client.clock import Clock
from aha.client.endpoint import KEY_VARIABLES, Endpoint
from aha.client.retries import LOST_BY_GATEWAY, FailedAttempt, is_retryable_status, retry_after_seconds
from aha.client.sse import DONE, ChunkFold, SseParser
from aha.client.wire import error_code, error_message, read_json
from aha.errors import ConfigError

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_CONNECT_SECONDS = 20.0
OnChunk = Callable[[Mapping[str, Any]], None]

_FIXES = {
    401: f"check the key in {KEY_VARIABLES[0]} (else {KEY_VARIABLES[1]})",
    402: "top up the account",
    403: "check that this key may use this model",
    404: "check model and base_url, which mostly ends in /v1",
    413: "shorten the messages",
}


class Transport:
    """Posts bodies to one endpoint. For one event loop.

    Raises:
        ConfigError: proxy settings in the environment that make no sense.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_seconds: float, max_connections: int, clock: Clock) -> None:
        self._endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        # Identity: answers are small, and what is not compressed cannot be a bomb.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", "User-Agent": "aha"}
        if endpoint.api_key:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        is_plain = endpoint.is_loopback and not endpoint.is_encrypted
        try:
            self._http = httpx.AsyncClient(
                headers=headers,
                # Reading the certificates takes 50 ms. A context without any trusts nobody, and http needs none.
                verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else True,
                timeout=httpx.Timeout(timeout_seconds, connect=min(MAX_CONNECT_SECONDS, timeout_seconds / 2)),
                limits=httpx.Limits(
                    max_connections=max_connections,
                    max_keepalive_connections=max_connections,
                    # Shorter than servers' (uvicorn: 5 s): a request on a connection that is just being closed is
                    # lost, and counted.
                    keepalive_expiry=2.0,
                ),
                follow_redirects=False,
                # The environment's proxy and certificates are the user's own choice, but never stand between us and
                # this machine itself.
                trust_env=not endpoint.is_loopback,
            )
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"the environment's proxy or certificates cannot be used ({error}); see HTTPS_PROXY, NO_PROXY and "
                "SSL_CERT_FILE"
            ) from None

    async def close(self) -> None:
        """Close idle connections."""
        await self._http.aclose()

    async def post(self, body: Mapping[str, Any], *, on_chunk: OnChunk | None = None) -> dict[str, Any]:
        """The response to a request, whole, as a JSON object.

        Args:
            on_chunk: gets the chunks of a stream as they come.

        Raises:
            FailedAttempt: no such response within the limits.
        """
        # httpx's timeouts are per read and never end a server that sends a byte now and then; this one does.
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._post(body, on_chunk)
        except TimeoutError:
            reason = f"gave no complete answer within timeout_seconds={self._timeout_seconds:g}"
            raise FailedAttempt(reason, is_retryable=True, is_paid=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.PoolTimeout) as error:
            # Retrying does not make a wrong certificate right.
            is_retryable = "CERTIFICATE_VERIFY_FAILED" not in str(error)
            reason = f"cannot be reached: {self._endpoint.quote(str(error) or type(error).__name__)}"
            fix = "" if is_retryable else "a private authority's certificate is named with SSL_CERT_FILE"
            raise FailedAttempt(reason, is_retryable=is_retryable, is_paid=False, fix=fix) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = self._endpoint.quote(str(error)) or type(error).__name__
            raise FailedAttempt(f"broke the connection: {said}", is_retryable=True, is_paid=True) from None

    async def _post(self, body: Mapping[str, Any], on_chunk: OnChunk | None) -> dict[str, Any]:
        # ASCII: messages may hold lone surrogates, which UTF-8 cannot.
        content = json.dumps(body, ensure_ascii=True).encode("ascii")
        url = f"{self._endpoint.base_url}/chat/completions"
        async with self._http.stream("POST", url, content=content) as response:
            if not response.is_success:
                raise await self._failure(response)
            reader = _BodyReader(on_chunk)
            is_stream = "event-stream" in response.headers.get("content-type", "").lower()
            await _pump(response, limit=MAX_BODY_BYTES, sink=reader.read_event_bytes if is_stream else reader.keep)
            return reader.finish()

    async def _failure(self, response: httpx.Response) -> FailedAttempt:
        status = response.status_code
        if response.has_redirect_location or 300 <= status < 400:
            target = self._endpoint.quote(response.headers.get("location", "") or "nowhere")
            reason = f"answered {status}, a redirect to {target}, which is not followed since the key would go with it"
            return FailedAttempt(
                reason, is_retryable=False, is_paid=False, status=status, fix="give the final address as base_url"
            )
        kept = bytearray()
        with contextlib.suppress(FailedAttempt, httpx.HTTPError):  # the status says enough
            await _pump(response, limit=MAX_ERROR_BYTES, sink=kept.extend)
        try:
            body = read_json(bytes(kept))
        except ValueError:
            body = {"error": kept.decode("utf-8", "replace")}
        said = self._endpoint.quote(error_message(body))
        is_out_of_quota = status == 429 and error_code(body) == "insufficient_quota"  # OpenAI's word for 402
        return FailedAttempt(
            f"answered {status} {response.reason_phrase}".rstrip() + (f": {said}" if said else ""),
            is_retryable=is_retryable_status(status) and not is_out_of_quota,
            is_paid=status in LOST_BY_GATEWAY,
            status=status,
            retry_after_seconds=retry_after_seconds(response.headers, now=self._clock.now()),
            fix=_FIXES[402] if is_out_of_quota else _FIXES.get(status, ""),
        )


class _BodyReader:
    """The body of a successful response: JSON, or the events of a stream, whichever the server chose to send."""

    def __init__(self, on_chunk: OnChunk | None) -> None:
        self._on_chunk = on_chunk
        self._kept = bytearray()
        self._parser = SseParser()
        self._fold: ChunkFold | None = None

    def keep(self, data: bytes) -> None:
        self._kept += data

    def read_event_bytes(self, data: bytes) -> None:
        self._fold = self._fold or ChunkFold()
        for event in self._parser.push(data):
            self._read_event(event, self._fold)

    def finish(self) -> dict[str, Any]:
        """The whole response, after the last byte."""
        if self._kept.lstrip().startswith((b"data:", b":")):  # a stream under another content type
            self.read_event_bytes(bytes(self._kept))
        if self._fold is None:
            return self._read_whole()
        for event in self._parser.finish():
            self._read_event(event, self._fold)
        if not self._fold.is_ended:
            raise FailedAttempt("cut the stream before its end", is_retryable=True, is_paid=True)
        return self._fold.whole()

    def _read_whole(self) -> dict[str, Any]:
        if not self._kept.strip():
            raise FailedAttempt("answered with an empty body", is_retryable=True, is_paid=True)
        try:
            return read_json(bytes(self._kept))
        except ValueError:
            raise FailedAttempt("answered with something that is not JSON", is_retryable=True, is_paid=True) from None

    def _read_event(self, event: str, fold: ChunkFold) -> None:
        if event.strip() == DONE:
            fold.is_ended = True
            return
        try:
            chunk = read_json(event.encode("utf-8", "replace"))
        except ValueError:
            raise FailedAttempt("sent a chunk that is not JSON", is_retryable=True, is_paid=True) from None
        if chunk.get("error"):
            reason = f"ended the stream with an error: {error_message(chunk)}"
            raise FailedAttempt(reason, is_retryable=True, is_paid=True)
        fold.push(chunk)
        if self._on_chunk:
            self._on_chunk(chunk)


async def _pump(response: httpx.Response, *, limit: int, sink: Callable[[bytes], None]) -> None:
    """Hand the body on, decompressed, and stop at the limit. Compression was not asked for; some proxies add it."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise FailedAttempt("answered in an encoding that was not asked for", is_retryable=False, is_paid=True)
    inflater = zlib.decompressobj(wbits=47) if encoding not in ("identity", "") else None  # 47: gzip or zlib
    num_left = limit
    async for piece in response.aiter_raw():
        try:
            data = inflater.decompress(piece, num_left + 1) if inflater else piece
        except zlib.error:
            reason = "answered with broken compression"
            raise FailedAttempt(reason, is_retryable=True, is_paid=True) from None
        num_left -= len(data)
        if num_left < 0:
            reason = f"answered with more than {limit // 1024:,} KiB"
            raise FailedAttempt(reason, is_retryable=False, is_paid=True)
        sink(data)
