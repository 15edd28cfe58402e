"""The answers of `aha cost serve` as text: the figure that was asked for first, what it rests on below."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from itertools import groupby

from aha.estimate.hardware import GIB
from aha.estimate.serving.check import Checked, median_error
from aha.estimate.serving.compare import Compared, TokenMix
from aha.estimate.serving.inference_day import TOLERANCE, InferenceDay
from aha.estimate.serving.measured import MJ_PER_WH, MeasuredServing
from aha.estimate.serving.prediction import ServingPrediction
from aha.estimate.serving.rate import UTILISATIONS, ServingRate
from aha.estimate.serving.roofline import StepTerm, chunk_tokens

WIDTH = 110


def describe_prediction(
    name: str, prediction: ServingPrediction, *, mix: TokenMix, apis: Sequence[Compared], on: date | datetime
) -> str:
    """What serving a model takes and costs, with every term and assumption."""
    rate = prediction.rate
    full, fifth = (_usd(mix.usd_per_million(rate, utilisation=share)) for share in (1.0, 0.2))
    answering = f"A step of answering, {_ms(prediction.decode_step_seconds)} for {prediction.batch:,} conversations"
    chunk = f"{chunk_tokens(prediction.replica):,.0f} prompt tokens"
    return "\n".join(
        [
            f"{name}: {full} a million tokens when fully busy, {fifth} when busy a fifth of the time",
            "",
            *_wrap(_setup(prediction)),
            *(line for note in prediction.notes for line in _wrap(f"Note: {note}.")),
            "",
            *_costs(rate, mix),
            "",
            *_speeds(prediction),
            "",
            answering,
            *_terms(prediction.decode),
            f"A step of reading, {_ms(prediction.prefill_step_seconds)} for {chunk}",
            *_terms(prediction.prefill),
            "",
            *_apis(apis, on=on),
            "",
            "Assumptions (--assume NAME=VALUE sets one)",
            *_assumptions(prediction),
        ]
    )


def _setup(prediction: ServingPrediction) -> str:
    rate, plan, replica = prediction.rate, prediction.plan, prediction.replica
    how = {"tensor": ", every matrix cut over them", "expert": ", experts spread over them"}[replica.layout]
    drafts = f", {plan.accepted:.0%} of drafted tokens accepted" if plan.accepted else ""
    return (
        f"{replica.num_gpus} x {plan.gpu.title}{how if replica.num_gpus > 1 else ''}; {replica.weights} weights of "
        f"{replica.weight_bytes_per_gpu / GIB:,.1f} GiB a GPU, {replica.cache} cache; batch {prediction.batch:,} of "
        f"the {prediction.largest_batch:,} that fit{drafts}. Requests of {plan.input_tokens:,} prompt tokens "
        f"({plan.cached_tokens:,} cached) and {plan.output_tokens:,} answered ones, {plan.decoded_context:,.0f} tokens "
        f"of context while answering. ${rate.usd_per_hour:,.2f} an hour: {replica.num_gpus} x "
        f"${prediction.price.usd_per_hour:,.2f} ({prediction.price.price_id}) x overhead {prediction.overhead:g}."
    )


def describe_rate(rate: ServingRate, *, mix: TokenMix, apis: Sequence[Compared], on: date | datetime) -> str:
    """What tokens cost at rates that the user stated."""
    verdict = f"{_usd(mix.usd_per_million(rate))} a million tokens when fully busy"
    return "\n".join([verdict, "", *_wrap(rate.basis), "", *_costs(rate, mix), "", *_apis(apis, on=on)])


def describe_measured(
    measured: MeasuredServing, *, mix: TokenMix, apis: Sequence[Compared], on: date | datetime
) -> str:
    """What requests did cost."""
    totals, rate = measured.totals, measured.rate
    share = min(measured.utilisation, 1.0) if measured.window_seconds else None
    who = measured.server or "all servers"
    paid = (
        f"{_usd(mix.usd_per_million(rate))} a million tokens while busy"
        if share is None
        else f"{_usd(mix.usd_per_million(rate, utilisation=share))} a million tokens, at {share:.1%} busy"
    )
    lines = [
        f"{who}: {paid}",
        "",
        *_wrap(
            f"{totals.num_entries:,} requests from {_moment(totals.first_at)} to {_moment(totals.last_at)} UTC: "
            f"{totals.prompt_tokens:,} prompt tokens ({totals.cached_tokens:,} cached), {totals.completion_tokens:,} "
            f"answered ones. Busy {measured.busy_seconds:,.1f} s of {measured.window_seconds:,.1f} s, "
            f"${rate.usd_per_hour:,.4f} an hour, overhead {measured.overhead:g}: "
            f"${totals.cost_usd * measured.overhead:,.6f} for the busy time, ${measured.window_usd:,.6f} for all. "
            f"{_energy_words(measured)}{_split_words(measured)}"
        ),
        *(line for note in measured.notes for line in _wrap(f"Note: {note}.")),
        "",
        *_costs(rate, mix, measured_share=share),
        "",
        *_apis(apis, on=on),
    ]
    return "\n".join(lines)


def describe_day(day: InferenceDay) -> str:
    """DeepSeek's inference day, figure by figure."""
    rows = day.derived()
    errors = [row.error for row in rows if row.error is not None]
    worst = max(abs(error) for error in errors)
    is_met = "within" if worst <= TOLERANCE else "NOT within"
    verdict = f"{len(errors)} published figures reproduced {is_met} {TOLERANCE:.1%} (worst {worst:.3%})"
    lines = [
        f"DeepSeek's inference day: {verdict}",
        "",
        *_wrap(
            f"{day.window}: {day.average_nodes} nodes of {day.gpus_per_node} H800 for {day.hours} h; "
            f"{day.input_tokens / 1e9:,.0f} B prompt tokens, {day.cached_tokens / 1e9:,.0f} B of them cached, "
            f"{day.output_tokens / 1e9:,.0f} B answered. Prices: {day.gpu_price}, {day.token_price}."
        ),
        "",
        f"  {'':<27}{'computed':>14}{'published':>14}{'error':>9}  how",
    ]
    for row in rows:
        published = "" if row.published is None else _figure(row.published)
        error = "" if row.error is None else f"{row.error:+.3%}"
        lines.append(f"  {row.name:<27}{_figure(row.value):>14}{published:>14}{error:>9}  {row.unit}: {row.note}")
    return "\n".join([*lines, "", *_wrap(f"Source [{day.confidence}], {day.source_date}: {day.source}")])


