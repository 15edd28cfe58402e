"""Budgets that hold whatever happens: money is reserved before it can be spent, and spent in the entry's transaction.

The rule: a reservation is admitted only where spent + reserved + its amount stays within the limit, checked and written
by one statement. `settle` books the entry, turns the reservation into spending and forgets it, all in one transaction.
An amount above the reservation is booked all the same, since the money is gone, and the part above it is kept as the
charge's `excess`: the only way in which spending can pass a budget's limit, and later reservations are refused then.

A process that dies leaves reservations behind. When a ledger is opened, those of processes that live no more are ended:
one whose request was never sent is released; one that was sent is booked at all that was reserved (basis "worst_case"),
because nobody knows what it did cost and a budget must not forget it. Should its owner have lived all the same (in
another container, past its expiry), its `settle` amends that entry to the truth.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from aha.cost.ledger.entries import as_stored, book
from aha.cost.ledger.rows import MAX_INT64, Basis, EntryKind, LedgerRow
from aha.cost.ledger.schema import LedgerError
from aha.cost.ledger.writer import GroupWriter
from aha.cost.prices import NANO_PER_USD

Period = Literal["total", "day"]
MS_PER_DAY = 86_400_000
LIFETIME_SECONDS = 3600.0
"""After which a reservation whose owner cannot be seen from here counts as left behind."""


@dataclass(frozen=True, kw_only=True)
class BudgetState:
    """A budget at a moment."""

    name: str
    period: Period
    limit_nano_usd: int
    spent_nano_usd: int
    reserved_nano_usd: int

    @property
    def left_nano_usd(self) -> int:
        """What can still be reserved; 0 also where excess has passed the limit."""
        return max(0, self.limit_nano_usd - self.spent_nano_usd - self.reserved_nano_usd)


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Money set aside for one request. Exactly one of `settle` and `release` ends it."""

    reservation_id: str
    budget: str
    day: int
    """Days since 1970 for a budget by the day; 0 otherwise. The charge goes where the reservation was made."""
    amount_nano_usd: int
    entry_key: str
    """Of the entry that will settle it."""


class Settlement(NamedTuple):
    """What became of a reservation."""

    entry_id: int
    excess_nano_usd: int
    """By how much the entry is above what was reserved."""


class Recovery(NamedTuple):
    """What was done about reservations of processes that are dead."""

    num_released: int
    num_booked: int
    """Sent, and so booked at their worst case."""


class _Process(NamedTuple):
    boot_id: str
    namespace: str
    pid: int
    started_at: str


class BudgetRefusedError(LedgerError):
    """A reservation does not fit what is left of its budget."""


