"""The table of `aha cost train --check`, and published bills that need no estimate."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from aha.estimate.training.public_runs import MODERN_SINCE, Era, PublicRun, held_out, public_runs


def show_check() -> str:
    """Every public run with its estimate and error, and a summary in words."""
    runs = public_runs()
    figures = f"{'what':>12} {'published':>11} {'estimate':>11} {'cost error':>10}"
    lines = [f"  {'run':35} {'of':7} {'':4} {figures}  layout     role"]
    for run in runs:
        layout = "published" if run.has_layout else "chosen"
        lines.append(
            f"  {run.name:35} {run.published_in:7} {run.kind:4} {_UNITS[run.measure]:>12} {run.published:>11,.0f} "
            f"{run.estimated():>11,.0f} {run.cost_error:>+10.1%}  {layout:10} {run.role}"
        )
    return "\n".join([*lines, "", *_summary(), "", *_published()])


_UNITS = {"gpu_hours": "GPU hours", "tokens_per_second_per_gpu": "tokens/s/GPU", "teraflops": "TFLOP/s/GPU"}


def cost_ratios(runs: Sequence[PublicRun]) -> list[float]:
    """What runs cost over what is estimated, in ascending order."""
    return sorted(1 / (1 + run.cost_error) for run in runs)


def span_of_eight_in_ten(ratios: Sequence[float]) -> tuple[float, float]:
    """The ratios that a tenth lies below and a tenth above."""
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def _summary() -> Iterator[str]:
    yield "  cost error: above 0 where the estimate is dearer than the run. Of runs that nothing was set on:"
    eras: tuple[tuple[str, Era], ...] = ((f"since {MODERN_SINCE}", "modern"), ("before", "older"))
    for words, era in eras:
        ratios = cost_ratios(held_out(era=era))
        low, high = span_of_eight_in_ten(ratios)
        yield (
            f"    {words:14} {len(ratios)} runs; the median cost {statistics.median(ratios):.2f} times the estimate, "
            f"eight of ten {low:.2f} to {high:.2f} times"
        )
    names = [run.name for run in public_runs() if run.role == "calibration"]
    yield f"  One constant (sustained_share) was set on {len(names)} runs of as many stacks:"
    yield from (f"    {name}" for name in names)
    yield "  The estimate is a well-tuned stack's, with FlashAttention-2 or later. Sources, and what each leaves open:"
    yield "  aha/estimate/training/public_runs.toml."


class PublishedBill(NamedTuple):
    """Hours and dollars that a paper states."""

    name: str
    gpu_hours: float
    usd_per_hour: float
    cost_usd: float
    source: str


PUBLISHED_BILLS = (
    PublishedBill("DeepSeek-V3, pre-training", 2.664e6, 2.0, 5.328e6, "arXiv:2412.19437 table 1"),
    PublishedBill("DeepSeek-V3, context extension", 119e3, 2.0, 0.238e6, "arXiv:2412.19437 table 1"),
    PublishedBill("DeepSeek-V3, post-training", 5e3, 2.0, 0.01e6, "arXiv:2412.19437 table 1"),
    PublishedBill("DeepSeek-R1-Zero", 101e3, 2.0, 202e3, "Nature 645 (2025), supplement"),
    PublishedBill("DeepSeek-R1, SFT data", 5e3, 2.0, 10e3, "Nature 645 (2025), supplement"),
    PublishedBill("DeepSeek-R1", 41e3, 2.0, 82e3, "Nature 645 (2025), supplement"),
)


def _published() -> Iterator[str]:
    yield f"  {'published bills (H800)':36} {'GPU hours':>12} {'$/hour':>8} {'dollars':>12}  source"
    for bill in PUBLISHED_BILLS:
        usd = bill.gpu_hours * bill.usd_per_hour
        yield f"  {bill.name:36} {bill.gpu_hours:>12,.0f} {bill.usd_per_hour:>8.2f} {usd:>12,.0f}  {bill.source}"
    for name, start in (("DeepSeek-V3", "DeepSeek-V3"), ("DeepSeek-R1, on top of V3", "DeepSeek-R1")):
        chosen = [bill for bill in PUBLISHED_BILLS if bill.name.startswith(start)]
        hours = sum(bill.gpu_hours for bill in chosen)
        usd = sum(bill.gpu_hours * bill.usd_per_hour for bill in chosen)
        yield f"  {name + ', in all':36} {hours:>12,.0f} {'':8} {usd:>12,.0f}"


def check_to_list() -> list[dict[str, Any]]:
    """For scripts; the keys are described in docs/estimates.md and stay."""
    return [
        {
            "name": run.name,
            "published_in": run.published_in,
            "kind": run.kind,
            "role": run.role,
            "measure": run.measure,
            "published": run.published,
            "estimated": run.estimated(),
            "cost_error": run.cost_error,
            "layout_published": run.has_layout,
            "confidence": run.confidence,
            "source": run.source,
            "assumed": run.assumed,
        }
        for run in public_runs()
    ]
