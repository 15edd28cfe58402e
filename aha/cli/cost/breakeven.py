"""`aha cost breakeven`: argument parsing only."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Literal

import typer

EPILOG = (
    "Examples: aha cost breakeven runs/countdown --against deepseek-r1,openai-o1 --on 2025-01-31 --input-tokens 40 "
    "--requests-per-day 10000 · aha cost breakeven DeepSeek-V3 --gpu h200 --precision float8 --input-tokens 2000 "
    "--output-tokens 1000 --requests-per-day 100000"
)


def read_day(text: str) -> date | datetime:
    """A day as it is typed, or a moment with its time zone; "" is today. Raises ConfigError for what is neither."""
    from aha.errors import ConfigError

    try:
        return date.fromisoformat(text) if text else datetime.now(UTC).date()
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigError(f"--on is a day such as 2025-01-31, or a moment such as 2026-09-01T02:00Z; got {text!r}")
    return moment


def breakeven(
    model: Annotated[
        str,
        typer.Argument(metavar="[MODEL|RUN]", help="What you would own; a run brings its bill and its token counts."),
    ] = "",
    against: Annotated[
        list[str] | None,
        typer.Option(help="APIs: names of the price book, or IN/OUT dollars a million; commas. Else all of the day."),
    ] = None,
    on: Annotated[str, typer.Option(metavar="DATE", help="Day of the prices; else today.")] = "",
    tokens_per_second: Annotated[
        str, typer.Option(metavar="IN/OUT", help="How fast a replica reads and writes; IN/CACHED/OUT where known.")
    ] = "",
    price: Annotated[
        str, typer.Option(help="Price of one GPU for an hour: dollars, or a name such as h100-hour.")
    ] = "",
    gpu: Annotated[str, typer.Option(help="Predict the speed on these, such as h200, from the model's shape.")] = "",
    gpus: Annotated[
        int, typer.Option(help="GPUs of a replica; 0: one, or for a prediction the cheapest that fits.")
    ] = 0,
    precision: Annotated[
        Literal["auto", "bfloat16", "float8"],
        typer.Option(
            help="Number format of weights and cache, for a prediction; auto: weights as published, where the GPU can."
        ),
    ] = "auto",
    user_speed: Annotated[float, typer.Option(help="Fewest tokens/s a user is to get, for a prediction.")] = 20.0,
    accepted: Annotated[float, typer.Option(help="Share of drafted tokens accepted, for a prediction.")] = 0.0,
    assume: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An assumption of aha cost serve, for a prediction.")
    ] = None,
    overhead: Annotated[float, typer.Option(help="Factor on the machines' price: storage, network, idle ones.")] = 1.35,
    measured: Annotated[
        bool, typer.Option("--measured", help="Speed, price and lengths by the ledger's requests.")
    ] = False,
    run: Annotated[
        str, typer.Option(metavar="SERVER", help="Which server's, for --measured, e.g. 'serve tiny'; else all.")
    ] = "",
    training_usd: Annotated[float | None, typer.Option(help="Paid once; 0 for a model as it is.")] = None,
    engineering_usd: Annotated[float, typer.Option(help="Your time, paid once.")] = 0.0,
    requests_per_day: Annotated[float | None, typer.Option(help="The load; with pass@1, tasks to be solved.")] = None,
    input_tokens: Annotated[
        float | None, typer.Option(help="Tokens of a request's prompt, cached ones included.")
    ] = None,
    cached_tokens: Annotated[float | None, typer.Option(help="Part of the prompt that lies in a cache.")] = None,
    output_tokens: Annotated[float | None, typer.Option(help="Tokens of an answer, thinking included.")] = None,
    api_output_ratio: Annotated[float, typer.Option(help="The API's output tokens for each of yours.")] = 1.0,
    pass_at_1_own: Annotated[str, typer.Option(help="Share of your answers that are right, or an evaluation.")] = "",
    pass_at_1_api: Annotated[str, typer.Option(help="The same of the API's.")] = "",
    pay: Annotated[
        Literal["month", "second"],
        typer.Option(help="Rent machines by the month, or by the second in which they work."),
    ] = "month",
    max_utilisation: Annotated[float, typer.Option(help="By the month: how busy before there is another.")] = 0.8,
    utilisation: Annotated[float, typer.Option(help="By the second: share of those paid for that work.")] = 1.0,
    months: Annotated[float, typer.Option(help="How long it will be used: later is never.")] = 12.0,
    elasticity: Annotated[float, typer.Option(help="How demand grows as prices fall, in the outlook.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train or call? When owning a model pays for itself against each API, and what would change the answer."""
    from aha.errors import ConfigError
    from aha.estimate.breakeven.options import BreakEvenOptions
    from aha.estimate.breakeven.rate import RateOptions
    from aha.estimate.breakeven.text import run_break_even

    if run and not measured:
        raise ConfigError("--run names a server in the ledger: add --measured, or leave it out")
    options = BreakEvenOptions(
        model=model,
        against=against or (),
        on=read_day(on),
        rate=RateOptions(
            tokens_per_second=tokens_per_second,
            price=price,
            gpu=gpu,
            num_gpus=gpus,
            precision=precision,
            user_tokens_per_second=user_speed,
            accepted=accepted,
            assume=assume or (),
            overhead=overhead,
            ledger_server=run if measured else None,
        ),
        training_usd=training_usd,
        engineering_usd=engineering_usd,
        input_tokens=input_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        requests_per_day=requests_per_day,
        pay=pay,
        max_utilisation=max_utilisation,
        utilisation=utilisation,
        horizon_months=months,
        elasticity=elasticity,
        pass_at_1_own=pass_at_1_own,
        pass_at_1_api=pass_at_1_api,
        api_output_ratio=api_output_ratio,
    )
    print(run_break_even(options, form="json" if as_json else "text"))
