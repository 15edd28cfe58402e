"""The ledger: what was spent, by whom, at which price. One SQLite file that outlives the runs; entries are only added.

Amounts are integers: nano-dollars for what was spent, pico-dollars for one token, milliseconds for time. An entry
carries the id of the price it was priced with, and the price itself lies beside it, so that it can always be computed
again. Each is posted twice, to an expense and to whom it is owed, and the postings of an entry sum to zero. `record`
returns when the entry is on the disk; threads that record at once share one commit. docs/ledger.md has the whole of it.
"""

from aha.cost.ledger.budgets import BudgetRefusedError, Budgets, BudgetState, Period, Recovery, Reservation, Settlement
from aha.cost.ledger.queries import GROUPINGS, GroupBy
from aha.cost.ledger.repricing import Repriced, RepricedGroup
from aha.cost.ledger.rows import Basis, EntryKind, LedgerFilter, LedgerRow, LedgerTotals
from aha.cost.ledger.schema import MIGRATIONS, LedgerError, default_ledger_path
from aha.cost.ledger.store import Ledger

__all__ = [
    "GROUPINGS",
    "MIGRATIONS",
    "Basis",
    "BudgetRefusedError",
    "BudgetState",
    "Budgets",
    "EntryKind",
    "GroupBy",
    "Ledger",
    "LedgerError",
    "LedgerFilter",
    "LedgerRow",
    "LedgerTotals",
    "Period",
    "Recovery",
    "Repriced",
    "RepricedGroup",
    "Reservation",
    "Settlement",
    "default_ledger_path",
]
