"""`aha cost ledger`: what was spent, by run, day, kind, model or price; whether the books are in order."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from aha.errors import ConfigError


def ledger(
    kind: Annotated[
        Literal["training", "evaluation", "request", "action"] | None, typer.Option(help="Only this kind.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Only this run, evaluation or server, by its whole name.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    app: Annotated[str | None, typer.Option(help="Only this application.")] = None,
    since: Annotated[str, typer.Option(help="From this day or moment on, e.g. 2026-01-31 or 2026-01-31T16:30Z.")] = "",
    until: Annotated[str, typer.Option(help="Before this day or moment.")] = "",
    by: Annotated[
        Literal["run", "day", "kind", "model", "price", "app", "key"],
        typer.Option(help="A line for each; days are UTC."),
    ] = "kind",
    at: Annotated[str, typer.Option(help="And at this price: a name or id of aha cost prices, or $ an hour.")] = "",
    on: Annotated[str, typer.Option(help="The day of that price; today without it.")] = "",
    correct: Annotated[
        bool, typer.Option("--correct", help="Book --at: an amendment for each entry it changes.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Look for anything inconsistent; exit 2 if there is.")
    ] = False,
) -> None:
    """What training, evaluations, requests and actions have cost, with totals that are the sums of their parts."""
    from aha.cost.ledger import EntryKind, LedgerFilter
    from aha.cost.ledger.report import LedgerQuestion, answer_ledger, read_moment, verify_ledger

    if as_csv and (as_json or verify):
        raise ConfigError("--csv, --json and --verify --json are forms of one answer; give one of them")
    if verify:
        findings, said = verify_ledger()
        found = {"is_consistent": not findings, "findings": findings, "summary": said}
        print(json.dumps(found, indent=1) if as_json else "\n".join([*findings, said]))
        raise typer.Exit(2 if findings else 0)
    if (correct or on) and not at:
        raise ConfigError(f"{'--correct' if correct else '--on'} is about another price; name it by --at PRICE")
    chosen = LedgerFilter(
        kind=EntryKind(kind) if kind else None,
        run_id=run,
        model=model,
        app=app,
        since=read_moment(since, option="--since"),
        until=read_moment(until, option="--until"),
    )
    question = LedgerQuestion(
        chosen=chosen,
        by=by,
        at=at,
        at_on=on,
        books="corrections" if correct else "nothing",
        form="json" if as_json else "csv" if as_csv else "text",
    )
    print(answer_ledger(question))
