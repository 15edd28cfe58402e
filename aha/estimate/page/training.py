"""Pictures of the training bill: DeepSeek-V3 and R1 by phase as published, V3's pre-training from its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from aha.cost.prices import MachinePrice, machine_price
from aha.estimate.charts import Part, stack
from aha.estimate.page.picture import Cell, Column, Gap, Picture, waterfall_drawing
from aha.estimate.page.published import BASE_MODEL, Phase, phases
from aha.estimate.page.words import Words, digits, dollars, hours
from aha.estimate.training import Term, TrainingBill, bill_training
from aha.estimate.training.public_runs import PublicRun, public_runs

RUN, TOKENS = "DeepSeek-V3", 14.8e12
"""A run of public_runs.toml, and the tokens of its pre-training (arXiv:2412.19437 §4.2)."""
RENT = "h800-hour@2024-12-27"
"""Id of the price that the V3 report takes for an hour of an H800."""
PUBLISHED, COMPUTED, SUM = "second", "main", "third"


def phases_picture(words: Words, *, day: date) -> Picture | Gap:
    """What DeepSeek-V3 and R1 took by their own account, phase by phase, at the rent that the report takes."""
    price = machine_price(RENT, on=day)
    rows = phases()
    if day < max(phase.source.date for phase in rows if phase.model == BASE_MODEL):
        return Gap(key="training_phases", reason=words("no_training", reason=f"{price.source} ({price.source_date})"))
    base_hours = sum(phase.gpu_hours for phase in rows if phase.model == BASE_MODEL)
    own_hours = sum(phase.gpu_hours for phase in rows if phase.model != BASE_MODEL)
    parts = _phase_parts(words, rows, usd_per_hour=price.usd_per_hour)
    parts.append(_sum(words("sum"), gpu_hours=base_hours + own_hours, price=price, style=SUM))
    return Picture(
        key="training_phases",
        title=words(
            "phases_title", v3=dollars(base_hours * price.usd_per_hour), r1=dollars(own_hours * price.usd_per_hour)
        ),
        drawings=(waterfall_drawing(parts, caption=words("phases_caption")),),
        columns=_phase_columns(words),
        rows=tuple(_phase_row(phase, price) for phase in rows),
        notes=(words("phases_how", price=f"${price.usd_per_hour:.2f}"), words("hollow_bar")),
        sources=(
            *dict.fromkeys(f"{phase.source.title} ({phase.source.date.isoformat()})" for phase in rows),
            _rent_source(price),
        ),
    )


def waterfall_picture(words: Words, *, day: date) -> Picture | Gap:
    """Where the dollars of V3's pre-training go, computed from its config.json, beside the hours of its report."""
    report = next(phase for phase in phases() if phase.key == "pretraining")
    if day < report.source.date:
        return Gap(key="training_bill", reason=words("no_training", reason=f"{report.source.title}"))
    bill = v3_bill()
    usd = report.gpu_hours * bill.price.usd_per_hour
    return Picture(
        key="training_bill",
        title=words(
            "bill_title",
            computed=dollars(bill.cost_usd),
            report=dollars(usd),
            gap=_share(bill.cost_usd - usd, usd, sign="+"),
        ),
        drawings=(waterfall_drawing(_bill_parts(words, bill, report), caption=words("bill_caption")),),
        columns=_bill_columns(words),
        rows=tuple(_bill_row(bill, term) for term in bill.terms),
        notes=(_bill_how(words, bill),),
        sources=(
            f"{report.source.title} ({report.source.date.isoformat()})",
            _public_run().source,
            bill.run.gpu.source,
            _rent_source(bill.price),
        ),
    )


def v3_bill() -> TrainingBill:
    """DeepSeek-V3's pre-training as its report laid it out, at the report's rent."""
    public = _public_run()
    price = machine_price(RENT, on=public_day())
    return bill_training(public.config, run=replace(public.run, tokens=TOKENS), price=price)


def public_day() -> date:
    """Of the V3 report."""
    return next(phase.source.date for phase in phases() if phase.model == BASE_MODEL)


