"""What it costs: prices by date, the ledger that outlives runs, the bill of a run. Imports no torch."""

from aha.cost.bill import Bill, BillPhase, Gain
from aha.cost.ledger import EntryKind, Ledger, LedgerRow
from aha.cost.prices import (
    MachinePrice,
    TokenPrice,
    custom_machine_price,
    custom_token_price,
    machine_price,
    token_price,
)

__all__ = [
    "Bill",
    "BillPhase",
    "EntryKind",
    "Gain",
    "Ledger",
    "LedgerRow",
    "MachinePrice",
    "TokenPrice",
    "custom_machine_price",
    "custom_token_price",
    "machine_price",
    "token_price",
]
