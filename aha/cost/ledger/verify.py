"""Looking for anything that is inconsistent in a ledger, whoever wrote it and by whatever means."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from aha.cost.currency import PICO_PER_NANO
from aha.cost.ledger.entries import AMOUNTS, corrected, merged, seal, supplier
from aha.cost.ledger.queries import MS_PER_HOUR
from aha.cost.ledger.rows import COLUMNS, COUNTED, Basis
from aha.cost.ledger.schema import MIGRATIONS, connect_in_memory

MOST_SHOWN = 10
"""Findings of one check that are listed; the rest are counted."""
_KEY_OF_VERSION_1 = "v1:"

Check = Callable[[sqlite3.Connection], Iterator[str]]


def verify(connection: sqlite3.Connection) -> list[str]:
    """Everything that is inconsistent, a line each. The connection should see one state of the file throughout."""
    findings: list[str] = []
    for check in CHECKS:
        found: list[str] = []
        try:
            found.extend(check(connection))
        except sqlite3.Error as error:
            found.append(f"{check.__name__.removeprefix('_').replace('_', ' ')} cannot be read: {error}")
        findings += found[:MOST_SHOWN]
        if len(found) > MOST_SHOWN:
            findings.append(f"… and {len(found) - MOST_SHOWN:,} more like the last one")
    return findings


def _pages(connection: sqlite3.Connection) -> Iterator[str]:
    """Broken pages, indexes that differ from their tables, values that the tables' own checks would refuse."""
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"damaged file: {' '.join(str(text).split())}"


def _references(connection: sqlite3.Connection) -> Iterator[str]:
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"{table} {row if row is not None else 'row'} names a {parent} that does not exist"


def _schema(connection: sqlite3.Connection) -> Iterator[str]:
    """Tables, indexes and triggers are those of a fresh ledger: a dropped trigger is where tampering begins."""
    query = "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    fresh = connect_in_memory()
    try:
        expected, found = dict(fresh.execute(query)), dict(connection.execute(query))
    finally:
        fresh.close()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != len(MIGRATIONS):
        yield f"the file says version {version}, its reader knows {len(MIGRATIONS)}"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is not of a ledger"
        elif _plain(expected[name]) != _plain(found[name]):
            yield f"{name} has been changed"


def _plain(sql: str | None) -> str:
    return " ".join((sql or "").split())


def _keys(connection: sqlite3.Connection) -> Iterator[str]:
    # The scan goes past the index: one that was dropped, or lies, hides nothing.
    query = "SELECT entry_key, count(*) FROM entry NOT INDEXED GROUP BY entry_key HAVING count(*) > 1"
    for key, count in connection.execute(query):
        yield f"the key {key!r} is booked {count} times"


def _seals(connection: sqlite3.Connection) -> Iterator[str]:
    """Every entry is as it was written, and none between two others is gone."""
    before, expected_id = b"", 1
    names = ", ".join(COLUMNS)
    for entry_id, digest, *values in connection.execute(
        f"SELECT entry_id, digest, {names} FROM entry ORDER BY entry_id"
    ):
        if entry_id != expected_id:
            yield f"entries {expected_id:,} to {entry_id - 1:,} are gone"
        expected_id = entry_id + 1
        is_of_version_1 = not digest and values[0] == f"{_KEY_OF_VERSION_1}{entry_id}"
        if not is_of_version_1 and seal(before, dict(zip(COLUMNS, values, strict=True))) != digest:
            yield f"entry {entry_id:,} is not as it was written: its seal is broken"
        before = digest


