"""How a command line or a recipe names an endpoint and the price of its tokens."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from aha.client.endpoint import Endpoint
from aha.cost import TokenPrice, custom_token_price, token_price
from aha.errors import ConfigError

ENDPOINT_PREFIX = "openai:"
_ENDPOINT = re.compile(r"openai:(?P<model>.+?)@(?P<url>https?://.*)", re.DOTALL)


def parse_endpoint(name: str, *, price: str = "") -> Endpoint:
    """The endpoint that "openai:MODEL@BASE_URL" names, with its key from the environment.

    Args:
        price: of its tokens, as `read_token_price` reads it; "" is not known.

    Raises:
        ConfigError: a name or a price that cannot be used.
    """
    match = _ENDPOINT.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name!r} is no endpoint; write openai:MODEL@URL, e.g. openai:o1@https://api.openai.com/v1")
    return Endpoint.from_env(match["url"], model=match["model"], price=read_token_price(price) if price else None)


def read_token_price(text: str) -> TokenPrice:
    """A price by its name or id in the price book, or "IN/OUT" in dollars per million tokens.

    Raises:
        ConfigError: neither.
    """
    on = datetime.now(UTC).date()
    if "/" in text:
        cost_in, _, cost_out = text.partition("/")
        return custom_token_price(cost_in.strip(), usd_per_million_output=cost_out.strip(), on=on)
    try:
        return token_price(text, on=on)
    except ConfigError as error:
        raise ConfigError(f"{error}; or IN/OUT dollars per million tokens, e.g. 0.55/2.19") from None
