"""Dollars per solved task: what a right answer costs, with its interval.

A cheaper token that thinks three times longer is not cheaper, and neither is one that is wrong more often.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aha.errors import DataError
from aha.estimate.breakeven.case import MAX_FIGURE, ApiRate, Workload, finite, per_thousand
from aha.evaluate import EvalResult
from aha.evaluate.record import describe_differences
from aha.evaluate.statistics import NUM_RESAMPLES

FORMAT = 1
SAME_PROBLEMS = ("task", "split", "problem_seed", "problems_sha256")
"""Parts of the manifest in which evaluations must agree for their dollars to be of the same tasks."""
ASKED_ALIKE = ("num_samples", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "extractor")
"""Parts in which they may differ: how a model is asked is part of what it costs. Differences are shown."""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One evaluation, or one repriced, in dollars for each right answer.

    usd_per_solved = usd_per_attempt / pass@1: a problem is asked until an answer is right, each attempt right with the
    same chance. EvalResult.usd_per_solved is the same where every completion was judged.
    """

    label: str
    result: EvalResult
    usd_per_attempt: float
    """One completion with its prompt."""
    basis: str
    """What the dollars are by."""
    usd_by_problem: Mapping[str, float] = field(default_factory=dict)
    """Of an attempt at each problem, by the length of its answers; empty where only the mean is known."""

    @property
    def pass_at_1(self) -> float:
        return self.result.pass_at_1

    @property
    def tokens_per_answer(self) -> float:
        """Sampled, thinking included, right or not."""
        return self.result.mean_tokens

    @property
    def usd_per_million_output(self) -> float | None:
        """All dollars over the sampled tokens: what a token came to, prompt and waiting included."""
        return self.usd_per_attempt / self.tokens_per_answer * 1e6 if self.tokens_per_answer else None

    @property
    def usd_per_solved(self) -> float:
        """Infinite where no answer was right."""
        return _per_solved(self.usd_per_attempt, self.pass_at_1)

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %, over problems. The high end is infinite where none may be right.

        Where only the mean dollars are known, that of pass@1 carried over: dividing by it turns its ends round and
        keeps its coverage exactly. Else dollars and shares are drawn together, since long answers are often the wrong
        ones; but where all shares are equal a bootstrap would claim certainty, and pass@1's interval stands in.
        """
        problems = _problems([self])
        if self.usd_by_problem and np.ptp(problems[0].shares) > 0.0:
            return _ends(_drawn_usd(problems[0], _draws(len(problems[0].shares), seed=0)))
        high_share, low_share = self.result.interval_high, self.result.interval_low
        return _per_solved(self.usd_per_attempt, high_share), _per_solved(self.usd_per_attempt, low_share)

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        low, high = self.interval
        return {
            "label": self.label,
            "cost_usd_per_solved": finite(self.usd_per_solved),
            "interval_low": finite(low),
            "interval_high": finite(high),
            "pass_at_1": self.pass_at_1,
            "pass_at_1_interval_low": self.result.interval_low,
            "pass_at_1_interval_high": self.result.interval_high,
            "cost_usd_per_attempt": self.usd_per_attempt,
            "mean_tokens": self.tokens_per_answer,
            "usd_per_million_output_tokens": self.usd_per_million_output,
            "basis": self.basis,
        }


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Dollars per solved task of the later over the earlier, with its 95 % interval by paired bootstrap."""

    before: str
    after: str
    ratio: float | None
    """None where either never solved a task."""
    interval_low: float
    interval_high: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves 1 out."""
        return self.interval_low > 1.0 or self.interval_high < 1.0

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        return {
            "before": self.before,
            "after": self.after,
            "cost_ratio": self.ratio,
            "interval_low": finite(self.interval_low),
            "interval_high": finite(self.interval_high),
            "is_certain": self.is_certain,
        }


@dataclass(frozen=True, kw_only=True)
class SolvedComparison:
    """Evaluations of the same problems, the cheapest right answer first."""

    rows: tuple[Solved, ...]
    ratios: tuple[Ratio, ...]
    """Every pair, the dearer over the cheaper."""
    notes: tuple[str, ...] = ()
    """In what the evaluations were not asked alike."""

    @property
    def headline(self) -> str:
        """The answer in a line."""
        first = self.rows[0]
        if math.isinf(first.usd_per_solved):
            return "never solved: no answer of any of them was right"
        low, high = self.interval_text(first)
        lead = f"{first.label} costs {per_thousand(first.usd_per_solved)} per 1,000 solved tasks"
        if len(self.rows) == 1:
            return f"{lead} (95 % interval {low} to {high})"
        second, ratio = self.rows[1], self.ratios[0]
        if math.isinf(second.usd_per_solved):
            return f"{lead}, the least; {second.label} solved none"
        if ratio.ratio is None:
            return f"{lead}, the least; {second.label} {per_thousand(second.usd_per_solved)}"
        ends = f"95 % interval {ratio.interval_low:.3g} to {_x(ratio.interval_high)}"
        by = f"{lead}, the least; {second.label} {ratio.ratio:.3g} times that ({ends})"
        return by if ratio.is_certain else f"too close to call: {by}, which may be chance"

    @staticmethod
    def interval_text(row: Solved) -> tuple[str, str]:
        """Both ends in dollars; "no limit" where none may be right."""
        low, high = (per_thousand(end) if math.isfinite(end) else "no limit" for end in row.interval)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/breakeven.md and stay."""
        return {
            "format": FORMAT,
            "headline": self.headline,
            "cheapest": self.rows[0].label if math.isfinite(self.rows[0].usd_per_solved) else None,
            "is_certain": bool(self.ratios) and self.ratios[0].is_certain,
            "evaluations": [row.to_dict() for row in self.rows],
            "pairs": [ratio.to_dict() for ratio in self.ratios],
            "notes": list(self.notes),
        }


