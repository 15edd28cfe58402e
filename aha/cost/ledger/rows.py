"""What a ledger holds: one amount spent, what it was for, and the sums over many."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from aha.cost.prices import NANO_PER_USD, MachinePrice, TokenPrice

MAX_INT64 = 2**63 - 1


class EntryKind(StrEnum):
    """What an entry pays for."""

    TRAINING = "training"
    EVALUATION = "evaluation"
    REQUEST = "request"
    ACTION = "action"
    """Something that an application did for its user, beyond the requests it made for it."""


class Basis(StrEnum):
    """How an amount is known."""

    MACHINE_TIME = "machine_time"
    """Milliseconds at the price of the machine's hour: `--verify` computes it again."""
    LIST_PRICE = "list_price"
    """Tokens at the price of the price book: `--verify` computes it again."""
    ENDPOINT_REPORTED = "endpoint_reported"
    """What an endpoint's client entered request by request: a sum of rounded amounts, lost requests included."""
    WORST_CASE = "worst_case"
    """All that was reserved for a request whose end nobody saw."""
    STATED = "stated"
    """As whoever booked it said; it does not follow from the price."""
    UNPRICED = "unpriced"
    """The price is not known: the amount is 0 and means nothing."""


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One amount spent."""

    kind: EntryKind
    run_id: str
    """The run, the evaluation or the server that spent it."""
    phase: str
    """E.g. "grpo", "evaluation before"; for a request, its path; for an action, its name."""
    price: MachinePrice | TokenPrice | None
    """None where it is not known."""
    cost_nano_usd: int
    key: str = ""
    """What makes it this one amount and no other: the same key is never booked twice. "" makes one of its own."""
    basis: Basis | None = None
    """None finds it out: MACHINE_TIME or LIST_PRICE where the amount follows from the price, STATED where it does not,
    UNPRICED without a price."""
    model: str = ""
    """"" where it is not known."""
    weight_version: int | None = None
    """Of the model, where it is known and was one."""
    app: str = ""
    """The application that it was for."""
    api_key_label: str = ""
    """A name for the caller's key; never the key."""
    device: str = ""
    """E.g. "cpu", "NVIDIA H100 80GB HBM3"; "" where it is not known."""
    wall_ms: int = 0
    """Milliseconds; of a request, its share of them."""
    device_ms: int | None = None
    """Milliseconds of all devices together: two of them for a second are 2000. None is unknown."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Part of prompt_tokens: read from a cache."""
    cache_write_tokens: int = 0
    """Part of prompt_tokens: written into a cache, where that has a price of its own."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of completion_tokens."""
    trained_tokens: int = 0
    """Positions with a loss."""
    energy_mj: int | None = None
    """Millijoules as the machine's counters tell; None is unknown, which is not 0."""

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO_PER_USD


@dataclass(frozen=True, kw_only=True)
class LedgerFilter:
    """Which entries are meant; every field narrows them."""

    kind: EntryKind | None = None
    run_id: str | None = None
    model: str | None = None
    app: str | None = None
    api_key_label: str | None = None
    since: datetime | None = None
    """First moment, with its time zone."""
    until: datetime | None = None
    """First moment that no longer counts."""


@dataclass(frozen=True, kw_only=True)
class LedgerTotals:
    """Sums over entries."""

    num_entries: int
    """Amendments included."""
    wall_ms: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    trained_tokens: int
    cost_nano_usd: int
    first_at: datetime | None
    """When the first and the last of them were recorded; None without entries."""
    last_at: datetime | None
    cache_write_tokens: int = 0
    device_ms: int | None = None
    """Of the entries that know it; None when none does."""
    energy_mj: int | None = None
    """Of the entries that know it; None when none does."""
    num_with_device_ms: int = 0
    num_with_energy: int = 0
    num_unpriced: int = 0
    """Entries whose price is not known: the amount is at least what is said."""

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO_PER_USD


COUNTED = ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens",
           "trained_tokens")  # fmt: skip
"""Columns of token counts."""
COLUMNS = ("entry_key", "recorded_at_ms", "kind", "run_id", "phase", "model", "weight_version", "app", "api_key_label",
           "device", "price_id", "basis", "amends_entry_id", "wall_ms", "device_ms", *COUNTED, "energy_mj",
           "cost_nano_usd")  # fmt: skip
"""Of the table `entry`, in the order in which they are sealed."""
MEASURES = ("wall_ms", "device_ms", *COUNTED, "energy_mj")
"""What an amount can be computed from, or is read beside it."""
LABELS = ("kind", "run_id", "phase", "model", "weight_version", "app", "api_key_label", "device")
"""What an entry says of itself; an amendment repeats it."""
