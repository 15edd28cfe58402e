"""How fast a replica of your own serves, and what its hour costs: as given, or predicted from the model's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from aha.cost import Ledger
from aha.cost.prices import MachinePrice, machine_price
from aha.errors import ConfigError
from aha.estimate.breakeven.answer import Assumption
from aha.estimate.breakeven.case import Workload
from aha.estimate.breakeven.run import Run
from aha.estimate.hardware import find_gpu
from aha.estimate.serving import ServingPlan, ServingRate, predict_serving
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.serving.measured import MeasuredServing, measure_serving
from aha.estimate.shape import find_shape

MAX_GPUS = 100_000
_PREDICTION = {
    "--precision": "precision", "--user-speed": "user_tokens_per_second", "--accepted": "accepted", "--assume": "assume"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RateOptions:
    """Either tokens_per_second and price, or gpu and a model whose shape is known."""

    tokens_per_second: str = ""
    """IN/OUT of a replica that does one of the two alone, or IN/CACHED/OUT."""
    price: str = ""
    """Of one GPU, or whatever the machine is, for an hour: dollars, or a name of the book; "" is the price of `gpu`."""
    gpu: str = ""
    """Name in hardware.toml, for a prediction."""
    num_gpus: int = 0
    """Of a replica; 0 is 1 where the speed is given, and for a prediction the cheapest number that holds the model."""
    precision: Literal["auto", "bfloat16", "float8"] = "auto"
    """Of weights and cache. auto: weights as the model is published, where the GPU can; the cache in bfloat16."""
    user_tokens_per_second: float = 20.0
    """The slowest that an answer may be written, for a prediction."""
    accepted: float = 0.0
    """Share of tokens drafted by multi-token prediction that are accepted; 0 drafts none."""
    assume: Sequence[str] = ()
    """Of the roofline, as NAME=VALUE."""
    overhead: float = 1.35
    ledger_server: str | None = None
    """By the ledger's requests of this server, "" of all; None: not by the ledger."""


def measure(options: RateOptions) -> MeasuredServing | None:
    """What the ledger's requests say, where they are asked. Raises AhaError where it has none."""
    if options.ledger_server is None:
        return None
    if options.tokens_per_second or options.gpu:
        raise ConfigError("a speed is measured, given or predicted: give one of --measured, --tokens-per-second, --gpu")
    if options.price:
        raise ConfigError("the ledger's requests have their own price of an hour; leave out --price or --measured")
    with Ledger.open() as ledger:
        return measure_serving(ledger, server=options.ledger_server, overhead=options.overhead)


def read_rate(
    options: RateOptions,
    *,
    model: str,
    run: Run | None,
    work: Workload,
    on: date | datetime,
    measured: MeasuredServing | None = None,
) -> tuple[ServingRate, list[Assumption]]:
    """The rate, and what it takes for granted: by the ledger, as given, predicted, or else measured by the run itself.

    Args:
        model: whose shape a prediction is for, where it is no run: anything that `find_shape` knows.

    Raises:
        AhaError: neither a speed nor a GPU nor a run that measured one, no price, or a model that is not known or does
            not fit.
    """
    if not 0 <= options.num_gpus <= MAX_GPUS:
        raise ConfigError(f"--gpus must be from 0 to {MAX_GPUS:,}, got {options.num_gpus}")
    _refuse_idle(options)
    if measured:
        return _by_ledger(measured)
    if options.tokens_per_second and options.gpu:
        raise ConfigError("a speed is either given or predicted: give --tokens-per-second or --gpu, not both")
    if options.tokens_per_second:
        return _given(options, on=on)
    if options.gpu:
        return _predicted(options, model=str(run.folder / "model") if run else model, work=work, on=on)
    if run and run.seconds_per_output_token:
        return _measured(options, run=run, seconds_per_output_token=run.seconds_per_output_token, on=on)
    raise ConfigError(
        "how fast your model serves is not known: give --tokens-per-second IN/OUT of a replica with --price, "
        "or --gpu h200 to predict it"
    )


def _refuse_idle(options: RateOptions) -> None:
    """An option of a prediction where nothing is predicted would be dropped without a word."""
    idle = [
        option for option, field in _PREDICTION.items()
        if getattr(options, field) != getattr(RateOptions(), field) and not options.gpu
    ]  # fmt: skip
    if idle:
        raise ConfigError(f"{idle[0]} is of a prediction: add --gpu, such as --gpu h200, or leave it out")


def _by_ledger(measured: MeasuredServing) -> tuple[ServingRate, list[Assumption]]:
    rate = measured.rate
    hour = f"${rate.usd_per_hour / measured.overhead:,.2f} x 1"
    speeds = f"{_speed(rate.seconds_per_input_token)}/{_speed(rate.seconds_per_output_token)}"
    rows = [
        Assumption("machine, an hour", hour, "the ledger's requests, by their own price", "--measured"),
        Assumption("tokens a second", speeds, rate.basis, "--tokens-per-second"),
    ]
    return rate, rows + [Assumption("of the ledger", "", note, "--measured") for note in measured.notes]


def _speed(seconds_per_token: float) -> str:
    return f"{1 / seconds_per_token:,.0f}" if seconds_per_token else "–"


