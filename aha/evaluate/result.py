"""What an evaluation comes to: the sample as it is remembered, and the result with its intervals and its dollars."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aha.errors import DataError
from aha.evaluate.statistics import Vote, bootstrap_interval, consensus_at_k, pass_at_k
from aha.types import Outcome, Rollout, Usage

FORMAT = 1

Interval = tuple[float, float]
"""Low and high end of a 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is remembered of one answer once its text is on the disk."""

    answer: str
    """What has to be equal for two votes to be for the same; a digest where it is long."""
    is_correct: bool
    outcome: Outcome
    num_tokens: int
    num_thinking_tokens: int | None
    is_truncated: bool
    weight_version: int = 0
    cost_nano_usd: int = 0
    usage: Usage | None = None
    """As an endpoint counted, none for what was paid for before; None for a model in this process."""
    note: str = ""

    @property
    def vote(self) -> Vote:
        return Vote(self.answer if self.outcome is Outcome.SCORED else None, self.is_correct)


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One evaluation. Fractions are of 1; tokens are means over all completions, truncated ones included.

    Intervals are of 95 %, by bootstrap over problems: the samples of one problem are not independent of each other.
    """

    name: str
    manifest: dict[str, Any]
    """The protocol: whatever, if changed, could change the numbers."""
    num_problems: int
    num_completions: int
    pass_at_1: float
    """Mean over problems of the share of judged completions that are right."""
    interval_low: float
    """Of pass@1."""
    interval_high: float
    pass_at_k: dict[int, float]
    """k = 1, 2, 4, … and num_samples. Problems with fewer than k judged completions are left out of that k."""
    cons_at_k: float
    """Share of problems whose most frequent answer over all k = num_samples completions is right."""
    truncated_fraction: float
    parse_failure_fraction: float
    error_fraction: float
    """Completions the verifier itself failed on: counted here, left out of every score."""
    mean_tokens: float
    mean_thinking_tokens: float | None
    """Tokens of the thinking, counted from its text; None when the caller gave no way to count."""
    completion_tokens: int
    wall_seconds: float
    """Of all sessions, where the evaluation was stopped and gone on with."""
    problem_scores: dict[str, tuple[int, int]]
    """problem_id → (completions right, completions judged)."""
    timeout_fraction: float = 0.0
    """Completions the verifier did not judge in time: counted here, left out of every score."""
    pass_at_k_intervals: dict[int, Interval] = field(default_factory=dict)
    consensus_at_k: dict[int, float] = field(default_factory=dict)
    """cons@k for the k of `pass_at_k`: expected share over every choice of k of a problem's samples. A problem with
    fewer judged completions votes with those it has."""
    consensus_intervals: dict[int, Interval] = field(default_factory=dict)
    cost_usd: float | None = None
    """What the endpoint charged, or the machine's price times `wall_seconds`; None when no price is known."""
    usd_per_solved: float | None = None
    """cost_usd divided by the number of right completions: what one right answer costs when each problem is asked
    once. None without a price or without a right answer."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @property
    def num_correct(self) -> int:
        """Right completions."""
        return sum(right for right, _ in self.problem_scores.values())


def consensus(rollouts: Sequence[Rollout]) -> float:
    """Whether the most frequent answer is right: 1 or 0, between them when answers of different worth tie.

    Answers are compared as text with blanks removed. Unreadable answers and failed verifications have no vote.
    """
    votes = [
        Vote("".join(completion.answer.split()) if score.outcome is Outcome.SCORED else None, score.is_correct)
        for completion, score in ((rollout.completion, rollout.score) for rollout in rollouts)
    ]
    return consensus_at_k(votes, k=len(votes))


def summarise(
    name: str,
    manifest: dict[str, Any],
    samples: Mapping[str, Sequence[Sample]],
    *,
    wall_seconds: float,
    cost_usd: float | None,
) -> EvalResult:
    """The result of an evaluation.

    Args:
        samples: problem_id → its samples in order.

    Raises:
        DataError: the verifier failed on every completion.
    """
    everything = [sample for group in samples.values() for sample in group]
    judged = {key: [s for s in group if s.outcome.is_judged] for key, group in samples.items()}
    scores = {key: (sum(sample.is_correct for sample in group), len(group)) for key, group in judged.items()}
    if not any(of for _, of in scores.values()):
        note = everything[0].note or "it gave no reason"
        raise DataError(f"the verifier of {manifest['task']!r} failed on all {len(everything)} completions: {note}")
    num_correct = sum(right for right, _ in scores.values())
    lengths = [sample.num_tokens for sample in everything]
    thinking = [sample.num_thinking_tokens for sample in everything if sample.num_thinking_tokens is not None]
    outcomes = Counter(sample.outcome for sample in everything)
    return EvalResult(
        name=name,
        manifest=manifest,
        num_problems=len(samples),
        num_completions=len(everything),
        **_rates([group for group in judged.values() if group], manifest),
        truncated_fraction=sum(sample.is_truncated for sample in everything) / len(everything),
        parse_failure_fraction=outcomes[Outcome.PARSE_FAILURE] / len(everything),
        error_fraction=outcomes[Outcome.ERROR] / len(everything),
        timeout_fraction=outcomes[Outcome.TIMEOUT] / len(everything),
        mean_tokens=sum(lengths) / len(lengths),
        mean_thinking_tokens=sum(thinking) / len(thinking) if thinking else None,
        completion_tokens=sum(lengths),
        wall_seconds=wall_seconds,
        problem_scores=scores,
        cost_usd=cost_usd,
        usd_per_solved=cost_usd / num_correct if cost_usd is not None and num_correct else None,
    )


def _rates(judged: Sequence[Sequence[Sample]], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """pass@k and cons@k with their intervals, by field of EvalResult. Each problem has at least one judged sample."""
    num_samples, seed = manifest["num_samples"], manifest["problem_seed"]
    counts = [(sum(sample.is_correct for sample in group), len(group)) for group in judged]
    shares = [right / of for right, of in counts]
    low, high = bootstrap_interval(shares, seed=seed)
    # Powers of two, and all samples.
    ks = sorted({*(2**power for power in range(num_samples.bit_length())), num_samples})
    passes = {k: [pass_at_k(of, num_correct=right, k=k) for right, of in counts if of >= k] for k in ks}
    passes = {k: values for k, values in passes.items() if values}
    votes = [[sample.vote for sample in group] for group in judged]
    agreed = {k: [consensus_at_k(group, k=k) for group in votes] for k in ks}
    means = {k: sum(values) / len(values) for k, values in agreed.items()}
    return {
        "pass_at_1": sum(shares) / len(shares),
        "interval_low": low,
        "interval_high": high,
        "pass_at_k": {k: sum(values) / len(values) for k, values in passes.items()},
        "pass_at_k_intervals": {k: bootstrap_interval(values, seed=seed) for k, values in passes.items()},
        "cons_at_k": means[num_samples],
        "consensus_at_k": means,
        "consensus_intervals": {k: bootstrap_interval(values, seed=seed) for k, values in agreed.items()},
    }


def load_result(path: Path) -> EvalResult:
    """An evaluation's result, read back from NAME.json; those of older versions lack the newer intervals and dollars.

    Raises:
        DataError: no such file, not a result, or of another format.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read an evaluation from {path}: {error}") from error
    version = fields.pop("format", None) if isinstance(fields, dict) else None
    if version != FORMAT:
        raise DataError(f"{path} is not an evaluation of format {FORMAT} (found {version!r}); evaluate again")
    try:
        for key in ("pass_at_k", "consensus_at_k"):
            fields[key] = {int(k): share for k, share in fields.get(key, {}).items()}
        for key in ("pass_at_k_intervals", "consensus_intervals"):
            fields[key] = {int(k): (low, high) for k, (low, high) in fields.get(key, {}).items()}
        fields["problem_scores"] = {key: (int(right), int(of)) for key, (right, of) in fields["problem_scores"].items()}
        if not isinstance(fields["manifest"], dict):
            raise TypeError("its manifest is no object")
        return EvalResult(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} lacks parts of an evaluation ({error}); evaluate again") from error
