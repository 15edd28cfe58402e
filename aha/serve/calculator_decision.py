"""Serving and the decision itself, as the calculator answers them: adapters to serving and break-even."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from aha.cost.prices import TokenPrice, custom_token_price, prices_on, token_price
from aha.cost.prices.compare import is_vouched_for
from aha.errors import RequestError
from aha.estimate.breakeven import ApiRate, BreakEven, Owning, Workload, finite
from aha.estimate.breakeven.answer import Answer, answer_break_even
from aha.estimate.breakeven.sensitivity import Flip
from aha.estimate.breakeven.text import CLOSE
from aha.estimate.serving import ServingPlan, ServingPrediction, predict_serving
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.shape import Shape
from aha.serve.calculator_answers import (
    assumption,
    blaming,
    common_assumptions,
    find_known_gpu,
    find_known_shape,
    gpu_price,
    model_row,
    price_row,
    question_row,
)
from aha.serve.calculator_questions import DecisionQuestion, ServingQuestion

CUSTOM = "custom"
"""The API whose prices stand in the question."""
OVERHEAD_SOURCE = (
    "power, network, storage, people: the GPU rate is 60 to 70 % of the real bill "
    "(mercatus-ai.com/blog/cloud-gpu-pricing)"
)


class Served(NamedTuple):
    """A model on its machines."""

    shape: Shape
    prediction: ServingPrediction


def answer_serving(question: ServingQuestion) -> dict[str, Any]:
    """What a million tokens costs on machines of one's own."""
    served = _serve(question)
    return {
        "question": question_row(question),
        "model": model_row(served.shape),
        **served.prediction.to_dict(),
        "assumptions": _assumptions(served, question),
    }


def answer_decision(question: DecisionQuestion) -> dict[str, Any]:
    """Train or call?"""
    served = _serve(question)
    price = _api_price(question)
    answer = _break_even(question, served=served, price=price)
    # Demand that grows beyond all figures is the elasticity's doing.
    with blaming("elasticity"):
        outlooks = answer.outlooks()
    # The first is of prices that stay; there is none where a side never solves anything.
    stays = outlooks[0].months[-1] if outlooks else None
    flips = answer.flips()
    return {
        "question": question_row(question),
        "model": model_row(served.shape),
        "gpu": served.prediction.plan.gpu.title,
        "verdict": answer.verdict,
        "break_even": answer.deciding.to_dict(),
        "sides": {
            "api": {**_api_side(answer.deciding, price), "total_usd": finite(stays and stays.api_total_usd)},
            "own": {**_own_side(answer.deciding, served), "total_usd": finite(stays and stays.own_total_usd)},
        },
        "demand": [outlook.to_dict() for outlook in outlooks],
        "flips": [flip.to_dict() for flip in flips],
        "close_call": _close_call(flips),
        "compared": _compare(answer.deciding, chosen=price, on=question.on),
        "basis": served.prediction.rate.basis,
        "assumptions": [
            assumption("api", price.price_id, source=price.source, confidence=price.confidence),
            *_decision_assumptions(question),
            *_assumptions(served, question),
        ],
    }


def _break_even(question: DecisionQuestion, *, served: Served, price: TokenPrice) -> Answer:
    owning = Owning(
        rate=served.prediction.rate,
        training_usd=question.training_usd,
        engineering_usd=question.engineering_usd,
        overhead=question.overhead,
        pass_at_1=question.pass_at_1_own,
        pay=question.pay,
        max_utilisation=question.max_utilisation,
        utilisation=question.utilisation,
    )
    work = Workload(
        input_tokens=question.input_tokens,
        cached_tokens=question.cached_tokens,
        output_tokens=question.output_tokens,
        requests_per_day=question.requests_per_day,
    )
    api = ApiRate.from_price(price, pass_at_1=question.pass_at_1_api, output_ratio=question.api_output_ratio)
    return answer_break_even(
        served.shape.name,
        owning=owning,
        apis=[api],
        work=work,
        on=question.on,
        horizon_months=question.horizon_months,
        elasticity=question.elasticity,
    )


def _close_call(flips: Sequence[Flip]) -> dict[str, Any] | None:
    """The assumption that turns the verdict soonest, where that is sooner than a prediction may be off."""
    close = [flip for flip in flips if flip.factor and abs(math.log(flip.factor)) < CLOSE]
    nearest = min(close, key=lambda flip: abs(math.log(flip.factor or 1.0)), default=None)
    return nearest.to_dict() if nearest else None


def _decision_assumptions(question: DecisionQuestion) -> list[dict[str, Any]]:
    """What has a value until the question says something else."""
    busy = ("max_utilisation", "DeepSeek's day in February 2025 had 226.75 nodes on average of 278 at the peak, 0.82")
    if question.pay == "second":
        busy = ("utilisation", "share of the seconds paid for in which it works; the rest is loading and waiting")
    reasons = {
        "pass_at_1_own": "1 on both sides: both are equally good, and a request is a task",
        "pass_at_1_api": "1 on both sides: both are equally good, and a request is a task",
        "api_output_ratio": "1: at our token counts",
        "horizon_months": "for so long the model is used: what has not paid by then has not paid",
        "engineering_usd": "0: your own time is not counted",
        "elasticity": "of demand by price, where prices fall",
        "pay": "month: rented whatever the load; second: only while it works, at the same price for an hour",
        **dict([busy]),
    }
    fields = type(question).model_fields
    rows = []
    for name, reason in reasons.items():
        value = getattr(question, name)
        confidence = "assumption" if value == fields[name].default else "user"
        rows.append(assumption(name, value, source=reason, confidence=confidence))
    return rows


