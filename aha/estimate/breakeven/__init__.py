"""Own a model or call an API: after how many tokens, how many months and at which load the one pays for the other."""

from aha.estimate.breakeven.case import (
    DAYS_PER_MONTH,
    HOURS_PER_MONTH,
    ApiRate,
    BreakEven,
    Owning,
    Pay,
    Workload,
    finite,
)

__all__ = [
    "DAYS_PER_MONTH",
    "HOURS_PER_MONTH",
    "ApiRate",
    "BreakEven",
    "Owning",
    "Pay",
    "Workload",
    "finite",
]
