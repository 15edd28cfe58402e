"""Own a model or call an API: after how many tokens, how many months and at which load the one pays for the other.

Closed forms for prices and demand that stay as they are; aha.estimate.breakeven.path goes month by month where they
do not. Costs are of a *task solved*: a request, divided by the share of requests that is right. With pass@1 of 1 on
both sides, which is where they stand unless set, a task is a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NamedTuple

from aha.cost.prices import TokenPrice
from aha.errors import ConfigError
from aha.estimate.serving import ServingRate

DAYS_PER_MONTH = 365.25 / 12
HOURS_PER_MONTH = 24 * DAYS_PER_MONTH
SECONDS_PER_DAY = 86_400
MAX_FIGURE = 1e15
"""Of anything that is typed: above it, sums would lose their last dollars in a float."""

Verdict = Literal["own", "api", "unclear"]
Pay = Literal["month", "second"]
"""How machines are paid for: by the month whatever the load, or by the second in which they work (serverless)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of the model. Tokens are means over requests."""

    input_tokens: float
    """Of a prompt, cached ones included."""
    output_tokens: float
    """Thinking included."""
    cached_tokens: float = 0.0
    """Part of input_tokens that lies in a cache."""
    requests_per_day: float | None = None
    """Tasks that have to be solved each day; None is not known."""

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "cached_tokens", "requests_per_day"):
            check_figure(getattr(self, name) or 0.0, field=name)
        if self.cached_tokens > self.input_tokens:
            raise ConfigError(
                f"cached_tokens are a part of input_tokens: {self.cached_tokens:g} of {self.input_tokens:g}"
            )
        if self.tokens == 0:
            raise ConfigError("a request of no tokens costs nothing anywhere; give input_tokens or output_tokens")

    @property
    def tokens(self) -> float:
        """Of one request."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, kw_only=True)
class ApiRate:
    """What an API asks for a million tokens, and how good its answers are."""

    name: str
    usd_per_million_input: float
    usd_per_million_cached: float
    usd_per_million_output: float
    price_id: str
    source: str
    confidence: str
    source_date: date | None = None
    pass_at_1: float = 1.0
    """Share of its answers that are right."""
    output_ratio: float = 1.0
    """Its output tokens for each one of ours: how much longer it thinks."""

    def __post_init__(self) -> None:
        check_share(self.pass_at_1, field="pass_at_1_api")
        check_figure(self.output_ratio, field="api_output_ratio")

    @classmethod
    def from_price(cls, price: TokenPrice, *, pass_at_1: float = 1.0, output_ratio: float = 1.0) -> ApiRate:
        """A price of the book."""
        return cls(
            name=price.name,
            usd_per_million_input=price.pico_usd_per_input_token / 1e6,
            usd_per_million_cached=price.pico_usd_per_cached_token / 1e6,
            usd_per_million_output=price.pico_usd_per_output_token / 1e6,
            price_id=price.price_id,
            source=price.source,
            confidence=price.confidence,
            source_date=price.source_date,
            pass_at_1=pass_at_1,
            output_ratio=output_ratio,
        )

    def usd_per_request(self, work: Workload) -> float:
        usd = (
            (work.input_tokens - work.cached_tokens) * self.usd_per_million_input
            + work.cached_tokens * self.usd_per_million_cached
            + work.output_tokens * self.output_ratio * self.usd_per_million_output
        )
        return usd / 1e6

    def usd_per_task(self, work: Workload) -> float:
        """Infinite where no answer is right."""
        return self.usd_per_request(work) / self.pass_at_1 if self.pass_at_1 else math.inf


