"""The open ledger: what the rest of the project records into and asks."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

from aha.cost.ledger import queries
from aha.cost.ledger.budgets import Budgets, Recovery
from aha.cost.ledger.entries import OnDifference, book
from aha.cost.ledger.queries import GroupBy
from aha.cost.ledger.repricing import Repriced, correct, reprice
from aha.cost.ledger.rows import EntryKind, LedgerFilter, LedgerRow, LedgerTotals
from aha.cost.ledger.schema import (
    LedgerError,
    connect,
    connect_in_memory,
    connect_to_read,
    default_ledger_path,
    errors_explained,
    explain,
)
from aha.cost.ledger.verify import verify
from aha.cost.ledger.writer import GroupWriter
from aha.cost.prices import NANO_PER_USD, MachinePrice, TokenPrice

T = TypeVar("T")
_IN_MEMORY = ":memory:"


class Summary(NamedTuple):
    """Entries by a label, and in all."""

    groups: dict[str, LedgerTotals]
    total: LedgerTotals
    repriced: Repriced | None


class Ledger:
    """An open ledger. Threads may share it; processes open their own. Made with `Ledger.open`."""

    def __init__(self, connection: sqlite3.Connection, *, location: str, warning: str = "") -> None:
        self._writer = GroupWriter(connection, location=location)
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self.location = location
        """The file's path, or ":memory:"."""
        self.warning = warning
        """Why nothing recorded here will outlive the process; "" when it will."""
        self.budgets = Budgets(self._writer)
        """Limits on what may be spent."""
        self.recovery: Recovery = self.budgets.recover()
        """What was done at the opening about reservations of processes that have died."""

    @classmethod
    def open(cls, path: Path | None = None, *, on_failure: Literal["raise", "memory"] = "raise") -> Self:
        """Open the ledger, making or upgrading its file (readable by its owner only).

        Args:
            path: None is `default_ledger_path()`.
            on_failure: "memory" gives a ledger in memory with a `warning` to show where the file cannot be used:
                a training run should not stop for its book-keeping, and its bill.json is complete all the same.

        Raises:
            LedgerError: the file cannot be made, read or understood, and on_failure is "raise".
        """
        path = path or default_ledger_path()
        try:
            connection = connect(path)
            try:
                return cls(connection, location=str(path))
            except BaseException:
                connection.close()
                raise
        except (OSError, sqlite3.Error, LedgerError) as error:
            message = str(error) if isinstance(error, LedgerError) else explain(path, error)
            if on_failure == "raise":
                raise LedgerError(message) from error
            warning = f"{message}. This run is left out of the ledger"
            return cls(connect_in_memory(), location=_IN_MEMORY, warning=warning)

    def record(self, row: LedgerRow, *, on_difference: OnDifference = "raise") -> int:
        """Book one row; it is on the disk when the call returns. Arguments and errors as in `record_many`.

        Returns:
            The entry's id: of the one that its key already had, where it is booked already.
        """
        return self.record_many([row], on_difference=on_difference)[0]

    def record_many(self, rows: Sequence[LedgerRow], *, on_difference: OnDifference = "raise") -> list[int]:
        """Book rows, all of them or, after an error, none. Threads that call at once share a commit.

        Args:
            on_difference: what to do with a key that is booked already, but otherwise. "amend" books the difference
                as an entry of its own that names the first one: for a total that has grown, or was wrong.

        Raises:
            LedgerError: the disk is full, the file is locked for too long, an amount does not fit in 64 bits, a price
                id already stands for another price, or a key for another row.
        """
        return self._writer.run(lambda connection: book(connection, rows, on_difference=on_difference))

    def correct(self, chosen: LedgerFilter, *, price: MachinePrice | TokenPrice) -> Repriced:
        """Book for every chosen entry what it would have cost at another price: amendments that name the entries.

        Entries without anything that the price prices stay as they are. Doing it again changes nothing.
        """
        return self._writer.run(lambda connection: correct(connection, chosen, price=price))

    def reprice(self, chosen: LedgerFilter, *, price: MachinePrice | TokenPrice, by: GroupBy = "kind") -> Repriced:
        """What the chosen entries would have cost at another price. Books nothing."""
        return self._read(lambda connection: reprice(connection, chosen, price=price, by=by))

    def totals(self, chosen: LedgerFilter) -> LedgerTotals:
        """Sums over the entries that a filter leaves."""
        return self._read(lambda connection: queries.totals(connection, chosen))

    def grouped(self, chosen: LedgerFilter, *, by: GroupBy) -> dict[str, LedgerTotals]:
        """Sums by run, day (UTC), kind and so on. They add up to `totals`."""
        return self._read(lambda connection: queries.grouped(connection, chosen, by=by))

    def summary(self, chosen: LedgerFilter, *, by: GroupBy, price: MachinePrice | TokenPrice | None = None) -> Summary:
        """`grouped`, `totals` and, with a price, `reprice`, all of one moment: they add up while others write."""
        return self._read(
            lambda connection: Summary(
                queries.grouped(connection, chosen, by=by),
                queries.totals(connection, chosen),
                reprice(connection, chosen, price=price, by=by) if price else None,
            )
        )

    def total_nano_usd(self, *, run_id: str | None = None, kind: EntryKind | None = None) -> int:
        """Nano-dollars spent: by one run, on one kind of thing, or in all."""
        return self.totals(LedgerFilter(run_id=run_id, kind=kind)).cost_nano_usd

    def total_usd(self, *, run_id: str | None = None, kind: EntryKind | None = None) -> float:
        """`total_nano_usd` in dollars."""
        return self.total_nano_usd(run_id=run_id, kind=kind) / NANO_PER_USD

    def num_entries(self, *, run_id: str | None = None) -> int:
        """Entries of one run, or all."""
        return self.totals(LedgerFilter(run_id=run_id)).num_entries

    @property
    def num_commits(self) -> int:
        """Transactions that this ledger object has committed: fewer than writes where threads have shared them."""
        return self._writer.num_commits

    def verify(self) -> list[str]:
        """Everything that is inconsistent, a line each; empty when nothing is."""
        return self._read(verify)

    def close(self) -> None:
        """Close the file. Rows already recorded stay."""
        with self._reading:
            if self._reader is not None:
                self._reader.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """On a connection of its own, so that a long question holds up nobody's booking."""
        if self.location == _IN_MEMORY:
            return self._writer.read(job)
        with self._reading, errors_explained(self.location):
            if self._reader is None:
                self._reader = connect_to_read(self.location)
            self._reader.execute("BEGIN")  # one state of the file for all that the job asks
            try:
                return job(self._reader)
            finally:
                self._reader.execute("ROLLBACK")
