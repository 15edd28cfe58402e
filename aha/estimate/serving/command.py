"""What `aha cost serve` answers: predicted, measured, published, or checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Literal

from aha.cost.ledger import Ledger
from aha.cost.prices import MachinePrice, machine_names, machine_price
from aha.errors import ConfigError
from aha.estimate.hardware import GPU, find_gpu
from aha.estimate.serving import table
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.serving.check import check_serving, median_error
from aha.estimate.serving.compare import Compared, TokenMix, compare
from aha.estimate.serving.inference_day import inference_day
from aha.estimate.serving.measured import measure_serving
from aha.estimate.serving.prediction import OVERHEAD, ServingPlan, ServingPrediction, predict_serving
from aha.estimate.serving.rate import ServingRate, cost_rows, rate_dict
from aha.estimate.serving.replica import CacheFormat, Layout, WeightFormat
from aha.estimate.shape import Shape, find_shape

Mode = Literal["predicted", "measured", "published", "check"]


@dataclass(frozen=True, kw_only=True)
class ServingQuestion:
    """What was typed."""

    mode: Mode = "predicted"
    model: str = ""
    """A hub id, a built-in name, a folder or a config.json; "" only where nothing is predicted."""
    gpu: str = ""
    num_gpus: int = 0
    layout: Layout | Literal["auto"] = "auto"
    precision: WeightFormat | Literal["auto"] = "auto"
    """auto: float8 for a model that is published so, on a GPU that multiplies it."""
    cache: CacheFormat = "bfloat16"
    batch: int = 0
    user_tokens_per_second: float = 0.0
    input_tokens: int = 2048
    output_tokens: int = 1024
    context_tokens: int = 0
    cache_hits: float = 0.0
    accepted: float = 0.0
    price: str = ""
    """Of a GPU or machine for an hour: a name or id of the price book, or dollars; "" is the GPU's own."""
    overhead: float = 0.0
    """0: 1.35 over a GPU's price, 1 over what the ledger has."""
    on: str = ""
    """Day or moment of the prices, 2025-01-31 or 2025-01-31T08:00Z; "" is now."""
    compare: tuple[str, ...] = ()
    assume: tuple[str, ...] = ()
    tokens_per_second: str = ""
    """Measured elsewhere, of a replica: "PROMPT/ANSWER", each while it does nothing else."""
    server: str = ""
    since: str = ""
    until: str = ""

    @property
    def when(self) -> date | datetime:
        """The day that was named, or the moment; else this one."""
        if not self.on:
            return datetime.now(UTC)
        moment = _parse_moment(self.on, option="--on")
        return moment if "T" in self.on else moment.date()

    def plan(self, shape: Shape) -> ServingPlan:
        """What is to be predicted."""
        gpu = find_gpu(self.gpu)
        return ServingPlan(
            gpu=gpu,
            num_gpus=self.num_gpus,
            layout=self.layout,
            precision=shape.natural_format(gpu) if self.precision == "auto" else self.precision,
            cache=self.cache,
            batch=self.batch,
            user_tokens_per_second=self.user_tokens_per_second,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            context_tokens=self.context_tokens,
            cache_hits=self.cache_hits,
            accepted=self.accepted,
            assumptions=Assumptions.parse(self.assume),
        )


def run_serving(question: ServingQuestion, *, form: Literal["text", "json"]) -> str:
    """What `aha cost serve` prints.

    Raises:
        AhaError: an unknown model, GPU, price or assumption, a model that does not fit, an empty ledger, …
    """
    match question.mode:
        case "published":
            day = inference_day()
            return json.dumps(day.to_dict()) if form == "json" else table.describe_day(day)
        case "check":
            return _check(question, form=form)
        case "measured":
            return _measured(question, form=form)
        case "predicted" if question.tokens_per_second:
            return _stated(question, form=form)
        case _:
            return _predicted(question, form=form)


def _check(question: ServingQuestion, *, form: Literal["text", "json"]) -> str:
    rows = check_serving(Assumptions.parse(question.assume) if question.assume else None)
    if form == "text":
        return table.describe_check(rows)
    groups = {role: [row for row in rows if row.role == role] for role in ("held out", "informed")}
    errors = {role.replace(" ", "_"): median_error(found) for role, found in groups.items()}
    figures = [{**row._asdict(), "error": row.error} for row in rows]
    return json.dumps({"median_error": errors, "figures": figures})


def _predicted(question: ServingQuestion, *, form: Literal["text", "json"]) -> str:
    name, prediction = _predict(question)
    plan = prediction.plan
    mix = TokenMix(new_tokens=plan.new_tokens, cached_tokens=plan.cached_tokens, output_tokens=plan.output_tokens)
    apis = _compare(question, prediction.rate, mix=mix)
    if form == "json":
        return json.dumps({"model": name, **prediction.to_dict(), "comparisons": [api.to_dict() for api in apis]})
    return table.describe_prediction(name, prediction, mix=mix, apis=apis, on=question.when)


