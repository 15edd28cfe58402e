"""When to try again: what failed, whether another attempt can help, and how long to wait for it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aha.types import Usage

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 120.0
"""A server that asks for more is asked again after this much: its hour is not ours."""
RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
"""Besides 5xx."""
LOST_BY_GATEWAY = frozenset({502, 504, 520, 522, 524})
"""A proxy says that the answer was lost, so the model may have written it and the vendor may charge for it.
Other error statuses are the service's own word that it did not do the work."""


class FailedAttempt(Exception):  # noqa: N818 - not an error of the user's: most of them are retried
    """One attempt that gave no usable answer.

    Args:
        reason: for the user, as the rest of a sentence that begins with the endpoint.
        is_retryable: whether the same request may succeed later.
        is_paid: whether the vendor may charge for it; where `usage` is None, as much as it can have cost at most.
        usage: tokens, where the failed answer said.
        retry_after_seconds: what the server asked for.
    """

    def __init__(
        self,
        reason: str,
        *,
        is_retryable: bool,
        is_paid: bool,
        status: int | None = None,
        usage: Usage | None = None,
        retry_after_seconds: float | None = None,
        fix: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_retryable = is_retryable
        self.is_paid = is_paid
        self.status = status
        self.usage = usage
        self.retry_after_seconds = retry_after_seconds
        self.fix = fix


def is_retryable_status(status: int) -> bool:
    """Whether an HTTP status stands for something that may pass."""
    return status in RETRYABLE_STATUSES or status >= 500


def retry_after_seconds(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """What a Retry-After header asks for (RFC 9110 §10.2.3), seconds or a date, cut to the longest we wait.

    None when there is none or it makes no sense.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = max(0.0, (moment - now).total_seconds())
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS)


def backoff_seconds(attempt: int, *, seed: str, asked_seconds: float | None = None) -> float:
    """How long to wait after attempt 0, 1, …: doubling, with jitter between half and all of it.

    Args:
        seed: the same seed gives the same waits.
        asked_seconds: the server's own wish; never undercut.
    """
    longest: float = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(attempt, 16))
    jittered = longest * random.Random(f"{seed}/{attempt}").uniform(0.5, 1.0)
    return max(jittered, asked_seconds or 0.0)
