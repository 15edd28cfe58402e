"""What a request cost: its share of the engine's seconds at the machine's hourly price, written into the ledger.

Every engine step is divided among the requests it computed for (by prompt tokens in a prefill, by completions while
decoding), so the requests' seconds add up to the seconds in which the engine worked. A request's sum is rounded up to
a whole millisecond. Nobody is charged for idle time: what the machine costs a month is a question for `aha cost`.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from aha.cost import EntryKind, Ledger, LedgerRow, MachinePrice
from aha.errors import AhaError
from aha.types import Usage

NS_PER_MS = 1_000_000
_log = logging.getLogger(__name__)


class Meter:
    """Prices requests and keeps the books.

    Args:
        price: of the machine the engine runs on.
        ledger: None keeps no books.
        server_id: what the ledger's rows name as the one who spent.
    """

    def __init__(self, price: MachinePrice, *, ledger: Ledger | None, server_id: str) -> None:
        self.price = price
        self._ledger = ledger
        self._server_id = server_id
        # A thread of its own: a locked database may take seconds, and nobody should wait for the books.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aha-ledger")

    def cost_nano_usd(self, engine_ns: int) -> int:
        """Nano-dollars for so many nanoseconds of the engine."""
        return self.price.cost_nano_usd(_wall_ms(engine_ns))

    def record(self, usage: Usage, *, engine_ns: int, path: str) -> None:
        """Enter one request into the ledger, in the background. A ledger that fails is logged and stops nothing."""
        if self._ledger is None:
            return
        row = LedgerRow(
            kind=EntryKind.REQUEST,
            run_id=self._server_id,
            phase=path,
            price=self.price,
            cost_nano_usd=self.cost_nano_usd(engine_ns),
            wall_ms=_wall_ms(engine_ns),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        )
        self._writer.submit(self._write, self._ledger, row)

    def close(self) -> None:
        """Wait until every row is written."""
        self._writer.shutdown()

    @staticmethod
    def _write(ledger: Ledger, row: LedgerRow) -> None:
        try:
            ledger.record(row)
        except AhaError as error:
            _log.warning("a request is missing in the ledger: %s", error)


def _wall_ms(engine_ns: int) -> int:
    return -(-engine_ns // NS_PER_MS)