@dataclass(frozen=True, kw_only=True)
class Owning:
    """What it takes to have the model on machines of one's own or rented."""

    rate: ServingRate
    training_usd: float
    """Paid once; 0 for a model that is used as it is."""
    engineering_usd: float = 0.0
    """Your time, paid once."""
    overhead: float = 1.0
    """The factor on the bare price of the machines that `rate` already contains."""
    pass_at_1: float = 1.0
    """Share of its answers that are right."""
    pay: Pay = "month"
    max_utilisation: float = 1.0
    """By the month: how busy replicas are before there is another one; the rest is for the peaks."""
    utilisation: float = 1.0
    """By the second: share of the seconds paid for in which it works; the rest is loading and waiting."""

    def __post_init__(self) -> None:
        check_figure(self.training_usd, field="training_usd")
        check_figure(self.engineering_usd, field="engineering_usd")
        check_share(self.pass_at_1, field="pass_at_1_own")
        for name, share in (("max_utilisation", self.max_utilisation), ("utilisation", self.utilisation)):
            if not 0 < share <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {share:g}")
        if not (math.isfinite(self.overhead) and self.overhead >= 1):
            raise ConfigError(f"overhead is a factor of at least 1 on the machines' price, got {self.overhead:g}")

    @property
    def once_usd(self) -> float:
        return self.training_usd + self.engineering_usd

    @property
    def usd_per_replica_month(self) -> float:
        return self.rate.usd_per_hour * HOURS_PER_MONTH

    def busy_seconds(self, work: Workload) -> float:
        """Of a replica, for one request."""
        return (
            (work.input_tokens - work.cached_tokens) * self.rate.seconds_per_input_token
            + work.cached_tokens * self.rate.seconds_per_cached_token
            + work.output_tokens * self.rate.seconds_per_output_token
        )

    def busy_seconds_per_task(self, work: Workload) -> float:
        """Infinite where no answer is right."""
        return self.busy_seconds(work) / self.pass_at_1 if self.pass_at_1 else math.inf

    def usd_per_task(self, work: Workload, *, utilisation: float = 1.0) -> float:
        """Serving alone, on replicas busy for a share of the hours paid for; infinite where no answer is right."""
        return self.busy_seconds_per_task(work) * self.rate.usd_per_hour / 3600 / utilisation

    def tasks_per_replica_day(self, work: Workload) -> float:
        """As many as one replica solves in a day when it is as busy as it may be."""
        seconds = self.busy_seconds_per_task(work)
        return SECONDS_PER_DAY * self.max_utilisation / seconds if seconds else math.inf

    def num_replicas(self, work: Workload) -> int:
        """Rented for the load: at least one, however little is asked. No number of them solves what it never does."""
        if not work.requests_per_day or not self.pass_at_1:
            return 1
        return max(1, _round_up(work.requests_per_day / self.tasks_per_replica_day(work)))

    def usd_per_month(self, work: Workload) -> float:
        """Of the load, of which nothing is solved where no answer is right; without one, a replica's rent."""
        if work.requests_per_day and not self.pass_at_1:
            return math.inf
        if self.pay == "month":
            return self.num_replicas(work) * self.usd_per_replica_month
        tasks = (work.requests_per_day or 0.0) * DAYS_PER_MONTH
        return tasks * self.usd_per_task(work, utilisation=self.utilisation) if tasks else 0.0


