"""The OpenAI-compatible HTTP service: one engine, shared by all requests."""

from aha.serve.app import create_app
from aha.serve.server import run

__all__ = ["create_app", "run"]
