"""`aha cost page`: pictures of what training and tokens cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer


def page(
    evaluations: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EVALUATION …]", help="Folders of aha eval --out, or runs, for $ a solved task."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page's file.")] = Path("cost.html"),
    csv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the same numbers, a file a picture.")
    ] = None,
    lang: Annotated[Literal["en", "ja"], typer.Option(help="Language of the page.")] = "en",
    on: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Prices of that day; else of today.")
    ] = None,
) -> None:
    """Write one self-contained page: prices, spread, cost against quality, break-even, the training bill."""
    from aha.estimate.page import make_page

    made = make_page(evaluations or [], day=(on or datetime.now(UTC)).date(), language=lang)
    made.write(out)
    print(made.describe(out))
    if csv is not None:
        made.write_csv(csv)
        print(f"{csv}: {len(made.pictures)} CSV files")
