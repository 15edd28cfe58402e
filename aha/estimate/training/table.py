"""A training bill as people read it."""

from __future__ import annotations

from collections.abc import Iterator

from aha.estimate.hardware import GIB
from aha.estimate.training.amounts import show_amount
from aha.estimate.training.assumptions import describe_assumptions
from aha.estimate.training.bill import TrainingBill, likely_hours
from aha.models.counts import count_parameters

FEW_STEPS = 500
"""Below which a run is mostly warming up: V3's 2,000 first steps are (arXiv:2412.19437 §4.2)."""


def show_bill(bill: TrainingBill, *, name: str) -> str:
    """Everything: the answer first, each term, memory, what is assumed."""
    return "\n".join([*_head(bill, name=name), "", *_terms(bill), "", *_memory(bill), "", *_assumed(bill)])


def show_hours(hours: float) -> str:
    """GPU hours, in thousands and millions where there are as many."""
    if hours < 100:
        return f"{hours:.3g}"
    return f"{hours:,.0f}" if hours < 1e5 else f"{hours / 1e3:,.1f}K" if hours < 1e7 else f"{hours / 1e6:,.2f}M"


def show_dollars(bill: TrainingBill) -> str:
    usd = bill.cost_usd
    if not bill.is_priced:
        return "unpriced"
    return f"${usd:,.2f}" if usd < 1000 else f"${usd:,.0f}" if usd < 1e6 else f"${usd / 1e6:,.3f}M"


def show_count(num_gpus: int) -> str:
    return "1 GPU" if num_gpus == 1 else f"{num_gpus:,} GPUs"


def show_days(hours: float) -> str:
    return (
        f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
    )


def _head(bill: TrainingBill, *, name: str) -> Iterator[str]:
    run, counts = bill.run, count_parameters(bill.config)
    likely = likely_hours(bill)
    yield (
        f"{name}: {show_hours(bill.gpu_hours)} {run.gpu.name.upper()} hours, {show_dollars(bill)}, "
        f"{show_days(bill.wall_hours)} on {show_count(run.num_gpus)}"
    )
    yield (
        f"likely {show_hours(likely.low)} to {show_hours(likely.high)} hours: eight of ten public runs since July 2023 "
        "are that near (--check)"
    )
    yield ""
    active = f", {show_amount(counts.active)} used by a token" if counts.active != counts.total else ""
    extra = f", and {show_amount(counts.mtp)} of multi-token prediction" if counts.mtp else ""
    yield f"  parameters    {show_amount(counts.total)}{active}{extra}"
    yield f"  tokens        {show_amount(run.tokens)} in sequences of {run.sequence_tokens:,}"
    in_all = bill.flops_per_token * run.tokens
    yield f"  operations    {bill.flops_per_token:.4g} a token, forward and backward; {in_all:.3g} in all"
    yield f"  GPUs          {run.num_gpus:,} x {run.gpu.title}, products in {run.precision}"
    yield f"  layout        {bill.layout.describe()}"
    yield (
        f"  step          {bill.batch_tokens / 1e6:,.1f}M tokens in {bill.step_seconds:,.2f} s: "
        f"{bill.tokens_per_second_per_gpu:,.0f} tokens/s and GPU, {bill.mfu:.1%} of the bfloat16 peak (MFU)"
    )
    if bill.is_priced:
        overhead = f" x {bill.overhead:g} overhead" if bill.overhead != 1 else ""
        yield f"  price         ${bill.price.usd_per_hour:,.2f} a GPU hour{overhead} ({bill.price.price_id})"
    else:
        yield f"  price         unpriced: {bill.price.source}; give one with --price DOLLARS"
    kwh = bill.energy_kwh
    energy = f"{kwh:,.1f} kWh" if kwh < 1e4 else f"{kwh / 1e3:,.1f} MWh"
    yield f"  energy        {energy}, hosts and building included"
    if bill.num_steps < FEW_STEPS:
        yield (
            f"  note          only {bill.num_steps:,.0f} steps of so large a batch: a smaller --batch, or fewer GPUs, "
            "learns more from the same tokens"
        )


def _terms(bill: TrainingBill) -> Iterator[str]:
    total = bill.gpu_seconds_per_token
    steps = bill.batch_tokens / bill.run.num_gpus
    yield f"  {'where the time goes':36} {'s/step':>8} {'share':>7}  {'hidden':>8}  why"
    for term in bill.terms:
        hidden = f"{term.hidden_seconds_per_token * steps:8.3f}" if term.hidden_seconds_per_token else " " * 8
        yield (
            f"  {term.name:36} {term.seconds_per_token * steps:8.3f} {term.seconds_per_token / total:7.1%}  {hidden}  "
            f"{term.note}"
        )
    yield f"  {'in all':36} {total * steps:8.3f} {1:7.1%}"


def _memory(bill: TrainingBill) -> Iterator[str]:
    items = bill.memory._asdict()
    words = " + ".join(f"{name} {value / GIB:.1f}" for name, value in items.items())
    verdict = "fits" if bill.fits else "DOES NOT FIT"
    room = f"{bill.memory.total / GIB:.1f} of {bill.run.gpu.memory_gib} GiB"
    yield f"  memory of the fullest GPU: {room}, {verdict}: {words}"
    if not bill.fits:
        yield f"  to make it fit: {advice(bill)}"


def advice(bill: TrainingBill) -> str:
    """What frees most of the memory that is missing."""
    memory, layout = bill.memory, bill.layout
    ways = {
        memory.activations: "recompute more, more tensor or context parallelism, or a smaller micro-batch",
        memory.weights + memory.gradients: "more pipeline stages, tensor or expert parallelism, or zero=2 or 3",
        memory.optimizer: "more copies to share the optimiser, or moment_bytes=2",
    }
    if layout.recomputation == "full":
        ways[memory.activations] = "more tensor or context parallelism, or a smaller micro-batch"
    return ways[max(ways)] + "; or leave the layout out"


def _assumed(bill: TrainingBill) -> Iterator[str]:
    gpu, run = bill.run.gpu, bill.run
    yield "  assumed (change with --set NAME=NUMBER):"
    yield f"    {'GPU':27} {gpu.source}"
    yield f"    {'matrix products':27} {gpu.shares[run.precision]:.1%} of the peak: {gpu.shares_source}"
    for each in describe_assumptions(run.assumptions):
        yield f"    {each['name']:27} {each['value']:<6g} {each['source']} [{each['confidence']}]"