def _amounts(connection: sqlite3.Connection) -> Iterator[str]:
    """Amounts that follow from a price are computed again, in integers that cannot overflow."""
    prices = _prices(connection)
    amended = {row[0] for row in connection.execute("SELECT DISTINCT amends_entry_id FROM entry")} - {None}
    computed = (Basis.MACHINE_TIME, Basis.LIST_PRICE)
    wanted = ("entry_id", "price_id", "basis", "wall_ms", *COUNTED, "cost_nano_usd")
    for row in connection.execute(f"SELECT {', '.join(wanted)} FROM entry WHERE amends_entry_id IS NULL"):
        values = dict(zip(wanted, row, strict=True))
        entry_id = values["entry_id"]
        if entry_id in amended:
            values = corrected(connection, entry_id)
        if values["price_id"] is not None and values["price_id"] not in prices:
            yield f"entry {entry_id:,} has the price {values['price_id']!r}, which the ledger does not know"
        elif values["basis"] in computed and (amount := _amount(prices[values["price_id"]], values)) is None:
            yield f"entry {entry_id:,} is of {values['basis']}, and {values['price_id']!r} is no such price"
        elif values["basis"] in computed and amount != values["cost_nano_usd"]:
            yield (
                f"entry {entry_id:,} costs {values['cost_nano_usd']:,} nano-dollars, "
                f"and {amount:,} at its price {values['price_id']!r}"
            )
    query = "SELECT a.entry_id FROM entry AS a JOIN entry AS b ON a.amends_entry_id = b.entry_id WHERE"
    for (entry_id,) in connection.execute(f"{query} b.amends_entry_id IS NOT NULL OR b.entry_id >= a.entry_id"):
        yield f"entry {entry_id:,} amends an amendment, or an entry after it"


def _prices(connection: sqlite3.Connection) -> dict[str, tuple[int | None, ...]]:
    query = f"SELECT price_id, {', '.join(AMOUNTS)} FROM price"
    return {price_id: tuple(amounts) for price_id, *amounts in connection.execute(query)}


def _amount(price: tuple[int | None, ...], values: dict[str, Any]) -> int | None:
    """Nano-dollars by the price's own columns, written down a second time so that one error is not proof of itself.

    None where the price has no amount of the kind that the basis needs.
    """
    per_hour, per_input, per_cached, per_output, per_write, per_reasoning = price
    if values["basis"] == Basis.MACHINE_TIME:
        return None if per_hour is None else _half_up(values["wall_ms"] * per_hour, MS_PER_HOUR)
    if per_input is None or per_cached is None or per_output is None:
        return None
    cached, written, thought = (values[f"{name}_tokens"] for name in ("cached", "cache_write", "reasoning"))
    pico_usd = (values["prompt_tokens"] - cached - written) * per_input + cached * per_cached
    pico_usd += written * (per_input if per_write is None else per_write)
    pico_usd += thought * (per_output if per_reasoning is None else per_reasoning)
    pico_usd += (values["completion_tokens"] - thought) * per_output
    return _half_up(pico_usd, PICO_PER_NANO)


def _half_up(amount: int, divisor: int) -> int:
    whole, rest = divmod(amount, divisor)
    return whole + (2 * rest >= divisor)


def _postings(connection: sqlite3.Connection) -> Iterator[str]:
    """Each entry's postings sum to zero, debit its expense by its cost and credit its supplier."""
    sums = "SELECT entry_id, sum(amount_nano_usd) FROM posting GROUP BY entry_id HAVING sum(amount_nano_usd) <> 0"
    for entry_id, rest in connection.execute(sums):
        yield f"the postings of entry {entry_id:,} do not balance: {rest:+,} nano-dollars are left"
    query = (
        "SELECT entry_id FROM entry WHERE (SELECT amount_nano_usd FROM posting JOIN account USING (account_id)"
        " WHERE posting.entry_id = entry.entry_id AND name = 'expense:' || kind) IS NOT cost_nano_usd"
    )
    for (entry_id,) in connection.execute(query):
        yield f"entry {entry_id:,} is not posted to its expense by its cost"
    yield from _misposted(connection)


def _misposted(connection: sqlite3.Connection) -> Iterator[str]:
    machines = {name: amounts[0] is not None for name, amounts in _prices(connection).items()}
    query = (
        "SELECT entry_id, price_id, name FROM entry JOIN posting USING (entry_id) JOIN account USING (account_id)"
        " WHERE amends_entry_id IS NULL AND name <> 'expense:' || kind"
    )
    for entry_id, price_id, name in connection.execute(query):
        if name != supplier(price_id, is_machine=machines.get(price_id, False)):
            yield f"entry {entry_id:,} is posted to {name!r}, which is not who its price is owed to"
    yield from _misposted_amendments(connection, machines)
    wrong = (
        "SELECT entry_id, count(*) FROM entry JOIN posting USING (entry_id) GROUP BY entry_id"
        " HAVING count(*) <> 2 AND amends_entry_id IS NULL OR count(*) NOT IN (2, 3)"
    )
    for entry_id, count in connection.execute(wrong):
        yield f"entry {entry_id:,} has {count} postings"


