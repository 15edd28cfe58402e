"""What the calculator answers: thin adapters from questions to the rooms cost and estimate, which do the computing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

from aha.cost.prices import (
    MachinePrice,
    TokenPrice,
    custom_machine_price,
    machine_price,
    machine_prices_on,
    moment_words,
    prices_on,
    token_price,
)
from aha.cost.prices.compare import is_vouched_for
from aha.errors import AhaError, RequestError, unknown_name
from aha.estimate.dense_shape import SHAPE_SOURCE, dense_shape
from aha.estimate.hardware import GPU, find_gpu, gpus
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.shape import Shape, known_shape
from aha.estimate.training import TrainingBill, TrainingRun, bill_training
from aha.estimate.training import assumptions as training_assumptions
from aha.estimate.training.assumptions import with_settings
from aha.estimate.training.terms import Term
from aha.models.counts import count_parameters
from aha.models.known import KNOWN_CONFIGS, KNOWN_MODELS, known_config
from aha.serve.calculator_questions import MachineQuestion, PricesQuestion, Question, TrainingQuestion

SNAPSHOT = "a snapshot of one day: list prices move within weeks, and each vendor counts tokens its own way"


def answer_choices() -> dict[str, Any]:
    """What can be chosen: models, GPUs, and the day that it is."""
    models = []
    for model in KNOWN_MODELS:
        model_id = next(iter(model.configs))
        counts = count_parameters(known_config(model_id))
        models.append(
            {
                "id": model_id,
                "name": model.name,
                "family": model.family,
                "num_parameters": counts.total,
                "num_active_parameters": counts.active,
            }
        )
    accelerators = [
        {"name": gpu.name, "title": gpu.title, "formats": sorted(gpu.teraflops), "memory_bytes": gpu.memory_bytes}
        for gpu in gpus().values()
    ]
    return {
        "today": datetime.now(UTC).date().isoformat(),
        "models": models,
        "gpus": accelerators,
        "assumptions": {
            "serving": [row._asdict() for row in Assumptions.default().listed()],
            "training": _training_assumptions(training_assumptions.Assumptions()),
        },
    }


def answer_prices(question: PricesQuestion) -> dict[str, Any]:
    """Token and GPU prices of a day; and how many times dearer each is than the cheapest that is surely sold."""
    held = prices_on(question.on)
    if question.compare:
        with blaming("compare"):
            held = tuple(token_price(name, on=question.on) for name in question.compare)
    rows = [{**price_row(price), "may_have_ended": not is_vouched_for(price, on=question.on)} for price in held]
    sold = [row for row in rows if not row["may_have_ended"]] or rows
    cheapest = min((row["usd_per_million_output"] for row in sold), default=0)
    for row in rows:
        row["times_cheapest_output"] = row["usd_per_million_output"] / cheapest if cheapest else None
    rows.sort(key=lambda row: (row["usd_per_million_output"], row["price_id"]))
    titles = {gpu.price: gpu.title for gpu in gpus().values()}
    rents = [
        {"gpu": titles.get(price.name, price.name), **machine_row(price)} for price in machine_prices_on(question.on)
    ]
    return {"on": question.on.isoformat(), "prices": rows, "machine_hours": rents, "note": SNAPSHOT}


def answer_training(question: TrainingQuestion) -> dict[str, Any]:
    """What training takes."""
    shape = find_known_shape(question)
    gpu = find_known_gpu(question.gpu)
    price = gpu_price(gpu, on=question.on, usd_per_gpu_hour=question.usd_per_gpu_hour)
    precision = shape.natural_format(gpu) if question.precision == "auto" else question.precision
    with blaming("precision"):
        gpu.flops_per_second(precision)
    # As its file writes them: whole numbers without a point.
    settings = [f"{name}={value:.17g}" for name, value in question.assume.items()]
    with blaming("assume"):
        assumptions = with_settings(training_assumptions.Assumptions(), settings)
    with blaming("assume"):  # one that does not go with the GPU; the rest has been checked
        run = TrainingRun(
            tokens=question.tokens,
            gpu=gpu,
            num_gpus=question.num_gpus,
            sequence_tokens=question.sequence_tokens,
            precision=precision,
            batch_tokens=question.batch_tokens or 0,
            assumptions=assumptions,
        )
    with blaming("num_gpus"):
        bill = bill_training(shape.config, run=run, price=price, overhead=question.overhead)
    return {
        "question": question_row(question),
        "model": model_row(shape),
        **bill.to_dict(),
        "gpu_title": gpu.title,
        "layout_words": bill.layout.describe(),
        "terms": [_term_row(term, bill) for term in bill.terms],
        "assumptions": [
            *common_assumptions(shape, gpu=gpu, price=price),
            assumption("precision", precision, source="of the layers' products; auto is as the weights are published"),
            assumption("overhead", bill.overhead, source="1 counts the GPUs' price alone"),
            assumption("batch_tokens", bill.batch_tokens, source="yours, or usual for that many GPUs"),
            *_training_assumptions(assumptions),
        ],
    }


def _term_row(term: Term, bill: TrainingBill) -> dict[str, Any]:
    gpu_hours = bill.run.tokens * term.seconds_per_token / 3600
    return {
        **term._asdict(),
        "share": term.seconds_per_token / bill.gpu_seconds_per_token,
        "gpu_hours": gpu_hours,
        "cost_usd": gpu_hours * bill.price.usd_per_hour * bill.overhead,
    }


def _training_assumptions(assumptions: training_assumptions.Assumptions) -> list[dict[str, Any]]:
    stated = training_assumptions.Assumptions()
    rows = []
    for name, origin in training_assumptions.ORIGINS.items():
        value = getattr(assumptions, name)
        is_stated = value == getattr(stated, name)
        source, confidence = (origin.words, origin.confidence) if is_stated else ("set by the user", "user")
        rows.append(assumption(name, value, source=source, confidence=confidence))
    return rows


def common_assumptions(shape: Shape, *, gpu: GPU, price: MachinePrice) -> list[dict[str, Any]]:
    """What every estimate takes for granted: the model's shape, the GPU's data sheet, the price of its hour."""
    return [
        assumption("model", shape.name, source=shape.source),
        assumption("gpu", gpu.title, source=gpu.source),
        assumption("usd_per_gpu_hour", price.usd_per_hour, source=price.source, confidence=price.confidence),
    ]


def assumption(name: str, value: float | str, *, source: str, confidence: str = "") -> dict[str, Any]:
    """One line of what an answer takes for granted."""
    return {"name": name, "value": value, "source": source, "confidence": confidence}


def question_row(question: Question) -> dict[str, Any]:
    """What was asked, with every default filled in."""
    return question.model_dump(mode="json")


def find_known_shape(question: MachineQuestion) -> Shape:
    """The model that is asked about: never a folder, never from the network."""
    if (question.model is None) == (question.parameters is None):
        raise RequestError(
            "give either model, a name of the list, or parameters, the size of a dense one", param="model"
        )
    if question.parameters is not None:
        config = dense_shape(question.parameters)
        name = f"dense {count_parameters(config).total / 1e9:.3g}B"
        return Shape(name=name, config=config, source=SHAPE_SOURCE)
    assert question.model is not None
    by_name = {model_id.rpartition("/")[2].lower(): model_id for model_id in KNOWN_CONFIGS}
    model_id = by_name.get(question.model.rpartition("/")[2].lower(), "")
    if question.model.lower() not in (model_id.lower(), model_id.rpartition("/")[2].lower()):
        near = unknown_name("model", question.model, by_name).partition("Choose from")[0].partition("choose from")[0]
        raise RequestError(f"{one_line(near)} GET /cost/api/choices lists them, or give parameters", param="model")
    return known_shape(model_id)


def find_known_gpu(name: str) -> GPU:
    """A GPU of hardware.toml."""
    with blaming("gpu"):
        return find_gpu(name)


def gpu_price(gpu: GPU, *, on: date, usd_per_gpu_hour: float | None) -> MachinePrice:
    """What was given, or the price book's: an hour that is not known is never guessed."""
    with blaming("usd_per_gpu_hour", code="unpriced"):
        if usd_per_gpu_hour is not None:
            return custom_machine_price(usd_per_gpu_hour, on=on)
        return machine_price(gpu.price, on=on)


