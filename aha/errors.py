"""Errors that a user can cause. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AhaError(Exception):
    """One line for the user: what, the value, the choices, the fix. The CLI prints it and exits with 2."""


class ConfigError(AhaError):
    """A recipe, an override or a flag that cannot be used."""


class DataError(AhaError):
    """A dataset, a checkpoint or a run folder that cannot be read."""


class ModelError(AhaError):
    """A model folder, a configuration or weights that cannot be loaded."""


class SandboxError(AhaError):
    """Code or a document cannot be confined here, or a confined process could not be started."""


class RequestError(AhaError):
    """A request that asks for something outside its limits.

    Args:
        message: one line for the caller.
        param: the field that is wrong, in the caller's own spelling; None when no single field is.
        code: a stable machine-readable reason, e.g. "context_length_exceeded".
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """The message for a name that is not among its choices, with the nearest one first."""
    known = sorted(choices)
    # Capitals say nothing of how near a name is: OpenAI-O1 means openai-o1.
    by_lower = {choice.lower(): choice for choice in known}
    near = [by_lower[found] for found in difflib.get_close_matches(name.lower(), by_lower, n=1)]
    if near:
        return f"unknown {kind} {name!r}; did you mean {near[0]!r}? Choose from: {', '.join(known)}"
    return f"unknown {kind} {name!r}; choose from: {', '.join(known)}"
