"""The ledger: what was spent, by whom, at which price. One SQLite file that outlives the runs; rows are only added.

Amounts are integers: nano-dollars for what was spent, pico-dollars for one token, milliseconds for time. A row
carries the id of the price it was priced with, and the price itself lies beside it, so that an old row can always be
recomputed. Every `record` is one transaction: a kill loses at most the row being written.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from aha.cost.prices import NANO_PER_USD, MachinePrice, TokenPrice
from aha.errors import AhaError

MIGRATIONS = (
    """
    CREATE TABLE price (
        price_id TEXT PRIMARY KEY,
        nano_usd_per_hour INTEGER CHECK (nano_usd_per_hour >= 0),
        pico_usd_per_input_token INTEGER CHECK (pico_usd_per_input_token >= 0),
        pico_usd_per_cached_token INTEGER CHECK (pico_usd_per_cached_token >= 0),
        pico_usd_per_output_token INTEGER CHECK (pico_usd_per_output_token >= 0),
        source TEXT NOT NULL,
        source_date TEXT NOT NULL,
        confidence TEXT NOT NULL
    ) STRICT;
    CREATE TABLE entry (
        entry_id INTEGER PRIMARY KEY,
        recorded_at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('training', 'evaluation', 'request')),
        run_id TEXT NOT NULL,
        phase TEXT NOT NULL,
        price_id TEXT NOT NULL REFERENCES price (price_id),
        wall_ms INTEGER NOT NULL CHECK (wall_ms >= 0),
        prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
        cached_tokens INTEGER NOT NULL CHECK (cached_tokens BETWEEN 0 AND prompt_tokens),
        completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
        reasoning_tokens INTEGER NOT NULL CHECK (reasoning_tokens BETWEEN 0 AND completion_tokens),
        trained_tokens INTEGER NOT NULL CHECK (trained_tokens >= 0),
        cost_nano_usd INTEGER NOT NULL CHECK (cost_nano_usd >= 0)
    ) STRICT;
    CREATE INDEX entry_by_run ON entry (run_id);
    CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER price_is_never_changed BEFORE UPDATE ON price
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER price_is_never_deleted BEFORE DELETE ON price
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    """,
)
"""Migration N takes a file of `user_version` N to N + 1. Released ones are never edited."""

BUSY_TIMEOUT_SECONDS = 10.0
_SUMMED = ("wall_ms", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "trained_tokens",
           "cost_nano_usd")  # fmt: skip


class LedgerError(AhaError):
    """The ledger cannot be opened, read or written."""


class EntryKind(StrEnum):
    """What a row pays for."""

    TRAINING = "training"
    EVALUATION = "evaluation"
    REQUEST = "request"


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One amount spent."""

    kind: EntryKind
    run_id: str
    """The run or the server that spent it."""
    phase: str
    """E.g. "grpo", "evaluate before"; for a request, its path."""
    price: MachinePrice | TokenPrice
    cost_nano_usd: int
    wall_ms: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Part of prompt_tokens."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of completion_tokens."""
    trained_tokens: int = 0

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO_PER_USD


@dataclass(frozen=True, kw_only=True)
class LedgerFilter:
    """Which rows are meant; every field narrows them."""

    kind: EntryKind | None = None
    run_id: str | None = None
    since: datetime | None = None
    """First moment, with its time zone."""
    until: datetime | None = None
    """First moment that no longer counts."""


@dataclass(frozen=True, kw_only=True)
class LedgerTotals:
    """Sums over rows."""

    num_entries: int
    wall_ms: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    trained_tokens: int
    cost_nano_usd: int
    first_at: datetime | None
    """When the first and the last of them were recorded; None without rows."""
    last_at: datetime | None

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO_PER_USD


def default_ledger_path() -> Path:
    """$AHA_HOME/ledger.db, or ~/.local/share/aha/ledger.db."""
    home = os.environ.get("AHA_HOME")
    return (Path(home) if home else Path.home() / ".local/share/aha") / "ledger.db"


