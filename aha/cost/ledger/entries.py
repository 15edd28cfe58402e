"""Booking: a row becomes an entry with its price, its postings and its seal, exactly once; or amends an earlier one."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aha.cost.ledger.rows import COLUMNS, COUNTED, LABELS, MAX_INT64, MEASURES, Basis, LedgerRow
from aha.cost.ledger.schema import LedgerError
from aha.cost.prices import MachinePrice, TokenPrice

OnDifference = Literal["raise", "amend"]
Values = dict[str, Any]
"""The columns of an entry by name."""
Posting = tuple[str, int]
"""An account and nano-dollars: debits positive."""
AMOUNTS = ("nano_usd_per_hour", "pico_usd_per_input_token", "pico_usd_per_cached_token", "pico_usd_per_output_token",
           "pico_usd_per_cache_write_token", "pico_usd_per_reasoning_token")  # fmt: skip
COMPARED = tuple(name for name in COLUMNS if name not in ("recorded_at_ms", "amends_entry_id"))
_INSERT = (
    f"INSERT INTO entry ({', '.join(COLUMNS)}, digest) VALUES ({', '.join(f':{name}' for name in COLUMNS)}, :digest)"
)
_SELECT_BY_KEY = f"SELECT entry_id, {', '.join(COLUMNS)} FROM entry WHERE entry_key = ?"
_UNKNOWN_SUPPLIER = "unknown supplier"


def book(connection: sqlite3.Connection, rows: Sequence[LedgerRow], *, on_difference: OnDifference) -> list[int]:
    """Book rows within an open transaction; returns their entries' ids. Errors as in `Ledger.record_many`."""
    booker = Booker(connection)
    return [booker.book(row, on_difference=on_difference) for row in rows]


def seal(before: bytes, values: Mapping[str, Any]) -> bytes:
    """The digest of an entry and, through that of the entry before it, of all that came before."""
    text = repr(tuple(values[name] for name in COLUMNS))
    return hashlib.sha256(before + text.encode("utf-8", "surrogatepass")).digest()[:16]


def add_price(connection: sqlite3.Connection, price: MachinePrice | TokenPrice) -> None:
    """Lay a price beside the entries. Raises LedgerError when its id stands for other amounts."""
    amounts = price_amounts(price)
    known = connection.execute(
        f"SELECT {', '.join(AMOUNTS)} FROM price WHERE price_id = ?",
        (price.price_id,),
    ).fetchone()
    if known is None:
        connection.execute(
            f"INSERT INTO price (price_id, {', '.join(AMOUNTS)}, source, source_date, confidence)"
            f" VALUES (?, {', '.join('?' for _ in AMOUNTS)}, ?, ?, ?)",
            (price.price_id, *amounts, price.source, price.source_date.isoformat(), price.confidence),
        )
    elif tuple(known) != amounts:
        raise LedgerError(
            f"price {price.price_id!r} is already in the ledger {_location(connection)} with other amounts; "
            "a changed price needs an entry of its own with a new effective_from"
        )