def describe_check(rows: Sequence[Checked]) -> str:
    """Published throughputs beside the roofline's."""
    lines = []
    for role in ("held out", "informed"):
        found = [row for row in rows if row.role == role]
        low, high = min(row.error for row in found), max(row.error for row in found)
        spread = f"median error {median_error(found):.0%}, from {_signed(low)} to {_signed(high)}"
        lines.append(f"{len(found)} figures {role}: {spread}")
    columns = f"{'GPUs, prompt + answer':<25}{'tokens/s of':<19}{'published':>10}{'roofline':>10}{'error':>7}  role"
    lines += ["", f"  {'':<42}{columns}"]
    for row in rows:
        what = f"{row.metric}, {row.per} GPU{'s' if row.per > 1 else ''}"
        lines.append(
            f"  {row.name:<42}{row.setup:<25}{what:<19}{row.published:>10,.0f}{row.predicted:>10,.0f}"
            f"{_signed(row.error):>7}  {row.role}"
        )
    words = (
        "held out: nothing in the roofline was changed after it was first compared with these. informed: a rule or an "
        "assumption was added after these had been seen. Sources: aha/estimate/serving/published.toml."
    )
    return "\n".join([*lines, "", *_wrap(words)])


def describe_groups(rows: Sequence[Checked]) -> list[str]:
    """A line of a Markdown table for each published set: how many figures, how far off."""
    lines = []
    for (name, gpu), group in groupby(rows, key=lambda row: (row.name, row.setup.partition(",")[0])):
        found = list(group)
        low, high = min(row.error for row in found), max(row.error for row in found)
        metrics = ", ".join(dict.fromkeys(row.metric for row in found))
        spread = _signed(low) if len(found) == 1 else f"{_signed(low)} to {_signed(high)}"
        lines.append(
            f"| {name} | {gpu} | {metrics} | {len(found)} | {median_error(found):.0%} | {spread} | {found[0].role} |"
        )
    return lines


