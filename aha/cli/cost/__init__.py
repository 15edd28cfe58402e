"""`aha cost`: argument parsing only, one module a question. What a command does lies in the rooms cost and estimate."""

from __future__ import annotations

import typer

from aha.cli.cost import breakeven, calculator, ledger, page, prices, serve, solved, train, why

app = typer.Typer(
    help="What training and tokens cost, here, there, and when to just use the API.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def top(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command(name="prices", epilog="Example: aha cost prices --compare o1 deepseek-r1 --on 2025-01-31")(prices.prices)
app.command(name="train", epilog=train.EPILOG)(train.train)
app.command(name="serve", epilog=serve.EPILOG)(serve.serve)
app.command(name="breakeven", epilog=breakeven.EPILOG)(breakeven.breakeven)
app.command(name="solved", epilog=solved.EPILOG)(solved.solved)
app.command(name="ledger", epilog="Example: aha cost ledger --by run --since 2026-01-01")(ledger.ledger)
app.command(name="page", epilog="Example: aha cost page --out cost.html --csv numbers")(page.page)
app.command(name="why", epilog="Example: aha cost why DeepSeek-V3 --gpu h800 --tokens 14.8T --nodes 256")(why.why)
app.command(name="calculator", epilog="Example: aha cost calculator --port 8000")(calculator.calculator)
