"""The bill of a run: seconds, tokens and dollars by phase, dollars per point gained, and what an API would charge."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from aha.cost.files import write_atomic
from aha.cost.ledger import Basis, EntryKind, LedgerRow
from aha.cost.prices import (
    LETTER_DATE,
    NANO_PER_USD,
    MachinePrice,
    TokenPrice,
    custom_token_price,
    token_price,
)
from aha.errors import ConfigError

FORMAT = 1
COMPARED_APIS = ("deepseek-r1", "openai-o1")
_CUSTOM_ID = re.compile(r"custom-([\d.]+)-([\d.]+)-([\d.]+)-usd-per-million@(\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True, kw_only=True)
class BillPhase:
    """One stretch of a run on one machine."""

    name: str
    """E.g. "evaluate before", "grpo"."""
    seconds: float
    """Wall-clock."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Sampled, reasoning included."""
    trained_tokens: int = 0
    """Positions with a loss."""
    stage: str = ""
    """The recipe's stage it belongs to; "" for the run as a whole, or where there is only one."""
    endpoint_nano_usd: int = 0
    """What an endpoint charged, on top of this machine's time."""
    endpoint_price_id: str = ""
    """By which price of the price book."""
    endpoint_model: str = ""
    """Which model answered there."""
    energy_mj: int | None = None
    """Millijoules of the whole machine meanwhile; None where they cannot be read."""

    @property
    def wall_ms(self) -> int:
        return round(self.seconds * 1000)

    @property
    def label(self) -> str:
        """The phase with its stage, as the bill and the ledger name it."""
        return f"{self.stage}: {self.name}" if self.stage else self.name


