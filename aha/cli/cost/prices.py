"""`aha cost prices`: what a token and a machine hour cost, on which day, says who."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from aha.errors import ConfigError


def prices(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Models, or machines; without them, all.")
    ] = None,
    on: Annotated[
        str, typer.Option(help="Day or moment, e.g. 2025-01-31 or 2025-03-01T17:00Z; today without it.")
    ] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Ratios of the first NAME to the others.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Every price of the NAMEs, oldest first.")] = False,
    machines: Annotated[bool, typer.Option("--machines", help="Hours of machines and GPUs, not tokens.")] = False,
    tier: Annotated[str, typer.Option(help="Service tier: standard, batch, fast, or all.")] = "standard",
    prompt_tokens: Annotated[
        int | None, typer.Option(min=0, help="Length of the prompts; without it, every length is listed.")
    ] = None,
    sources: Annotated[bool, typer.Option("--sources", help="The whole source and note below each price.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a million tokens, or an hour of a GPU, cost on a day, with ratios, sources and how far to trust them."""
    from datetime import UTC, datetime

    from aha.cost.prices.answer import PriceQuestion, answer_prices

    if compare and history:
        raise ConfigError("--compare and --history answer different questions; give one of them")
    if as_csv and as_json:
        raise ConfigError("--csv and --json are two forms of one answer; give one of them")
    ask: Literal["list", "compare", "history"] = "compare" if compare else "history" if history else "list"
    question = PriceQuestion(
        names=tuple(names or ()),
        on=on,
        ask=ask,
        of="machines" if machines else "tokens",
        tier=tier,
        prompt_tokens=prompt_tokens,
        form="json" if as_json else "csv" if as_csv else "text",
        sources="full" if sources else "short",
    )
    print(answer_prices(question, now=datetime.now(UTC)))
