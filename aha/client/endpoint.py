"""The nouns of the client: an endpoint, what it replied, and the two ways in which asking it fails."""

from __future__ import annotations

import ipaddress
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, urlsplit

from aha.cost import TokenPrice
from aha.errors import AhaError, ConfigError
from aha.types import FinishReason, Usage

KEY_VARIABLES = ("AHA_ENDPOINT_KEY", "OPENAI_API_KEY")
"""Environment variables that hold the key, in the order in which they are looked at."""
MAX_SHOWN_CHARS = 300
"""What an error shows of a server's own words."""
MIN_KEY_CHARS_IN_ERRORS = 4
MIN_KEY_CHARS_IN_ANSWERS = 8  # "none" and "EMPTY" stand for keys of local servers, and are words of an answer too
_OPEN_THINKING, _CLOSE_THINKING = "<think>\n", "\n</think>\n\n"


class EndpointError(AhaError):
    """An endpoint that gave no usable answer, after the retries that could have helped.

    Args:
        message: one line for the user.
        status: of its last answer; None when it gave none.
        num_attempts: requests that were tried.
    """

    def __init__(self, message: str, *, status: int | None = None, num_attempts: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.num_attempts = num_attempts


class BudgetExceededError(AhaError):
    """A request that was not sent, because it could have cost more than is left of the budget."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible API.

    Raises:
        ConfigError: a base_url that is not one, an empty model, or a key that no HTTP header can carry.
    """

    base_url: str
    """Up to and without "/chat/completions", e.g. "https://api.deepseek.com/v1"."""
    model: str
    """As the endpoint names it."""
    api_key: str = field(default="", repr=False)
    """Secret: never shown, logged or written (`dataclasses.asdict` would give it away). "" sends none."""
    price: TokenPrice | None = None
    """None is unknown: costs count as 0, and a budget is refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _check_base_url(self.base_url))
        if not self.model or not self.model.isprintable():
            raise ConfigError(f"model must be the name that the endpoint gives it, got {self.model!r}")
        if any(not "!" <= char <= "~" for char in self.api_key):
            raise ConfigError("api_key must be printable ASCII without blanks; look for a line end or a quote in it")

    @classmethod
    def from_env(
        cls,
        base_url: str,
        *,
        model: str,
        price: TokenPrice | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """An endpoint whose key is in the environment: AHA_ENDPOINT_KEY, else OPENAI_API_KEY, else no key.

        Args:
            environ: None is `os.environ`.

        Raises:
            ConfigError: as for the class.
        """
        environ = os.environ if environ is None else environ
        key = next((value for name in KEY_VARIABLES if (value := environ.get(name, "").strip())), "")
        return cls(base_url=base_url, model=model, api_key=key, price=price)

    @property
    def host(self) -> str:
        """Lower case, without the port."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified

    @property
    def is_encrypted(self) -> bool:
        return urlsplit(self.base_url).scheme == "https"

    @property
    def sends_key_in_clear(self) -> bool:
        """Whether others on the network can read the key."""
        return bool(self.api_key) and not self.is_encrypted and not self.is_loopback

    def hide_key(self, text: str, *, min_chars: int = MIN_KEY_CHARS_IN_ANSWERS) -> str:
        """`text` without the key: servers repeat it, in errors above all. Keys shorter than `min_chars` are words."""
        return text.replace(self.api_key, "***") if len(self.api_key) >= min_chars else text

    def quote(self, text: str) -> str:
        """A server's words as one harmless line for an error: no key, no control characters, cut to a length."""
        text = self.hide_key(text, min_chars=MIN_KEY_CHARS_IN_ERRORS)[: 8 * MAX_SHOWN_CHARS]
        clean = "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char for char in text)
        line = " ".join(clean.split())
        return line if len(line) <= MAX_SHOWN_CHARS else f"{line[: MAX_SHOWN_CHARS - 3]}..."


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer of an endpoint."""

    content: str
    """What stands after the thinking."""
    reasoning: str
    """The thinking, without tags; "" when the endpoint shows none."""
    finish_reason: FinishReason
    usage: Usage
    cost_nano_usd: int
    """What was entered as spent for it; for a reply from the journal, what it cost when it was paid."""
    model: str
    """As the server names it."""
    latency_seconds: float
    """Of the attempt that succeeded."""
    is_from_journal: bool = False
    """Whether it was paid for by an earlier request, so that this one cost nothing."""
    is_usage_estimated: bool = False
    """Whether the server's own counts were missing or could not be true."""

    @property
    def text(self) -> str:
        """Thinking and content in one, with the tags that models in this process write."""
        if not self.reasoning:
            return self.content
        is_closed = bool(self.content) or self.finish_reason is FinishReason.STOP
        return _OPEN_THINKING + self.reasoning + (_CLOSE_THINKING + self.content if is_closed else "")


def _check_base_url(base_url: str) -> str:
    """Without a slash at the end. The value is not shown where it may hold a password."""
    example = "give one such as https://api.deepseek.com/v1"
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"base_url is not a URL; {example}") from None
    if "@" in parts.netloc:
        raise ConfigError(f"base_url may not hold a user name or password; put the key into {KEY_VARIABLES[0]}")
    if parts.query or parts.fragment or "?" in base_url or "#" in base_url:
        raise ConfigError(f"base_url may not have a query or a fragment (after ? or #); {example}")
    problem = _problem_of(parts, base_url=base_url, port=port)
    if problem:
        raise ConfigError(f"base_url {problem}, got {base_url!r}; {example}")
    return base_url.rstrip("/")


def _problem_of(parts: SplitResult, *, base_url: str, port: int | None) -> str:
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://"
    if not parts.hostname or port == 0:
        return "names no host"
    if not base_url.isprintable() or " " in base_url or "\\" in base_url:
        return "may not hold blanks, backslashes or control characters"
    if parts.path.rstrip("/").endswith(("/chat/completions", "/completions", "/responses")):
        return "must end before /chat/completions"
    return ""
