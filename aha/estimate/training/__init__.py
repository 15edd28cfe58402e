"""What training a model costs, from first principles: operations, the time they take, GPU hours, dollars, energy."""

from aha.estimate.training.bill import (
    UNPRICED,
    Term,
    TrainingBill,
    TrainingRun,
    bill_training,
    likely_hours,
)

__all__ = [
    "UNPRICED",
    "Term",
    "TrainingBill",
    "TrainingRun",
    "bill_training",
    "likely_hours",
]