def check_result(result: EvalResult, *, label: str) -> EvalResult:
    """A result whose numbers are numbers: it was read from a file, which may say anything.

    Raises:
        DataError: naming the first that is none, or out of range.
    """
    shares = ("pass_at_1", "interval_low", "interval_high")
    for name in (*shares, "mean_tokens", "num_completions", "cost_usd"):
        value, most = getattr(result, name), 1.0 if name in shares else MAX_FIGURE
        if name == "cost_usd" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise DataError(
                f"the evaluation {label!r} has a {name} that cannot be: {str(value)[:40]!r}; evaluate again"
            )
    if result.num_completions < 1 or not all(0 <= right <= of for right, of in result.problem_scores.values()):
        raise DataError(f"the evaluation {label!r} has counts that cannot be; evaluate again")
    if not isinstance(result.manifest, dict):
        raise DataError(f"the evaluation {label!r} has no manifest; evaluate again")
    return result


def price_evaluation(
    label: str,
    *,
    result: EvalResult,
    billed_usd: float | None = None,
    basis: str = "",
    tokens_by_problem: Mapping[str, float] | None = None,
) -> Solved:
    """An evaluation by the dollars that it was charged.

    Args:
        tokens_by_problem: of an answer, on average; its dollars are taken to go with them.
        billed_usd: what it cost by the bill of its run, where the evaluation itself does not know.
        basis: whose price that is.

    Raises:
        DataError: neither knows any dollars, or numbers that cannot be.
    """
    check_result(result, label=label)
    usd = billed_usd if result.cost_usd is None else result.cost_usd
    if usd is None:
        raise DataError(
            f"the evaluation {label!r} knows no dollars; evaluate with --price, or take an API's by --reprice NAME"
        )
    shown = basis or " ".join(str(result.manifest.get("price") or "charged by the endpoint").split())
    each = usd / result.num_completions
    scale = each / result.mean_tokens if result.mean_tokens else 0.0
    by_problem = {key: scale * tokens for key, tokens in (tokens_by_problem or {}).items()}
    return Solved(label=label, result=result, usd_per_attempt=each, basis=shown, usd_by_problem=by_problem)


def reprice(
    label: str,
    *,
    result: EvalResult,
    api: ApiRate,
    input_tokens: float,
    cached_tokens: float = 0.0,
    tokens_by_problem: Mapping[str, float] | None = None,
) -> Solved:
    """What the same answers would cost by an API's price: at our token counts, and with our share of right ones.

    Args:
        input_tokens: of a prompt, cached ones included.
        tokens_by_problem: of an answer, on average.
    """
    check_result(result, label=label)

    def usd(output_tokens: float) -> float:
        if input_tokens + output_tokens == 0:
            return 0.0
        work = Workload(input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)
        return api.usd_per_request(work)

    return Solved(
        label=f"{label} at {api.name}'s price",
        result=result,
        usd_per_attempt=usd(result.mean_tokens),
        basis=f"{api.price_id}, at our token counts",
        usd_by_problem={key: usd(tokens) for key, tokens in (tokens_by_problem or {}).items()},
    )


