"""`aha eval`: a model is asked, or finished evaluations are set side by side; what is shown of both."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from aha.client import ENDPOINT_PREFIX
from aha.cost.energy import EnergyMeter
from aha.errors import ConfigError
from aha.evaluate import (
    Comparison,
    Difference,
    EvalResult,
    Progress,
    compare_all,
    evaluate,
    find_protocol,
    read_entries,
    select_problems,
)
from aha.evaluate.protocols import Protocol
from aha.tasks import Task, get_task
from aha.template import Thinking
from aha.terminal.books import book_evaluation
from aha.terminal.subject import Subject, open_endpoint, open_local
from aha.train.columns import clock
from aha.train.console import Advance, Console, printable
from aha.types import Problem, SamplingParams

WORTH_A_WARNING = 0.01
"""Share of answers without a verdict above which the description says so."""
LEAST_FOR_PACE = 16
"""Answers of this session before which its pace says nothing: the first ones wait for the model to warm up."""
JOURNAL_NAME = "endpoint.journal"
"""In the folder of --out: every paid answer of an endpoint and its cost. Kept, so that asking again is free."""
Form = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What `aha eval` is asked to do. None takes the protocol's own value."""

    model: str
    task: str
    num_problems: int
    protocol: str
    num_samples: int | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    seed: int
    device: str
    thinking: Thinking = "default"
    price: str
    budget_usd: float | None
    concurrency: int
    out: Path | None

    @property
    def is_endpoint(self) -> bool:
        return self.model.startswith(ENDPOINT_PREFIX)


def run_evaluation(options: EvalOptions, *, form: Form) -> str:
    """Ask, showing progress; returns what to print at the end.

    Raises:
        AhaError: anything that the user can put right. What was answered until then is kept in `options.out`.
    """
    task, protocol = get_task(_check(options).task), find_protocol(options.protocol)
    num_samples = protocol.num_samples if options.num_samples is None else options.num_samples
    sampling = _sampling(options, protocol)
    problems = select_problems(task, num_problems=options.num_problems, seed=options.seed)
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(Console("quiet" if form == "json" else "auto"))
        say = _say_on_stderr if form == "json" else console.say
        subject = _open(options, task=task, problems=problems, max_tokens=sampling.max_tokens, on_notice=say)
        stack.callback(subject.close)
        for notice in subject.notices:
            say(notice)
        advance = stack.enter_context(console.progress("evaluate", total=len(problems) * num_samples))
        stack.enter_context(_says_how_to_go_on(options.out))
        result = evaluate(
            task,
            subject.respond,
            num_problems=options.num_problems,
            num_samples=num_samples,
            sampling=sampling,
            seed=options.seed,
            out=options.out,
            model=subject.identity,
            max_tokens_cap=subject.max_tokens_cap,
            price=subject.price,
            count_tokens=subject.count_tokens,
            on_progress=_Pace(advance),
            on_notice=say,
            on_used=partial(
                book_evaluation,
                energy=EnergyMeter(),
                subject=subject,
                problems=problems,
                model=options.model,
                task=task.name,
                say=say,
            ),
            spent_before_nano_usd=subject.spent_nano_usd() if subject.spent_nano_usd else 0,
        )
    return result.to_json() if form == "json" else describe_evaluation(result)


def _sampling(options: EvalOptions, protocol: Protocol) -> SamplingParams:
    """The protocol's, but for what was given."""
    return SamplingParams(
        temperature=protocol.temperature if options.temperature is None else options.temperature,
        top_p=protocol.top_p if options.top_p is None else options.top_p,
        max_tokens=protocol.max_tokens if options.max_tokens is None else options.max_tokens,
    )


def _check(options: EvalOptions) -> EvalOptions:
    if not options.task:
        raise ConfigError("eval needs --task NAME, e.g. --task countdown; aha tasks lists them")
    if options.budget_usd is not None and not options.is_endpoint:
        raise ConfigError(f"--budget-usd is for an endpoint (openai:MODEL@URL); {options.model!r} runs on this machine")
    return options


def _open(
    options: EvalOptions,
    *,
    task: Task,
    problems: Sequence[Problem],
    max_tokens: int,
    on_notice: Callable[[str], None],
) -> Subject:
    if not options.is_endpoint:
        return open_local(
            options.model,
            device=options.device,
            price=options.price,
            task=task,
            problems=problems,
            max_tokens=max_tokens,
            thinking=options.thinking,
        )
    if options.thinking != "default":
        raise ConfigError("--thinking throws a switch of the chat template, which an endpoint has on its own side")
    return open_endpoint(
        options.model,
        price=options.price,
        budget_usd=options.budget_usd,
        concurrency=options.concurrency,
        max_tokens=max_tokens,
        journal=options.out / JOURNAL_NAME if options.out else None,
        on_notice=on_notice,
    )


