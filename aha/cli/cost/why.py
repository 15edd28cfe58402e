"""`aha cost why`: argument parsing only."""

from __future__ import annotations

from datetime import date
from typing import Annotated

import typer


def why(
    model: Annotated[str, typer.Argument(help="A hub id, a built-in name, a folder or a config.json.")] = "DeepSeek-V3",
    gpu: Annotated[str, typer.Option(help="In aha/estimate/hardware.toml, e.g. h800, h100, h200, a100.")] = "h800",
    tokens: Annotated[str, typer.Option(help="Of pre-training: 14.8T, 200B, 3e12.")] = "14.8T",
    nodes: Annotated[int, typer.Option(help="Of pre-training.")] = 256,
    price: Annotated[str, typer.Option(help="Of a GPU hour: a name or id in the price book, or dollars.")] = "",
    on: Annotated[str, typer.Option(help="The day whose prices hold, as 2025-01-31; today where it is left out.")] = "",
    acceptance: Annotated[float, typer.Option(help="Share of drafts that are right.")] = 0.85,
    context: Annotated[int, typer.Option(help="Cached tokens of a sequence being written, on average.")] = 4989,
    speed: Annotated[float, typer.Option(help="Least output tokens a second for each reader.")] = 20,
    trainer_share: Annotated[float, typer.Option(help="Of the hours of RL, what is not sampling.")] = 0.2,
    flat_share: Annotated[float, typer.Option(help="Of the groups, those of equal reward.")] = 0.4,
    measured: Annotated[str, typer.Option(help="A file of python -m bench.why, whose figures are shown too.")] = "",
    json: Annotated[bool, typer.Option("--json", help="For scripts; the keys stay (docs/why.md).")] = False,
) -> None:
    """Algorithms against scale, in dollars: what each of a model's choices saves, and what it costs."""
    from aha.estimate.why.command import Asked, run_why

    asked = Asked(
        model=model, gpu=gpu, tokens=tokens, nodes=nodes, price=price, on=on or date.today().isoformat(),
        acceptance=acceptance, context_tokens=context, tokens_per_second=speed,
        trainer_share=trainer_share, flat_share=flat_share, measured=measured,
    )  # fmt: skip
    print(run_why(asked, form="json" if json else "text"))
