"""Which GPUs, and how many, for a training run of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from aha.cost.prices import MachinePrice
from aha.errors import ConfigError
from aha.estimate.flops import causal_keys, token_flops
from aha.estimate.hardware import GPU
from aha.estimate.training.assumptions import Assumptions
from aha.estimate.training.bill import TrainingBill, TrainingRun, bill_training
from aha.estimate.training.compute import BF16_BYTES
from aha.estimate.training.memory import MASTER_BYTES
from aha.estimate.training.table import show_days, show_dollars, show_hours
from aha.models.config import ModelConfig
from aha.models.counts import count_parameters

MAX_GPUS = 32_768
"""That a plan looks for: the largest published run had half of them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One kind of GPU for a run."""

    gpu: GPU
    bill: TrainingBill | None
    """None: it cannot be done on them, `why` says what is missing."""
    why: str = ""


def usual_counts(gpu: GPU, *, most: int = MAX_GPUS) -> Iterator[int]:
    """Numbers of GPUs that are rented: parts of a node, then nodes in twos and threes."""
    count = 1
    while count < gpu.gpus_per_node:
        yield count
        count *= 2
    nodes = 1
    while nodes * gpu.gpus_per_node <= most:
        yield nodes * gpu.gpus_per_node
        if nodes >= 2 and 3 * nodes // 2 * gpu.gpus_per_node <= most and nodes & (nodes - 1) == 0:
            yield 3 * nodes // 2 * gpu.gpus_per_node
        nodes *= 2


def fewest_gpus(
    config: ModelConfig, *, run: TrainingRun, price: MachinePrice, overhead: float, deadline_days: float
) -> TrainingBill:
    """The bill with the fewest GPUs that hold the model and are done in time.

    Args:
        run: whose number of GPUs is left aside.
        deadline_days: 0 asks only that it fits.

    Raises:
        ConfigError: no number up to MAX_GPUS will do.
    """
    last: ConfigError | None = None
    quickest: TrainingBill | None = None
    for count in usual_counts(run.gpu):
        if _least_bytes(config, assumptions=run.assumptions, num_gpus=count) > run.gpu.memory_bytes:
            continue
        if deadline_days and _bound_days(config, run=replace(run, num_gpus=count), price=price) > deadline_days:
            continue
        try:
            bill = bill_training(config, run=replace(run, num_gpus=count), price=price, overhead=overhead)
        except ConfigError as error:
            last = error
            continue
        if not deadline_days or bill.wall_hours <= 24 * deadline_days:
            return bill
        quickest = bill if quickest is None or bill.wall_hours < quickest.wall_hours else quickest
    if quickest is not None:
        raise ConfigError(
            f"not in {deadline_days:g} days on up to {MAX_GPUS:,} x {run.gpu.title}: {quickest.run.num_gpus:,} take "
            f"{show_days(quickest.wall_hours)}; use a longer deadline, fewer tokens or faster GPUs"
        )
    raise last or ConfigError(
        f"not in {deadline_days:g} days on up to {MAX_GPUS:,} x {run.gpu.title}, at its very peak"
    )


def _least_bytes(config: ModelConfig, *, assumptions: Assumptions, num_gpus: int) -> float:
    """Of weights, gradients and optimiser, spread over all GPUs: no layout needs less."""
    state = BF16_BYTES + assumptions.gradient_bytes + MASTER_BYTES + 2 * assumptions.moment_bytes
    return state * count_parameters(config).held / num_gpus


def _bound_days(config: ModelConfig, *, run: TrainingRun, price: MachinePrice) -> float:
    """Days at the peak of the hardware: no layout is faster."""
    flops = token_flops(config, visible_keys=causal_keys(run.sequence_tokens)).training
    return run.tokens * flops / run.gpu.flops_per_second(run.precision) / run.num_gpus / 86_400


def plan_gpus(gpus: Iterable[GPU], *, bill: Callable[[GPU], TrainingBill]) -> list[Plan]:
    """A bill for each, the cheapest first, then those without a price, then those that cannot do it."""
    plans = []
    for gpu in gpus:
        try:
            plans.append(Plan(gpu=gpu, bill=bill(gpu)))
        except ConfigError as error:
            plans.append(Plan(gpu=gpu, bill=None, why=str(error)))
    return sorted(plans, key=_order)


def _order(plan: Plan) -> tuple[int, float]:
    if plan.bill is None:
        return 2, 0.0
    return (0, plan.bill.cost_usd) if plan.bill.is_priced else (1, plan.bill.gpu_hours)


def show_plans(plans: Sequence[Plan], *, name: str) -> str:
    """A table, the cheapest first."""
    done = [plan for plan in plans if plan.bill is not None]
    lines = [f"{name}: {_verdict(done)}", ""]
    takes = f"{'wall clock':>12} {'GPU hours':>11} {'$/hour':>7} {'dollars':>11}"
    lines.append(f"  {'GPU':10} {'GPUs':>6} {takes} {'MFU':>6}  layout")
    for plan in plans:
        if plan.bill is None:
            lines.append(f"  {plan.gpu.name:10} no: {plan.why}")
            continue
        bill = plan.bill
        hour = f"{bill.price.usd_per_hour:.2f}" if bill.is_priced else ""
        lines.append(
            f"  {plan.gpu.name:10} {bill.run.num_gpus:>6,} {show_days(bill.wall_hours):>12} "
            f"{show_hours(bill.gpu_hours):>11} {hour:>7} {show_dollars(bill):>11} {bill.mfu:>6.1%}  "
            f"{bill.layout.describe()}"
        )
    return "\n".join([*lines, "", *_NOTES])


_NOTES = (
    "  the price of an hour is each GPU's own in the price book, of its vendor and date (aha cost prices); --price",
    "  sets another; name one GPU with --gpu for its terms, its memory and what is assumed",
)


def _verdict(done: Sequence[Plan]) -> str:
    if not done:
        return "none of these GPUs can do it"
    bill = done[0].bill
    assert bill is not None
    cheapest = "cheapest" if bill.is_priced else "fewest GPU hours"
    cost = f"{show_dollars(bill)} in {show_days(bill.wall_hours)}"
    return f"{cheapest} on {bill.run.num_gpus:,} x {done[0].gpu.title}: {cost}"