@contextlib.contextmanager
def _says_how_to_go_on(out: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = (
            f"the answers so far are in {out}; the same command goes on from there"
            if out
            else ("nothing is kept without --out FOLDER")
        )
        _say_on_stderr(f"stopped; {kept}")
        raise


def _say_on_stderr(text: str) -> None:
    print(f"aha: {text}", file=sys.stderr)


class _Pace:
    """Progress as the console shows it: answers, pass@1 so far, the time that is left at this session's pace."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._num_shown = 0
        self._started = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        num_asked = progress.num_samples_done - progress.num_samples_before
        pace = (time.monotonic() - self._started) / max(num_asked, 1)
        left = clock((progress.num_samples - progress.num_samples_done) * pace) if num_asked >= LEAST_FOR_PACE else "?"
        note = f"pass@1 {progress.pass_at_1:.1%}"
        if progress.num_samples_done < progress.num_samples:
            note += f" so far, {left} left" if left != "?" else " so far"
        self._advance(progress.num_samples_done - self._num_shown, note=note)
        self._num_shown = progress.num_samples_done


def describe_evaluation(result: EvalResult) -> str:
    """An evaluation as text: a line for each number, with its 95 % interval where it has one."""
    num_samples = result.manifest["num_samples"]
    rows = [("pass@1", _rate(result.pass_at_1, (result.interval_low, result.interval_high)))]
    rows += [
        (f"pass@{k}", _rate(share, result.pass_at_k_intervals[k])) for k, share in result.pass_at_k.items() if k > 1
    ]
    rows += [
        (f"cons@{k}", _rate(share, result.consensus_intervals[k]))
        for k, share in result.consensus_at_k.items()
        if k > 2  # a vote of two is a coin
    ] or ([(f"cons@{num_samples}", _percent(result.cons_at_k))] if num_samples > 1 else [])
    tokens_per_second = result.completion_tokens / max(result.wall_seconds, 1e-9)
    rows += [("cut off", _percent(result.truncated_fraction)), ("no answer", _percent(result.parse_failure_fraction))]
    thinking = result.mean_thinking_tokens
    of_them = "" if thinking is None else f", {thinking:.0f} of them thinking"
    rows += [
        ("tokens", f"{result.mean_tokens:5.0f} an answer{of_them}"),
        ("speed", f"{tokens_per_second:5.0f} tokens/s"),
    ]
    if result.cost_usd is not None:
        per_solved = "no right answer" if result.usd_per_solved is None else f"${result.usd_per_solved:.6f} a right one"
        rows.append(("cost", f"${result.cost_usd:.6f}, {per_solved}"))
    protocol = result.manifest.get("protocol")
    by_protocol = f", protocol {protocol}" if protocol else ""
    head = f"{result.manifest['task']}: {result.num_problems} held-out problems x {num_samples}{by_protocol}"
    return "\n".join([head, *(f"{label:<10} {value}" for label, value in rows), *_warnings(result)])


def _warnings(result: EvalResult) -> list[str]:
    """What makes the numbers doubtful."""
    timeouts, errors = result.timeout_fraction, result.error_fraction
    if timeouts + errors <= WORTH_A_WARNING:
        return []
    found = f"{timeouts + errors:.1%} of the answers have no verdict, and are left out of every score"
    return [f"warning: {found} (verifier timeouts {timeouts:.1%}, errors {errors:.1%})"]


def _rate(share: float, interval: tuple[float, float]) -> str:
    return f"{_percent(share)}   ({interval[0]:.1%} to {interval[1]:.1%})"


def _percent(share: float) -> str:
    return f"{share:6.1%}"


def run_comparison(names: Sequence[str], *, form: Form) -> str:
    """Finished evaluations as one table, and what differs between each two of them.

    Raises:
        DataError: one cannot be found or read, or they did not ask the same.
    """
    entries = read_entries(names)
    if form == "json":
        return compare_all(entries).to_json()
    return describe_comparison(compare_all([replace(entry, label=printable(entry.label)) for entry in entries]))


def describe_comparison(comparison: Comparison) -> str:
    """The table and the pairs as text."""
    results = [entry.result for entry in comparison.entries]
    manifest = results[0].manifest
    num_samples = manifest["num_samples"]
    shown = [(f"pass@{num_samples}", "pass_at_k"), (f"cons@{num_samples}", "consensus_at_k")] if num_samples > 1 else []
    head = ["model", "pass@1", "95 % interval", *(title for title, _ in shown), "tokens", "cut off", "no verdict",
            "dollars", "$ per right answer"]  # fmt: skip
    rows = [head]
    for entry in comparison.entries:
        result = entry.result
        rates = [getattr(result, field).get(num_samples) for _, field in shown]
        rows.append(
            [
                entry.label,
                f"{result.pass_at_1:.1%}",
                f"{result.interval_low:.1%} to {result.interval_high:.1%}",
                *("–" if rate is None else f"{rate:.1%}" for rate in rates),
                f"{result.mean_tokens:.0f}",
                f"{result.truncated_fraction:.1%}",
                f"{result.timeout_fraction + result.error_fraction:.1%}",
                _usd(result.cost_usd),
                _usd(result.usd_per_solved),
            ]
        )
    title = f"{manifest['task']}: the same {results[0].num_problems} problems x {num_samples}"
    lines = [title, *_aligned(rows), ""]
    lines += [_describe_pair(comparison, a, b, change) for a, b, change in comparison.pairs]
    if len(comparison.pairs) > 1:
        lines.append(f"The p-values are not corrected for there being {len(comparison.pairs)} of them.")
    return "\n".join(lines + _caps(comparison))


def _describe_pair(comparison: Comparison, a: int, b: int, change: Difference) -> str:
    low, high = 100 * change.interval_low, 100 * change.interval_high
    return (
        f"{comparison.entries[b].label} against {comparison.entries[a].label}: {100 * change.pass_at_1:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}), p = {_p_value(change.p_value)} ({change.test}); "
        f"{change.num_improved} of {change.num_problems} problems better, {change.num_worsened} worse"
    )


def _caps(comparison: Comparison) -> list[str]:
    """Models whose window was smaller than the protocol's answers."""
    caps = [(entry.label, entry.result.manifest.get("max_tokens_cap")) for entry in comparison.entries]
    return [f"{label}: its window left {cap:,} tokens for an answer" for label, cap in caps if cap]


def _p_value(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value >= 0.0001 else f"{p_value:.1e}"


def _usd(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:.6f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