class Budgets:
    """The budgets of a ledger."""

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer

    def set(self, name: str, *, limit_nano_usd: int, period: Period = "total") -> None:
        """Make a budget, or give one another limit. What is spent and reserved stays.

        Raises:
            LedgerError: a limit below 0 or above 64 bits, or a budget that exists with the other period.
        """
        if not 0 <= limit_nano_usd <= MAX_INT64:
            raise LedgerError(f"limit_nano_usd must be from 0 to {MAX_INT64:,}, got {limit_nano_usd:,}")
        name = as_stored(name)

        def job(connection: sqlite3.Connection) -> None:
            known = connection.execute("SELECT period FROM budget WHERE name = ?", (name,)).fetchone()
            if known and known[0] != period:
                raise LedgerError(
                    f"budget {name!r} goes by {known[0]!r}, not {period!r}; give the other one a new name"
                )
            connection.execute(
                "INSERT INTO budget VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET limit_nano_usd = excluded.limit_nano_usd",
                (name, period, limit_nano_usd),
            )

        self._writer.run(job)

    def state(self, name: str) -> BudgetState:
        """A budget now. Raises LedgerError for one that does not exist."""
        name = as_stored(name)

        def job(connection: sqlite3.Connection) -> BudgetState:
            period, limit, day = _find(connection, name)
            query = "SELECT spent_nano_usd, reserved_nano_usd FROM budget_period WHERE budget = ? AND day = ?"
            spent, reserved = connection.execute(query, (name, day)).fetchone() or (0, 0)
            return BudgetState(
                name=name, period=period, limit_nano_usd=limit, spent_nano_usd=spent, reserved_nano_usd=reserved
            )

        return self._writer.read(job)

    def reserve(
        self,
        name: str,
        *,
        amount_nano_usd: int,
        kind: EntryKind,
        run_id: str,
        phase: str,
        model: str = "",
        entry_key: str = "",
        lifetime_seconds: float = LIFETIME_SECONDS,
    ) -> Reservation:
        """Set money aside. What the entry will say of itself is kept, for the case that this process dies.

        Args:
            amount_nano_usd: the worst case of what it may cost.
            entry_key: of the entry to come; "" makes one.

        Raises:
            BudgetRefusedError: it does not fit.
            LedgerError: no such budget, or a key that is reserved or booked already.
        """
        if not 0 <= amount_nano_usd <= MAX_INT64:
            raise LedgerError(f"a reservation is from 0 to {MAX_INT64:,} nano-dollars, got {amount_nano_usd:,}")
        reservation_id = secrets.token_hex(16)
        key = entry_key or f"reservation:{reservation_id}"
        expires_at_ms = round((time.time() + lifetime_seconds) * 1000)
        name, key, run_id, phase, model = map(as_stored, (name, key, run_id, phase, model))
        labels = (key, kind.value, run_id, phase, model, *_this_process(), expires_at_ms)

        def job(connection: sqlite3.Connection) -> Reservation:
            _, limit, day = _find(connection, name)
            _refuse_known_key(connection, key)
            connection.execute("INSERT INTO budget_period VALUES (?, ?, 0, 0) ON CONFLICT DO NOTHING", (name, day))
            admitted = connection.execute(
                "UPDATE budget_period SET reserved_nano_usd = reserved_nano_usd + ?1 WHERE budget = ?2 AND day = ?3"
                " AND spent_nano_usd + reserved_nano_usd + ?1 <= (SELECT limit_nano_usd FROM budget WHERE name = ?2)",
                (amount_nano_usd, name, day),
            )
            if not admitted.rowcount:
                raise BudgetRefusedError(_refusal(connection, name, day=day, limit=limit, amount=amount_nano_usd))
            connection.execute(
                "INSERT INTO reservation VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (reservation_id, name, day, amount_nano_usd, *labels),
            )
            return Reservation(
                reservation_id=reservation_id, budget=name, day=day, amount_nano_usd=amount_nano_usd, entry_key=key
            )

        return self._writer.run(job)

    def mark_sent(self, reservation: Reservation) -> None:
        """The request goes out now: from here on it counts, also when this process is killed."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE reservation SET is_sent = 1 WHERE reservation_id = ?", (reservation.reservation_id,)
            )

        self._writer.run(job)

    def settle(self, reservation: Reservation, *, row: LedgerRow) -> Settlement:
        """Book what it did cost, as the entry of the reservation's key, and end the reservation. Errors as `record`."""

        def job(connection: sqlite3.Connection) -> Settlement:
            _end(connection, reservation)
            return _book(connection, replace(row, key=reservation.entry_key), reservation)

        return self._writer.run(job)

    def release(self, reservation: Reservation) -> None:
        """Nothing was spent: give the money back. One that has ended already is left alone."""
        self._writer.run(lambda connection: _end(connection, reservation))

    def recover(self) -> Recovery:
        """End the reservations of dead processes, see the module. Called whenever a ledger is opened."""
        query = (
            "SELECT reservation_id, budget, day, amount_nano_usd, entry_key, is_sent, kind, run_id, phase, model,"
            " boot_id, namespace, pid, started_at, expires_at_ms FROM reservation"
        )
        if not self._writer.read(lambda connection: connection.execute(query).fetchone()):
            return Recovery(0, 0)

        def job(connection: sqlite3.Connection) -> Recovery:
            num_released = num_booked = 0
            for *found, is_sent, kind, run_id, phase, model, boot, namespace, pid, start, expires in connection.execute(
                query
            ).fetchall():
                if not _is_left_behind(_Process(boot, namespace, pid, start), expires_at_ms=expires):
                    continue
                reservation = Reservation(**dict(zip(_FIELDS, found, strict=True)))
                _end(connection, reservation)
                if is_sent:
                    row = LedgerRow(
                        kind=EntryKind(kind), run_id=run_id, phase=phase, model=model, key=reservation.entry_key,
                        price=None, basis=Basis.WORST_CASE, cost_nano_usd=reservation.amount_nano_usd,
                    )  # fmt: skip
                    _book(connection, row, reservation)
                    num_booked += 1
                else:
                    num_released += 1
            return Recovery(num_released, num_booked)

        return self._writer.run(job)


