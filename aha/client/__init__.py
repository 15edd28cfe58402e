"""The client of OpenAI-compatible endpoints: retries, limits, a budget in dollars, and a journal. Imports no torch."""

from aha.client.client import Client
from aha.client.endpoint import BudgetExceededError, Endpoint, EndpointError, Reply
from aha.client.spec import ENDPOINT_PREFIX, parse_endpoint, read_token_price
from aha.client.terms import terms_notice

__all__ = [
    "ENDPOINT_PREFIX",
    "BudgetExceededError",
    "Client",
    "Endpoint",
    "EndpointError",
    "Reply",
    "parse_endpoint",
    "read_token_price",
    "terms_notice",
]
