"""`aha cost solved`: argument parsing only."""

from __future__ import annotations

from typing import Annotated

import typer

from aha.cli.cost.breakeven import read_day

EPILOG = "Example: aha cost solved runs/countdown scores/o1 --reprice deepseek-r1 --on 2025-01-31 --input-tokens 40"


def solved(
    evaluations: Annotated[
        list[str], typer.Argument(metavar="EVAL|RUN", help="Results, folders of aha eval --out, or runs.")
    ],
    reprice: Annotated[
        list[str] | None,
        typer.Option(help="Also by these APIs' prices: names of the price book, or IN/OUT dollars a million; commas."),
    ] = None,
    on: Annotated[str, typer.Option(metavar="DATE", help="Day of the prices; else today.")] = "",
    input_tokens: Annotated[
        float | None, typer.Option(help="Of a prompt, for --reprice; a run's own count is used where it has one.")
    ] = None,
    cached_tokens: Annotated[float, typer.Option(help="Part of them that lies in a cache.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare evaluations of the same problems by the dollars that a right answer costs."""
    from aha.estimate.breakeven.solved_text import SolvedOptions, run_solved

    options = SolvedOptions(
        evaluations=evaluations,
        prices=reprice or (),
        on=read_day(on),
        input_tokens=input_tokens,
        cached_tokens=cached_tokens,
    )
    print(run_solved(options, form="json" if as_json else "text"))
