"""How fast the ledger writes with full durability, and how fast it answers over a million entries.

    python -m bench.ledger [--entries 1000000] [--folder DIR]

Every write is on the disk before it counts (WAL, synchronous = FULL, a group commit). The folder must lie on the disk
that is to be measured: /tmp is memory on some systems, and then nothing is. `write` rows call `record` once an entry
from so many threads, as a server does; `record_many` books 1,000 at a time. Questions are the median of five.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from aha.cost import EntryKind, Ledger, LedgerFilter, LedgerRow, custom_machine_price
from aha.cost.ledger import GroupBy

PRICE = custom_machine_price("0.08", on=date(2026, 1, 1))
CHUNK = 1000
NUM_DAYS = 90
CHILD = """
import sys
from pathlib import Path
from bench.ledger import make_row
from aha.cost import Ledger

with Ledger.open(Path(sys.argv[1])) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[2])):
        ledger.record(make_row(number))
"""


def make_row(number: int) -> LedgerRow:
    """A request as a server books it; runs, models and tokens vary."""
    wall_ms = 20 + number % 500
    return LedgerRow(
        kind=list(EntryKind)[number % 4], run_id=f"serve {number % 20}", phase="/v1/chat/completions", price=PRICE,
        cost_nano_usd=PRICE.cost_nano_usd(wall_ms), wall_ms=wall_ms, device_ms=wall_ms, device="cpu",
        model=f"model-{number % 5}", prompt_tokens=number % 4000, completion_tokens=number % 900,
        reasoning_tokens=number % 300 if number % 900 >= number % 300 else 0,
    )  # fmt: skip


def measure_threads(folder: Path, *, num_threads: int, num_writes: int) -> tuple[float, float]:
    """Writes a second, and writes to a commit."""
    with Ledger.open(folder / f"threads_{num_threads}.db") as ledger:
        before = ledger.num_commits
        share = num_writes // num_threads
        threads = [
            threading.Thread(target=lambda: [ledger.record(make_row(n)) for n in range(share)])
            for _ in range(num_threads)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        return share * num_threads / seconds, share * num_threads / (ledger.num_commits - before)


def measure_processes(folder: Path, *, num_processes: int, num_writes: int) -> float:
    """Writes a second of processes that write to one file at once, one thread each."""
    path = folder / f"processes_{num_processes}.db"
    share = num_writes // num_processes
    command = [sys.executable, "-c", CHILD, str(path), str(share)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(num_processes)]  # type: ignore[call-overload]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    started = time.perf_counter()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.wait() for child in children] == [0] * num_processes
    seconds = time.perf_counter() - started
    with Ledger.open(path) as ledger:
        assert ledger.num_entries() == share * num_processes
    return share * num_processes / seconds


def fill(ledger: Ledger, *, num_entries: int) -> float:
    """Book entries over NUM_DAYS days; returns entries a second."""
    clock, first = time.time_ns, datetime.now(UTC) - timedelta(days=NUM_DAYS)
    started = time.perf_counter()
    try:
        for start in range(0, num_entries, CHUNK):
            moment = first + timedelta(days=NUM_DAYS) * (start / num_entries)
            time.time_ns = lambda moment=moment: round(moment.timestamp() * 1e9)  # type: ignore[misc]
            rows = [replace(make_row(n), key=f"{n:09}") for n in range(start, min(start + CHUNK, num_entries))]
            ledger.record_many(rows)
    finally:
        time.time_ns = clock  # type: ignore[misc]
    return num_entries / (time.perf_counter() - started)


def median_ms(question: Callable[[], object]) -> float:
    """Milliseconds, the median of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        question()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def questions(ledger: Ledger) -> dict[str, Callable[[], object]]:
    """What is asked of the big ledger, by name."""
    now = datetime.now(UTC)
    everything, groupings = LedgerFilter(), ("run", "day", "kind", "model", "price")
    asked: dict[str, Callable[[], object]] = {"totals": lambda: ledger.totals(everything)}
    for by in groupings:
        asked[f"by {by}"] = lambda by=by: _grouped(ledger, everything, by)  # type: ignore[misc]
    asked["totals of one model"] = lambda: ledger.totals(LedgerFilter(model="model-3"))
    odd = LedgerFilter(since=now - timedelta(days=30, minutes=17), until=now - timedelta(days=1, minutes=3))
    asked["by run, 29 days cut within hours"] = lambda: _grouped(ledger, odd, "run")
    return asked


def _grouped(ledger: Ledger, chosen: LedgerFilter, by: GroupBy) -> object:
    return ledger.grouped(chosen, by=by)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ledger.")
    parser.add_argument("--entries", type=int, default=10**6)
    parser.add_argument("--writes", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd()) as name:
        folder = Path(name)
        print(f"load average {load:.2f} at the start, {os.cpu_count()} cores\n\n| what | figure |\n| --- | --- |")
        for num_threads in (1, 8, 64):
            rate, group = measure_threads(folder, num_threads=num_threads, num_writes=options.writes)
            print(f"| record, {num_threads} threads | {rate:,.0f} writes/s, {group:.1f} to a commit |", flush=True)
        for num_processes in (4, 64):
            rate = measure_processes(folder, num_processes=num_processes, num_writes=options.writes // 2)
            print(f"| record, {num_processes} processes | {rate:,.0f} writes/s |", flush=True)
        path = folder / "big.db"
        with Ledger.open(path) as ledger:
            rate = fill(ledger, num_entries=options.entries)
            print(f"| record_many, {CHUNK:,} at a time | {rate:,.0f} writes/s |", flush=True)
            for label, question in questions(ledger).items():
                print(f"| {label}, {options.entries:,} entries | {median_ms(question):,.1f} ms |", flush=True)
            started = time.perf_counter()
            assert ledger.verify() == []
            print(f"| verify, {options.entries:,} entries | {time.perf_counter() - started:,.1f} s |")
        # Closed by now: the log has gone into the file.
        print(f"| size of the file | {path.stat().st_size / options.entries:,.0f} bytes an entry |")


if __name__ == "__main__":
    main()