def _location(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA database_list").fetchone()[2]) or ":memory:"


def price_amounts(price: MachinePrice | TokenPrice) -> tuple[int | None, ...]:
    """The columns AMOUNTS of the price table; None where the price has no amount of that kind."""
    return tuple(getattr(price, name, None) for name in AMOUNTS)


def cost_at(price: MachinePrice | TokenPrice, measures: Mapping[str, Any]) -> int:
    """What milliseconds, or tokens, cost at a price, in nano-dollars."""
    if isinstance(price, MachinePrice):
        return price.cost_nano_usd(measures["wall_ms"])
    return price.cost_nano_usd(
        measures["prompt_tokens"],
        completion_tokens=measures["completion_tokens"],
        cached_tokens=measures["cached_tokens"],
        cache_write_tokens=measures["cache_write_tokens"],
        reasoning_tokens=measures["reasoning_tokens"],
    )


def supplier(price_id: str | None, *, is_machine: bool) -> str:
    """The account that an amount is owed to."""
    if price_id is None:
        return _UNKNOWN_SUPPLIER
    return f"{'machine' if is_machine else 'endpoint'}:{price_id.partition('@')[0]}"


def corrected(connection: sqlite3.Connection, entry_id: int) -> Values:
    """An entry as its amendments leave it: their measures and amounts added, the price and basis of the last one."""
    names = ", ".join(COLUMNS)
    query = f"SELECT {names} FROM entry WHERE entry_id = ?1 OR amends_entry_id = ?1 ORDER BY entry_id"
    first, *amendments = [dict(zip(COLUMNS, row, strict=True)) for row in connection.execute(query, (entry_id,))]
    for amendment in amendments:
        for name in (*MEASURES, "cost_nano_usd"):
            first[name] = _sum_known(first[name], amendment[name])
        first |= {name: amendment[name] for name in ("price_id", "basis")}
    return first


class Booker:
    """Books row after row within one open transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        newest = connection.execute("SELECT digest FROM entry ORDER BY entry_id DESC LIMIT 1").fetchone()
        self._digest = bytes(newest[0]) if newest else b""
        self._accounts: dict[str, int] = {}
        self._prices: set[str] = set()

    def book(self, row: LedgerRow, *, on_difference: OnDifference) -> int:
        """The id of the row's entry, or of the amendment that was needed."""
        values = _values_of(row)
        if row.price is not None and row.price.price_id not in self._prices:
            add_price(self._connection, row.price)
            self._prices.add(row.price.price_id)
        known = self._connection.execute(_SELECT_BY_KEY, (values["entry_key"],)).fetchone() if row.key else None
        if known is None:
            is_machine = isinstance(row.price, MachinePrice)
            cost = values["cost_nano_usd"]
            postings = [(f"expense:{row.kind}", cost), (supplier(values["price_id"], is_machine=is_machine), -cost)]
            return self._insert(values, postings)
        entry_id, found = known[0], dict(zip(COLUMNS, known[1:], strict=True))
        if on_difference == "amend":
            return self.amend(entry_id, values)
        if any(found[name] != values[name] for name in COMPARED):
            raise LedgerError(_describe_difference(found, values))
        return int(entry_id)

    def amend(self, entry_id: int, wanted: Values) -> int:
        """Bring an entry to other measures or another price: what differs becomes an entry that names it."""
        now = corrected(self._connection, entry_id)
        priced = ("price_id", "basis", "cost_nano_usd")
        if all(now[name] == wanted[name] for name in (*MEASURES, *priced)):
            return int(entry_id)
        count = self._connection.execute("SELECT count(*) FROM entry WHERE amends_entry_id = ?", (entry_id,))
        change = wanted | {name: now[name] for name in LABELS}
        change |= {"entry_key": f"{now['entry_key']}#{count.fetchone()[0] + 1}", "amends_entry_id": entry_id}
        change["recorded_at_ms"] = _now_ms()
        for name in (*MEASURES, "cost_nano_usd"):
            change[name] = _difference(wanted[name], now[name])
        postings = [
            (f"expense:{now['kind']}", change["cost_nano_usd"]),
            (self._supplier(now["price_id"]), now["cost_nano_usd"]),
            (self._supplier(wanted["price_id"]), -wanted["cost_nano_usd"]),
        ]
        amendment_id = self._insert(change, postings)
        self._charge_amendment(entry_id, amendment_id, change["cost_nano_usd"])
        return amendment_id

    def _insert(self, values: Values, postings: Sequence[Posting]) -> int:
        self._digest = seal(self._digest, values)
        entry_id = self._connection.execute(_INSERT, values | {"digest": self._digest}).lastrowid
        assert entry_id is not None
        self._connection.executemany(
            "INSERT INTO posting VALUES (?, ?, ?)",
            [(entry_id, self._account_id(account), amount) for account, amount in merged(postings)],
        )
        return entry_id

    def _supplier(self, price_id: str | None) -> str:
        row = self._connection.execute("SELECT nano_usd_per_hour FROM price WHERE price_id = ?", (price_id,)).fetchone()
        return supplier(price_id, is_machine=row is not None and row[0] is not None)

    def _account_id(self, name: str) -> int:
        if name not in self._accounts:
            self._connection.execute("INSERT INTO account (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            found = self._connection.execute("SELECT account_id FROM account WHERE name = ?", (name,)).fetchone()
            self._accounts[name] = int(found[0])
        return self._accounts[name]

    def _charge_amendment(self, entry_id: int, amendment_id: int, change_nano_usd: int) -> None:
        """A budget that paid for the entry pays, or gets back, the difference."""
        found = self._connection.execute("SELECT budget, day FROM charge WHERE entry_id = ?", (entry_id,)).fetchall()
        for budget, day in found:
            self._connection.execute(
                "INSERT INTO charge VALUES (?, ?, ?, ?, ?)",
                (amendment_id, budget, day, change_nano_usd, max(0, change_nano_usd)),
            )
            self._connection.execute(
                "UPDATE budget_period SET spent_nano_usd = spent_nano_usd + ? WHERE budget = ? AND day = ?",
                (change_nano_usd, budget, day),
            )


def merged(postings: Sequence[Posting]) -> list[Posting]:
    """One posting an account: an amendment at the same supplier touches it once."""
    sums: dict[str, int] = {}
    for account, amount in postings:
        sums[account] = sums.get(account, 0) + amount
    return list(sums.items())


def _values_of(row: LedgerRow) -> Values:
    values: Values = {name: as_stored(getattr(row, name)) for name in (*LABELS, *MEASURES, "cost_nano_usd")}
    for name, value in values.items():
        if isinstance(value, int) and not -MAX_INT64 <= value <= MAX_INT64:
            raise LedgerError(
                f"{name}={value:,} does not fit in 64 bits; the largest amount is {MAX_INT64:,} "
                "(of nano-dollars: $9.2 billion); book it in parts"
            )
    return values | {
        # Begins with the time, so that keys come in order and the index grows at its end.
        "entry_key": as_stored(row.key) or f"{time.time_ns():x}-{os.urandom(8).hex()}",
        "recorded_at_ms": _now_ms(),
        "price_id": row.price.price_id if row.price else None,
        "basis": (row.basis or _find_basis(row, values)).value,
        "amends_entry_id": None,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def as_stored(value: Any) -> Any:
    """As SQLite gives it back, so that a seal computed from either is the same. A lone surrogate becomes its name."""
    if isinstance(value, str):
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return value if value is None else int(value)


def _find_basis(row: LedgerRow, values: Values) -> Basis:
    if row.price is None:
        return Basis.UNPRICED
    # Impossible counts are for the table's own checks to refuse.
    is_possible = (
        all(values[name] >= 0 for name in COUNTED)
        and row.cached_tokens + row.cache_write_tokens <= row.prompt_tokens
        and row.reasoning_tokens <= row.completion_tokens
    )
    if not is_possible or cost_at(row.price, values) != row.cost_nano_usd:
        return Basis.STATED
    return Basis.MACHINE_TIME if isinstance(row.price, MachinePrice) else Basis.LIST_PRICE


def _describe_difference(found: Values, wanted: Values) -> str:
    changed = [f"{name} {found[name]!r} and now {wanted[name]!r}" for name in COMPARED if found[name] != wanted[name]]
    return (
        f"the key {found['entry_key']!r} is already in the ledger with {', '.join(changed)}; nothing is booked twice: "
        "give what is new a key of its own, or correct the entry with `amend`"
    )


def _sum_known(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else a + b


def _difference(wanted: int | None, now: int | None) -> int | None:
    return None if wanted is None else wanted - (now or 0)
