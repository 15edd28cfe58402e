"""Evaluate a model on a task under a fixed protocol: pass@1 with its interval, pass@k, cons@k, lengths, all outputs.

`evaluate` is handed `respond`, so that an engine in this process and an endpoint behind HTTP are measured by the
same code. The protocol is written into the result's manifest; the outputs lie beside it as JSON lines.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from aha import tasks
from aha.cost.files import open_atomic, write_atomic
from aha.errors import DataError, RequestError
from aha.rooms import make_callable
from aha.tasks.base import Split, Task
from aha.tasks.turns import answer_problems
from aha.types import Completion, FinishReason, Message, Outcome, Problem, Rollout, SamplingParams

Respond = Callable[[list[list[Message]], SamplingParams], list[list[Completion]]]
"""Conversations in; for each, `num_samples` completions with text, reasoning and answer filled in. Of a task with turns
each turn is asked so, unless this is aha.tasks.turns.RunsEpisodes too."""

FORMAT = 1
CONVERSATIONS_PER_CALL = 128  # enough to keep an engine's batch full, few enough that progress moves
NUM_RESAMPLES = 2000
DRAWS_PER_PROBLEM = 20  # how far to look for distinct problems in a generator that repeats itself


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an evaluation has come."""

    num_done: int
    num_problems: int
    pass_at_1: float
    """Over the problems done so far."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One evaluation. Fractions are of 1; tokens are means over all completions, truncated ones included."""

    name: str
    manifest: dict[str, Any]
    """The protocol: whatever, if changed, could change the numbers."""
    num_problems: int
    num_completions: int
    pass_at_1: float
    """Mean over problems of the share of scored completions that are right."""
    interval_low: float
    """95 % interval of pass@1, bootstrap over problems."""
    interval_high: float
    pass_at_k: dict[int, float]
    """k = 1, 2, 4, … up to num_samples. Problems with fewer than k scored completions are left out of that k."""
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
    problem_scores: dict[str, tuple[int, int]]
    """problem_id → (completions right, completions scored)."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """after - before, on the same problems, in shares of 1; a 95 % interval by paired bootstrap over problems."""

    pass_at_1: float
    interval_low: float
    interval_high: float
    num_problems: int
    num_improved: int
    num_worsened: int

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval_low > 0.0 or self.interval_high < 0.0


def evaluate(
    task: Task | str,
    respond: Respond,
    *,
    num_problems: int = 500,
    num_samples: int = 1,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    split: Split = "test",
    out: Path | None = None,
    name: str = "eval",
    template: str = "",
    extractor: str = "",
    count_tokens: Callable[[str], int] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> EvalResult:
    """Ask `num_problems` distinct problems of `task`, score the answers, and keep everything.

    Args:
        task: a task, or the spec of one ("countdown:max_number=50").
        num_samples: completions per problem (k).
        sampling: temperature, top-p and so on; None is R1's evaluation (arXiv:2501.12948v1 §3: 0.6 and 0.95). Its
            num_samples is replaced; its seed, when None, by `seed`, so that results do not depend on batching.
        seed: chooses the problems.
        out: folder for NAME.json (the result) and NAME.jsonl (every output); None writes nothing.
        template: name or hash of the chat template, for the manifest.
        extractor: what reads the answer out of the text, for the manifest; "" names the task's own `score`.
        count_tokens: length of a text in the model's tokens; gives `mean_thinking_tokens`.

    Raises:
        DataError: no problems in the split, the verifier failed on every completion, or `out` cannot be written.
    """
    asked = tasks.get_task(task) if isinstance(task, str) else task
    problems = select_problems(asked, num_problems=num_problems, seed=seed, split=split)
    sampling = sampling or SamplingParams(temperature=0.6, top_p=0.95)
    sampling = replace(sampling, num_samples=num_samples, seed=seed if sampling.seed is None else sampling.seed)
    started = time.perf_counter()
    rows = _ask(asked, problems, respond, sampling, on_progress)
    if out is None:
        answered = list(rows)
    else:
        with open_atomic(out / f"{name}.jsonl") as file:
            answered = [_write_row(file, problem, rollouts) for problem, rollouts in rows]
    manifest = {
        "task": asked.name,
        "split": split,
        "num_problems": len(problems),
        "num_problems_requested": num_problems,
        "problem_seed": seed,
        **asdict(sampling),
        "stop": list(sampling.stop),
        "template": template,
        "extractor": extractor or f"{type(asked).__module__}.{type(asked).__qualname__}.score",
        "aha_version": metadata.version("aha"),
        "weight_version": _weight_version(answered),
    }
    result = _summarise(name, manifest, answered, time.perf_counter() - started, count_tokens)
    if out is not None:
        write_atomic(out / f"{name}.json", text=result.to_json())
    return result


def select_problems(task: Task, *, num_problems: int, seed: int, split: Split = "test") -> list[Problem]:
    """The first `num_problems` distinct problems of a split; fewer when it has no more. Baselines use the same ones.

    Raises:
        RequestError: num_problems below 1.
        DataError: the split is empty.
    """
    if num_problems < 1:
        raise RequestError(f"num_problems must be at least 1, got {num_problems}", param="num_problems")
    chosen: dict[str, Problem] = {}
    for problem in itertools.islice(task.problems(split, seed=seed), DRAWS_PER_PROBLEM * num_problems):
        chosen.setdefault(problem.problem_id, problem)
        if len(chosen) == num_problems:
            break
    if not chosen:
        raise DataError(f"task {task.name!r} has no problems in its {split} split; give it more rows or another split")
    return list(chosen.values())


def conversation(task: Task, *, problem: Problem) -> list[Message]:
    """The messages a problem is asked with."""
    system = problem.system or task.system_prompt
    return [*([Message("system", system)] if system else []), Message("user", problem.prompt)]


def bootstrap_interval(
    values_N: Sequence[float] | npt.NDArray[np.float64],
    *,
    seed: int = 0,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> tuple[float, float]:
    """95 % interval of the mean of N values in [lowest, highest]: percentile bootstrap, 2,000 resamples.

    Where all values are equal, a bootstrap would claim certainty (0 of 20 right: "0 to 0 %"). Then the interval is
    what N draws can exclude: with probability 0.95 (two-sided) at most q = 1 - 0.025^(1/N) of all problems differ.
    For shares of 0 or 1 that is the exact Clopper-Pearson bound.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if np.ptp(values) == 0.0:
        share_elsewhere = 1.0 - 0.025 ** (1.0 / len(values))
        value = float(values[0])
        return value - share_elsewhere * (value - lowest), value + share_elsewhere * (highest - value)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def pass_at_k(num_samples: int, *, num_correct: int, k: int) -> float:
    """Chance that at least one of k <= num_samples completions drawn without replacement is right.

    Source: Chen et al. 2021 (arXiv:2107.03374) §2.1, 1 - C(n-c, k) / C(n, k), in exact integers.
    """
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def consensus(rollouts: Sequence[Rollout]) -> float:
    """Whether the most frequent answer is right: 1 or 0, between them when answers of different worth tie.

    Answers are compared as text with blanks removed. Unreadable answers and failed verifications have no vote.
    """
    votes: defaultdict[str, list[bool]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.score.outcome is Outcome.SCORED:
            votes["".join(rollout.completion.answer.split())].append(rollout.score.is_correct)
    if not votes:
        return 0.0
    most = max(len(ballots) for ballots in votes.values())
    winners = [sum(ballots) / len(ballots) for ballots in votes.values() if len(ballots) == most]
    return sum(winners) / len(winners)


def load_result(path: Path) -> EvalResult:
    """An evaluation's result, read back from NAME.json.

    Raises:
        DataError: no such file, not a result, or of another format.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read an evaluation from {path}: {error}") from error
    version = fields.pop("format", None) if isinstance(fields, dict) else None
    if version != FORMAT:
        raise DataError(f"{path} is not an evaluation of format {FORMAT} (found {version!r}); evaluate again")
    try:
        fields["pass_at_k"] = {int(k): share for k, share in fields["pass_at_k"].items()}
        fields["problem_scores"] = {key: (int(right), int(of)) for key, (right, of) in fields["problem_scores"].items()}
        return EvalResult(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} lacks parts of an evaluation ({error}); evaluate again") from error


def compare(before: EvalResult, after: EvalResult, *, seed: int = 0) -> Difference:
    """What changed, problem by problem: a paired bootstrap of the difference in pass@1.

    Raises:
        DataError: the two were not asked the same problems, so that a difference would mean nothing.
    """
    if before.problem_scores.keys() != after.problem_scores.keys():
        raise DataError(
            f"evaluations {before.name!r} and {after.name!r} asked different problems; "
            "evaluate both with the same task, split, seed and num_problems"
        )
    pairs = [(before.problem_scores[key], after.problem_scores[key]) for key in before.problem_scores]
    differences = [
        right_after / of_after - right_before / of_before
        for (right_before, of_before), (right_after, of_after) in pairs
        if of_before and of_after
    ]
    if not differences:
        raise DataError(f"no problem was scored in both {before.name!r} and {after.name!r}")
    low, high = bootstrap_interval(differences, seed=seed, lowest=-1.0, highest=1.0)
    return Difference(
        pass_at_1=sum(differences) / len(differences),
        interval_low=low,
        interval_high=high,
        num_problems=len(differences),
        num_improved=sum(difference > 0.0 for difference in differences),
        num_worsened=sum(difference < 0.0 for difference in differences),
    )


Answered = tuple[Problem, list[Rollout]]


def _ask(
    task: Task,
    problems: list[Problem],
    respond: Respond,
    sampling: SamplingParams,
    on_progress: Callable[[Progress], None] | None,
) -> Iterable[Answered]:
    """Each problem with its scored completions, in order, as they come."""
    shares: list[float] = []
    for start in range(0, len(problems), CONVERSATIONS_PER_CALL):
        chunk = problems[start : start + CONVERSATIONS_PER_CALL]
        asked = [conversation(task, problem=problem) for problem in chunk]
        completions_PG = answer_problems(task, chunk, asked, respond, sampling)
        for problem, completions in zip(chunk, completions_PG, strict=True):
            assert len(completions) == sampling.num_samples, "respond must give num_samples completions"
            rollouts = [Rollout(completion, task.score(problem, completion)) for completion in completions]
            right, of = _count(rollouts)
            shares += [right / of] if of else []
            yield problem, rollouts
        if on_progress:
            so_far = sum(shares) / len(shares) if shares else 0.0
            on_progress(Progress(num_done=start + len(chunk), num_problems=len(problems), pass_at_1=so_far))


def _count(rollouts: Sequence[Rollout]) -> tuple[int, int]:
    """(completions right, completions scored)."""
    scored = [rollout for rollout in rollouts if rollout.score.outcome.is_judged]
    return sum(rollout.score.is_correct for rollout in scored), len(scored)


def _write_row(file: TextIO, problem: Problem, rollouts: list[Rollout]) -> Answered:
    samples = [
        {
            "text": completion.text,
            "reasoning": completion.reasoning,
            "answer": completion.answer,
            "reward": score.reward,
            "is_correct": score.is_correct,
            "outcome": score.outcome,
            "note": score.note,
            "finish_reason": completion.finish_reason,
            "num_tokens": completion.num_tokens,
            **({"turns": [asdict(turn) for turn in completion.turns]} if completion.turns else {}),
        }
        for completion, score in ((rollout.completion, rollout.score) for rollout in rollouts)
    ]
    row = {"problem_id": problem.problem_id, "prompt": problem.prompt, "gold": problem.answer, "samples": samples}
    # ASCII: model text may hold lone surrogates, which UTF-8 cannot.
    file.write(json.dumps(row, ensure_ascii=True) + "\n")
    return problem, rollouts


def _weight_version(answered: list[Answered]) -> int:
    versions = {rollout.completion.weight_version for _, rollouts in answered for rollout in rollouts}
    assert len(versions) == 1, f"the weights changed during the evaluation: versions {sorted(versions)}"
    return versions.pop()


def _summarise(
    name: str,
    manifest: dict[str, Any],
    answered: list[Answered],
    wall_seconds: float,
    count_tokens: Callable[[str], int] | None,
) -> EvalResult:
    everything = [rollout for _, rollouts in answered for rollout in rollouts]
    scores = {problem.problem_id: _count(rollouts) for problem, rollouts in answered}
    shares = [right / of for right, of in scores.values() if of]
    if not shares:
        note = everything[0].score.note or "it gave no reason"
        raise DataError(f"the verifier of {manifest['task']!r} failed on all {len(everything)} completions: {note}")
    low, high = bootstrap_interval(shares, seed=manifest["problem_seed"])
    votes = [consensus(rollouts) for problem, rollouts in answered if scores[problem.problem_id][1]]
    outcomes = [rollout.score.outcome for rollout in everything]
    lengths = [rollout.completion.num_tokens for rollout in everything]
    truncated = [rollout.completion.finish_reason is FinishReason.LENGTH for rollout in everything]
    thinking = [count_tokens(rollout.completion.reasoning) for rollout in everything] if count_tokens else None
    return EvalResult(
        name=name,
        manifest=manifest,
        num_problems=len(answered),
        num_completions=len(everything),
        pass_at_1=sum(shares) / len(shares),
        interval_low=low,
        interval_high=high,
        pass_at_k=_pass_at_powers(list(scores.values()), num_samples=manifest["num_samples"]),
        cons_at_k=sum(votes) / len(votes),
        truncated_fraction=sum(truncated) / len(everything),
        parse_failure_fraction=outcomes.count(Outcome.PARSE_FAILURE) / len(everything),
        error_fraction=sum(not outcome.is_judged for outcome in outcomes) / len(everything),
        mean_tokens=sum(lengths) / len(lengths),
        mean_thinking_tokens=sum(thinking) / len(thinking) if thinking else None,
        completion_tokens=sum(lengths),
        wall_seconds=wall_seconds,
        problem_scores=scores,
    )


def _pass_at_powers(counts: list[tuple[int, int]], *, num_samples: int) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, … up to num_samples, over the problems with at least k scored completions."""
    shares: dict[int, float] = {}
    for k in (2**power for power in range(num_samples.bit_length())):
        estimates = [pass_at_k(of, num_correct=right, k=k) for right, of in counts if of >= k]
        if estimates:
            shares[k] = sum(estimates) / len(estimates)
    return shares


make_callable(__name__)