class Ledger:
    """An open ledger. Threads may share it; processes open their own. Made with `Ledger.open`."""

    def __init__(self, connection: sqlite3.Connection, *, location: str, warning: str = "") -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.location = location
        """The file's path, or ":memory:"."""
        self.warning = warning
        """Why nothing recorded here will outlive the process; "" when it will."""

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
            return cls(_connect(path), location=str(path))
        except (OSError, sqlite3.Error, LedgerError) as error:
            message = str(error) if isinstance(error, LedgerError) else _explain(path, error)
            if on_failure == "raise":
                raise LedgerError(message) from error
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            _migrate(connection, ":memory:")
            return cls(connection, location=":memory:", warning=f"{message}. This run is left out of the ledger")

    def record(self, row: LedgerRow) -> None:
        """Add one row; it is safe from a kill of this process when the call returns. Errors as in `record_all`."""
        self.record_all([row])

    def record_all(self, rows: Sequence[LedgerRow]) -> None:
        """Add rows in one transaction: all of them or, after an error, none.

        Raises:
            LedgerError: the disk is full, the file is locked for too long, or a price id already stands for another
                price.
        """
        with self._transaction():
            for row in rows:
                self._add_price(row.price)
                self._connection.execute(
                    "INSERT INTO entry (recorded_at_ms, kind, run_id, phase, price_id, wall_ms, prompt_tokens,"
                    " cached_tokens, completion_tokens, reasoning_tokens, trained_tokens, cost_nano_usd)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        time.time_ns() // 1_000_000,
                        row.kind.value,
                        row.run_id,
                        row.phase,
                        row.price.price_id,
                        row.wall_ms,
                        row.prompt_tokens,
                        row.cached_tokens,
                        row.completion_tokens,
                        row.reasoning_tokens,
                        row.trained_tokens,
                        row.cost_nano_usd,
                    ),
                )

    def total_nano_usd(self, *, run_id: str | None = None, kind: EntryKind | None = None) -> int:
        """Nano-dollars spent: by one run, on one kind of thing, or in all."""
        query = "SELECT coalesce(sum(cost_nano_usd), 0) FROM entry WHERE (?1 IS NULL OR run_id = ?1)"
        with self._lock, _errors_explained(self.location):
            row = self._connection.execute(query + " AND (?2 IS NULL OR kind = ?2)", (run_id, kind)).fetchone()
        return int(row[0])

    def total_usd(self, *, run_id: str | None = None, kind: EntryKind | None = None) -> float:
        """`total_nano_usd` in dollars."""
        return self.total_nano_usd(run_id=run_id, kind=kind) / NANO_PER_USD

    def totals(self, chosen: LedgerFilter) -> LedgerTotals:
        """Sums over the rows that a filter leaves."""
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in _SUMMED)
        query = (
            f"SELECT count(*), {sums}, min(recorded_at_ms), max(recorded_at_ms) FROM entry"
            " WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR run_id = ?2)"
            " AND (?3 IS NULL OR recorded_at_ms >= ?3) AND (?4 IS NULL OR recorded_at_ms < ?4)"
        )
        limits = (chosen.kind, chosen.run_id, _to_ms(chosen.since), _to_ms(chosen.until))
        with self._lock, _errors_explained(self.location):
            count, *amounts, first, last = self._connection.execute(query, limits).fetchone()
        named = dict(zip(_SUMMED, amounts, strict=True))
        return LedgerTotals(num_entries=count, **named, first_at=_from_ms(first), last_at=_from_ms(last))

    def num_entries(self, *, run_id: str | None = None) -> int:
        """Rows of one run, or all."""
        with self._lock, _errors_explained(self.location):
            query = "SELECT count(*) FROM entry WHERE (?1 IS NULL OR run_id = ?1)"
            return int(self._connection.execute(query, (run_id,)).fetchone()[0])

    def close(self) -> None:
        """Close the file. Rows already recorded stay."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _errors_explained(self.location), _immediate(self._connection):
            yield

    def _add_price(self, price: MachinePrice | TokenPrice) -> None:
        amounts = _amounts(price)
        known = self._connection.execute(
            "SELECT nano_usd_per_hour, pico_usd_per_input_token, pico_usd_per_cached_token, pico_usd_per_output_token"
            " FROM price WHERE price_id = ?",
            (price.price_id,),
        ).fetchone()
        if known is None:
            self._connection.execute(
                "INSERT INTO price VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (price.price_id, *amounts, price.source, price.source_date.isoformat(), price.confidence),
            )
        elif tuple(known) != amounts:
            raise LedgerError(
                f"price {price.price_id!r} is already in the ledger {self.location} with other amounts; "
                "a changed price needs an entry of its own with a new effective_from"
            )


def _to_ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _from_ms(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, tz=UTC)


def _amounts(price: MachinePrice | TokenPrice) -> tuple[int | None, ...]:
    """The four amount columns of the price table."""
    if isinstance(price, MachinePrice):
        return (price.nano_usd_per_hour, None, None, None)
    return (None, price.pico_usd_per_input_token, price.pico_usd_per_cached_token, price.pico_usd_per_output_token)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made before SQLite would make it, because SQLite gives a new file the umask's permissions.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # NORMAL in WAL mode: no commit is lost to a killed process; a power cut may lose the last ones, never corrupt.
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;")
        _migrate(connection, str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, location: str) -> None:
    if _user_version(connection) == len(MIGRATIONS):
        return
    with _immediate(connection):
        version = _user_version(connection)  # again, now that no other process can be migrating
        if version > len(MIGRATIONS):
            raise LedgerError(
                f"the ledger {location} was written by a newer aha (its version is {version}, this one knows "
                f"{len(MIGRATIONS)}); upgrade aha or set AHA_HOME to another folder"
            )
        for migration in MIGRATIONS[version:]:
            for statement in _split_statements(migration):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _split_statements(script: str) -> Iterator[str]:
    """Statements one by one: `executescript` would commit the transaction that makes a migration all or nothing."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement
            statement = ""


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def _immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: committed as a whole, or rolled back when the block raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _errors_explained(location: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(_explain(location, error)) from error


def _explain(location: Path | str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot use the ledger {location}: {reason}; set AHA_HOME to a folder that can be written"
