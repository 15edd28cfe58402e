"""What the calculator may be asked, field by field: bounded numbers and names of lists, never a path or an address."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from aha.estimate.dense_shape import MAX_PARAMETERS, MIN_PARAMETERS
from aha.serve.openai import explain

MAX_TOKENS = 1e18
"""More than any corpus or service has seen by a factor of a thousand; keeps every product far inside a float."""
MAX_USD_PER_HOUR = 1e4
MAX_USD = 1e12
MAX_GPUS = 1_000_000
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def _read_quantity(given: Any) -> Any:
    """ "14.8T", "7B" and "10,000" as numbers, like the command line; anything else is left to pydantic."""
    if not isinstance(given, str) or len(given) > 30:
        return given
    # Commas between thousands only: "14,8T", as half of Europe writes 14.8T, must not become 148T.
    digits = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,3})?"
    found = re.fullmatch(rf"\s*({digits})\s*([kKmMbBtT]?)\s*", given, re.ASCII)
    return float(re.sub("[,_]", "", found[1])) * _UNITS[found[2].lower()] if found else given


def _read_count(given: Any) -> Any:
    """The same for numbers that must be whole."""
    amount = _read_quantity(given)
    return int(amount) if isinstance(amount, float) and amount.is_integer() else amount


Name = Annotated[str, Field(min_length=1, max_length=100)]
Day = Annotated[date, Field(ge=date(2020, 1, 1), le=date(2099, 12, 31))]
Quantity = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_read_quantity)]
Count = Annotated[int, BeforeValidator(_read_count)]
TokensPerRequest = Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(_read_count)]
LEAST_SHARE = 1e-4


def _check_share(share: float) -> float:
    if 0 < share < LEAST_SHARE:
        raise ValueError(f"should be 0 or at least {LEAST_SHARE:g}")
    return share


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(_check_share)]
"""Of answers that are right. No evaluation tells a smaller one from 0, and what follows from it is no figure."""
BusyShare = Annotated[float, Field(ge=0.001, le=1, allow_inf_nan=False)]
UsdPerHour = Annotated[float, Field(gt=0, le=MAX_USD_PER_HOUR, allow_inf_nan=False)]
UsdPerMillion = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Assumed = Annotated[
    dict[Annotated[str, Field(max_length=40)], Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=40)
]


class Question(BaseModel):
    """Wrong types, unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class PricesQuestion(Question):
    """Prices of a day."""

    on: Day
    compare: Annotated[list[Name], Field(max_length=20)] = []


class MachineQuestion(Question):
    """A question about one model on one kind of GPU: a known model, or a dense one of so many parameters."""

    model: Name | None = None
    parameters: Annotated[Quantity | None, Field(ge=MIN_PARAMETERS, le=MAX_PARAMETERS)] = None
    gpu: Name
    usd_per_gpu_hour: UsdPerHour | None = None
    """None: the price book's on that day."""
    on: Day
    """Of every price."""
    assume: Assumed = {}
    """Assumptions of the estimate that are not to be as its file states them."""


class TrainingQuestion(MachineQuestion):
    """What training takes."""

    tokens: Annotated[Quantity, Field(gt=0, le=MAX_TOKENS)]
    num_gpus: Annotated[Count, Field(ge=1, le=MAX_GPUS)]
    sequence_tokens: Annotated[Count, Field(ge=1, le=10_000_000)] = 4096
    batch_tokens: Annotated[Quantity | None, Field(ge=1, le=1e12)] = None
    """Of a step; None: as many as is usual for that many GPUs."""
    overhead: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 1.0
    """Cost of an hour over the price of its GPUs."""
    precision: Literal["auto", "bfloat16", "float8"] = "auto"
    """Of the layers' products. auto: as the weights are published, where the GPU can."""


class ServingQuestion(MachineQuestion):
    """What serving takes."""

    gpus_per_replica: Annotated[Count | None, Field(ge=1, le=4096)] = None
    """None: the cheapest number that holds the model."""
    precision: Literal["auto", "bfloat16", "float8", "int8"] = "auto"
    """Of the weights. auto: as they are published, where the GPU can."""
    input_tokens: TokensPerRequest
    """Of a prompt, cached ones included."""
    cached_tokens: Annotated[Count, Field(ge=0, le=10_000_000)] = 0
    output_tokens: TokensPerRequest
    """Thinking included."""
    overhead: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 1.35
    """Cost of an hour over the price of its GPUs."""


class DecisionQuestion(ServingQuestion):
    """Train or call?"""

    requests_per_day: Annotated[Quantity, Field(ge=0.001, le=1e12)]
    api: Name
    """A name or an id of the price book, or "custom" with prices of your own."""
    usd_per_million_input: UsdPerMillion | None = None
    usd_per_million_cached: UsdPerMillion | None = None
    usd_per_million_output: UsdPerMillion | None = None
    training_usd: Annotated[Quantity, Field(ge=0, le=MAX_USD)]
    engineering_usd: Annotated[Quantity, Field(ge=0, le=MAX_USD)] = 0.0
    pay: Literal["month", "second"] = "month"
    max_utilisation: BusyShare = 0.8
    """By the month: how busy replicas are before there is another one."""
    utilisation: BusyShare = 1.0
    """By the second: share of the seconds paid for in which it works."""
    horizon_months: Annotated[float, Field(ge=1, le=120, allow_inf_nan=False)] = 12.0
    pass_at_1_own: Share = 1.0
    pass_at_1_api: Share = 1.0
    api_output_ratio: Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)] = 1.0
    """The API's output tokens for each one of yours."""
    elasticity: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0
    """Percent of demand gained for each percent of price lost."""


Asked = TypeVar("Asked", bound=Question)


def read_question(body: bytes, kind: type[Asked]) -> Asked:
    """Check a body.

    Raises:
        RequestError: anything that is not as documented, naming the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from None
