"""The report of a run that is still going on, over HTTP on this machine alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aha.errors import ConfigError, DataError
from aha.report.folder import read_folder
from aha.report.page import render

LOOPBACK = "127.0.0.1"
REFRESH_SECONDS = 5


@contextmanager
def serve_live(folder: Path, *, port: int) -> Iterator[str]:
    """Serve the report of `folder` while the block runs, made anew for each request; gives its address.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: the port cannot be had.
    """
    server = _Server.bound(port, handler=partial(_Handler, folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_port(port: int) -> None:
    """Raises ConfigError for a port that `serve_live` could not have, before there is anything to serve."""
    _Server.bound(port, handler=BaseHTTPRequestHandler).server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    @classmethod
    def bound(cls, port: int, *, handler: Callable[..., BaseHTTPRequestHandler]) -> _Server:
        try:
            return cls((LOOPBACK, port), handler)
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a reader that went away: the terminal belongs to the run."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET / and nothing else."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self._folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        # A page of another site must not read this one through a name that it has pointed at this machine.
        if (self.headers.get("Host") or "").rpartition(":")[0] not in (LOOPBACK, "localhost"):
            self._send(403, "this report is for this machine only: open it as 127.0.0.1")
        elif self.path != "/":
            self._send(404, "there is only one page: /")
        else:
            self._send(*self._page())

    def _page(self) -> tuple[int, str]:
        try:
            found = read_folder(self._folder)
        except (DataError, OSError) as error:  # a resumed run cuts its logs back while they are read
            return 503, f"not yet: {error}"
        is_going_on = found.run.get("status") == "running"
        return 200, render(found, refresh_seconds=REFRESH_SECONDS if is_going_on else 0)

    def _send(self, status: int, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        kind = "text/html" if status == 200 else "text/plain"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Refresh", str(REFRESH_SECONDS))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: the terminal belongs to the run."""
