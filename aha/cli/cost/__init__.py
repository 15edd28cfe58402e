"""`aha cost`: argument parsing only, one module a question. What a command does lies in the rooms cost and estimate."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="What training and tokens cost, here, there, and when to just use the API.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def top(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