def _misposted_amendments(connection: sqlite3.Connection, machines: dict[str, bool]) -> Iterator[str]:
    """An amendment takes the amount so far from whom it was owed to, and owes the new one by the new price."""
    query = "SELECT entry_id, amends_entry_id, kind, price_id, cost_nano_usd FROM entry WHERE entry_id = ?1 OR"
    first_ids = [row[0] for row in connection.execute("SELECT DISTINCT amends_entry_id FROM entry") if row[0]]
    for first_id in first_ids:
        cost, owed_to = 0, ""
        for entry_id, amends, kind, price_id, change in connection.execute(
            f"{query} amends_entry_id = ?1 ORDER BY entry_id", (first_id,)
        ).fetchall():
            before, owed_before, cost = cost, owed_to, cost + change
            owed_to = supplier(price_id, is_machine=machines.get(price_id, False))
            expected = merged([(f"expense:{kind}", change), (owed_before, before), (owed_to, -cost)])
            found = connection.execute(
                "SELECT name, amount_nano_usd FROM posting JOIN account USING (account_id) WHERE entry_id = ?",
                (entry_id,),
            )
            if amends is not None and dict(found) != dict(expected):
                yield f"entry {entry_id:,} is not posted as what it changes of entry {first_id:,}"


_RECOMPUTED = (
    f"SELECT recorded_at_ms / {MS_PER_HOUR} AS hour, kind, run_id, model, coalesce(price_id, ''), basis, app,"
    " api_key_label, count(*), min(recorded_at_ms), max(recorded_at_ms), sum(wall_ms),"
    " coalesce(sum(device_ms), 0), count(device_ms), sum(prompt_tokens), sum(cached_tokens), sum(cache_write_tokens),"
    " sum(completion_tokens), sum(reasoning_tokens), sum(trained_tokens), coalesce(sum(energy_mj), 0),"
    " count(energy_mj), sum(cost_nano_usd) FROM entry GROUP BY 1, 2, 3, 4, 5, 6, 7, 8"
)


def _rollups(connection: sqlite3.Connection) -> Iterator[str]:
    """The kept sums are the sums of the entries."""
    for wrong, said in (
        (f"SELECT * FROM rollup EXCEPT {_RECOMPUTED}", "is not the sum of its entries"),
        (f"{_RECOMPUTED} EXCEPT SELECT * FROM rollup", "has entries that its rollup does not have"),
    ):
        for hour, kind, run_id, *_ in connection.execute(wrong):
            yield f"the rollup of hour {hour}, {kind} of {run_id!r} {said}"
    total = connection.execute("SELECT num_entries, cost_nano_usd FROM grand_total").fetchall()
    counted = connection.execute("SELECT count(*), coalesce(sum(cost_nano_usd), 0) FROM entry").fetchone()
    if total != [counted]:
        yield f"the grand total says {total} (entries, nano-dollars), and the entries come to {counted}"


def _budgets(connection: sqlite3.Connection) -> Iterator[str]:
    """What a budget has spent is what its entries cost; what it has reserved is its reservations."""
    query = (
        "SELECT budget, day, spent_nano_usd, (SELECT coalesce(sum(amount_nano_usd), 0) FROM charge AS c"
        " WHERE c.budget = p.budget AND c.day = p.day), reserved_nano_usd, (SELECT coalesce(sum(amount_nano_usd), 0)"
        " FROM reservation AS r WHERE r.budget = p.budget AND r.day = p.day) FROM budget_period AS p"
    )
    for budget, day, spent, charged, reserved, held in connection.execute(query):
        if spent != charged:
            yield f"budget {budget!r}, day {day}: spent {spent:,} nano-dollars, and its entries come to {charged:,}"
        if reserved != held:
            yield f"budget {budget!r}, day {day}: reserved {reserved:,} nano-dollars, and reservations hold {held:,}"
    wrong = (
        "SELECT entry_id, budget, amount_nano_usd, cost_nano_usd FROM charge JOIN entry USING (entry_id)"
        " WHERE amount_nano_usd <> cost_nano_usd OR excess_nano_usd > max(0, amount_nano_usd)"
    )
    for entry_id, budget, amount, cost in connection.execute(wrong):
        yield f"entry {entry_id:,} cost {cost:,} nano-dollars, and budget {budget!r} was charged {amount:,}"


CHECKS: tuple[Check, ...] = (
    _pages, _references, _schema, _keys, _seals, _amounts, _postings, _rollups, _budgets
)  # fmt: skip
