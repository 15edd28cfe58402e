"""An evaluation in the ledger: once, whatever its sessions, at what it has used by then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from aha.cost import Basis, EntryKind, Ledger, LedgerRow
from aha.cost.energy import EnergyMeter
from aha.cost.ledger import LedgerError
from aha.cost.prices import MachinePrice, TokenPrice
from aha.evaluate import Used
from aha.terminal.subject import Subject
from aha.types import Problem


def book_evaluation(
    used: Used,
    *,
    subject: Subject,
    problems: Sequence[Problem],
    model: str,
    task: str,
    energy: EnergyMeter,
    say: Callable[[str], None],
) -> None:
    """Enter what an evaluation has used, or what a later session has added. A ledger that fails is said, no more."""
    row = evaluation_row(used, subject=subject, problems=problems, model=model, task=task)
    if subject.spent_nano_usd is None and used.is_first_session:
        # What an earlier session used is with what that one booked; of the whole it is not known.
        row = replace(row, energy_mj=energy.take_mj(used.wall_seconds))
    try:
        with Ledger.open(on_failure="memory") as ledger:
            ledger.record(row, on_difference="amend")
            if ledger.warning:
                say(ledger.warning.replace("This run", "This evaluation"))
    except LedgerError as error:
        say(f"{error}. This evaluation is left out of the ledger")


def evaluation_row(used: Used, *, subject: Subject, problems: Sequence[Problem], model: str, task: str) -> LedgerRow:
    """All that an evaluation has used so far, as one row of the ledger."""
    wall_ms = round(used.wall_seconds * 1000)
    prompt_tokens = used.tokens.prompt_tokens
    if subject.prompt_tokens is not None:
        # Once a problem: the samples of a group share its prompt, which is computed once.
        prompt_tokens = sum(subject.prompt_tokens(p) for p in problems if p.problem_id in used.problem_ids)
    is_here = subject.spent_nano_usd is None
    cost, basis = _amount(subject.price, used, subject=subject, wall_ms=wall_ms)
    return LedgerRow(
        kind=EntryKind.EVALUATION,
        run_id=f"eval {model} {task}",
        phase=task,
        key=f"evaluation:{used.uid}",
        price=subject.price,
        basis=basis,
        cost_nano_usd=cost,
        model=model,
        weight_version=used.weight_version if is_here else None,
        device=subject.device,
        wall_ms=wall_ms,
        device_ms=wall_ms if is_here else None,
        prompt_tokens=prompt_tokens,
        cached_tokens=used.tokens.cached_tokens,
        completion_tokens=used.tokens.completion_tokens,
        reasoning_tokens=min(used.tokens.reasoning_tokens, used.tokens.completion_tokens),
    )


def _amount(
    price: MachinePrice | TokenPrice | None, used: Used, *, subject: Subject, wall_ms: int
) -> tuple[int, Basis]:
    if isinstance(price, MachinePrice):
        return price.cost_nano_usd(wall_ms), Basis.MACHINE_TIME
    if price is None or subject.spent_nano_usd is None:
        return 0, Basis.UNPRICED
    # All that went out, lost requests too, and not only what the answers cost.
    return subject.spent_nano_usd() - used.spent_before_nano_usd, Basis.ENDPOINT_REPORTED