def _predict(question: ServingQuestion) -> tuple[str, ServingPrediction]:
    if not question.model:
        raise ConfigError("name the MODEL to predict, e.g. aha cost serve DeepSeek-R1 --gpu h200")
    if not question.gpu:
        raise ConfigError(
            "name the GPU, e.g. --gpu h200; for a machine of your own give --tokens-per-second and --price"
        )
    shape = find_shape(question.model)
    plan = question.plan(shape)
    price = _gpu_price(question, gpu=plan.gpu)
    prediction = predict_serving(shape.config, plan=plan, price=price, overhead=question.overhead or OVERHEAD)
    return shape.name, prediction


def _stated(question: ServingQuestion, *, form: Literal["text", "json"]) -> str:
    """From rates that the user has measured."""
    rate = _stated_rate(question, price=_stated_price(question))
    cached = min(round(question.input_tokens * question.cache_hits), question.input_tokens)
    mix = TokenMix(
        new_tokens=question.input_tokens - cached, cached_tokens=cached, output_tokens=question.output_tokens
    )
    apis = _compare(question, rate, mix=mix)
    if form == "text":
        return table.describe_rate(rate, mix=mix, apis=apis, on=question.when)
    costs = _with_blended(rate, mix)
    shown = {"model": question.model, "usd_per_hour": rate.usd_per_hour, **rate_dict(rate), "costs": costs}
    return json.dumps({**shown, "comparisons": [api.to_dict() for api in apis]})


def _stated_price(question: ServingQuestion) -> MachinePrice:
    if not question.price and not question.gpu:
        raise ConfigError(
            "--tokens-per-second needs the price of an hour: --price 2.50, --price cpu-2core-hour or --gpu"
        )
    if not question.gpu:
        return machine_price(question.price, on=question.when)
    return _gpu_price(question, gpu=find_gpu(question.gpu))


def _gpu_price(question: ServingQuestion, *, gpu: GPU) -> MachinePrice:
    if not question.price and gpu.price not in machine_names():
        raise ConfigError(f"the price book has no price of an hour of the {gpu.title}; give yours, e.g. --price 1.50")
    return machine_price(question.price or gpu.price, on=question.when)


def _stated_rate(question: ServingQuestion, *, price: MachinePrice) -> ServingRate:
    try:
        read, written = (float(word) for word in question.tokens_per_second.split("/"))
    except ValueError:
        read = written = 0.0
    if not (0 < read < 1e12 and 0 < written < 1e12):
        raise ConfigError(
            f"--tokens-per-second must be PROMPT/ANSWER, two numbers above 0, got {question.tokens_per_second!r}; "
            "e.g. 20000/2500"
        )
    overhead = question.overhead or OVERHEAD
    if not 1 <= overhead <= 100:
        raise ConfigError(f"overhead must be from 1 to 100 times the price, got {overhead}")
    machines = max(question.num_gpus, 1)
    return ServingRate(
        usd_per_hour=machines * price.usd_per_hour * overhead,
        seconds_per_input_token=1 / read,
        seconds_per_cached_token=0.0,
        seconds_per_output_token=1 / written,
        basis=f"stated: {read:g} prompt and {written:g} answered tokens a second of {machines} x {price.price_id} "
        f"(${price.usd_per_hour:g} an hour), overhead {overhead:g}; cached tokens taken to cost nothing",
    )


def _measured(question: ServingQuestion, *, form: Literal["text", "json"]) -> str:
    predicted = _predict(question)[1].rate if question.model and question.gpu else None
    with Ledger.open() as ledger:
        measured = measure_serving(
            ledger,
            server=question.server,
            since=_parse_moment(question.since, option="--since") if question.since else None,
            until=_parse_moment(question.until, option="--until") if question.until else None,
            overhead=question.overhead or 1.0,
            predicted=predicted,
        )
    totals = measured.totals
    mix = TokenMix(
        new_tokens=measured.new_tokens, cached_tokens=totals.cached_tokens, output_tokens=totals.completion_tokens
    )
    mean_prompt = totals.prompt_tokens // totals.num_entries
    apis = _compare(replace(question, input_tokens=mean_prompt), measured.rate, mix=mix)
    if form == "text":
        return table.describe_measured(measured, mix=mix, apis=apis, on=question.when)
    shown: Mapping[str, Any] = {**measured.to_dict(), "costs": _with_blended(measured.rate, mix)}
    return json.dumps({**shown, "comparisons": [api.to_dict() for api in apis]})


def _compare(question: ServingQuestion, rate: ServingRate, *, mix: TokenMix) -> list[Compared]:
    return compare(rate, mix=mix, on=question.when, prompt_tokens=question.input_tokens, names=question.compare)


def _with_blended(rate: ServingRate, mix: TokenMix) -> list[dict[str, float]]:
    return [
        {**row, "usd_per_million_blended": mix.usd_per_million(rate, utilisation=row["utilisation"])}
        for row in cost_rows(rate)
    ]


def _parse_moment(text: str, *, option: str) -> datetime:
    """A day or a moment; without a time zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} must be a day or a moment such as 2025-01-31 or 2025-01-31T08:00Z, got {text!r}"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
