"""The client of OpenAI-compatible endpoints: retries, limits, a budget in dollars, and a journal. Imports no torch."""

from aha.client.client import Client
from aha.client.endpoint import BudgetExceededError, Endpoint, EndpointError, Reply
from aha.client.terms import terms_notice

__all__ = ["BudgetExceededError", "Client", "Endpoint", "EndpointError", "Reply", "terms_notice"]
