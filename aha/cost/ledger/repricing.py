"""What entries would have cost at another price, and booking that."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aha.cost.ledger.entries import Booker, Values, add_price, corrected, cost_at
from aha.cost.ledger.queries import GroupBy, day_name, group_column, narrowed, to_ms
from aha.cost.ledger.rows import MEASURES, Basis, LedgerFilter
from aha.cost.prices import NANO_PER_USD, MachinePrice, TokenPrice


@dataclass(frozen=True, kw_only=True)
class RepricedGroup:
    """Entries of one label. Those that the price cannot price (no tokens, no time) are counted and left out of both."""

    num_entries: int = 0
    num_left_out: int = 0
    cost_nano_usd: int = 0
    """As booked, of the entries that the other price prices too."""
    repriced_nano_usd: int = 0
    """Each entry rounded as if it had been booked so; then added."""

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO_PER_USD

    @property
    def repriced_usd(self) -> float:
        return self.repriced_nano_usd / NANO_PER_USD


@dataclass(frozen=True, kw_only=True)
class Repriced:
    """Chosen entries at another price."""

    price: MachinePrice | TokenPrice
    groups: dict[str, RepricedGroup]

    @property
    def total(self) -> RepricedGroup:
        """The sum of the groups."""
        return RepricedGroup(
            num_entries=sum(group.num_entries for group in self.groups.values()),
            num_left_out=sum(group.num_left_out for group in self.groups.values()),
            cost_nano_usd=sum(group.cost_nano_usd for group in self.groups.values()),
            repriced_nano_usd=sum(group.repriced_nano_usd for group in self.groups.values()),
        )


def reprice(
    connection: sqlite3.Connection, chosen: LedgerFilter, *, price: MachinePrice | TokenPrice, by: GroupBy
) -> Repriced:
    """What the chosen entries, as their amendments leave them, would have cost at a price. Books nothing."""
    sums: dict[str, list[int]] = {}
    for label, _, values in _chosen(connection, chosen, label=group_column(by)):
        name = day_name(label) if by == "day" else str(label)
        counts = sums.setdefault(name, [0, 0, 0, 0])
        if not is_priced_by(price, values):
            counts[1] += 1
            continue
        counts[0] += 1
        counts[2] += values["cost_nano_usd"]
        counts[3] += cost_at(price, values)
    groups = {
        name: RepricedGroup(num_entries=c[0], num_left_out=c[1], cost_nano_usd=c[2], repriced_nano_usd=c[3])
        for name, c in sorted(sums.items())
    }
    return Repriced(price=price, groups=groups)


def correct(connection: sqlite3.Connection, chosen: LedgerFilter, *, price: MachinePrice | TokenPrice) -> Repriced:
    """Book what `reprice` says, within an open transaction: an amendment for each entry whose price it changes."""
    said = reprice(connection, chosen, price=price, by="kind")
    add_price(connection, price)
    booker = Booker(connection)
    basis = Basis.MACHINE_TIME if isinstance(price, MachinePrice) else Basis.LIST_PRICE
    # A list: what is booked meanwhile must not be read as one of the chosen.
    for _, entry_id, values in list(_chosen(connection, chosen, label="''")):
        if is_priced_by(price, values):
            wanted = values | {"cost_nano_usd": cost_at(price, values), "price_id": price.price_id}
            booker.amend(entry_id, wanted | {"basis": basis.value})
    return said


def is_priced_by(price: MachinePrice | TokenPrice, values: Values) -> bool:
    """Whether an entry has what a price prices: milliseconds of a machine, or tokens read or written."""
    if isinstance(price, MachinePrice):
        return bool(values["wall_ms"])
    return bool(values["prompt_tokens"] or values["completion_tokens"])


def _chosen(connection: sqlite3.Connection, chosen: LedgerFilter, *, label: str) -> Iterator[tuple[Any, int, Values]]:
    """Label, id and corrected columns of every entry that a filter leaves and that is no amendment."""
    condition, given = narrowed(chosen)
    if chosen.since is not None:
        condition, given["since"] = f"{condition} AND recorded_at_ms >= :since", to_ms(chosen.since)
    if chosen.until is not None:
        condition, given["until"] = f"{condition} AND recorded_at_ms < :until", to_ms(chosen.until)
    columns = (*MEASURES, "cost_nano_usd")
    query = (
        f"SELECT {label}, entry_id, EXISTS (SELECT 1 FROM entry AS a WHERE a.amends_entry_id = entry.entry_id),"
        f" {', '.join(columns)}"
        f" FROM entry WHERE amends_entry_id IS NULL AND {condition} ORDER BY entry_id"
    )
    for name, entry_id, is_amended, *read in connection.execute(query, given):
        values = corrected(connection, entry_id) if is_amended else dict(zip(columns, read, strict=True))
        yield name, entry_id, values
