"""The ledger's file: its tables, how an older file becomes a newer one, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """
    ALTER TABLE price ADD COLUMN pico_usd_per_cache_write_token INTEGER CHECK (pico_usd_per_cache_write_token >= 0);
    ALTER TABLE price ADD COLUMN pico_usd_per_reasoning_token INTEGER CHECK (pico_usd_per_reasoning_token >= 0);
    DROP TRIGGER entry_is_never_changed;
    DROP TRIGGER entry_is_never_deleted;
    DROP INDEX entry_by_run;
    ALTER TABLE entry RENAME TO entry_of_version_1;
    CREATE TABLE entry (
        entry_id INTEGER PRIMARY KEY,
        entry_key TEXT NOT NULL,
        recorded_at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('training', 'evaluation', 'request', 'action')),
        run_id TEXT NOT NULL,
        phase TEXT NOT NULL,
        model TEXT NOT NULL,
        weight_version INTEGER CHECK (weight_version >= 0),
        app TEXT NOT NULL,
        api_key_label TEXT NOT NULL,
        device TEXT NOT NULL,
        price_id TEXT REFERENCES price (price_id),
        basis TEXT NOT NULL CHECK (basis IN (
            'machine_time', 'list_price', 'endpoint_reported', 'worst_case', 'stated', 'unpriced')),
        amends_entry_id INTEGER REFERENCES entry (entry_id),
        wall_ms INTEGER NOT NULL CHECK (wall_ms >= 0 OR amends_entry_id IS NOT NULL),
        device_ms INTEGER CHECK (device_ms >= 0 OR amends_entry_id IS NOT NULL),
        prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0 OR amends_entry_id IS NOT NULL),
        cached_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0 OR amends_entry_id IS NOT NULL),
        reasoning_tokens INTEGER NOT NULL,
        trained_tokens INTEGER NOT NULL CHECK (trained_tokens >= 0 OR amends_entry_id IS NOT NULL),
        energy_mj INTEGER CHECK (energy_mj >= 0 OR amends_entry_id IS NOT NULL),
        cost_nano_usd INTEGER NOT NULL CHECK (cost_nano_usd >= 0 OR amends_entry_id IS NOT NULL),
        digest BLOB NOT NULL,
        CHECK (amends_entry_id IS NOT NULL OR (cached_tokens >= 0 AND cache_write_tokens >= 0
               AND cached_tokens + cache_write_tokens <= prompt_tokens)),
        CHECK (amends_entry_id IS NOT NULL OR reasoning_tokens BETWEEN 0 AND completion_tokens),
        CHECK ((basis = 'unpriced') = (price_id IS NULL) OR basis IN ('stated', 'worst_case')),
        CHECK (basis <> 'unpriced' OR cost_nano_usd = 0)
    ) STRICT;
    CREATE UNIQUE INDEX entry_by_key ON entry (entry_key);
    CREATE INDEX entry_by_run ON entry (run_id);
    CREATE INDEX entry_by_time ON entry (recorded_at_ms);
    CREATE INDEX entry_by_amended ON entry (amends_entry_id) WHERE amends_entry_id IS NOT NULL;
    CREATE TABLE account (
        account_id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE posting (
        entry_id INTEGER NOT NULL REFERENCES entry (entry_id),
        account_id INTEGER NOT NULL REFERENCES account (account_id),
        amount_nano_usd INTEGER NOT NULL,
        PRIMARY KEY (entry_id, account_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rollup (
        hour INTEGER NOT NULL,
        kind TEXT NOT NULL,
        run_id TEXT NOT NULL,
        model TEXT NOT NULL,
        price_id TEXT NOT NULL,
        basis TEXT NOT NULL,
        app TEXT NOT NULL,
        api_key_label TEXT NOT NULL,
        num_entries INTEGER NOT NULL,
        first_at_ms INTEGER NOT NULL,
        last_at_ms INTEGER NOT NULL,
        wall_ms INTEGER NOT NULL,
        device_ms INTEGER NOT NULL,
        num_with_device_ms INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        trained_tokens INTEGER NOT NULL,
        energy_mj INTEGER NOT NULL,
        num_with_energy INTEGER NOT NULL,
        cost_nano_usd INTEGER NOT NULL,
        PRIMARY KEY (hour, kind, run_id, model, price_id, basis, app, api_key_label)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE grand_total (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        num_entries INTEGER NOT NULL,
        cost_nano_usd INTEGER NOT NULL
    ) STRICT;
    INSERT INTO grand_total VALUES (1, 0, 0);
    CREATE TRIGGER entry_is_summed AFTER INSERT ON entry BEGIN
        INSERT INTO rollup VALUES (
            NEW.recorded_at_ms / 3600000, NEW.kind, NEW.run_id, NEW.model, coalesce(NEW.price_id, ''), NEW.basis,
            NEW.app, NEW.api_key_label, 1, NEW.recorded_at_ms, NEW.recorded_at_ms, NEW.wall_ms,
            coalesce(NEW.device_ms, 0), NEW.device_ms IS NOT NULL, NEW.prompt_tokens, NEW.cached_tokens,
            NEW.cache_write_tokens, NEW.completion_tokens, NEW.reasoning_tokens, NEW.trained_tokens,
            coalesce(NEW.energy_mj, 0), NEW.energy_mj IS NOT NULL, NEW.cost_nano_usd)
        ON CONFLICT DO UPDATE SET
            num_entries = num_entries + 1,
            first_at_ms = min(first_at_ms, excluded.first_at_ms),
            last_at_ms = max(last_at_ms, excluded.last_at_ms),
            wall_ms = wall_ms + excluded.wall_ms,
            device_ms = device_ms + excluded.device_ms,
            num_with_device_ms = num_with_device_ms + excluded.num_with_device_ms,
            prompt_tokens = prompt_tokens + excluded.prompt_tokens,
            cached_tokens = cached_tokens + excluded.cached_tokens,
            cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
            completion_tokens = completion_tokens + excluded.completion_tokens,
            reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
            trained_tokens = trained_tokens + excluded.trained_tokens,
            energy_mj = energy_mj + excluded.energy_mj,
            num_with_energy = num_with_energy + excluded.num_with_energy,
            cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd;
        UPDATE grand_total SET num_entries = num_entries + 1, cost_nano_usd = cost_nano_usd + NEW.cost_nano_usd;
    END;
    INSERT INTO entry
        SELECT entry_id, 'v1:' || entry_id, recorded_at_ms, kind, run_id, phase, '', NULL, '', '', '', price_id,
            CASE
                WHEN nano_usd_per_hour IS NOT NULL AND cost_nano_usd = wall_ms * (nano_usd_per_hour / 3600000)
                    + (2 * wall_ms * (nano_usd_per_hour % 3600000) + 3600000) / 7200000
                    THEN 'machine_time'
                WHEN pico_usd_per_input_token IS NOT NULL AND cost_nano_usd = (500
                    + (prompt_tokens - cached_tokens) * pico_usd_per_input_token
                    + cached_tokens * pico_usd_per_cached_token
                    + completion_tokens * pico_usd_per_output_token) / 1000
                    THEN 'list_price'
                ELSE 'stated'
            END,
            NULL, wall_ms, NULL, prompt_tokens, cached_tokens, 0, completion_tokens, reasoning_tokens, trained_tokens,
            NULL, cost_nano_usd, x''
        FROM entry_of_version_1 JOIN price USING (price_id) ORDER BY entry_id;
    INSERT INTO account (name) SELECT DISTINCT 'expense:' || kind FROM entry ORDER BY 1;
    INSERT INTO account (name)
        SELECT DISTINCT iif(nano_usd_per_hour IS NULL, 'endpoint:', 'machine:')
            || substr(price_id, 1, instr(price_id || '@', '@') - 1)
        FROM entry JOIN price USING (price_id) ORDER BY 1;
    INSERT INTO posting
        SELECT entry_id, account_id, cost_nano_usd FROM entry JOIN account ON name = 'expense:' || kind;
    INSERT INTO posting
        SELECT entry_id, account_id, -cost_nano_usd FROM entry JOIN price USING (price_id)
        JOIN account ON name = iif(nano_usd_per_hour IS NULL, 'endpoint:', 'machine:')
            || substr(price_id, 1, instr(price_id || '@', '@') - 1);
    DROP TABLE entry_of_version_1;
    CREATE TABLE budget (
        name TEXT PRIMARY KEY,
        period TEXT NOT NULL CHECK (period IN ('total', 'day')),
        limit_nano_usd INTEGER NOT NULL CHECK (limit_nano_usd >= 0)
    ) STRICT;
    CREATE TABLE budget_period (
        budget TEXT NOT NULL REFERENCES budget (name),
        day INTEGER NOT NULL,
        spent_nano_usd INTEGER NOT NULL,
        reserved_nano_usd INTEGER NOT NULL CHECK (reserved_nano_usd >= 0),
        PRIMARY KEY (budget, day)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE reservation (
        reservation_id TEXT PRIMARY KEY,
        budget TEXT NOT NULL,
        day INTEGER NOT NULL,
        amount_nano_usd INTEGER NOT NULL CHECK (amount_nano_usd >= 0),
        is_sent INTEGER NOT NULL CHECK (is_sent IN (0, 1)),
        entry_key TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        run_id TEXT NOT NULL,
        phase TEXT NOT NULL,
        model TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        namespace TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started_at TEXT NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        FOREIGN KEY (budget, day) REFERENCES budget_period (budget, day)
    ) STRICT;
    CREATE TABLE charge (
        entry_id INTEGER NOT NULL REFERENCES entry (entry_id),
        budget TEXT NOT NULL,
        day INTEGER NOT NULL,
        amount_nano_usd INTEGER NOT NULL,
        excess_nano_usd INTEGER NOT NULL CHECK (excess_nano_usd >= 0),
        PRIMARY KEY (entry_id, budget),
        FOREIGN KEY (budget, day) REFERENCES budget_period (budget, day)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER posting_is_never_changed BEFORE UPDATE ON posting
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER posting_is_never_deleted BEFORE DELETE ON posting
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER account_is_never_changed BEFORE UPDATE ON account
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER account_is_never_deleted BEFORE DELETE ON account
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER charge_is_never_changed BEFORE UPDATE ON charge
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    CREATE TRIGGER charge_is_never_deleted BEFORE DELETE ON charge
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
    """,
)
"""Migration N takes a file of `user_version` N to N + 1. Released ones are never edited."""

BUSY_TIMEOUT_SECONDS = 30.0
"""How long to wait while other processes write: 64 of them at once need a few seconds in the worst case."""
AUTOCHECKPOINT_PAGES = 4000


class LedgerError(AhaError):
    """The ledger cannot be opened, read or written, or an entry cannot be booked."""


def default_ledger_path() -> Path:
    """$AHA_HOME/ledger.db, or ~/.local/share/aha/ledger.db."""
    home = os.environ.get("AHA_HOME")
    return (Path(home) if home else Path.home() / ".local/share/aha") / "ledger.db"


def connect(path: Path) -> sqlite3.Connection:
    """A connection that writes to the file, which is made or upgraded."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made before SQLite would make it, because SQLite gives a new file the umask's permissions. Never opened where it
    # exists: closing a second descriptor of a file drops the locks that this process holds on it by the first. A link
    # to a file that is not there yet is one to be made as well.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # FULL: what is committed is on the disk, also after a power cut. Group commit is what makes it affordable.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
        _use_wal(connection)
        migrate(connection, str(path))
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path | str) -> sqlite3.Connection:
    """A connection to an existing ledger that cannot change it."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def connect_in_memory() -> sqlite3.Connection:
    """A ledger that ends with the process."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(connection, ":memory:")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def migrate(connection: sqlite3.Connection, location: str) -> None:
    """Bring a file up to date, all or nothing. Raises LedgerError for one that a newer aha wrote."""
    if _user_version(connection) == len(MIGRATIONS):
        return
    with immediate(connection):
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


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
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
def errors_explained(location: str) -> Iterator[None]:
    """SQLite's errors as LedgerErrors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(explain(location, error)) from error


def explain(location: Path | str, error: BaseException) -> str:
    """One line for the user."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if "cannot store REAL value" in reason or "integer overflow" in reason:
        return f"the ledger {location} cannot hold this: a sum would pass 64 bits (9.2 billion dollars)"
    if isinstance(error, sqlite3.IntegrityError):
        return f"the ledger {location} refuses this, and nothing of it is booked: {reason}"
    if "is locked" in reason:
        return f"cannot use the ledger {location}: {reason}: another process is writing; try again when it has ended"
    return f"cannot use the ledger {location}: {reason}; set AHA_HOME to a folder that can be written"


def _use_wal(connection: sqlite3.Connection) -> None:
    """Changing the mode of a new file needs the file alone, and SQLite does not wait for that: it is asked again."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


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