def _costs(rate: ServingRate, mix: TokenMix, *, measured_share: float | None = None) -> list[str]:
    lines = [f"  {'$ a million tokens':<20}{'input':>10}{'cached':>10}{'output':>10}{'blended':>10}"]
    shares = [(f"{share:.0%} busy", share) for share in UTILISATIONS]
    if measured_share:
        shares.insert(0, (f"{measured_share:.1%}, as measured", measured_share))
    for words, share in shares:
        kinds = [rate.usd_per_million(kind, utilisation=share) for kind in ("input", "cached", "output")]
        amounts = [*kinds, mix.usd_per_million(rate, utilisation=share)]
        lines.append(f"  {words:<20}" + "".join(f"{_amount(amount):>10}" for amount in amounts))
    return lines


def _speeds(prediction: ServingPrediction) -> list[str]:
    first = f"the first after {prediction.first_token_seconds:,.2f} s where nobody waits"
    return [
        f"  {'a replica reads':<24}{prediction.prefill_tokens_per_second:>12,.0f} prompt tokens/s, doing nothing else",
        f"  {'or answers':<24}{prediction.decode_tokens_per_second:>12,.0f} tokens/s, doing nothing else",
        f"  {'in turn':<24}{prediction.requests_per_second:>12,.2f} requests/s",
        f"  {'a user gets':<24}{prediction.user_tokens_per_second:>12,.1f} tokens/s, {first}",
    ]


def _terms(terms: Sequence[StepTerm]) -> Iterator[str]:
    total = sum(term.seconds for term in terms)
    for term in terms:
        yield f"  {term.name:<36}{term.seconds * 1e3:>9,.2f} ms{term.seconds / total:>6.0%}  {term.note}"


def _apis(apis: Sequence[Compared], *, on: date | datetime) -> Iterator[str]:
    if not apis:
        yield f"No API's list price is known for {on}"
        return
    yield from _wrap(
        f"APIs' list prices on {str(on)[:10]}, each since the day in its id (o1's and R1's: January 2025), at our "
        "token counts: their tokenizers and thinking lengths differ. They are other models: what counts in the end is "
        "dollars for a solved task. --compare NAME shows others, aha cost prices all."
    )
    yield f"  {'$ a million tokens':<44}{'input':>9}{'cached':>9}{'output':>9}{'blended':>9}  ours is cheaper"
    for api in apis:
        price = api.price
        amounts = [price.pico_usd_per_input_token, price.pico_usd_per_cached_token, price.pico_usd_per_output_token]
        shown = "".join(f"{_amount(amount / 1e6):>9}" for amount in amounts)
        above = "never" if api.cheaper_above is None else f"above {_percent(api.cheaper_above)} busy"
        yield f"  {price.price_id:<44}{shown}{_amount(api.usd_per_million_blended):>9}  {above}"


def _assumptions(prediction: ServingPrediction) -> Iterator[str]:
    for assumption in prediction.replica.assumptions.listed():
        head = f"  {assumption.name:<22}{assumption.value:>8g}  "
        words = f"{assumption.text} [{assumption.confidence}: {assumption.source}]"
        yield from textwrap.wrap(words, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _energy_words(measured: MeasuredServing) -> str:
    energy_mj = measured.totals.energy_mj
    return "" if energy_mj is None else f"{energy_mj / MJ_PER_WH:,.3g} Wh. "


def _split_words(measured: MeasuredServing) -> str:
    return {
        "least squares": "Prompt and answer told apart by least squares over pieces of the window.",
        "roofline": "Prompt and answer split in the proportion of the roofline.",
        "together": "Prompt and answer not told apart.",
    }[measured.split]


def _moment(moment: object) -> str:
    return str(moment)[:19]


def _usd(amount: float) -> str:
    return f"${_amount(amount)}"


def _amount(amount: float) -> str:
    """Cents where they say enough, more digits below a dime."""
    if amount >= 1000:
        return f"{amount:,.0f}"
    if amount >= 0.1 or amount == 0:
        return f"{amount:,.2f}"
    return f"{amount:,.4f}" if amount >= 1e-4 else f"{amount:.1e}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.4f}"


def _signed(error: float) -> str:
    words = f"{error:+.0%}"
    return "0%" if words in ("-0%", "+0%") else words


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
