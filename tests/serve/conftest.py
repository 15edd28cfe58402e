"""A tiny model behind a live server on a free loopback port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import openai
import pytest
import torch
import uvicorn

from aha.chat import ChatFormat
from aha.cost import Ledger, custom_machine_price
from aha.engine import Engine, Speculation
from aha.models import ModelConfig, Transformer, build_model, load_model
from aha.models.tokenizer import SPECIAL_TOKENS, save_tokenizer
from aha.serve import create_app
from aha.serve.engine_thread import MAX_PENDING

WINDOW = 1024
END, CLOSE_THINKING = SPECIAL_TOKENS.index("<|end|>"), SPECIAL_TOKENS.index("</think>")
PRICE = custom_machine_price("0.36", on=date(2026, 1, 1))  # $0.0001 a second


@dataclass(frozen=True)
class Live:
    """A running server and the objects behind it."""

    url: str
    engine: Engine
    chat: ChatFormat

    def wait_until_idle(self, *, timeout_seconds: float = 10.0) -> None:
        """Fails when completions are still under way after the time."""
        deadline = time.monotonic() + timeout_seconds
        while self.engine.has_work:
            assert time.monotonic() < deadline, "the engine is still at work"
            time.sleep(0.005)

    def client(self, *, api_key: str = "unused") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=30)


ServeFactory = Callable[..., contextlib.AbstractContextManager[Live]]


def make_model(chat: ChatFormat, *, ends: bool = True, vocab_size: int = 1363, num_mtp_layers: int = 0) -> Transformer:
    """Random weights, tilted so that letters, the end of thinking and (if it `ends`) the end of the turn are likely."""
    config = ModelConfig(
        model_type="qwen3",
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=WINDOW,
        has_qk_norm=True,
        num_mtp_layers=num_mtp_layers,
        eos_token_ids=chat.stop_token_ids,
        initializer_range=0.1,
    )
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=1)
    likely = [i for letter in "abcdefghijklmnopqrstuvwxyz é\n" for i in chat.encode(letter)]
    with torch.no_grad():
        # The first coordinate is large and the same for every token, so the head's first column acts as a bias.
        model.embed_tokens[:, 1:] *= 5.0
        model.embed_tokens[:, 0] = 8.0
        model.lm_head[:, 1:] *= 10.0
        model.lm_head[:, 0] = -4.0
        model.lm_head[[i for i in likely if i < vocab_size], 0] = 0.0
        model.lm_head[[CLOSE_THINKING, *([END] if ends else [])], 0] = 0.3
    return model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("models") / "babble"
    save_tokenizer(folder)
    make_model(ChatFormat.load(folder)).save(folder)
    return folder


def make_engine(chat: ChatFormat, model: Transformer, *, speculation: Speculation = "off") -> Engine:
    return Engine(
        model, max_batch_size=16, decode=chat.decode, stop_token_ids=chat.stop_token_ids, speculation=speculation
    )


@contextlib.contextmanager
def serve(
    chat: ChatFormat,
    model: Transformer,
    *,
    api_keys: Sequence[str] = (),
    ledger: Ledger | None = None,
    max_pending: int = MAX_PENDING,
    speculation: Speculation = "off",
) -> Iterator[Live]:
    """A uvicorn server in a thread, stopped at the end of the block."""
    engine = make_engine(chat, model, speculation=speculation)
    app = create_app(
        engine, chat, model_name="babble", api_keys=api_keys, price=PRICE, ledger=ledger, max_pending=max_pending
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, chat)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(name="serving", scope="session")
def _serving(chat: ChatFormat) -> ServeFactory:
    """`with serving(ends=False, max_pending=2) as live:` a server of its own; keywords of `make_model` and `serve`."""

    def start(
        *, ends: bool = True, vocab_size: int = 1363, **options: object
    ) -> contextlib.AbstractContextManager[Live]:
        return serve(chat, make_model(chat, ends=ends, vocab_size=vocab_size), **options)

    return start


@pytest.fixture(scope="session")
def chat(model_folder: Path) -> ChatFormat:
    return ChatFormat.load(model_folder)


@pytest.fixture
def engine(chat: ChatFormat) -> Engine:
    """An engine of its own with the same weights as the server's."""
    return make_engine(chat, make_model(chat))


@pytest.fixture(scope="session")
def live(serving: ServeFactory) -> Iterator[Live]:
    """One server for every test that only asks questions."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client() as made:
        yield made


@pytest.fixture(scope="session")
def seer(vision_folder: Path) -> Iterator[Live]:
    """One server whose model sees, for every test that only asks questions."""
    chat = ChatFormat.load(vision_folder)
    with serve(chat, load_model(vision_folder, dtype="float32", device="cpu")) as running:
        yield running
