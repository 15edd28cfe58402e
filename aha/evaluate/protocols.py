"""Named ways to ask, so that a number can be set beside a published one."""

from __future__ import annotations

from dataclasses import dataclass

from aha.errors import ConfigError, unknown_name
from aha.types import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How every problem is asked."""

    temperature: float
    top_p: float
    max_tokens: int
    """Most tokens of one answer, its thinking included."""
    num_samples: int
    """Answers per problem (k)."""
    source: str


PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(
        temperature=0.6,
        top_p=0.95,
        max_tokens=512,
        num_samples=1,
        source="R1's temperature and top-p, at a length that small models and small machines answer in",
    ),
    "r1": Protocol(
        temperature=0.6,
        top_p=0.95,
        max_tokens=32_768,
        num_samples=64,
        source="DeepSeek-R1 (arXiv:2501.12948v1) §3, Evaluation Setup, with 64 answers a question as in its tables",
    ),
}
"""Name → protocol, for `aha eval --protocol`."""


def find_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(unknown_name("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]


def name_protocol(sampling: SamplingParams) -> str:
    """The protocol that draws answers like this, whatever their number; "" when none does."""
    for name, protocol in PROTOCOLS.items():
        drawn = SamplingParams(temperature=protocol.temperature, top_p=protocol.top_p, max_tokens=protocol.max_tokens)
        if all(
            getattr(sampling, field) == getattr(drawn, field)
            for field in ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
        ):
            return name
    return ""
