"""The answer as text: the verdict first, then its figures, what would turn it over, and what was assumed."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections.abc import Sequence

from aha.estimate.breakeven.answer import Answer, Assumption, months_as_text, unit
from aha.estimate.breakeven.case import BreakEven, finite, per_thousand
from aha.estimate.breakeven.options import BreakEvenOptions, Form, ask_break_even
from aha.estimate.breakeven.path import Outlook
from aha.estimate.breakeven.sensitivity import Flip
from aha.estimate.serving import TokenClass
from aha.report.words import usd, visible

WIDTH = 140
"""Columns of text, where the terminal has as many."""
PER_MILLION = slice(1, 4)
AFTER_TOKENS = -2
"""Columns of the first table that a narrow terminal does without: `aha cost prices` and --json have them."""
CLOSE = math.log(1.2)
"""Less than a fifth off is less than what a prediction may be off."""
ROOFLINE = "roofline: "
MOST_SHOWN = 12
"""APIs in the table, the cheapest first."""
MOST_DECIMALS = 9
CLASSES: tuple[TokenClass, ...] = ("input", "cached", "output")


def run_break_even(options: BreakEvenOptions, *, form: Form) -> str:
    """What `aha cost breakeven` prints. Raises AhaError as `ask_break_even` does."""
    answer = ask_break_even(options)
    return json.dumps(answer.to_dict(), indent=1) if form == "json" else describe(answer, width=_columns())


def _columns() -> int:
    """Of the terminal; a pipe or a file has no width and gets all."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def describe(answer: Answer, *, width: int) -> str:
    """The answer for people; its first line is the verdict."""
    flips = [*answer.flips()]
    parts = [
        [answer.headline, *_second_thoughts(answer)],
        [
            f"{answer.model} against each API, prices of {answer.on}",
            *_fitted(_cases(answer), width=width),
            *_left_out(answer),
        ],
        [
            "What would turn it over, all else as it is",
            *(aligned(_flips(flips)) if flips else ["  nothing within x1000"]),
        ],
        [f"Other assumptions, against {answer.deciding.api.name}", *aligned(_rows(answer))],
        _outlook_lines(answer, width=width),
        ["Assumed", *_assumed(answer, width=width)],
    ]
    return visible("\n\n".join("\n".join(part) for part in parts if part))


def _fitted(rows: list[list[str]], *, width: int) -> list[str]:
    """The table, without the columns that can be had elsewhere where there is no room for them."""
    lines = aligned(rows)
    if max(map(len, lines)) <= width:
        return lines
    for row in rows:
        del row[AFTER_TOKENS], row[PER_MILLION]
    return aligned(rows)


