"""What a request cost: its share of the engine's seconds at the machine's hourly price, written into the ledger.

Every engine step is divided among the requests it computed for (by prompt tokens in a prefill, by completions while
decoding), so the requests' seconds add up to the seconds in which the engine worked. A request's sum is rounded up to
a whole millisecond. Nobody is charged for idle time: what the machine costs a month is a question for `aha cost`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

from aha.cost import Basis, EntryKind, Ledger, LedgerRow, MachinePrice
from aha.cost.energy import EnergyMeter
from aha.errors import AhaError
from aha.serve.comparison import ListedCost, listed_costs
from aha.types import Usage

NS_PER_MS = 1_000_000
NUM_WRITERS = 32
"""Requests that end at the same time wait in so many threads and share a commit."""
_log = logging.getLogger(__name__)


class Meter:
    """Prices requests and keeps the books.

    Args:
        price: of the machine the engine runs on.
        ledger: None keeps no books.
        server_id: what the ledger's rows name as the one who spent.
        model: that is served.
        device: it is served on.
        apis: names in the price book whose charge is told beside a request's cost.
    """

    def __init__(
        self,
        price: MachinePrice,
        *,
        ledger: Ledger | None,
        server_id: str,
        model: str = "",
        device: str = "",
        apis: Sequence[str] = (),
    ) -> None:
        self.price = price
        self._ledger = ledger
        self._server_id = server_id
        self._model = model
        self._device = device
        self._apis = tuple(apis)
        self._energy = EnergyMeter()
        self._reading = threading.Lock()
        # Threads of their own: a locked database may take seconds, and no token of any other answer waits for it.
        self._writers = ThreadPoolExecutor(max_workers=NUM_WRITERS, thread_name_prefix="aha-ledger")

    def cost_nano_usd(self, engine_ns: int) -> int:
        """Nano-dollars for so many nanoseconds of the engine."""
        return self.price.cost_nano_usd(_wall_ms(engine_ns))

    def listed_costs(self, usage: Usage) -> list[ListedCost]:
        """What the APIs would have charged now for these tokens."""
        return listed_costs(usage, apis=self._apis, on=datetime.now(UTC))

    def record(
        self, usage: Usage, *, engine_ns: int, path: str, request_id: str = "", weight_version: int | None = None
    ) -> Future[None]:
        """Enter one request into the ledger, in the background. A ledger that fails is logged and stops nothing.

        Args:
            request_id: the answer's own id; with it the request is booked once, whatever is asked twice.

        Returns:
            What is done when the entry is on the disk, or its failure in the log.
        """
        if self._ledger is None:
            done: Future[None] = Future()
            done.set_result(None)
            return done
        wall_ms = _wall_ms(engine_ns)
        row = LedgerRow(
            kind=EntryKind.REQUEST,
            run_id=self._server_id,
            phase=path,
            key=f"request:{request_id}" if request_id else "",
            model=self._model,
            weight_version=weight_version,
            device=self._device,
            price=self.price,
            basis=Basis.MACHINE_TIME,
            cost_nano_usd=self.price.cost_nano_usd(wall_ms),
            wall_ms=wall_ms,
            device_ms=wall_ms,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        )
        return self._writers.submit(self._write, self._ledger, row)

    def close(self) -> None:
        """Wait until every row is written."""
        self._writers.shutdown()

    def _write(self, ledger: Ledger, row: LedgerRow) -> None:
        # Its share of the engine's seconds at the machine's mean power since the ones before.
        with self._reading:
            energy_mj = self._energy.take_mj(row.wall_ms / 1000)
        try:
            ledger.record(replace(row, energy_mj=energy_mj))
        except AhaError as error:
            _log.warning("a request is missing in the ledger: %s", error)


def _wall_ms(engine_ns: int) -> int:
    return -(-engine_ns // NS_PER_MS)