_DEAD_STATES = ("Z", "X")
"""Of a process in /proc: a zombie, or about to be none."""
_FIELDS = ("reservation_id", "budget", "day", "amount_nano_usd", "entry_key")


def _find(connection: sqlite3.Connection, name: str) -> tuple[Period, int, int]:
    """A budget's period, limit, and the day that spending now goes to."""
    found = connection.execute("SELECT period, limit_nano_usd FROM budget WHERE name = ?", (name,)).fetchone()
    if found is None:
        names = [row[0] for row in connection.execute("SELECT name FROM budget ORDER BY name")]
        raise LedgerError(f"unknown budget {name!r}; choose from: {', '.join(names) or 'there is none yet'}")
    period, limit = found
    return period, limit, time.time_ns() // 1_000_000 // MS_PER_DAY if period == "day" else 0


def _end(connection: sqlite3.Connection, reservation: Reservation) -> None:
    gone = connection.execute("DELETE FROM reservation WHERE reservation_id = ?", (reservation.reservation_id,))
    if gone.rowcount:
        connection.execute(
            "UPDATE budget_period SET reserved_nano_usd = reserved_nano_usd - ? WHERE budget = ? AND day = ?",
            (reservation.amount_nano_usd, reservation.budget, reservation.day),
        )


def _book(connection: sqlite3.Connection, row: LedgerRow, reservation: Reservation) -> Settlement:
    """Book what a reservation was for and charge its budget, once."""
    (entry_id,) = book(connection, [row], on_difference="amend")
    excess = max(0, row.cost_nano_usd - reservation.amount_nano_usd)
    # An amendment has been charged where its entry was.
    if not connection.execute("SELECT 1 FROM charge WHERE entry_id = ?", (entry_id,)).fetchone():
        _charge(connection, entry_id, reservation, excess=excess)
    return Settlement(entry_id, excess)


def _refuse_known_key(connection: sqlite3.Connection, key: str) -> None:
    """What is booked is booked once: a second request under its key would be paid and charged to nobody."""
    for table, state in (("reservation", "reserved"), ("entry", "in the ledger")):
        if connection.execute(f"SELECT 1 FROM {table} WHERE entry_key = ?", (key,)).fetchone():
            raise LedgerError(f"the key {key!r} is already {state}; give a new request a key of its own")


def _charge(connection: sqlite3.Connection, entry_id: int, reservation: Reservation, *, excess: int) -> None:
    place = (reservation.budget, reservation.day)
    amount = connection.execute("SELECT cost_nano_usd FROM entry WHERE entry_id = ?", (entry_id,)).fetchone()[0]
    connection.execute("INSERT INTO charge VALUES (?, ?, ?, ?, ?)", (entry_id, *place, amount, excess))
    connection.execute(
        "UPDATE budget_period SET spent_nano_usd = spent_nano_usd + ? WHERE budget = ? AND day = ?", (amount, *place)
    )


def _refusal(connection: sqlite3.Connection, name: str, *, day: int, limit: int, amount: int) -> str:
    query = "SELECT spent_nano_usd, reserved_nano_usd FROM budget_period WHERE budget = ? AND day = ?"
    spent, reserved = connection.execute(query, (name, day)).fetchone()
    left = max(0, limit - spent - reserved)
    return (
        f"budget {name!r} of ${limit / NANO_PER_USD:.9g} has ${left / NANO_PER_USD:.9g} left and this may cost "
        f"${amount / NANO_PER_USD:.9g}; raise the budget, or ask for less"
    )


def _is_left_behind(owner: _Process, *, expires_at_ms: int) -> bool:
    this = _this_process()
    if owner.boot_id == this.boot_id and owner.namespace != this.namespace:
        return expires_at_ms < time.time_ns() // 1_000_000  # its processes cannot be seen from here
    is_of_this_boot = owner.boot_id == this.boot_id
    return not (is_of_this_boot and _is_alive(owner.pid) and owner.started_at == _started_at(owner.pid))


def _this_process() -> _Process:
    return _Process(_read_line(Path("/proc/sys/kernel/random/boot_id")), _namespace(), os.getpid(), _started_at())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started_at(pid: int | None = None) -> str:
    """When a process started, in the kernel's ticks: a number is given to another process one day.

    "" is not known, or dead: one that nobody waits for (PID 1 of many a container waits for none) keeps its number.
    """
    text = _read_line(Path(f"/proc/{pid or os.getpid()}/stat"))
    # Field 22; the second one, the name in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in _DEAD_STATES else ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read_line(path: Path) -> str:
    """ "" where the system has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
