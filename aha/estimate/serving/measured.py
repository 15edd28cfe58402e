"""What serving did cost: from the ledger's requests, by token class, at the utilisation that was measured.

The ledger's milliseconds of a request are its share of the engine's steps (aha.serve.metering), so their sum is the
time in which the engine was busy. How much of it a prompt token takes and how much an answered one is told apart by
least squares over pieces of the window; where that cannot be told, it is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from aha.cost.ledger import EntryKind, Ledger, LedgerFilter, LedgerTotals
from aha.errors import DataError
from aha.estimate.serving.rate import ServingRate, cost_rows, rate_dict

MAX_PIECES = 128
MIN_PIECES = 12
"""With tokens in them: fewer say little about two unknowns."""
MAX_STANDARD_ERROR = 0.25
"""Up to which the two count as told apart: of an answered token, relative to itself; of a prompt token, relative to the
dearer of the two."""
FEW_REQUESTS = 30
MS_PER_HOUR = 3_600_000
MJ_PER_WH = 3_600_000
"""Millijoules in a watt-hour."""

Split = Literal["least squares", "roofline", "together"]
"""together: a prompt token and an answered one are taken to be alike, because the two cannot be told apart."""


class Seconds(NamedTuple):
    """Of the engine, for a token."""

    input: float
    output: float


@dataclass(frozen=True, kw_only=True)
class MeasuredServing:
    """What one server did in a window."""

    server: str
    """"" is every server of the ledger."""
    totals: LedgerTotals
    window_seconds: float
    """From the first moment to the last, whether busy or not."""
    rate: ServingRate
    split: Split
    overhead: float
    notes: tuple[str, ...]
    """What the reader has to know before trusting it."""

    @property
    def busy_seconds(self) -> float:
        return self.totals.wall_ms / 1000

    @property
    def utilisation(self) -> float:
        """Busy share of the window; above 1 where several servers ran at once."""
        return self.busy_seconds / self.window_seconds if self.window_seconds else math.nan

    @property
    def window_usd(self) -> float:
        """Of the whole window, idle time paid for too."""
        return self.rate.usd_per_hour * self.window_seconds / 3600

    @property
    def new_tokens(self) -> int:
        return self.totals.prompt_tokens - self.totals.cached_tokens

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/serving_cost.md and stay."""
        share = min(self.utilisation, 1.0) if self.window_seconds else None
        return {
            "server": self.server,
            "num_requests": self.totals.num_entries,
            "input_tokens": self.totals.prompt_tokens,
            "cached_tokens": self.totals.cached_tokens,
            "output_tokens": self.totals.completion_tokens,
            "busy_seconds": self.busy_seconds,
            "window_seconds": self.window_seconds,
            "utilisation": self.utilisation if self.window_seconds else None,
            "busy_usd": self.totals.cost_usd * self.overhead,
            "window_usd": self.window_usd,
            "overhead": self.overhead,
            "usd_per_hour": self.rate.usd_per_hour,
            "energy_wh": None if self.totals.energy_mj is None else self.totals.energy_mj / MJ_PER_WH,
            "split": self.split,
            "notes": list(self.notes),
            **rate_dict(self.rate),
            "measured_costs": None if share is None else measured_costs(self.rate, utilisation=share),
            "costs": cost_rows(self.rate),
        }


def measured_costs(rate: ServingRate, *, utilisation: float) -> dict[str, float]:
    """Dollars a million tokens at the utilisation that was measured."""
    return {
        "utilisation": utilisation,
        "usd_per_million_input": rate.usd_per_million("input", utilisation=utilisation),
        "usd_per_million_cached": rate.usd_per_million("cached", utilisation=utilisation),
        "usd_per_million_output": rate.usd_per_million("output", utilisation=utilisation),
    }


def measure_serving(
    ledger: Ledger,
    *,
    server: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    overhead: float = 1.0,
    predicted: ServingRate | None = None,
) -> MeasuredServing:
    """Dollars by token class of the requests that a ledger has.

    Args:
        server: as the ledger names it, e.g. "serve tiny"; "" takes every one.
        since: None is the first request.
        until: None is the last one.
        overhead: what an hour costs over the price that the ledger has, at least 1.
        predicted: whose proportion of a prompt token to an answered one is taken where it cannot be told.

    Raises:
        DataError: no request in the window, or none that took any time.
    """
    chosen = LedgerFilter(kind=EntryKind.REQUEST, run_id=server or None, since=since, until=until)
    totals = ledger.totals(chosen)
    who = f" of {server!r}" if server else ""
    if totals.first_at is None or totals.last_at is None:
        raise DataError(f"the ledger {ledger.location} has no request{who} in that time; serve some first: aha serve")
    if not totals.wall_ms or totals.prompt_tokens - totals.cached_tokens + totals.completion_tokens <= 0:
        raise DataError(f"the requests{who} in the ledger {ledger.location} took no time or no tokens of this machine")
    start, end = since or totals.first_at, until or min(totals.last_at, datetime.now(UTC))
    told = _told_apart(_pieces(ledger, chosen, start=totals.first_at, end=totals.last_at))
    split, seconds = _split(told, totals=totals, predicted=predicted)
    usd_per_hour = totals.cost_usd / totals.wall_ms * MS_PER_HOUR * overhead
    window = (end - start).total_seconds()
    return MeasuredServing(
        server=server,
        totals=totals,
        window_seconds=window,
        rate=ServingRate(
            usd_per_hour=usd_per_hour,
            seconds_per_input_token=seconds.input,
            seconds_per_cached_token=0.0,
            seconds_per_output_token=seconds.output,
            basis=f"measured: {totals.num_entries:,} requests of the ledger, tokens told apart by {split}"
            if split != "together"
            else f"measured: {totals.num_entries:,} requests of the ledger, prompt and answer not told apart",
        ),
        split=split,
        overhead=overhead,
        notes=tuple(_notes(totals, window=window, split=split, told=told)),
    )