def _assumed(answer: Answer, *, width: int) -> list[str]:
    """Three columns, and the source wrapped beside them; the roofline's values, of which there are many, in one row."""
    rooflines = [row for row in answer.assumptions if row.name.startswith(ROOFLINE)]
    rows = [row for row in answer.assumptions if row not in rooflines]
    if rooflines:
        values = "; ".join(f"{row.name.removeprefix(ROOFLINE)} {row.value}" for row in rooflines)
        rows.append(
            Assumption("roofline", f"{len(rooflines)} values", f"{values} (aha cost serve explains)", "--assume")
        )
    heads = aligned([[row.name, row.value, row.option, "|"] for row in rows])
    indent = heads[0].index("|")
    if width - indent < 30:
        below = textwrap.TextWrapper(width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        pairs = zip(heads, rows, strict=True)
        return [line for head, row in pairs for line in (head[: indent - 1].rstrip(), *below.wrap(row.source))]
    lines = []
    for head, row in zip(heads, rows, strict=True):
        source = " ".join(row.source.split())
        first, *rest = textwrap.wrap(source, width - indent, break_on_hyphens=False) or [""]
        lines += [head[:indent] + first, *(" " * indent + line for line in rest)]
    return lines


def _left_out(answer: Answer) -> list[str]:
    rest = answer.cases[MOST_SHOWN:]
    wins = sum(case.verdict == "own" for case in rest)
    is_open = any(case.verdict == "unclear" for case in rest)
    won = "" if is_open else f"; owning wins against {wins} of them"
    return [f"  and {len(rest)} dearer ones{won} (--json has all)"] if rest else []


def _second_thoughts(answer: Answer) -> list[str]:
    """What a reader should know before acting on the first line."""
    case, other = answer.deciding, answer.by_the_second
    lines = []
    if case.owning.pay == "month" and case.verdict == "api" and other.verdict == "own":
        lines.append("Paid by the busy second, at the same hourly price, owning would win: see --pay second.")
    least, needed = case.break_even_utilisation, case.break_even_requests_per_day
    if case.verdict == "api" and case.work.requests_per_day is not None and needed is not None:
        lines.append(f"Within {case.horizon_months:g} months owning would pay from {needed:,.0f} requests a day on.")
    if least is not None:
        load = (
            "no load is enough"
            if least > 1
            else f"a replica has to be busy {_share(least)} of the time to earn its rent"
        )
        now = (
            ""
            if case.utilisation is None or case.owning.pay == "second"
            else f"; it is busy {_share(case.utilisation)}"
        )
        lines.append(f"Training aside, {load}{now}.")
    close = [flip for flip in answer.flips() if flip.factor and abs(math.log(flip.factor)) < CLOSE]
    if close and case.verdict != "unclear":
        nearest = min(close, key=lambda flip: abs(math.log(flip.factor or 1.0)))
        lines.append(f"A close call: it turns at x{nearest.factor:.3g} of one assumption, {nearest.assumption}.")
    if case.owning.pass_at_1 == case.api.pass_at_1 == 1:
        lines.append("Both are taken to be equally good: --pass-at-1-own and --pass-at-1-api compare solved tasks.")
    if not case.owning.engineering_usd:
        lines.append("Your time is not counted: --engineering-usd.")
    return lines


def _cases(answer: Answer) -> list[list[str]]:
    what = unit(answer.deciding)
    head = [
        "",
        "$/M in",
        "cached",
        "out",
        f"$/1,000 {what}s",
        "$ a month",
        "owning pays back",
        "after tokens",
        "verdict",
    ]
    cases = answer.cases[:MOST_SHOWN]
    rows = [*([case.api.name] for case in cases), [_own_name(answer.deciding)]]
    amounts = [*(_api_amounts(case) for case in cases), _own_amounts(answer.deciding)]
    for row, *shown in zip(rows, *(_even(column) for column in zip(*amounts, strict=True)), strict=True):
        row += shown
    for row, case in zip(rows, cases, strict=False):
        row += [_pays_back(case), _count(case.break_even_tokens), case.verdict]
    return [head, *rows[:-1], [*rows[-1], "", "", ""]]


def _api_amounts(case: BreakEven) -> list[float | None]:
    """Dollars: a million tokens of each class, 1,000 tasks, a month."""
    api = case.api
    per_million = (api.usd_per_million_input, api.usd_per_million_cached, api.usd_per_million_output)
    return [*per_million, _thousand(case.api_usd_per_task), finite(case.api_usd_per_month)]


def _own_amounts(case: BreakEven) -> list[float | None]:
    """The same; as busy as the load makes the replicas, or as they may be where the load is not known."""
    busy = _busy(case)
    per_million = [case.owning.rate.usd_per_million(kind, utilisation=busy) if busy else None for kind in CLASSES]
    return [*per_million, _thousand(case.own_usd_per_task), finite(case.own_usd_per_month)]


def _own_name(case: BreakEven) -> str:
    own = case.owning
    count = own.num_replicas(case.work)
    replicas = "" if own.pay == "second" else f"{count:,} replica{'s' if count > 1 else ''}, "
    return f"your own ({replicas}{_share(_busy(case))} busy)"


def _busy(case: BreakEven) -> float:
    return case.owning.max_utilisation if case.utilisation is None else case.utilisation


def _thousand(usd_per_task: float | None) -> float | None:
    return None if usd_per_task is None else finite(1000 * usd_per_task)


def _even(amounts: Sequence[float | None]) -> list[str]:
    """One column of dollars, all with as many decimals: two digits of the least, and cents."""
    least = min((amount for amount in amounts if amount), default=1.0)
    decimals = min(MOST_DECIMALS, max(2, 1 - math.floor(math.log10(least))))
    return ["–" if amount is None else f"{amount:,.{decimals}f}" for amount in amounts]


def _flips(flips: Sequence[Flip]) -> list[list[str]]:
    return [
        [flip.assumption, f"{_quantity(flip.value)} {flip.unit}", f"now {_quantity(flip.now)}",
         f"x{flip.factor:.3g}" if flip.factor else "", f"then: {flip.verdict}"]
        for flip in flips
    ]  # fmt: skip


def _rows(answer: Answer) -> list[list[str]]:
    rows = [["", "", "own $ per 1,000", "API $", "pays back", "after tokens", "verdict"]]
    for row in answer.sensitivity():
        case = row.case
        costs = [per_thousand(case.own_usd_per_task), per_thousand(case.api_usd_per_task)]
        back = [_pays_back(case), _count(case.break_even_tokens)]
        rows.append([row.assumption, row.value, *costs, *back, case.verdict])
    return rows


def _outlook_lines(answer: Answer, *, width: int) -> list[str]:
    outlooks = answer.outlooks()
    if not outlooks:
        return []
    months = len(outlooks[0].months)
    head = ["price a year", "elasticity", "requests a day", "API $ a month", "own $ in all", "API $ in all",
            "pays back", "verdict", ""]  # fmt: skip
    title = f"After {months} months, where prices fall and demand grows because they do (Jevons)"
    lines = aligned([head, *(_outlook(outlook) for outlook in outlooks)])
    if max(map(len, lines)) <= width:
        return [title, *lines]
    lines = aligned([head[:-1], *(_outlook(outlook)[:-1] for outlook in outlooks)])
    sources = dict.fromkeys(f"{_fall(outlook)}: {outlook.source}" for outlook in outlooks)
    below = textwrap.TextWrapper(width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return [title, *lines, *(line for source in sources for line in below.wrap(source))]


def _fall(outlook: Outlook) -> str:
    return f"{-outlook.fall_per_year:+.0%}" if outlook.fall_per_year else "0%"


def _outlook(outlook: Outlook) -> list[str]:
    last = outlook.months[-1]
    return [
        _fall(outlook),
        f"{outlook.elasticity:g}",
        f"{last.requests_per_day:,.0f}",
        _dollars(last.api_usd),
        _dollars(last.own_total_usd),
        _dollars(last.api_total_usd),
        _months(outlook.break_even_months) + (", then lost" if outlook.is_lost_again else ""),
        outlook.verdict,
        outlook.source,
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, two blanks apart: words to the left, figures to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_figure = [index > 0 and all(_is_figure(cell) for cell in column[1:]) for index, column in enumerate(columns)]
    return [
        "  " + "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_figure, strict=True)
        ).rstrip()
        for row in rows
    ]  # fmt: skip


def _is_figure(cell: str) -> bool:
    return (
        not cell or cell[0] in "$+-–x" or cell.startswith(("after ", "at once")) or cell[0].isdigit() or cell == "never"
    )


def _share(share: float) -> str:
    """Two significant digits: 0.0797 → "8.0 %", 0.0004 → "0.040 %"."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:#.2g} %"


def _quantity(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.4g}"


def _dollars(amount: float | None) -> str:
    return "–" if finite(amount) is None else usd(amount or 0.0)


def _pays_back(case: BreakEven) -> str:
    """In time; "–" where that hangs on a load that is not known."""
    is_open = case.break_even_tokens is not None and case.break_even_months is None
    return "–" if is_open else _months(case.break_even_months)


def _months(months: float | None) -> str:
    if not months:
        return "never" if months is None else "at once"
    return f"after {months_as_text(months)}"


def _count(tokens: float | None) -> str:
    if tokens is None:
        return "never"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if tokens >= size:
            return f"{tokens / size:,.3g}{letter}"
    return f"{tokens:,.0f}"
