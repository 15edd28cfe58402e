"""`aha serve`: a model behind a socket, from the first line it prints to the last answer it finishes."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from aha import hub
from aha.chat import ChatFormat
from aha.cost import Ledger, MachinePrice, machine_price
from aha.engine import Engine, Speculation
from aha.models import load_model
from aha.serve.app import DEFAULT_PRICE, create_app
from aha.serve.calculator import PATH as CALCULATOR_PATH
from aha.serve.comparison import choose_apis
from aha.serve.listener import Server, bind, check_key, quiet_sigterm

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
    apis: Sequence[str] = (),
    speculation: Speculation = "auto",
) -> None:
    """Serve what MODEL names until SIGTERM or Ctrl-C, then finish the answers under way.

    Args:
        model: see `aha.hub.resolve`.
        host: an address beyond loopback needs an api_key.
        port: 0 takes a free one.
        api_key: what callers must send; "" asks nothing.
        price: name of the machine's hourly price, see `aha.cost.machine_price`.
        apis: see `aha.serve.create_app`.
        speculation: see `aha.engine.Engine`.

    Raises:
        AhaError: no such model or price; a host, port or key that cannot be used.
        KeyboardInterrupt: after the last answer, if it was Ctrl-C that ended it.
    """
    hourly = machine_price(price, on=datetime.now(UTC).date())
    compared = choose_apis(apis, on=datetime.now(UTC))  # before the model is loaded, since a name may be wrong
    check_key(api_key)
    # Before the model is loaded: a port that is taken should not cost a minute.
    with bind(host, port=port, has_key=bool(api_key)) as listener, Ledger.open(on_failure="memory") as ledger:
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
        app = create_app(engine, chat, model_name=name, api_keys=keys, price=hourly, ledger=ledger, apis=compared)
        server = Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS),
            greeting=_greeting(name, listener=listener, price=hourly, has_key=bool(api_key)),
        )
        with quiet_sigterm():
            server.run(sockets=[listener])


def served_name(model: str | Path) -> str:
    """What callers ask for: a run's or folder's own name, e.g. "countdown" for runs/countdown/model; a hub id whole."""
    path = Path(model)
    if not path.exists():
        return str(model)
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def _greeting(name: str, *, listener: socket.socket, price: MachinePrice, has_key: bool) -> str:
    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}/v1" if ":" in address else f"http://{address}:{port}/v1"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
    key = ' -H "Authorization: Bearer $AHA_API_KEY"' if has_key else ""
    return (
        f"{name} is served at {url} (OpenAI-compatible; Ctrl-C ends it)\n"
        f"priced at ${price.usd_per_hour:g} an hour of this machine ({price.price_id})\n"
        f"own or call an API? a calculator: {url.removesuffix('/v1')}{CALCULATOR_PATH}\n"
        f"try: curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
