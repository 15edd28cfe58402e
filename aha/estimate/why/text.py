"""`aha cost why` in 100 columns: the table, the way there, figures of others, assumptions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from aha.estimate.why.check import Check
from aha.estimate.why.choices import Bill
from aha.estimate.why.comparison import Chain, Row

WIDTH = 100
BILLS: dict[Bill, str] = {
    "training": "pre-training",
    "output": "$/M output",
    "fast output": "$/M, fast",
    "rl": "RL",
    "student": "student",
}
BAR = 24


def dollars(amount: float) -> str:
    """Three figures and a unit: $5.33M, $294K, $0.301, -$42.3K; less than a twentieth of a cent is $0."""
    sign, amount = ("-" if amount < 0 else ""), abs(amount)
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if amount >= size * 0.9995:
            return f"{sign}${_figures(amount / size)}{unit}"
    return f"{sign}${_figures(amount)}" if amount >= 5e-4 else "$0"


def _figures(amount: float) -> str:
    """Three figures: 48.0, 5.35, 161, 0.0273; thousands of the largest unit in full."""
    return f"{amount:,.0f}" if amount >= 999.5 else f"{amount:#.3g}".rstrip(".")


def signed(amount: float) -> str:
    """+$42.3K, -$1.2M, $0."""
    return f"+{dollars(amount)}" if amount > 0 else dollars(amount)


def ratio_text(ratio: float) -> str:
    """0.97x, 14.0x, 71x."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x" if ratio < 100 else f"{ratio:,.0f}x"


def wrapped(text: str, *, indent: str = "") -> str:
    """Paragraphs of at most WIDTH columns; lines after the first are indented."""
    return "\n".join(textwrap.fill(part, width=WIDTH, subsequent_indent=indent) for part in text.split("\n"))


def rows_table(rows: Sequence[Row]) -> str:
    """One line a choice and bill."""
    lines = [_line("choice", "instead of", "bill", "without", "with", "saved", "ratio")]
    for row in rows:
        figures = (dollars(row.without_usd), dollars(row.with_usd), dollars(row.saved_usd))
        lines.append(_line(row.title, row.instead_of, BILLS[row.bill], *figures, ratio_text(row.ratio)))
    return "\n".join(lines)


def returns_list(rows: Sequence[Row]) -> str:
    """What each costs in return, once a choice, with its source."""
    seen = {row.choice: row for row in rows}
    return "\n".join(
        wrapped(f"- {row.title}, not {row.instead_of}: {row.in_return}. {row.source}", indent="  ")
        for row in seen.values()
    )


def chain_chart(chain: Chain, *, naive: str) -> str:
    """A bar for what is left after every step, in the order in which the choices are taken up."""
    most = max(chain.naive_usd, *(step.after_usd for step in chain.steps))

    def line(title: str, left: float, change: str, alone: str) -> str:
        bar = "█" * max(1, round(BAR * left / most))
        return f"  {title:<30} {bar:<{BAR}} {dollars(left):>9} {change:>11} {alone:>12}".rstrip()

    lines = [f"  {'':<30} {'':<{BAR}} {'left':>9} {'change':>11} {'alone':>12}"]
    lines.append(line(naive, chain.naive_usd, "", ""))
    for step in chain.steps:
        lines.append(line(f"+ {step.title}", step.after_usd, signed(-step.saved_usd), signed(-step.alone_usd)))
    lines.append(
        f"  {'together':<30} {'':<{BAR}} {'':>9} {signed(-chain.saved_usd):>11} {signed(-chain.alone_usd):>12}"
    )
    return "\n".join(lines)


def checks_table(found: Sequence[Check]) -> str:
    """Published figures beside ours."""
    lines = [f"  {'':<40} {'ours':>12} {'published':>12} {'error':>8}"]
    for check in found:
        ours, published = (check.form.format(value) for value in (check.ours, check.published.value))
        lines.append(f"  {check.what:<40} {ours:>12} {published:>12} {check.error:>+8.1%}")
        if check.note:
            lines.append(wrapped(f"    {check.note}", indent="    "))
    return "\n".join(lines)


def _line(title: str, instead_of: str, bill: str, without: str, with_: str, saved: str, ratio: str) -> str:
    return f"{title:<23} {instead_of:<16} {bill:<13} {without:>9} {with_:>9} {saved:>9} {ratio:>8}".rstrip()