def _measured(
    options: RateOptions, *, run: Run, seconds_per_output_token: float, on: date | datetime
) -> tuple[ServingRate, list[Assumption]]:
    """By the run's closing evaluation, all of whose time is put down to the tokens it wrote."""
    if options.price:
        price = machine_price(options.price, on=on)
        usd_per_hour, name, source = price.usd_per_hour, price.name, f"{price.confidence}: {price.source}"
    elif run.usd_per_hour is not None:
        usd_per_hour, name, source = run.usd_per_hour, run.machine, f"{run.folder}/bill.json: {run.machine}"
    else:
        raise ConfigError(f"{run.folder}/bill.json does not say what an hour of its machine costs; give --price")
    basis = f"measured: closing evaluation of {run.folder}, prompts included, on {name}"
    rate = ServingRate(
        usd_per_hour=usd_per_hour * (options.num_gpus or 1) * options.overhead,
        seconds_per_input_token=0.0,
        seconds_per_cached_token=0.0,
        seconds_per_output_token=seconds_per_output_token,
        basis=basis,
    )
    hour = f"${usd_per_hour:,.2f} x {options.num_gpus or 1}"
    speed = f"{1 / seconds_per_output_token:,.0f} written"
    return rate, [
        Assumption("machine, an hour", hour, source, "--price, --gpus"),
        Assumption("tokens a second", speed, basis, "--tokens-per-second"),
    ]


def _given(options: RateOptions, *, on: date | datetime) -> tuple[ServingRate, list[Assumption]]:
    speeds = _read_speeds(options.tokens_per_second)
    if not options.price:
        raise ConfigError("what an hour of your machine costs is not known: give --price, dollars or e.g. h100-hour")
    machine, num_gpus = machine_price(options.price, on=on), options.num_gpus or 1
    rate = ServingRate(
        usd_per_hour=machine.usd_per_hour * num_gpus * options.overhead,
        seconds_per_input_token=1 / speeds[0],
        seconds_per_cached_token=1 / speeds[1] if len(speeds) == 3 else 0.0,
        seconds_per_output_token=1 / speeds[-1],
        basis=f"given: {options.tokens_per_second} tokens a second of {num_gpus} x {machine.name}",
    )
    how = "given: read and written by a replica that does one of the two alone"
    speed = Assumption("tokens a second", options.tokens_per_second, how, "--tokens-per-second")
    return rate, [_hour(machine, num_gpus), speed]


def _predicted(
    options: RateOptions, *, model: str, work: Workload, on: date | datetime
) -> tuple[ServingRate, list[Assumption]]:
    if not model:
        raise ConfigError("a prediction needs a model: give its name, its folder or its config.json")
    gpu, shape = find_gpu(options.gpu), find_shape(model)
    weights = shape.natural_format(gpu) if options.precision == "auto" else options.precision
    cache: Literal["bfloat16", "float8"] = "bfloat16" if options.precision == "auto" else options.precision
    machine = machine_price(options.price or gpu.price, on=on)
    plan = ServingPlan(
        gpu=gpu,
        num_gpus=options.num_gpus,
        precision=weights,
        cache=cache,
        user_tokens_per_second=options.user_tokens_per_second,
        input_tokens=max(1, round(work.input_tokens)),
        output_tokens=max(1, round(work.output_tokens)),
        cache_hits=work.cached_tokens / work.input_tokens if work.input_tokens else 0.0,
        accepted=options.accepted,
        assumptions=Assumptions.parse(options.assume),
    )
    found = predict_serving(shape.config, plan=plan, price=machine, overhead=options.overhead)
    speeds = f"{found.prefill_tokens_per_second:,.0f}/{found.decode_tokens_per_second:,.0f}"
    slowest = f"{options.user_tokens_per_second:g} tokens a second"
    each = "assumption: DeepSeek's day in February 2025 wrote 20 to 22 to a user"
    rows = [
        _hour(machine, found.replica.num_gpus),
        Assumption("tokens a second", speeds, found.rate.basis, "--tokens-per-second"),
        Assumption("precision", f"{weights}, {cache}", "of weights, of cache", "--precision"),
        Assumption("slowest answer", slowest, each, "--user-speed"),
        Assumption("drafts accepted", f"{options.accepted:.0%}", "of multi-token prediction", "--accepted"),
    ]
    rows += [
        Assumption(f"roofline: {each.name}", f"{each.value:g}", f"{each.confidence}: {each.text}", "--assume")
        for each in found.replica.assumptions.listed()
    ]
    return found.rate, rows


def _hour(machine: MachinePrice, num_gpus: int) -> Assumption:
    source = f"{machine.confidence}: {machine.source}"
    return Assumption("machine, an hour", f"${machine.usd_per_hour:,.2f} x {num_gpus}", source, "--price, --gpus")


def _read_speeds(text: str) -> list[float]:
    parts = text.split("/")
    try:
        speeds = [float(part) for part in parts]
        is_valid = len(parts) in (2, 3) and all(math.isfinite(speed) and 0 < speed <= 1e12 for speed in speeds)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"--tokens-per-second is IN/OUT or IN/CACHED/OUT, each above 0, e.g. 9000/2500; got {text!r}")
    return speeds