class Threshold(NamedTuple):
    """When what was paid once has come back."""

    tasks: float
    """Solved until then."""
    months: float | None
    """None where the load is not known."""


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """One model of one's own against one API. What is never reached is None."""

    work: Workload
    owning: Owning
    api: ApiRate
    horizon_months: float
    """How long the model will be in use: what has not paid by then has not paid."""

    @property
    def api_usd_per_task(self) -> float:
        return self.api.usd_per_task(self.work)

    @property
    def own_usd_per_task(self) -> float:
        """Serving alone. By the month at the load, or on a replica that is always as busy as it may be where the
        load is not known; by the second at its utilisation."""
        own, demand = self.owning, self.work.requests_per_day
        if own.pay == "second":
            return own.usd_per_task(self.work, utilisation=own.utilisation)
        if not demand:
            return own.usd_per_task(self.work, utilisation=own.max_utilisation)
        return own.usd_per_month(self.work) / (demand * DAYS_PER_MONTH)

    @property
    def api_usd_per_month(self) -> float | None:
        demand = self.work.requests_per_day
        return None if demand is None else demand * DAYS_PER_MONTH * self.api_usd_per_task if demand else 0.0

    @property
    def own_usd_per_month(self) -> float | None:
        return None if self.work.requests_per_day is None else self.owning.usd_per_month(self.work)

    @property
    def threshold(self) -> Threshold | None:
        """tasks = paid once / (API - own), both per task; None where a task of one's own is not the cheaper one."""
        saved, demand = self.api_usd_per_task - self.own_usd_per_task, self.work.requests_per_day
        # Not a number where neither ever solves anything.
        if not saved > 0 or demand == 0:
            return None
        tasks = self.owning.once_usd / saved
        return Threshold(tasks, None if demand is None else tasks / (demand * DAYS_PER_MONTH))

    @property
    def break_even_tokens(self) -> float | None:
        """Tokens of one's own model, input and output, of every attempt."""
        if self.threshold is None:
            return None
        return self.threshold.tasks / self.owning.pass_at_1 * self.work.tokens

    @property
    def break_even_months(self) -> float | None:
        return self.threshold.months if self.threshold else None

    @property
    def break_even_utilisation(self) -> float | None:
        """How busy a rented replica has to be to earn its rent, training aside: own cost of a task at full load over
        the API's. Above 1 no load is enough. None where the API gives its answers away."""
        if self.owning.pass_at_1 == 0 or self.api_usd_per_task == 0:
            return None
        return self.owning.usd_per_task(self.work) / self.api_usd_per_task

    @property
    def break_even_requests_per_day(self) -> float | None:
        """The least load at which owning has paid by the horizon; None where no load is enough."""
        own, api_usd = self.owning, self.api_usd_per_task
        if api_usd == 0:
            return None
        once_usd_per_month = own.once_usd / self.horizon_months
        if own.pay == "second" or not own.pass_at_1:
            saved = api_usd - own.usd_per_task(self.work, utilisation=own.utilisation)
            return once_usd_per_month / (saved * DAYS_PER_MONTH) if saved > 0 else None
        # What a replica as busy as it may be earns in a month beyond its rent.
        capacity = own.tasks_per_replica_day(self.work) * DAYS_PER_MONTH
        earned = capacity * api_usd - own.usd_per_replica_month
        if earned <= 0:
            return None
        # The fewest replicas that can pay: one earns most when the next one is about to be due.
        num_replicas = max(1, _round_up(once_usd_per_month / earned))
        rent = num_replicas * own.usd_per_replica_month
        below = (num_replicas - 1) * capacity if num_replicas > 1 else 0.0
        return max((once_usd_per_month + rent) / api_usd, below) / DAYS_PER_MONTH

    @property
    def verdict(self) -> Verdict:
        """ "own" where it has paid by the horizon, "unclear" where that hangs on a load that nobody named."""
        if math.isinf(self.api_usd_per_task) and math.isinf(self.own_usd_per_task):
            return "unclear"
        if self.threshold is None:
            return "api"
        if self.threshold.months is None:
            return "unclear"
        return "own" if self.threshold.months <= self.horizon_months else "api"

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        own = self.owning
        return {
            "api": self.api.name,
            "price_id": self.api.price_id,
            "verdict": self.verdict,
            "break_even_tokens": self.break_even_tokens,
            "break_even_requests": self.threshold.tasks if self.threshold else None,
            "break_even_months": self.break_even_months,
            "break_even_utilisation": self.break_even_utilisation,
            "break_even_requests_per_day": self.break_even_requests_per_day,
            "cost_usd_per_solved": finite(self.own_usd_per_task),
            "api_cost_usd_per_solved": finite(self.api_usd_per_task),
            "usd_per_million_tokens": finite(self.own_usd_per_task * own.pass_at_1 / self.work.tokens * 1e6),
            "api_usd_per_million_tokens": self.api.usd_per_request(self.work) / self.work.tokens * 1e6,
            "usd_per_month": finite(self.own_usd_per_month),
            "api_usd_per_month": finite(self.api_usd_per_month),
            "pay": own.pay,
            "num_replicas": own.num_replicas(self.work) if own.pay == "month" and own.pass_at_1 else None,
            "utilisation": self.utilisation,
        }

    @property
    def utilisation(self) -> float | None:
        """Share of the hours paid for in which the replicas work; None where the load is not known."""
        own, demand = self.owning, self.work.requests_per_day
        if own.pay == "second":
            return own.utilisation
        if demand is None or not own.pass_at_1:
            return None
        seconds = demand * own.busy_seconds_per_task(self.work)
        # Rounding may leave a hair more than the day has.
        return min(1.0, seconds / (own.num_replicas(self.work) * SECONDS_PER_DAY))


def _round_up(count: float) -> int:
    """A hair less first: 3.0000000000000004 replicas are 3."""
    return math.ceil(count * (1 - 1e-12))


def finite(amount: float | None) -> float | None:
    """For JSON, which has no infinity: what is never reached is null."""
    return amount if amount is not None and math.isfinite(amount) else None


def per_thousand(usd: float | None) -> str:
    """Dollars of one as those of a thousand, with three significant digits; "–" for what never happens."""
    if usd is None or not math.isfinite(usd):
        return "–"
    amount = 1000 * usd
    if amount == 0 or amount >= 100:
        return f"${amount:,.2f}"
    return f"${amount:.{max(2, 2 - math.floor(math.log10(amount)))}f}"


def check_figure(amount: float, *, field: str, most: float = MAX_FIGURE) -> float:
    """A number from 0 to `most`. Raises ConfigError naming the field."""
    if not (math.isfinite(amount) and 0 <= amount <= most):
        raise ConfigError(f"{field} must be a number from 0 to {most:g}, got {amount:g}")
    return amount


def check_share(share: float, *, field: str) -> float:
    """A share of 1. Raises ConfigError naming the field."""
    if not 0 <= share <= 1:
        raise ConfigError(f"{field} must be a share from 0 to 1, such as 0.89, got {share:g}")
    return share
