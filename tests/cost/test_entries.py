"""An entry is booked once, balances, can be amended and priced again; amounts are exact at any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aha.cost import Basis, EntryKind, Ledger, LedgerFilter, custom_machine_price
from aha.cost.ledger import GROUPINGS, LedgerError
from aha.cost.ledger.rows import MAX_INT64, MEASURES

from .conftest import PRICE, R1, machine_row, token_row

BySql = Callable[..., list[tuple[object, ...]]]
ALL = LedgerFilter()


def test_postings_debit_the_expense_and_credit_whom_it_is_owed_to(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(45_000))
        ledger.record(token_row(10, completion_tokens=1))
        ledger.record(replace(machine_row(0), price=None))
    joined = "SELECT entry_id, name, amount_nano_usd FROM posting JOIN account USING (account_id) ORDER BY 1, 3 DESC, 2"
    assert by_sql(joined) == [
        (1, "expense:training", 1_000_000), (1, "machine:cpu-2core-hour", -1_000_000),
        (2, "expense:request", 210_000), (2, "endpoint:openai-o1", -210_000),
        (3, "expense:training", 0), (3, "unknown supplier", 0),
    ]  # fmt: skip
    assert by_sql("SELECT sum(amount_nano_usd) FROM posting") == [(0,)]


def test_basis_is_found_where_it_is_not_said(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(45_000))
        ledger.record(machine_row(45_000, cost_nano_usd=7))
        ledger.record(token_row(10, completion_tokens=1))
        ledger.record(replace(machine_row(3), price=None, cost_nano_usd=0))
        ledger.record(token_row(10, completion_tokens=1, basis=Basis.ENDPOINT_REPORTED))
        assert ledger.totals(ALL).num_unpriced == 1
    found = [str(row[0]) for row in by_sql("SELECT basis FROM entry ORDER BY entry_id")]
    assert found == ["machine_time", "stated", "list_price", "unpriced", "endpoint_reported"]


def test_same_key_again_is_no_new_entry(path: Path) -> None:
    with Ledger.open(path) as ledger:
        first = ledger.record(machine_row(10, key="run:1"))
        assert ledger.record(machine_row(10, key="run:1")) == first
        assert ledger.num_entries() == 1
    with Ledger.open(path) as ledger:
        assert ledger.record_many([machine_row(10, key="run:1"), machine_row(11, key="run:2")]) == [first, first + 1]


def test_same_key_with_something_else_is_refused_and_named(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(10, key="run:1"))
        with pytest.raises(LedgerError, match=r"the key 'run:1' is already .* wall_ms 10 and now 20.* `amend`"):
            ledger.record_many([machine_row(5), machine_row(20, key="run:1")])
        assert ledger.num_entries() == 1, "nor is what came with it"


def test_amendment_names_its_entry_and_brings_it_to_the_new_total(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(10_000, key="run:1", prompt_tokens=5, energy_mj=None))
        for wall_ms in (25_000, 25_000, 7_000):
            ledger.record(machine_row(wall_ms, key="run:1", prompt_tokens=9, energy_mj=70), on_difference="amend")
        totals = ledger.totals(ALL)
        assert (totals.num_entries, totals.wall_ms, totals.prompt_tokens, totals.energy_mj) == (3, 7_000, 9, 70)
        assert totals.cost_nano_usd == PRICE.cost_nano_usd(7_000)
        assert ledger.verify() == []
    assert by_sql("SELECT entry_key, amends_entry_id, wall_ms FROM entry") == [
        ("run:1", None, 10_000), ("run:1#1", 1, 15_000), ("run:1#2", 1, -18_000),
    ]  # fmt: skip


def test_reprice_is_what_the_same_tokens_would_have_cost(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(token_row(1_000_000, completion_tokens=1_000_000))
        ledger.record(machine_row(1000, prompt_tokens=2_000_000, completion_tokens=0))
        ledger.record(machine_row(1000))
        at_r1 = ledger.reprice(ALL, price=R1)
        assert at_r1.total.repriced_nano_usd == 550_000_000 + 2_190_000_000 + 1_100_000_000
        assert (at_r1.total.num_entries, at_r1.total.num_left_out) == (2, 1)
        assert at_r1.groups["request"].cost_nano_usd == 75_000_000_000
        assert ledger.num_entries() == 3, "nothing is booked"
        hourly = ledger.reprice(ALL, price=custom_machine_price(36, on=PRICE.source_date), by="run")
        assert hourly.groups["runs/a"].repriced_nano_usd == 2 * 10_000_000
        assert hourly.groups["serve tiny"].num_left_out == 1


def test_correction_is_booked_once_and_moves_what_is_owed(path: Path, by_sql: BySql) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(token_row(1_000_000, completion_tokens=1_000_000, key="request:1"))
        for _ in range(2):
            ledger.correct(LedgerFilter(kind=EntryKind.REQUEST), price=R1)
        assert ledger.total_nano_usd() == 2_740_000_000
        assert ledger.num_entries() == 2
        assert ledger.totals(ALL).prompt_tokens == 1_000_000
        assert ledger.reprice(ALL, price=R1).total.cost_nano_usd == 2_740_000_000
        assert ledger.verify() == []
    owed = "SELECT name, sum(amount_nano_usd) FROM posting JOIN account USING (account_id) GROUP BY 1 ORDER BY 1"
    assert by_sql(owed) == [
        ("endpoint:deepseek-r1", -2_740_000_000), ("endpoint:openai-o1", 0), ("expense:request", 2_740_000_000),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*MEASURES, "cost_nano_usd"])
def test_number_beyond_64_bits_is_refused_by_name(path: Path, name: str) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match=rf"{name}=9,223,372,036,854,775,808 does not fit in 64 bits"):
            ledger.record(replace(machine_row(1), **{name: MAX_INT64 + 1}))
        assert ledger.num_entries() == 0


def test_sum_beyond_64_bits_is_refused_before_it_is_booked(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.record(machine_row(1, cost_nano_usd=MAX_INT64 - 10))
        with pytest.raises(LedgerError, match=r"a sum would pass 64 bits \(9\.2 billion dollars\)"):
            ledger.record(machine_row(1, cost_nano_usd=11, run_id="another"))
        ledger.record(machine_row(1, cost_nano_usd=10, run_id="another"))
        assert ledger.total_nano_usd() == MAX_INT64
        assert ledger.verify() == []


def test_text_of_any_kind_is_kept_and_sealed(path: Path) -> None:
    names = ["", "\0", "\ud800", "x" * 10_000, "'; DROP TABLE entry; --", "日本語", "\x1b[31m"]
    with Ledger.open(path) as ledger:
        for name in names:
            ledger.record(machine_row(1, run_id=name, phase=name, model=name, app=name, device=name))
        assert ledger.num_entries() == len(names)
        assert ledger.verify() == []


counts = st.integers(0, 10**12)
rows = st.builds(
    lambda ms, prompt, cached, out, thought, trained, run, kind: machine_row(
        ms, prompt_tokens=prompt, cached_tokens=min(cached, prompt), completion_tokens=out,
        reasoning_tokens=min(thought, out), trained_tokens=trained, run_id=run, kind=kind,
    ),
    counts, counts, counts, counts, counts, counts, st.sampled_from("abc"), st.sampled_from(EntryKind),
)  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, max_size=12), st.sampled_from(GROUPINGS), st.booleans())
def test_totals_are_the_sums_of_their_parts(tmp_path: Path, booked: list, by: str, at_once: bool) -> None:  # type: ignore[type-arg]
    (tmp_path / "ledger.db").unlink(missing_ok=True)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"ledger.db{suffix}").unlink(missing_ok=True)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        for part in [booked] if at_once else [[row] for row in booked]:
            ledger.record_many(part)
        totals, groups = ledger.totals(ALL), ledger.grouped(ALL, by=by)  # type: ignore[arg-type]
        for name in (
            "cost_nano_usd",
            "wall_ms",
            "prompt_tokens",
            "cached_tokens",
            "completion_tokens",
            "trained_tokens",
        ):
            assert getattr(totals, name) == sum(getattr(row, name) for row in booked)
            assert getattr(totals, name) == sum(getattr(group, name) for group in groups.values())
        assert ledger.verify() == []


def test_filter_by_moments_within_hours_takes_what_the_hours_do_not_tell(path: Path, by_sql: BySql) -> None:
    hour = datetime(2026, 3, 1, 10, tzinfo=UTC)
    with Ledger.open(path) as ledger:
        ledger.record_many([machine_row(10**6, cost_nano_usd=10**n) for n in range(8)])
    moments = [hour + timedelta(minutes=25 * n) for n in range(8)]
    by_sql("DROP TRIGGER entry_is_never_changed")
    for number, moment in enumerate(moments, start=1):
        by_sql(f"UPDATE entry SET recorded_at_ms = {round(moment.timestamp() * 1000)} WHERE entry_id = {number}")
    by_sql(
        "DELETE FROM rollup",
        "INSERT INTO rollup SELECT recorded_at_ms / 3600000, kind, run_id, model, price_id, basis, app, api_key_label,"
        " count(*), min(recorded_at_ms), max(recorded_at_ms), sum(wall_ms), sum(device_ms), count(device_ms), 0, 0, 0,"
        " 0, 0, 0, 0, 0, sum(cost_nano_usd) FROM entry GROUP BY 1, 2, 3, 4, 5, 6, 7, 8",
    )
    with Ledger.open(path) as ledger:
        for since in (None, hour, *moments, hour + timedelta(minutes=1)):
            for until in (None, hour, *moments, hour + timedelta(hours=2), hour + timedelta(minutes=61)):
                within = [(since is None or since <= m) and (until is None or m < until) for m in moments]
                expected = sum(10**n for n, is_in in enumerate(within) if is_in)
                assert ledger.totals(LedgerFilter(since=since, until=until)).cost_nano_usd == expected


@pytest.mark.slow
def test_nothing_drifts_over_ten_million_entries() -> None:
    """By SQL alone, through the same triggers, against the closed form; floats of dollars would be off by then."""
    from aha.cost.ledger.entries import add_price
    from aha.cost.ledger.schema import connect_in_memory

    count, price = 10**7, custom_machine_price("0.0036", on=PRICE.source_date)  # 1 nano-dollar a millisecond
    connection = connect_in_memory()
    add_price(connection, price)
    for index in ("entry_by_key", "entry_by_run", "entry_by_time"):
        connection.execute(f"DROP INDEX {index}")
    connection.execute("BEGIN")
    connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO entry SELECT i, '', i * 3600, 'request', '', '', '', NULL, '', '', '', ?, 'machine_time', NULL,"
        " i, NULL, 1, 0, 0, 1, 0, 0, NULL, i, x'' FROM n",
        (count, price.price_id),
    )
    connection.execute("COMMIT")
    total = connection.execute("SELECT sum(num_entries), sum(wall_ms), sum(cost_nano_usd) FROM rollup").fetchone()
    assert total == (count, count * (count + 1) // 2, count * (count + 1) // 2)
    assert connection.execute("SELECT cost_nano_usd FROM grand_total").fetchone()[0] == count * (count + 1) // 2
    connection.close()


def test_nothing_drifts_where_floats_do(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.record_many([machine_row(1, cost_nano_usd=100_000_001)] * 10_000)
        assert ledger.total_nano_usd() == 10_000 * 100_000_001
    assert sum([0.100000001] * 10_000) != 1000.00001, "what it would be in dollars"