def price_row(price: TokenPrice) -> dict[str, Any]:
    """A token price with its provenance."""
    return {
        "name": price.name,
        "price_id": price.price_id,
        "usd_per_million_input": price.pico_usd_per_input_token / 10**6,
        "usd_per_million_cached": price.pico_usd_per_cached_token / 10**6,
        "usd_per_million_output": price.pico_usd_per_output_token / 10**6,
        "is_open_weight": price.is_open_weight,
        "tier": price.tier,
        "hours": price.hours.words() if price.hours else None,
        "window": price.window,
        "prompt_tokens_above": price.prompt_tokens_above,
        "prompt_tokens_up_to": price.prompt_tokens_up_to,
        **_provenance(price),
    }


def machine_row(price: MachinePrice) -> dict[str, Any]:
    """The price of an hour with its provenance."""
    return {
        "name": price.name,
        "price_id": price.price_id,
        "usd_per_hour": price.usd_per_hour,
        **_provenance(price),
    }


def model_row(shape: Shape) -> dict[str, Any]:
    """Which model was counted."""
    counts = count_parameters(shape.config)
    return {
        "id": shape.name,
        "name": shape.name.rpartition("/")[2],
        "num_parameters": counts.total,
        "num_active_parameters": counts.active,
        "source": shape.source,
    }


def _provenance(price: TokenPrice | MachinePrice) -> dict[str, Any]:
    return {
        "effective_from": moment_words(price.effective_from),
        "effective_to": moment_words(price.effective_to) if price.effective_to else None,
        "source": price.source,
        "confidence": price.confidence,
    }


@contextmanager
def blaming(param: str, *, code: str | None = None) -> Iterator[None]:
    """What our rooms refuse in the block, as a request error that names the field."""
    try:
        yield
    except AhaError as error:
        raise RequestError(one_line(str(error)), param=param, code=code) from None


def one_line(text: str) -> str:
    """At most 400 characters of a message."""
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:397]}..."
