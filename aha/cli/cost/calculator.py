"""`aha cost calculator`."""

from __future__ import annotations

from typing import Annotated

import typer


def calculator(
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default only this machine reaches.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="AHA_API_KEY", help="What callers must send; empty asks nothing.")
    ] = "",
) -> None:
    """Serve a page that answers: should I train or call? Needs no model."""
    from aha.serve import run_calculator

    run_calculator(host=host, port=port, api_key=api_key)
