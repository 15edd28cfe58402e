"""A task checks itself: the right answer is paid in full, and nothing else is paid more than doing nothing deserves.

A verifier that can be fooled will be fooled: reinforcement learning looks for nothing else. `self_check` tries it on
the gold answers, on doing nothing, on wrong answers and on the cheats of `aha.tasks.cheats` and of the task itself.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from aha.errors import DataError
from aha.tasks.base import Cheat, HasCheats, HasFloor, HasGold, Split, Task
from aha.tasks.cheats import cheats_with_gold, cheats_without_gold, completion_of, idle_completions
from aha.tasks.mixture import Mixture
from aha.tasks.verifiers import LETTERS, UnreadableError, choice, only_number
from aha.types import Completion, Outcome, Problem, Score

NUM_PROBLEMS = 32
NUM_GOLD_ANSWERS = 100
"""Problems whose gold answers say how often one constant answer is right."""
NUM_OTHERS = 8
CHANCE = 0.05
"""What a wrong answer or a cheat may earn above the floor: the last number of a question is its answer now and then."""
MIN_PROBLEMS, MAX_SECONDS = 3, 60.0
"""A slow verifier is tried on fewer problems: after this time no further one is begun."""
_BROKEN = "the verifier fails"
MAX_SAMPLE_SECONDS = 10.0
"""A slow generator gives fewer problems than NUM_GOLD_ANSWERS."""


Board = dict[tuple["Kind", str], list[Score]]
"""What the verifier said to each attempt, a score for each problem."""


class Kind(StrEnum):
    GOLD = "gold"
    NOTHING = "nothing"
    RANDOM = "random"
    CHEAT = "cheat"
    PROBLEMS = "problems"


class Verdict(StrEnum):
    OK = "ok"
    FAILS = "fails"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was tried on every problem."""

    name: str
    kind: Kind
    mean_reward: float
    """Over all problems; for a row about the problems themselves, the share that breaks the rule."""
    limit: float
    """What `mean_reward` must be for gold, and what it may be at most for everything else."""
    num_tried: int
    verdict: Verdict
    note: str = ""
    """What the verifier said where it went wrong."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What came of it."""

    task: str
    num_problems: int
    floor: float
    """What an answer without thought deserves: declared by the task, or the best constant answer's share."""
    seconds: float
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict is Verdict.FAILS)

    @property
    def passes(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passes": self.passes}

    def lines(self) -> str:
        """The table, for a terminal."""
        result = "passes" if self.passes else f"{len(self.failures)} of {len(self.rows)} rows fail"
        head = f"self-check on {self.num_problems} problems, {self.seconds:.1f} s: {result}"
        width = max(len(row.name) for row in self.rows)
        table = [
            f"{row.kind:<9} {row.name:<{width}} {row.mean_reward:7.3f}  {_rule(row):<14} {row.verdict}"
            + (f": {row.note}" if row.note else "")
            for row in self.rows
        ]
        return "\n".join([head, *table])

    def refuse_if_failing(self) -> None:
        """Raises DataError with the rows that fail most: they are the task's to mend."""
        if self.failures:
            worst = sorted(self.failures, key=lambda row: -abs(row.mean_reward - row.limit))[:3]
            found = "; ".join(_describe_failure(row) for row in worst)
            more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
            part = "problems" if all(row.kind is Kind.PROBLEMS for row in worst) else "score"
            raise DataError(
                f"task {self.task}: the self-check fails: {found}{more}; mend its {part}, see docs/tasks.md"
            )


def self_check(task: Task, *, num_problems: int = NUM_PROBLEMS, seed: int = 0) -> SelfCheck:
    """Try a task's verifier on right answers, on nothing, on wrong answers and on cheats.

    Args:
        num_problems: training problems to try them on; fewer where the task has no more.

    Raises:
        DataError: the task has no problems.
    """
    if isinstance(task, Mixture):
        return _check_parts(task, num_problems=num_problems, seed=seed)
    started = time.perf_counter()
    sample = _sample(task, num_problems, seed=seed)
    if not sample:
        raise DataError(f"task {task.name} has no problems to check it with")
    floor = floor_of(task, sample)
    board: Board = {}
    num_tried = 0
    for problem in sample[:num_problems]:
        if num_tried >= MIN_PROBLEMS and time.perf_counter() - started > MAX_SECONDS:
            break
        num_tried += 1
        if not _try_problem(task, problem, sample, board=board):
            break
    limits = _limits(task, floor)
    rows = [_judge(name, kind, scores, limits[kind]) for (kind, name), scores in board.items()]
    if not any(row.kind is Kind.GOLD for row in rows):
        note = f"no example of a right answer to {sample[0].prompt[:40]!r}"
        rows.append(_row("the right answer", Kind.GOLD, 0.0, 1.0, 0, Verdict.NOT_CHECKED, note))
    rows += _check_problems(task, sample, num_problems, seed=seed)
    rows.sort(key=lambda row: list(Kind).index(row.kind))
    seconds = time.perf_counter() - started
    return SelfCheck(task=task.name, num_problems=num_tried, floor=floor, seconds=seconds, rows=tuple(rows))


def _try_problem(task: Task, problem: Problem, sample: Sequence[Problem], *, board: Board) -> bool:
    """Put the scores of a problem's attempts on the board; False where the verifier fails on the right answer.

    Whatever else it would say then, that is to be mended first. An attempt that it could not judge is not made again
    on other problems: at 5 s each they would say no more.
    """
    for kind, cheat in _attempts(task, problem, sample):
        scores = board.setdefault((kind, cheat.name), [])
        if all(score.outcome.is_judged for score in scores):
            scores.append(score_of(task, problem, cheat.completion))
        if kind is Kind.GOLD and not scores[-1].outcome.is_judged:
            return False
    return True


def sample_split(task: Task) -> Split:
    """Where to look at a task's problems: in training; an evaluation set has held-out ones only."""
    try:
        return "train" if any(True for _ in task.problems("train", seed=0)) else "test"
    except DataError:
        return "test"


def _sample(task: Task, num_problems: int, *, seed: int) -> list[Problem]:
    """Problems to check, and further ones for how often answers occur, where they are made fast enough."""
    started = time.perf_counter()
    sample: list[Problem] = []
    for problem in itertools.islice(task.problems(sample_split(task), seed=seed), max(num_problems, NUM_GOLD_ANSWERS)):
        sample.append(problem)
        if len(sample) >= num_problems and time.perf_counter() - started > MAX_SAMPLE_SECONDS:
            break
    return sample


def _check_parts(mixture: Mixture, *, num_problems: int, seed: int) -> SelfCheck:
    """Each task of a mixture for itself, since what a constant answer deserves differs between them."""
    found = [self_check(task, num_problems=num_problems, seed=seed) for task in mixture.parts]
    return SelfCheck(
        task=mixture.name,
        num_problems=sum(part.num_problems for part in found),
        floor=max(part.floor for part in found),
        seconds=sum(part.seconds for part in found),
        rows=tuple(replace(row, name=f"{part.task}: {row.name}") for part in found for row in part.rows),
    )


def gold_of(task: Task, problem: Problem) -> Completion | None:
    """A right completion of a problem: what the task says, else its answer; None where there is no example."""
    gold = task.gold(problem) if isinstance(task, HasGold) else problem.answer
    return completion_of(gold) if isinstance(gold, str) else gold


def check_gold(task: Task, *, num_problems: int = 4, seed: int = 0) -> None:
    """The cheap part, before a run on a user's own task: right answers score 1.

    Raises:
        DataError: one that does not.
    """
    for problem in itertools.islice(task.problems(sample_split(task), seed=seed), num_problems):
        gold = gold_of(task, problem)
        found = score_of(task, problem, gold) if gold else None
        if found and not _is_full(found):
            raise DataError(
                f"{task.name}: the right answer {problem.answer[:40]!r} to {problem.prompt[:40]!r} scores "
                f"{found.reward:g}, not 1 ({found.note or found.outcome}); see all of it with: aha tasks {task.name}"
            )


def floor_of(task: Task, problems: Sequence[Problem]) -> float:
    """Mean reward that an answer without thought deserves.

    The task's own word; else the larger of one fixed letter's luck and the share of the most frequent gold answer, as
    the chance that another problem has it too: 0 where all answers differ.
    """
    if isinstance(task, HasFloor):
        return float(task.floor)
    problems = list({problem.problem_id: problem for problem in problems}.values())
    letters = [len(choices) for problem in problems if (choices := problem.data.get("choices"))]
    luck = statistics.fmean(1 / number for number in letters) if len(letters) == len(problems) else 0.0
    (_, count), *_ = Counter(_normalised(problem.answer) for problem in problems).most_common(1)
    return max(luck, (count - 1) / max(1, len(problems) - 1))


def score_of(task: Task, problem: Problem, completion: Completion) -> Score:
    """The task's score; a verifier that raises has failed, which a run would not survive."""
    try:
        return task.score(problem, completion)
    except Exception as error:  # noqa: BLE001 - whatever a verifier raises is what is looked for here
        return Score(0.0, False, f"score raised {type(error).__name__}: {error}"[:200], Outcome.ERROR)


def _attempts(task: Task, problem: Problem, sample: Sequence[Problem]) -> Iterator[tuple[Kind, Cheat]]:
    others = wrong_answers(task, problem, sample)
    gold = gold_of(task, problem)
    if gold is not None:
        yield Kind.GOLD, Cheat("the right answer", gold)
    for idle in idle_completions(problem):
        yield Kind.NOTHING, idle
    if others:
        yield Kind.RANDOM, Cheat("another problem's answer", completion_of(others[0]))
    cheats = [cheats_without_gold(problem, others=others)]
    if gold is not None and gold.answer:
        cheats.append(cheats_with_gold(problem, gold=gold.answer, others=others or [_spoiled(gold.answer)]))
    if isinstance(task, HasCheats):
        cheats.append(task.cheats(problem))
    for cheat in itertools.chain(*cheats):
        yield Kind.CHEAT, cheat


def wrong_answers(task: Task, problem: Problem, sample: Sequence[Problem]) -> list[str]:
    """Up to NUM_OTHERS answers in the form of right ones that are wrong for this problem."""
    choices = problem.data.get("choices")
    if choices:
        letters = LETTERS[: len(choices)]
        return [letter for letter in letters if not choice(problem.answer, letter, choices=choices).is_correct]
    found: dict[str, str] = {}
    start = sample.index(problem)
    for other in [*sample[start + 1 :], *sample[:start]]:
        if _normalised(other.answer) != _normalised(problem.answer):
            gold = gold_of(task, other)
            found.setdefault(_normalised(other.answer), gold.answer if gold else "")
        if len(found) == NUM_OTHERS:
            break
    return [answer for answer in found.values() if answer]


def _spoiled(answer: str) -> str:
    """A wrong answer where every problem has the same right one."""
    try:
        return str(only_number(answer) + 1)
    except UnreadableError:
        return f"not {answer}"


def _normalised(answer: str) -> str:
    try:
        return str(only_number(answer))
    except UnreadableError:
        return " ".join(answer.casefold().split())


def _limits(task: Task, floor: float) -> dict[Kind, float]:
    idle = floor if isinstance(task, HasFloor) else 0.0
    above = min(1.0, floor + CHANCE)
    return {Kind.GOLD: 1.0, Kind.NOTHING: idle, Kind.RANDOM: above, Kind.CHEAT: above}


def _judge(name: str, kind: Kind, scores: Sequence[Score], limit: float) -> Row:
    """A row's verdict, by its mean reward and by the share it gets counted as right, whichever is larger."""
    judged = [score for score in scores if score.outcome.is_judged]
    rewards = [score.reward for score in judged]
    mean = statistics.fmean(rewards) if rewards else 0.0
    errors = [score.note for score in scores if score.outcome is Outcome.ERROR]
    if kind is Kind.GOLD:
        wrong = [score.note or str(score.outcome) for score in scores if not _is_full(score)]
        return _row(name, kind, mean, limit, len(scores), Verdict.FAILS if wrong else Verdict.OK, "".join(wrong[:1]))
    right = sum(score.is_correct for score in judged) / max(1, len(judged))
    earned = max(mean, right) if all(map(math.isfinite, rewards)) else math.inf
    if errors:
        return _row(name, kind, earned, limit, len(scores), Verdict.FAILS, f"{_BROKEN}: {errors[0]}")
    is_paid = earned > limit + 1e-9  # a declared floor and a mean that is its equal may differ in the last bit
    note = next((score.note for score in judged if score.reward > 0 or score.is_correct), "") if is_paid else ""
    return _row(name, kind, earned, limit, len(scores), Verdict.FAILS if is_paid else Verdict.OK, note)


def _check_problems(task: Task, sample: Sequence[Problem], num_problems: int, *, seed: int) -> Iterator[Row]:
    """Rows about the problems: a seed fixes them, and the test split has none of the training problems."""
    again = list(itertools.islice(task.problems(sample_split(task), seed=seed), num_problems))
    changed = sum(a != b for a, b in zip(sample, again, strict=False)) / len(again) if again else 1.0
    yield _problems_row("the same seed gives other problems", changed)
    held_out = list(itertools.islice(task.problems("test", seed=seed), num_problems))
    # A task with turns keeps a part of its problem to itself: equal questions may be different problems.
    has_turns = hasattr(task, "respond")
    trained, tested = (
        [(p.system, p.prompt, json.dumps([p.answer, dict(p.data)], default=str) if has_turns else "") for p in problems]
        for problems in (sample, held_out)
    )
    is_evaluation_set = sample_split(task) == "test"  # there is nothing else to leak from
    shared = 0.0 if is_evaluation_set else len(set(trained) & set(tested)) / max(1, len(set(tested)))
    yield _problems_row("problems in both splits", shared)
    if not held_out:
        yield _problems_row("no problem is held out", 1.0)


def _problems_row(name: str, share: float) -> Row:
    return _row(name, Kind.PROBLEMS, share, 0.0, 1, Verdict.FAILS if share else Verdict.OK)


def _row(name: str, kind: Kind, mean: float, limit: float, num_tried: int, verdict: Verdict, note: str = "") -> Row:
    note = " ".join(note.split())[:120]
    return Row(name=name, kind=kind, mean_reward=mean, limit=limit, num_tried=num_tried, verdict=verdict, note=note)


def _is_full(score: Score) -> bool:
    return score.is_correct and score.outcome.is_judged and math.isclose(score.reward, 1.0)


def _rule(row: Row) -> str:
    return "must be 1" if row.kind is Kind.GOLD else f"at most {row.limit:.3f}"


def _describe_failure(row: Row) -> str:
    """Why a row fails, in a few words; what the verifier said where that is the reason."""
    if row.kind is Kind.PROBLEMS:
        return f"{row.name} ({row.mean_reward:.0%})"
    note = f": {row.note}" if row.note and (row.kind is Kind.GOLD or row.note.startswith(_BROKEN)) else ""
    return f'"{row.name}" earns {row.mean_reward:.3f} ({_rule(row)}{note})'
