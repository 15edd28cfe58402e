"""The APIs that a model of one's own is set against: of the price book at a time, or a price that is typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time

from aha.cost.prices import TokenPrice, custom_token_price, prices_on, token_price
from aha.cost.prices.compare import is_vouched_for
from aha.errors import ConfigError
from aha.estimate.breakeven.case import ApiRate

HOURS = range(24)


def read_apis(names: Sequence[str], *, on: date | datetime, input_tokens: float) -> list[ApiRate]:
    """Rates by name, or of every API whose price the book vouches for at that time.

    Args:
        names: of the book, ids, or IN/OUT or IN/CACHED/OUT dollars a million tokens; each may be several, by commas.
        input_tokens: of a prompt, where the price depends on its length.

    Raises:
        ConfigError: a name that is not known, or not for that time; or no price at all.
    """
    length = round(input_tokens)
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    every = sorted({price.name for price in prices_on(on) if price.takes(length) and is_vouched_for(price, on=on)})
    rates = [read_api(name, on=on, prompt_tokens=length) for name in wanted or every]
    if not rates:
        raise ConfigError(f"the price book has no API's price for {on}; give --against IN/OUT or --on DATE")
    return list({(rate.name, rate.price_id): rate for rate in rates}.values())


def read_api(name: str, *, on: date | datetime, prompt_tokens: int) -> ApiRate:
    """One API. On a day within which its price changes with the hour, the mean of the 24 hours: that of an even load.

    Raises:
        ConfigError: as `read_apis` does.
    """
    prices = read_prices(name, on=on, prompt_tokens=prompt_tokens)
    rate = ApiRate.from_price(prices[0])
    if "/" in name:
        amounts = (rate.usd_per_million_input, rate.usd_per_million_cached, rate.usd_per_million_output)
        return replace(rate, name="API at $" + "/".join(f"{amount:g}" for amount in amounts))
    return rate if len(prices) == 1 else _mean_of_day(prices)


def read_prices(name: str, *, on: date | datetime, prompt_tokens: int | None = None) -> list[TokenPrice]:
    """A price of the book or of one's own; for a day within which it changes with the hour, that of each hour.

    Raises:
        ConfigError: as `read_apis` does.
    """
    parts = [part.strip() for part in name.split("/")]
    if len(parts) in (2, 3):
        cached = parts[1] if len(parts) == 3 else None
        return [custom_token_price(parts[0], usd_per_million_cached=cached, usd_per_million_output=parts[-1], on=on)]
    try:
        return [token_price(name, on=on, prompt_tokens=prompt_tokens)]
    except ConfigError:
        if isinstance(on, datetime) or not any(price.name.endswith(name) for price in prices_on(on)):
            raise
        moments = [datetime.combine(on, time(hour), tzinfo=UTC) for hour in HOURS]
        return [token_price(name, on=moment, prompt_tokens=prompt_tokens) for moment in moments]


def _mean_of_day(prices: Sequence[TokenPrice]) -> ApiRate:
    rates = [ApiRate.from_price(price) for price in prices]
    hours = Counter(price.price_id for price in prices)
    by_id = {price.price_id: price for price in prices}
    spread = ", ".join(f"{count} h {price_id}" for price_id, count in hours.most_common())
    return replace(
        rates[0],
        usd_per_million_input=sum(rate.usd_per_million_input for rate in rates) / len(rates),
        usd_per_million_cached=sum(rate.usd_per_million_cached for rate in rates) / len(rates),
        usd_per_million_output=sum(rate.usd_per_million_output for rate in rates) / len(rates),
        price_id=hours.most_common(1)[0][0],
        source=f"mean of the day's hours, for an even load: {spread}; {by_id[hours.most_common(1)[0][0]].source}",
    )
