"""`aha serve`: a model behind a socket, from the first line it prints to the last answer it finishes."""

from __future__ import annotations

import errno
import ipaddress
import json
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import uvicorn

from aha import hub
from aha.chat import ChatFormat
from aha.cost import Ledger, MachinePrice, machine_price
from aha.engine import Engine, Speculation
from aha.errors import ConfigError
from aha.models import load_model
from aha.serve.app import DEFAULT_PRICE, create_app

MAX_BATCH_SIZE = 64
"""Completions that run at once; more would make each of them slow."""
DRAIN_SECONDS = 30
"""How long answers under way may take to finish after a SIGTERM or Ctrl-C; a second one ends them at once."""


def run(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str = "",
    device: str = "auto",
    price: str = DEFAULT_PRICE,
    speculation: Speculation = "auto",
) -> None:
    """Serve what MODEL names until SIGTERM or Ctrl-C, then finish the answers under way.

    Args:
        model: see `aha.hub.resolve`.
        host: an address beyond loopback needs an api_key.
        port: 0 takes a free one.
        api_key: what callers must send; "" asks nothing.
        price: name of the machine's hourly price, see `aha.cost.machine_price`.
        speculation: see `aha.engine.Engine`.

    Raises:
        AhaError: no such model or price; a host, port or key that cannot be used.
        KeyboardInterrupt: after the last answer, if it was Ctrl-C that ended it.
    """
    hourly = machine_price(price, on=datetime.now(UTC).date())
    _check_key(api_key)
    # Before the model is loaded: a port that is taken should not cost a minute.
    with _bind(host, port=port, has_key=bool(api_key)) as listener, Ledger.open(on_failure="memory") as ledger:
        if ledger.warning:
            print(f"warning: {ledger.warning}", flush=True)
        folder = hub.resolve(model)
        chat = ChatFormat.load(folder)
        loaded = load_model(folder, device=device, resolve=hub.resolve)
        engine = Engine(
            loaded,
            max_batch_size=MAX_BATCH_SIZE,
            decode=chat.decode,
            stop_token_ids=chat.stop_token_ids,
            speculation=speculation,
        )
        name = served_name(model)
        keys = (api_key,) if api_key else ()
        app = create_app(engine, chat, model_name=name, api_keys=keys, price=hourly, ledger=ledger)
        server = _Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS),
            greeting=_greeting(name, listener=listener, price=hourly, has_key=bool(api_key)),
        )
        with _quiet_sigterm():
            server.run(sockets=[listener])


def served_name(model: str | Path) -> str:
    """What callers ask for: a run's or folder's own name, e.g. "countdown" for runs/countdown/model; a hub id whole."""
    path = Path(model)
    if not path.exists():
        return str(model)
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


class _Server(uvicorn.Server):
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
def _quiet_sigterm() -> Iterator[None]:
    """uvicorn raises the signal again that ended it; a SIGTERM obeyed is no failure, so this makes the exit code 0."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_key(api_key: str) -> None:
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigError("the API key may hold printable ASCII characters without spaces only; choose another one")


@contextmanager
def _bind(host: str, *, port: int, has_key: bool) -> Iterator[socket.socket]:
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


def _greeting(name: str, *, listener: socket.socket, price: MachinePrice, has_key: bool) -> str:
    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}/v1" if ":" in address else f"http://{address}:{port}/v1"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
    key = ' -H "Authorization: Bearer $AHA_API_KEY"' if has_key else ""
    return (
        f"{name} is served at {url} (OpenAI-compatible; Ctrl-C ends it)\n"
        f"priced at ${price.usd_per_hour:g} an hour of this machine ({price.price_id})\n"
        f"try: curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
