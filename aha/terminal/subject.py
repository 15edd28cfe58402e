"""Whom an evaluation asks: a model in this process, or an endpoint."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import torch

from aha.client import ENDPOINT_PREFIX, Client, parse_endpoint
from aha.cost.prices import MachinePrice, TokenPrice, machine_price
from aha.errors import ConfigError
from aha.evaluate import Respond, conversation
from aha.models.devices import device_words
from aha.tasks.base import Task
from aha.template import Thinking
from aha.terminal.conversation import OpenModel, open_model
from aha.train.rollouts import respond_with
from aha.types import Completion, Message, Problem, SamplingParams

_FINGERPRINTED = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                  "generation_config.json")  # fmt: skip
_DIGEST_CHARS = 16
TIMEOUT_SECONDS, SLOWEST_TOKENS_PER_SECOND = 120.0, 20.0
"""An endpoint may take so long for one answer, and the time of its longest answer at this speed on top."""
GPU_PRICES = {"H100": "h100-hour", "H200": "h200-hour", "H800": "h800-hour"}
"""What a GPU's name holds → its price in the book."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that can be asked, and what its evaluation needs to know of it."""

    respond: Respond
    identity: str
    """What tells it from every other model, for the manifest."""
    price: MachinePrice | TokenPrice | None
    """None: the dollars are not known."""
    count_tokens: Callable[[str], int] | None = None
    max_tokens_cap: int | None = None
    """What its window leaves for an answer at the longest prompt, where that is less than was asked for."""
    notices: tuple[str, ...] = ()
    device: str = ""
    """What it computes on; "" for an endpoint."""
    prompt_tokens: Callable[[Problem], int] | None = None
    """Length of a problem's prompt; None for an endpoint, which counts by itself."""
    spent_nano_usd: Callable[[], int] | None = None
    """What an endpoint's client has spent in all; None for a model in this process."""
    close: Callable[[], None] = lambda: None


def open_local(
    name: str,
    *,
    device: str,
    price: str,
    task: Task,
    problems: Sequence[Problem],
    max_tokens: int,
    thinking: Thinking = "default",
) -> Subject:
    """A folder, a run, a built-in model or one from Hugging Face, with an engine of its own.

    Args:
        price: of the machine: a name or id in the price book, or dollars an hour; "" goes by the device.
    """
    machine = machine_price(price, on=_today()) if price else None
    opened = open_model(name, device=device, thinking=thinking)
    machine = machine or _machine_of(opened)
    dtype = str(opened.model.dtype).removeprefix("torch.")
    cap = _max_tokens_cap(opened, task=task, problems=problems, max_tokens=max_tokens)
    window = opened.model.config.max_position_embeddings
    notices = []
    if cap is not None:
        notices.append(
            f"the model's window of {window:,} tokens leaves {cap:,} for an answer at the longest prompt, not the "
            f"{max_tokens:,} asked for; every answer ends where the window does"
        )
    if machine is None:
        notices.append("this machine has no price in the book, so there are no dollars; give yours by --price USD")
    switched = "" if thinking == "default" else f" thinking {thinking}"
    return Subject(
        respond=respond_with(opened.engine, opened.chat),
        identity=f"{name.rstrip('/')}@sha256:{fingerprint(opened.folder)} {dtype}{switched}",
        price=machine,
        count_tokens=lambda text: len(opened.chat.encode(text)),
        max_tokens_cap=cap,
        notices=tuple(notices),
        device=device_words(opened.model.device),
        prompt_tokens=lambda problem: len(opened.chat.render(conversation(task, problem=problem))),
    )


def fingerprint(folder: Path) -> str:
    """A digest of the weights, the tokenizer and the template of a model folder."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _FINGERPRINTED for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_DIGEST_CHARS]


def _max_tokens_cap(opened: OpenModel, *, task: Task, problems: Sequence[Problem], max_tokens: int) -> int | None:
    window = opened.model.config.max_position_embeddings
    longest = max(len(opened.chat.render(conversation(task, problem=problem))) for problem in problems)
    left = window - longest
    return left if 0 < left < max_tokens else None


def _machine_of(opened: OpenModel) -> MachinePrice | None:
    if opened.model.device.type == "cpu":
        return machine_price("cpu-2core-hour", on=_today())
    gpu = torch.cuda.get_device_name(opened.model.device) if opened.model.device.type == "cuda" else ""
    known = [price for name, price in GPU_PRICES.items() if name in gpu]
    return machine_price(known[0], on=_today()) if known else None


class EndpointRespond:
    """A client's `respond`, each answer handed over the moment it is there. Made for `aha.evaluate.evaluate`."""

    def __init__(self, client: Client, *, concurrency: int) -> None:
        self._client = client
        self._concurrency = concurrency

    def __call__(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        return self._client.respond(conversations, sampling)

    def respond_each(
        self,
        conversations: Sequence[Sequence[Message]],
        samplings: Sequence[SamplingParams],
        *,
        on_completion: Callable[[int, int, Completion], None],
    ) -> None:
        """As `aha.evaluate.RespondsOneByOne` says. After a failure nothing new is sent; what is under way is taken.

        Raises:
            AhaError: the first failure.
        """
        failures: list[BaseException] = []
        is_over = threading.Event()

        def ask(row: int, index: int) -> Completion | None:
            one = replace(samplings[row], num_samples=1, first_sample=samplings[row].first_sample + index)
            return None if is_over.is_set() else self._client.respond([list(conversations[row])], one)[0][0]

        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="aha-eval") as pool:
            places = [(row, index) for row, sampling in enumerate(samplings) for index in range(sampling.num_samples)]
            futures = {pool.submit(ask, *place): place for place in places}
            try:
                for future in as_completed(futures):
                    if error := future.exception():
                        failures.append(error)
                        is_over.set()
                    elif completion := future.result():
                        on_completion(*futures[future], completion)
            except BaseException:  # Ctrl-C above all: what is under way is not waited for
                is_over.set()
                self._client.close()
                raise
        if failures:
            raise failures[0]


def open_endpoint(
    name: str,
    *,
    price: str,
    budget_usd: float | None,
    concurrency: int,
    max_tokens: int,
    journal: Path | None,
    on_notice: Callable[[str], None],
) -> Subject:
    """An OpenAI-compatible endpoint, written "openai:MODEL@BASE_URL".

    Args:
        price: of its tokens: a name or id in the price book, or "IN/OUT" dollars per million; "" is not known.
        concurrency: requests under way at a time.
        journal: where each paid answer is kept, so that none is paid for twice.

    Raises:
        ConfigError: a name, a price or a budget that cannot be used.
    """
    endpoint = parse_endpoint(name, price=price)
    if budget_usd is not None and endpoint.price is None:
        raise ConfigError("--budget-usd needs --price: IN/OUT dollars per million tokens, or a name in the price book")
    client = Client(
        endpoint,
        timeout_seconds=TIMEOUT_SECONDS + max_tokens / SLOWEST_TOKENS_PER_SECOND,
        budget_usd=budget_usd,
        max_concurrency=concurrency,
        journal=journal,
        on_notice=on_notice,
    )
    unpriced = "without --price there are no dollars; give IN/OUT per million tokens, or a name in the price book"
    return Subject(
        respond=EndpointRespond(client, concurrency=concurrency),
        identity=f"{ENDPOINT_PREFIX}{endpoint.model}@{endpoint.base_url}",
        price=endpoint.price,
        notices=() if endpoint.price else (unpriced,),
        spent_nano_usd=lambda: client.spent_nano_usd,
        close=client.close,
    )


def _today() -> date:
    return datetime.now(UTC).date()
