"""Sums over entries, from the rollups: hours that a filter takes whole are read there, its edges from the entries."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from aha.cost.ledger.rows import COUNTED, LedgerFilter, LedgerTotals

GroupBy = Literal["run", "day", "kind", "model", "price", "app", "key"]
GROUPINGS: tuple[str, ...] = get_args(GroupBy)
MS_PER_HOUR = 3_600_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_COLUMN_OF: dict[GroupBy, str] = {
    "run": "run_id", "day": "hour / 24", "kind": "kind", "model": "model", "price": "price_id", "app": "app",
    "key": "api_key_label",
}  # fmt: skip
_LABELS = "hour, kind, run_id, model, price_id, basis, app, api_key_label"
_SUMMED = ("num_entries", "wall_ms", "device_ms", "num_with_device_ms", *COUNTED, "energy_mj", "num_with_energy",
           "cost_nano_usd")  # fmt: skip
_OF_AN_ENTRY = (
    f"SELECT recorded_at_ms / {MS_PER_HOUR} AS hour, kind, run_id, model, coalesce(price_id, '') AS price_id, basis,"
    " app, api_key_label, recorded_at_ms AS first_at_ms, recorded_at_ms AS last_at_ms, 1 AS num_entries, wall_ms,"
    " coalesce(device_ms, 0) AS device_ms, device_ms IS NOT NULL AS num_with_device_ms, "
    + ", ".join(COUNTED)
    + ", coalesce(energy_mj, 0) AS energy_mj, energy_mj IS NOT NULL AS num_with_energy, cost_nano_usd FROM entry"
)
_OF_AN_HOUR = f"SELECT {_LABELS}, first_at_ms, last_at_ms, {', '.join(_SUMMED)} FROM rollup"


def totals(connection: sqlite3.Connection, chosen: LedgerFilter) -> LedgerTotals:
    """Sums over the entries that a filter leaves."""
    return _read_totals(connection.execute(*_query(_clipped(connection, chosen), group="")).fetchone()[1:])


def grouped(connection: sqlite3.Connection, chosen: LedgerFilter, *, by: GroupBy) -> dict[str, LedgerTotals]:
    """Sums by a label, in its order. "" is where it is not known."""
    rows = connection.execute(*_query(_clipped(connection, chosen), group=_COLUMN_OF[by])).fetchall()
    return {_name(row[0], by=by): _read_totals(row[1:]) for row in rows}


def narrowed(chosen: LedgerFilter) -> tuple[str, dict[str, Any]]:
    """A filter's labels as a condition with its values; moments are left out."""
    labels = {name: getattr(chosen, name) for name in ("kind", "run_id", "model", "app", "api_key_label")}
    given = {name: str(value) for name, value in labels.items() if value is not None}
    return " AND ".join([f"{name} = :{name}" for name in given] or ["1"]), given


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def group_column(by: GroupBy) -> str:
    """The column of `entry` that a grouping goes by."""
    return f"recorded_at_ms / {24 * MS_PER_HOUR}" if by == "day" else f"coalesce({_COLUMN_OF[by]}, '')"


def _name(value: object, *, by: GroupBy) -> str:
    return day_name(value) if by == "day" and isinstance(value, int) else str(value)


def day_name(day: int) -> str:
    """Days since 1970 as a date."""
    return date.fromordinal(_EPOCH_ORDINAL + day).isoformat()


def _query(chosen: LedgerFilter, *, group: str) -> tuple[str, dict[str, Any]]:
    condition, values = narrowed(chosen)
    parts = [f"{select} WHERE {condition}{span}" for select, span in _pieces(chosen, values)]
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in _SUMMED)
    unpriced = "coalesce(sum(iif(basis = 'unpriced', num_entries, 0)), 0)"
    grouping = f" GROUP BY {group} ORDER BY 1" if group else ""
    query = (
        f"SELECT {group or 'NULL'}, {sums}, {unpriced}, min(first_at_ms), max(last_at_ms)"
        f" FROM ({' UNION ALL '.join(parts)}){grouping}"
    )
    return query, values


def _clipped(connection: sqlite3.Connection, chosen: LedgerFilter) -> LedgerFilter:
    """Without bounds that leave nothing out: "until now" must not read the entries of the last hour one by one."""
    if chosen.since is None and chosen.until is None:
        return chosen
    (oldest,) = connection.execute("SELECT min(recorded_at_ms) FROM entry").fetchone()
    (newest,) = connection.execute("SELECT max(recorded_at_ms) FROM entry").fetchone()
    if oldest is None:
        return chosen
    return replace(
        chosen,
        since=None if chosen.since is not None and to_ms(chosen.since) <= oldest else chosen.since,
        until=None if chosen.until is not None and to_ms(chosen.until) > newest else chosen.until,
    )


def _pieces(chosen: LedgerFilter, values: dict[str, Any]) -> list[tuple[str, str]]:
    """What to read of which table: whole hours, and the pieces of an hour before and after them."""
    since = None if chosen.since is None else to_ms(chosen.since)
    until = None if chosen.until is None else to_ms(chosen.until)
    first = None if since is None else -(-since // MS_PER_HOUR)
    end = None if until is None else until // MS_PER_HOUR
    values.update({"since": since, "until": until, "first": first, "end": end})
    if first is not None and end is not None and first >= end:
        return [(_OF_AN_ENTRY, " AND recorded_at_ms >= :since AND recorded_at_ms < :until")]
    hours = (" AND hour >= :first" if first is not None else "") + (" AND hour < :end" if end is not None else "")
    pieces = [(_OF_AN_HOUR, hours)]
    if first is not None and first * MS_PER_HOUR != since:
        values["first_ms"] = first * MS_PER_HOUR
        pieces.append((_OF_AN_ENTRY, " AND recorded_at_ms >= :since AND recorded_at_ms < :first_ms"))
    if end is not None and end * MS_PER_HOUR != until:
        values["end_ms"] = end * MS_PER_HOUR
        pieces.append((_OF_AN_ENTRY, " AND recorded_at_ms >= :end_ms AND recorded_at_ms < :until"))
    return pieces


def _read_totals(row: tuple[Any, ...]) -> LedgerTotals:
    *sums, unpriced, first, last = row
    named = dict(zip(_SUMMED, sums, strict=True))
    if not named["num_with_device_ms"]:
        named["device_ms"] = None
    if not named["num_with_energy"]:
        named["energy_mj"] = None
    return LedgerTotals(**named, num_unpriced=unpriced, first_at=_from_ms(first), last_at=_from_ms(last))


def _from_ms(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, tz=UTC)