@dataclass(frozen=True, kw_only=True)
class Gain:
    """pass@1 before and after, in shares of 1, with the 95 % interval of their difference."""

    before: float
    after: float
    interval_low: float
    interval_high: float

    @property
    def points(self) -> float:
        """Percentage points gained."""
        return 100.0 * (self.after - self.before)

    def reason_not_priced(self) -> str:
        """Why a price per point would mean nothing; "" when it means something."""
        spread = f"95 % interval {100 * self.interval_low:+.1f} to {100 * self.interval_high:+.1f} points"
        if self.points <= 0:
            return f"pass@1 did not rise: {100 * self.before:.1f} % before, {100 * self.after:.1f} % after ({spread})"
        if self.interval_low <= 0:
            return f"the gain of {self.points:.1f} points may be chance ({spread}); evaluate on more problems"
        return ""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a run cost. Every total is the sum of the phases, to the nano-dollar."""

    phases: tuple[BillPhase, ...]
    price: MachinePrice
    gain: Gain | None = None
    """None when the run did not evaluate both before and after."""

    def phase_nano_usd(self, phase: BillPhase) -> int:
        return self.price.cost_nano_usd(phase.wall_ms) + phase.endpoint_nano_usd

    @property
    def cost_nano_usd(self) -> int:
        return sum(self.phase_nano_usd(phase) for phase in self.phases)

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO_PER_USD

    @property
    def wall_seconds(self) -> float:
        return sum(phase.wall_ms for phase in self.phases) / 1000

    @property
    def prompt_tokens(self) -> int:
        return sum(phase.prompt_tokens for phase in self.phases)

    @property
    def completion_tokens(self) -> int:
        return sum(phase.completion_tokens for phase in self.phases)

    @property
    def trained_tokens(self) -> int:
        return sum(phase.trained_tokens for phase in self.phases)

    @property
    def energy_mj(self) -> int | None:
        """Millijoules; None when those of a phase are not known."""
        known = [phase.energy_mj for phase in self.phases if phase.energy_mj is not None]
        return sum(known) if known and len(known) == len(self.phases) else None

    @property
    def usd_per_point_reason(self) -> str:
        """Why there is no price per point; "" when there is one."""
        return self.gain.reason_not_priced() if self.gain else "the run was not evaluated both before and after"

    @property
    def usd_per_point(self) -> float | None:
        """Dollars per percentage point of pass@1 gained."""
        if self.gain is None or self.usd_per_point_reason:
            return None
        return self.cost_usd / self.gain.points

    def api_usd(self, price: TokenPrice) -> float:
        """What the sampled tokens alone would have cost from an API: it sells no training at any price."""
        nano_usd = price.cost_nano_usd(self.prompt_tokens, completion_tokens=self.completion_tokens)
        return nano_usd / NANO_PER_USD

    def to_dict(self) -> dict[str, Any]:
        """bill.json; its keys are described in docs/costs.md and stay."""
        sold = [token_price(name, on=LETTER_DATE) for name in COMPARED_APIS]
        return {
            "format": FORMAT,
            "cost_usd": self.cost_usd,
            "wall_seconds": self.wall_seconds,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "trained_tokens": self.trained_tokens,
            "energy_joules": _joules(self.energy_mj),
            "points_gained": self.gain.points if self.gain else None,
            "usd_per_point": self.usd_per_point,
            "usd_per_point_reason": self.usd_per_point_reason,
            "machine_price": {
                "price_id": self.price.price_id,
                "usd_per_hour": self.price.usd_per_hour,
                "source": self.price.source,
                "source_date": self.price.source_date.isoformat(),
                "confidence": self.price.confidence,
            },
            "phases": [self._phase_dict(phase) for phase in self.phases],
            "api_comparison": [self._comparison_dict(price) for price in sold],
        }

    def write(self, path: Path) -> None:
        """Write bill.json, replacing an older one as a whole. Raises DataError when the disk refuses it."""
        write_atomic(path, text=json.dumps(self.to_dict(), indent=1) + "\n")

    def ledger_rows(self, run_id: str, *, run_uid: str = "", model: str = "", device: str = "") -> list[LedgerRow]:
        """The phases as rows for the ledger. A phase whose name begins with "eval" is an evaluation.

        Where an endpoint charged, that is a row of its own with the endpoint's price and the tokens.

        Args:
            run_uid: what tells the run from every other: with it a phase is booked once, however often a killed run
                comes to its end. "" books anew each time.
            model: what was trained.
            device: what it was trained on.
        """
        rows = []
        for phase in self.phases:
            has_endpoint = bool(phase.endpoint_price_id or phase.endpoint_nano_usd)
            own = LedgerRow(
                kind=EntryKind.EVALUATION if phase.name.startswith("eval") else EntryKind.TRAINING,
                run_id=run_id,
                phase=phase.label,
                key=f"run:{run_uid}:{phase.label}" if run_uid else "",
                model=model,
                device=device,
                price=self.price,
                basis=Basis.MACHINE_TIME,
                cost_nano_usd=self.price.cost_nano_usd(phase.wall_ms),
                wall_ms=phase.wall_ms,
                device_ms=phase.wall_ms,
                energy_mj=phase.energy_mj,
            )
            tokens = {name: getattr(phase, name) for name in ("prompt_tokens", "completion_tokens", "trained_tokens")}
            if phase.wall_ms or not has_endpoint:
                rows.append(own if has_endpoint else replace(own, **tokens))
            if has_endpoint:
                rows.append(_endpoint_row(replace(own, wall_ms=0, device_ms=None, energy_mj=None, **tokens), phase))
        return rows

    def _phase_dict(self, phase: BillPhase) -> dict[str, Any]:
        return {
            "name": phase.name,
            "stage": phase.stage,
            "wall_seconds": phase.wall_ms / 1000,
            "prompt_tokens": phase.prompt_tokens,
            "completion_tokens": phase.completion_tokens,
            "trained_tokens": phase.trained_tokens,
            "energy_joules": _joules(phase.energy_mj),
            "cost_usd": self.phase_nano_usd(phase) / NANO_PER_USD,
            "endpoint_cost_usd": phase.endpoint_nano_usd / NANO_PER_USD,
        }

    def _comparison_dict(self, price: TokenPrice) -> dict[str, Any]:
        return {
            "price_id": price.price_id,
            "model": price.name,
            "usd_per_million_input_tokens": price.pico_usd_per_input_token / 10**6,
            "usd_per_million_output_tokens": price.pico_usd_per_output_token / 10**6,
            "cost_usd": self.api_usd(price),
            "source": price.source,
            "source_date": price.source_date.isoformat(),
            "confidence": price.confidence,
        }


def _endpoint_row(row: LedgerRow, phase: BillPhase) -> LedgerRow:
    """What an endpoint charged within a phase: the sum of its requests, as its client entered them."""
    price = _token_price_of(phase.endpoint_price_id)
    return replace(
        row,
        key=f"{row.key}:endpoint" if row.key else "",
        price=price,
        basis=Basis.ENDPOINT_REPORTED if price else Basis.STATED if phase.endpoint_nano_usd else Basis.UNPRICED,
        model=phase.endpoint_model,
        device="",
        cost_nano_usd=phase.endpoint_nano_usd,
    )


def _token_price_of(price_id: str) -> TokenPrice | None:
    """The price that an id always means; None where this price book has none: a checkpoint carries ids alone."""
    if custom := _CUSTOM_ID.fullmatch(price_id):
        price_in, cached, price_out, day = custom.groups()
        return custom_token_price(
            price_in,
            usd_per_million_cached=cached,
            usd_per_million_output=price_out,
            on=date.fromisoformat(day),
        )
    try:
        found = token_price(price_id, on=LETTER_DATE)
    except ConfigError:
        return None
    return found if found.price_id == price_id else None


def _joules(energy_mj: int | None) -> float | None:
    return None if energy_mj is None else energy_mj / 1000