def _public_run() -> PublicRun:
    return next(run for run in public_runs() if run.name == RUN)


def _phase_parts(words: Words, rows: Sequence[Phase], *, usd_per_hour: float) -> list[Part]:
    parts = stack(
        [
            (
                words("phase", model=phase.model, phase=words(f"phase_{phase.key}")),
                phase.gpu_hours * usd_per_hour,
                f"{dollars(phase.gpu_hours * usd_per_hour)} · {hours(phase.gpu_hours)} h",
                f"{phase.source.title} ({phase.source.date.isoformat()})",
            )
            for phase in rows
        ],
        style=PUBLISHED,
    )
    return [
        part if phase.source.confidence == "primary" else replace(part, style=f"{PUBLISHED} hollow")
        for part, phase in zip(parts, rows, strict=True)
    ]


def _bill_parts(words: Words, bill: TrainingBill, report: Phase) -> list[Part]:
    amounts = [(term, _usd(bill, term)) for term in bill.terms]
    parts = stack(
        [(t.name, usd, f"{dollars(usd)} · {_share(usd, bill.cost_usd)}", t.note) for t, usd in amounts],
        style=COMPUTED,
    )
    return [
        *parts,
        _sum(words("sum_computed"), gpu_hours=bill.gpu_hours, price=bill.price, style=SUM),
        _sum(words("sum_report"), gpu_hours=report.gpu_hours, price=bill.price, style=PUBLISHED),
    ]


def _sum(label: str, *, gpu_hours: float, price: MachinePrice, style: str) -> Part:
    usd = gpu_hours * price.usd_per_hour
    return Part(label=label, start=0.0, amount=usd, shown=f"{dollars(usd)} · {hours(gpu_hours)} h", style=style)


def _bill_how(words: Words, bill: TrainingBill) -> str:
    return words(
        "bill_how",
        tokens=f"{bill.run.tokens / 1e12:g}",
        gpus=f"{bill.run.num_gpus:,}",
        gpu=bill.run.gpu.title,
        flops=digits(bill.flops_per_token / 1e9),
        mfu=f"{100 * bill.mfu:.0f}",
        price=f"${bill.price.usd_per_hour:.2f}",
    )


def _rent_source(price: MachinePrice) -> str:
    return f"{price.source} ({price.source_date.isoformat()})"


def _hours(bill: TrainingBill, term: Term) -> float:
    return bill.run.tokens * term.seconds_per_token / 3600


def _usd(bill: TrainingBill, term: Term) -> float:
    return _hours(bill, term) * bill.price.usd_per_hour * bill.overhead


def _share(part: float, whole: float, *, sign: str = "") -> str:
    return f"{100 * part / whole:{sign}.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def _phase_row(phase: Phase, price: MachinePrice) -> tuple[Cell, ...]:
    usd = phase.gpu_hours * price.usd_per_hour
    return phase.model, phase.key, phase.gpu_hours, usd, phase.source.confidence


def _phase_columns(words: Words) -> tuple[Column, ...]:
    return (
        Column(key="model", title=words("column_model")),
        Column(key="phase", title=words("column_phase")),
        Column(key="gpu_hours", title=words("column_gpu_hours"), show=lambda value: f"{value:,.0f}"),
        Column(key="cost_usd", title=words("column_cost"), show=dollars),
        Column(key="confidence", title=words("column_confidence")),
    )


def _bill_row(bill: TrainingBill, term: Term) -> tuple[Cell, ...]:
    return term.name, term.kind, term.seconds_per_token, _hours(bill, term), _usd(bill, term), term.note


def _bill_columns(words: Words) -> tuple[Column, ...]:
    return (
        Column(key="term", title=words("column_term")),
        Column(key="kind", title=words("column_kind")),
        Column(key="gpu_seconds_per_token", title=words("column_seconds"), show=lambda value: f"{value:.3g}"),
        Column(key="gpu_hours", title=words("column_gpu_hours"), show=lambda value: f"{value:,.0f}"),
        Column(key="cost_usd", title=words("column_cost"), show=dollars),
        Column(key="note", title=words("column_note")),
    )