def compare_solved(rows: Sequence[Solved], *, seed: int = 0) -> SolvedComparison:
    """Which right answer is the cheapest, and whether that could be chance.

    Raises:
        DataError: two evaluations are not of the same problems.
    """
    assert rows, "a comparison needs an evaluation"
    ranked = sorted(rows, key=lambda row: row.usd_per_solved)
    first = ranked[0]
    notes = []
    for row in ranked[1:]:
        _check_same(first, row)
        changed = describe_differences(first.result.manifest, row.result.manifest, keys=ASKED_ALIKE)
        notes += [f"{row.label} was asked in another way than {first.label}: {changed}"] if changed else []
    ratios = tuple(cost_ratio(a, b, seed=seed) for a, b in itertools.combinations(ranked, 2))
    return SolvedComparison(rows=tuple(ranked), ratios=ratios, notes=tuple(notes))


def _check_same(first: Solved, other: Solved) -> None:
    changed = describe_differences(first.result.manifest, other.result.manifest, keys=SAME_PROBLEMS)
    if changed or first.result.problem_scores.keys() != other.result.problem_scores.keys():
        raise DataError(
            f"{first.label!r} and {other.label!r} were asked different problems ({changed or 'other problem ids'}); "
            "a solved task is not the same thing in both: evaluate both with the same task, seed and num_problems"
        )


def cost_ratio(before: Solved, after: Solved, *, seed: int = 0) -> Ratio:
    """Dollars per solved task of the one over the other, by paired bootstrap over problems judged in both.

    The problems are drawn together for both, since a hard one is hard for both. Where all the shares of one evaluation
    are equal a bootstrap would claim certainty about it; then the ends of the two intervals stand in.
    """
    problems = _problems([before, after])
    both = math.isfinite(before.usd_per_solved) and math.isfinite(after.usd_per_solved) and before.usd_per_solved > 0
    if not both or any(np.ptp(each.shares) == 0.0 for each in problems):
        low, high = _from_ends(before, after)
    else:
        drawn = _draws(len(problems[0].shares), seed=seed)
        usd_before, usd_after = (_drawn_usd(each, drawn) for each in problems)
        with np.errstate(invalid="ignore"):  # both without a right answer in a resample: neither is dearer
            low, high = _ends(np.nan_to_num(usd_after / usd_before, nan=1.0, posinf=np.inf))
    ratio = after.usd_per_solved / before.usd_per_solved if both else None
    return Ratio(before=before.label, after=after.label, ratio=ratio, interval_low=low, interval_high=high)


class _Problems(NamedTuple):
    """Of one evaluation, the problems that all were judged on."""

    usd: npt.NDArray[np.float64]
    """Of an attempt at each."""
    shares: npt.NDArray[np.float64]
    """Share of right completions of each."""


def _problems(rows: Sequence[Solved]) -> list[_Problems]:
    scores = [row.result.problem_scores for row in rows]
    keys = [key for key in scores[0] if all(each[key][1] for each in scores)]
    return [
        _Problems(
            np.array([row.usd_by_problem.get(key, row.usd_per_attempt) for key in keys] or [0.0]),
            np.array([each[key][0] / each[key][1] for key in keys] or [0.0]),
        )
        for row, each in zip(rows, scores, strict=True)
    ]


def _draws(num_problems: int, *, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(num_problems, size=(NUM_RESAMPLES, num_problems))


def _drawn_usd(problems: _Problems, drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Dollars per solved task of each resample; infinite where it has nothing right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        usd = problems.usd[drawn].mean(axis=1) / problems.shares[drawn].mean(axis=1)
    found: npt.NDArray[np.float64] = np.nan_to_num(usd, nan=0.0, posinf=np.inf)
    return found


def _ends(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 %: sorted, not interpolated, because some may be infinite."""
    ordered = np.sort(values)
    return float(ordered[round(0.025 * len(values))]), float(ordered[round(0.975 * len(values)) - 1])


def _from_ends(before: Solved, after: Solved) -> tuple[float, float]:
    """Wider than 95 %: the dearest of the one against the cheapest of the other."""
    (low_before, high_before), (low_after, high_after) = before.interval, after.interval
    if high_before == 0:
        return (1.0, 1.0) if high_after == 0 else (math.inf, math.inf)  # free against what is not
    low = low_after / high_before if math.isfinite(low_after) else 0.0
    high = high_after / low_before if low_before and math.isfinite(high_after) else math.inf
    return low, high


def _per_solved(usd: float, share: float) -> float:
    return usd / share if share > 0 else math.inf


def _x(factor: float) -> str:
    return f"{factor:.3g}" if math.isfinite(factor) else "no limit"