def _serve(question: ServingQuestion) -> Served:
    shape = find_known_shape(question)
    gpu = find_known_gpu(question.gpu)
    price = gpu_price(gpu, on=question.on, usd_per_gpu_hour=question.usd_per_gpu_hour)
    if question.cached_tokens > question.input_tokens:
        said = f"cached_tokens are a part of input_tokens: {question.cached_tokens} of {question.input_tokens}"
        raise RequestError(said, param="cached_tokens")
    with blaming("assume"):
        assumptions = Assumptions.parse([f"{name}={value!r}" for name, value in question.assume.items()])
    precision = shape.natural_format(gpu) if question.precision == "auto" else question.precision
    with blaming("precision"):
        gpu.flops_per_second("float8" if precision == "float8" else "bfloat16")
    plan = ServingPlan(
        gpu=gpu,
        num_gpus=question.gpus_per_replica or 0,
        precision=precision,
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
        cache_hits=question.cached_tokens / question.input_tokens,
        assumptions=assumptions,
    )
    with blaming("gpus_per_replica" if question.gpus_per_replica else "gpu"):
        return Served(shape, predict_serving(shape.config, plan=plan, price=price, overhead=question.overhead))


def _api_price(question: DecisionQuestion) -> TokenPrice:
    if question.api != CUSTOM:
        with blaming("api"):
            price = token_price(question.api, on=question.on)
        if not price.takes(question.input_tokens):
            said = f"{price.price_id} is not the price of prompts of {question.input_tokens:,} tokens; choose another"
            raise RequestError(said, param="api")
        return price
    for name in ("usd_per_million_input", "usd_per_million_output"):
        if getattr(question, name) is None:
            raise RequestError(f"{name} is needed for an API that is not in the price book", param=name)
    assert question.usd_per_million_input is not None
    assert question.usd_per_million_output is not None
    return custom_token_price(
        question.usd_per_million_input,
        usd_per_million_output=question.usd_per_million_output,
        usd_per_million_cached=question.usd_per_million_cached,
        on=question.on,
    )


def _api_side(case: BreakEven, price: TokenPrice) -> dict[str, Any]:
    return {
        **price_row(price),
        "usd_per_request": case.api.usd_per_request(case.work),
        "usd_per_solved": finite(case.api_usd_per_task),
        "usd_per_month": finite(case.api_usd_per_month),
        "once_usd": 0.0,
    }


def _own_side(case: BreakEven, served: Served) -> dict[str, Any]:
    own, rate = case.owning, served.prediction.rate
    busy = case.utilisation or 1.0
    best = own.max_utilisation if own.pay == "month" else own.utilisation
    return {
        "name": served.shape.name.rpartition("/")[2],
        "num_gpus": served.prediction.replica.num_gpus,
        "num_replicas": case.to_dict()["num_replicas"],
        "usd_per_replica_hour": rate.usd_per_hour,
        "utilisation": case.utilisation,
        "usd_per_million_input": rate.usd_per_million("input", utilisation=busy),
        "usd_per_million_cached": rate.usd_per_million("cached", utilisation=busy),
        "usd_per_million_output": rate.usd_per_million("output", utilisation=busy),
        "usd_per_request": _own_usd_per_request(case),
        "usd_per_thousand_requests": 1000 * _own_usd_per_request(case),
        "usd_per_solved": finite(case.own_usd_per_task),
        "usd_per_solved_at_best": finite(own.usd_per_task(case.work, utilisation=best)),
        "usd_per_month": finite(case.own_usd_per_month),
        "once_usd": own.once_usd,
    }


def _own_usd_per_request(case: BreakEven) -> float:
    """On replicas as busy as the load makes them."""
    own = case.owning
    return own.busy_seconds(case.work) * own.rate.usd_per_hour / 3600 / (case.utilisation or 1.0)


def _compare(case: BreakEven, *, chosen: TokenPrice, on: date) -> list[dict[str, Any]]:
    """What the same requests cost at every API of the day and on one's own machines, the cheapest first.

    At one and the same token counts, and whatever is right of the answers: pass@1 is known of one API only.
    """
    prompt = int(case.work.input_tokens)
    prices = [
        price for price in prices_on(on)
        if price.takes(prompt) and price.price_id != chosen.price_id and is_vouched_for(price, on=on)
    ]  # fmt: skip
    per_request = _own_usd_per_request(case)
    rows = []
    for price in (chosen, *prices):
        usd = ApiRate.from_price(price).usd_per_request(case.work)
        times = {"times_own": usd / per_request if per_request else None}
        rows.append({**price_row(price), "usd_per_request": usd, "usd_per_thousand_requests": 1000 * usd, **times})
    return sorted(rows, key=lambda row: (row["usd_per_request"], row["price_id"]))


def _assumptions(served: Served, question: ServingQuestion) -> list[dict[str, Any]]:
    prediction = served.prediction
    chosen = (
        "yours" if question.gpus_per_replica else "the cheapest number within a node, or the fewest nodes that hold it"
    )
    rows = common_assumptions(served.shape, gpu=prediction.plan.gpu, price=prediction.price)
    rows += [
        assumption("overhead", question.overhead, source=OVERHEAD_SOURCE, confidence="third-party"),
        assumption("gpus_per_replica", prediction.replica.num_gpus, source=chosen),
        assumption("precision", prediction.replica.weights, source="of the layers' weights"),
        assumption("speed", "predicted", source=prediction.rate.basis),
        assumption("batch", prediction.batch, source="conversations decoded together: as many as fit"),
    ]
    return rows + [
        assumption(row.name, row.value, source=row.source, confidence=row.confidence)
        for row in prediction.replica.assumptions.listed()
    ]
