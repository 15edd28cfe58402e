"""The socket a service listens on, and how it is told to stop. No torch."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from aha.errors import ConfigError


class Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and which a second signal of either kind ends at once."""

    def __init__(self, config: uvicorn.Config, *, greeting: str) -> None:
        super().__init__(config)
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self._greeting, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        else:
            print("finishing the answers under way; once more to end at once", flush=True)
        super().handle_exit(sig, frame)


@contextmanager
def quiet_sigterm() -> Iterator[None]:
    """Makes the exit code 0 after a SIGTERM: uvicorn raises it again, but one that was obeyed is no failure."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_key(api_key: str) -> None:
    """Raises ConfigError for a key that a header cannot carry."""
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigError("the API key may hold printable ASCII characters without spaces only; choose another one")


@contextmanager
def bind(host: str, *, port: int, has_key: bool) -> Iterator[socket.socket]:
    """A bound socket, not listening yet.

    Raises:
        ConfigError: the address is unknown, taken, not allowed, or open to others without a key.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"unknown host {host!r}; use 127.0.0.1, ::1, or an address of this machine") from None
    family, _, _, _, address = found[0]
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not has_key:
        raise ConfigError(
            f"host {host!r} lets other machines in; set a key (--api-key or AHA_API_KEY) or use 127.0.0.1"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            # Two sockets with SO_REUSEADDR may be bound to one port; only one may listen.
            listener.listen()
        except OSError as error:
            raise ConfigError(_bind_problem(error, host=host, port=port)) from None
        yield listener
    finally:
        listener.close()


def _bind_problem(error: OSError, *, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; stop what uses it or choose another, e.g. --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges; choose one from 1024 up, e.g. --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is no address of this machine; use 127.0.0.1 or 0.0.0.0"
    return f"cannot listen on {host} port {port}: {error.strerror}"
