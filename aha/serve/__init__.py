"""The OpenAI-compatible HTTP service: one engine for all requests; and the calculator of costs, which needs none.

Names are loaded at their first use: the calculator is served without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aha.serve.app import create_app
    from aha.serve.calculator import create_calculator_app, run_calculator
    from aha.serve.server import run

_HOMES = {"create_app": "app", "create_calculator_app": "calculator", "run": "server", "run_calculator": "calculator"}

__all__ = ["create_app", "create_calculator_app", "run", "run_calculator"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