def _notes(totals: LedgerTotals, *, window: float, split: Split, told: _Told | None) -> list[str]:
    notes = []
    if told is not None:
        words = [f"{1e3 * s:,.3g} ± {1e3 * e:,.1g} ms" for s, e in zip(told.seconds, told.errors, strict=True)]
        notes.append(f"a prompt token keeps the engine busy for {words[0]}, an answered one for {words[1]}")
    if totals.num_entries < FEW_REQUESTS:
        few = f"{totals.num_entries} request{'s' if totals.num_entries > 1 else ''}"
        notes.append(f"only {few}: these figures say little about the next ones")
    if split == "together":
        notes.append(
            "a prompt token and an answered one cannot be told apart from these requests: both have the mean; name the "
            "MODEL and --gpu to split them as the roofline does"
        )
    if not window:
        notes.append("one moment only: how busy the server was cannot be told")
    elif totals.wall_ms / 1000 > window:
        notes.append("busier than one machine can be: several servers ran at once, or the window begins in a request")
    if totals.num_unpriced:
        notes.append(f"{totals.num_unpriced:,} of these requests have no known price and count as $0")
    if totals.energy_mj is not None and totals.num_with_energy < totals.num_entries:
        notes.append(f"energy is known for {totals.num_with_energy:,} of these requests only")
    if not totals.cost_nano_usd:
        notes.append("these requests were priced at $0 an hour")
    return notes


def _pieces(ledger: Ledger, chosen: LedgerFilter, *, start: datetime, end: datetime) -> list[LedgerTotals]:
    """Sums over equal pieces of the window, those without requests left out."""
    step = (end - start + timedelta(milliseconds=1)) / MAX_PIECES
    edges = [start + index * step for index in range(MAX_PIECES + 1)]
    sums = (
        ledger.totals(LedgerFilter(kind=chosen.kind, run_id=chosen.run_id, since=since, until=until))
        for since, until in pairwise(edges)
    )
    return [total for total in sums if total.num_entries]


class _Told(NamedTuple):
    seconds: Seconds
    errors: Seconds
    """Standard errors."""


def _told_apart(pieces: Sequence[LedgerTotals]) -> _Told | None:
    """Least squares of busy seconds on new prompt tokens and answered ones; None where they cannot be told apart.

    A prompt token may take too little to be seen: it is known well enough if its error is small beside an answered one.
    """
    if len(pieces) < MIN_PIECES:
        return None
    rows = [(float(p.prompt_tokens - p.cached_tokens), float(p.completion_tokens), p.wall_ms / 1000) for p in pieces]
    xx, yy = sum(x * x for x, _, _ in rows), sum(y * y for _, y, _ in rows)
    xy = sum(x * y for x, y, _ in rows)
    xt, yt = sum(x * t for x, _, t in rows), sum(y * t for _, y, t in rows)
    determinant = xx * yy - xy * xy
    if determinant <= 1e-9 * xx * yy:
        return None
    found = Seconds((xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant)
    variance = sum((t - found.input * x - found.output * y) ** 2 for x, y, t in rows) / (len(rows) - 2)
    errors = Seconds(math.sqrt(variance * yy / determinant), math.sqrt(variance * xx / determinant))
    dearer = max(found.input, found.output)
    is_told = found.output > 0 and errors.output <= MAX_STANDARD_ERROR * found.output
    is_told = is_told and errors.input <= MAX_STANDARD_ERROR * dearer and found.input >= -2 * errors.input
    return _Told(Seconds(max(found.input, 0.0), found.output), errors) if is_told else None


def _split(told: _Told | None, *, totals: LedgerTotals, predicted: ServingRate | None) -> tuple[Split, Seconds]:
    """Scaled so that the tokens' seconds add up to the busy ones."""
    new_tokens, busy = totals.prompt_tokens - totals.cached_tokens, totals.wall_ms / 1000
    split: Split = "least squares"
    seconds = Seconds(1.0, 1.0)
    if told is not None:
        seconds = told.seconds
    elif predicted is not None:
        split = "roofline"
        seconds = Seconds(predicted.seconds_per_input_token, predicted.seconds_per_output_token)
    else:
        split = "together"
    scale = busy / (new_tokens * seconds.input + totals.completion_tokens * seconds.output)
    return split, Seconds(scale * seconds.input, scale * seconds.output)
