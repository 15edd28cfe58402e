"""What it costs: prices by date, the ledger that outlives runs, the bill of a run. Imports no torch."""

from aha.cost.bill import Bill, BillPhase, Gain
from aha.cost.ledger import Basis, EntryKind, Ledger, LedgerFilter, LedgerRow, LedgerTotals
from aha.cost.prices import (
    MachinePrice,
    TokenPrice,
    custom_machine_price,
    custom_token_price,
    machine_history,
    machine_price,
    machine_prices_on,
    price_history,
    prices_on,
    token_price,
    token_prices,
)

__all__ = [
    "Basis",
    "Bill",
    "BillPhase",
    "EntryKind",
    "Gain",
    "Ledger",
    "LedgerFilter",
    "LedgerRow",
    "LedgerTotals",
    "MachinePrice",
    "TokenPrice",
    "custom_machine_price",
    "custom_token_price",
    "machine_history",
    "machine_price",
    "machine_prices_on",
    "price_history",
    "prices_on",
    "token_price",
    "token_prices",
]
