"""What `aha cost breakeven` is asked, read from words, runs and the price book; nothing is guessed in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Literal

from aha.errors import ConfigError
from aha.estimate.breakeven.answer import Answer, Assumption, PassInterval, answer_break_even
from aha.estimate.breakeven.apis import read_apis
from aha.estimate.breakeven.case import Owning, Pay, Workload, check_figure, check_share
from aha.estimate.breakeven.rate import RateOptions, measure, read_rate
from aha.estimate.breakeven.run import Run, find_run
from aha.estimate.breakeven.solved import check_result
from aha.estimate.serving.measured import MeasuredServing
from aha.evaluate import read_entries
from aha.report.words import usd as show_usd

Form = Literal["text", "json"]
MAX_OVERHEAD = 100
MAX_TYPED = 1e11
"""Of tokens, requests and dollars: a search of what turns the answer over goes a thousand times as far."""
MOST = {
    "training_usd": MAX_TYPED, "engineering_usd": MAX_TYPED, "input_tokens": MAX_TYPED, "cached_tokens": MAX_TYPED,
    "output_tokens": MAX_TYPED, "requests_per_day": MAX_TYPED, "api_output_ratio": 1000,
    "horizon_months": 120, "elasticity": 10,
}  # fmt: skip
"""The most of each option; ten years of prices are fiction enough, and elasticities are published near 1."""


@dataclass(frozen=True, kw_only=True)
class BreakEvenOptions:
    """What the command is given. None and "" are not given."""

    model: str = ""
    """A run, by folder or name, or what your model is to be called."""
    against: Sequence[str] = ()
    """Names or ids of the price book, or IN/OUT dollars a million tokens; none is all of that day."""
    on: date | datetime
    """A day, or a moment with its time zone where a price depends on the hour."""
    rate: RateOptions
    training_usd: float | None = None
    engineering_usd: float = 0.0
    input_tokens: float | None = None
    cached_tokens: float | None = None
    output_tokens: float | None = None
    requests_per_day: float | None = None
    pay: Pay = "month"
    max_utilisation: float = 0.8
    utilisation: float = 1.0
    horizon_months: float = 12.0
    elasticity: float = 1.0
    pass_at_1_own: str = ""
    """A share, or an evaluation."""
    pass_at_1_api: str = ""
    api_output_ratio: float = 1.0


def ask_break_even(options: BreakEvenOptions) -> Answer:
    """The answer to what was asked.

    Raises:
        AhaError: what is missing, unknown or out of range, in one line.
    """
    _check(options)
    run = find_run(options.model)
    training_usd, training = _read_training(options, run)
    measured = measure(options.rate)
    work, tokens = _read_workload(options, run, measured)
    rate, rate_assumptions = read_rate(
        options.rate, model=options.model, run=run, measured=measured, work=work, on=options.on
    )
    own_pass, api_pass = _read_passes(options)
    apis = [
        replace(api, pass_at_1=api_pass.value, output_ratio=options.api_output_ratio)
        for api in read_apis(options.against, on=options.on, input_tokens=work.input_tokens)
    ]
    owning = Owning(
        rate=rate,
        training_usd=training_usd,
        engineering_usd=options.engineering_usd,
        overhead=options.rate.overhead,
        pass_at_1=own_pass.value,
        pay=options.pay,
        max_utilisation=options.max_utilisation,
        utilisation=options.utilisation,
    )
    answer = answer_break_even(
        " ".join(options.model.split()) or "your model",
        owning=owning,
        apis=apis,
        work=work,
        on=options.on,
        horizon_months=options.horizon_months,
        elasticity=options.elasticity,
        assumptions=[training, *_fixed(options), *rate_assumptions, *tokens, own_pass.assumption, api_pass.assumption],
    )
    return replace(answer, own_pass=own_pass.interval, api_pass=api_pass.interval)


def _check(options: BreakEvenOptions) -> None:
    if bool(options.pass_at_1_own) != bool(options.pass_at_1_api):
        raise ConfigError(
            "one pass@1 alone would set a solved task against a request; give both --pass-at-1-own and -api"
        )
    for name, most in MOST.items():
        if getattr(options, name) is not None:
            check_figure(getattr(options, name), field=name, most=most)
    check_figure(options.rate.overhead, field="overhead", most=MAX_OVERHEAD)
    if options.horizon_months == 0:
        raise ConfigError("horizon_months must be above 0: nothing pays back in no time")


def _read_training(options: BreakEvenOptions, run: Run | None) -> tuple[float, Assumption]:
    if options.training_usd is not None:
        usd, source = options.training_usd, "given"
    elif run:
        usd, source = run.cost_usd, f"{run.folder}/bill.json"
    elif options.model:
        usd, source = 0.0, "the model is used as it is"
    else:
        raise ConfigError("what training costs is not known: give a run, a model, or --training-usd (0 for none)")
    return usd, Assumption("training, once", show_usd(usd), source, "--training-usd")


def _fixed(options: BreakEvenOptions) -> list[Assumption]:
    """What has a value until something else is said."""
    time = f"${options.engineering_usd:,.2f}"
    is_counted = "given" if options.engineering_usd else "your time is not counted"
    overhead = "assumption: power, network, storage, people; a GPU is 60 to 70 % of the bill (mercatus-ai.com)"
    rows = [
        Assumption("engineering, once", time, is_counted, "--engineering-usd"),
        Assumption("overhead", f"x{options.rate.overhead:g}", overhead, "--overhead"),
        Assumption("horizon", f"{options.horizon_months:g} months", "assumption: for so long it is used", "--months"),
        Assumption(
            "elasticity", f"{options.elasticity:g}", "assumption: demand by price, in the outlook", "--elasticity"
        ),
    ]
    if options.pay == "month":
        peaks = "assumption: DeepSeek's day in February 2025 had 226.75 nodes of 278 at the peak, 82 %"
        rows.append(Assumption("busy at most", f"{options.max_utilisation:.0%}", peaks, "--max-utilisation"))
        rows.append(Assumption("machines paid", "by the month", "whatever the load", "--pay second"))
    else:
        shares = "assumption: share of the seconds paid for in which it works"
        rows.append(Assumption("busy", f"{options.utilisation:.0%}", shares, "--utilisation"))
        same = "assumption: at the same price for an hour; serverless usually asks more"
        rows.append(Assumption("machines paid", "by the second", same, "--pay month"))
    return rows


def _read_workload(
    options: BreakEvenOptions, run: Run | None, measured: MeasuredServing | None
) -> tuple[Workload, list[Assumption]]:
    """What is asked: as given, else as the ledger or the run measured it."""
    totals = measured.totals if measured else None
    source = "the ledger's requests" if totals else "the run's closing evaluation"
    found: list[float | None] = [run.prompt_tokens if run else None, 0.0, run.output_tokens if run else None]
    if totals:
        counted = (totals.prompt_tokens, totals.cached_tokens, totals.completion_tokens)
        found = [tokens / totals.num_entries for tokens in counted]
    given = [options.input_tokens, options.cached_tokens, options.output_tokens]
    amounts: dict[str, float] = {}
    rows = []
    for name, typed, known_amount in zip(("input", "cached", "output"), given, found, strict=True):
        amount = known_amount if typed is None else typed
        if amount is None:
            where = "the run's bill does not count them" if run else _no_run(options.model)
            raise ConfigError(f"a request's {name} tokens are not known ({where}); give --{name}-tokens")
        amounts[f"{name}_tokens"] = amount
        words = "given" if typed is not None else "none given" if name == "cached" and not totals else source
        rows.append(Assumption(f"{name} tokens", f"{amount:,.0f} a request", words, f"--{name}-tokens"))
    ratio = f"x{options.api_output_ratio:g}"
    counts = "assumption: at our token counts" if options.api_output_ratio == 1 else "given"
    rows.append(Assumption("the API's output", ratio, counts, "--api-output-ratio"))
    demand = options.requests_per_day
    shown = "not known" if demand is None else f"{demand:,.0f} a day"
    rows.append(Assumption("requests", shown, "not given" if demand is None else "given", "--requests-per-day"))
    return Workload(**amounts, requests_per_day=demand), rows


def _no_run(model: str) -> str:
    brings = "a run with its closing evaluation brings them"
    return f"{model[:80]!r} is no run here; {brings}" if model else brings


@dataclass(frozen=True, kw_only=True)
class _Pass:
    value: float
    interval: PassInterval | None
    assumption: Assumption


def _read_passes(options: BreakEvenOptions) -> tuple[_Pass, _Pass]:
    return (
        _read_pass(options.pass_at_1_own, name="pass@1, yours", option="--pass-at-1-own"),
        _read_pass(options.pass_at_1_api, name="pass@1, API", option="--pass-at-1-api"),
    )


def _read_pass(text: str, *, name: str, option: str) -> _Pass:
    if not text:
        equal = Assumption(name, "100 %", "assumption: both are equally good, so that a request is a task", option)
        return _Pass(value=1.0, interval=None, assumption=equal)
    try:
        share = float(text)
    except ValueError:
        (entry,) = read_entries([text])
        found = check_result(entry.result, label=text[:80])
        interval = PassInterval(found.interval_low, found.interval_high)
        source = f"evaluation {text}: {interval.low:.1%} to {interval.high:.1%}"
        shown = Assumption(name, f"{found.pass_at_1:.1%}", source, option)
        return _Pass(value=found.pass_at_1, interval=interval, assumption=shown)
    check_share(share, field=option)
    return _Pass(value=share, interval=None, assumption=Assumption(name, f"{share:.1%}", "given", option))
