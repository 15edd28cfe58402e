"""What APIs would have charged for a request: their list prices at its moment, at our token counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from aha.cost.prices import token_price
from aha.cost.prices.compare import spread_on
from aha.errors import ConfigError
from aha.types import Usage


class ListedCost(NamedTuple):
    """One API's charge; None where the price book has no price of it for that moment and length of prompt."""

    model: str
    nano_usd: int | None
    price_id: str | None


def choose_apis(names: Sequence[str], *, on: datetime) -> tuple[str, ...]:
    """Names or ids of the price book, checked; none takes the cheapest and the dearest closed model of a known price.

    Raises:
        ConfigError: a name that the price book does not have at that moment.
    """
    for name in names:
        token_price(name, on=on)
    if names:
        return tuple(names)
    spread = spread_on(on.date())
    return () if spread is None else (spread.cheapest_closed.name, spread.dearest_closed.name)


def listed_costs(usage: Usage, *, apis: Sequence[str], on: datetime) -> list[ListedCost]:
    """What each API would have charged for these tokens at that moment. Vendors' own counts would differ."""
    return [_listed_cost(usage, api=api, on=on) for api in apis]


def _listed_cost(usage: Usage, *, api: str, on: datetime) -> ListedCost:
    try:
        price = token_price(api, on=on, prompt_tokens=usage.prompt_tokens)
    except ConfigError:
        return ListedCost(
            api.partition("@")[0], None, None
        )  # ended since, or not known for prompts of this length: never guessed
    nano_usd = price.cost_nano_usd(
        usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
    return ListedCost(price.name, nano_usd, price.price_id)
