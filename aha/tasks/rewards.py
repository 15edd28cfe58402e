"""Rewards beside the task's own: format, language, length, repetition, a judge. Gates multiply, shaping is added.

A recipe names them: `rewards = ["accuracy", "format", "language:weight=0.1,language=en"]`. However they are put
together, these hold, and tests/tasks/test_rewards.py tries to break them:

- no wrong answer is paid more than any right and well-formed one: the weights of all shaping sum to less than 1;
- doing nothing is paid nothing;
- a reward lies between -1 and 1: everything is divided by 1 + the weights of what can be added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from aha.errors import ConfigError, unknown_name
from aha.tasks import split_options, typed_options
from aha.tasks.base import Task
from aha.tasks.judge import Judge
from aha.tasks.language import Language, language_share
from aha.tasks.wrapper import TaskWrapper
from aha.types import Completion, Outcome, Problem, Score

MAX_FORMAT_BONUS = 0.1
"""R1 adds a format reward; one that is worth more than this is learned instead of the task."""
_TAGS = ("<think>", "</think>")


class Shaping(Protocol):
    """A reward that is added to the accuracy, or taken from it."""

    @property
    def weight(self) -> float:
        """The most that it adds or takes."""

    @property
    def sign(self) -> Literal[-1, 1]:
        """1 for what is paid, -1 for what is taken."""

    def share(self, problem: Problem, completion: Completion) -> float:
        """How much of `weight` applies, 0 to 1. Never raises, whatever the completion's text."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The task's own reward."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A gate: without one well-formed thinking block and an answer after it, even a right answer is paid nothing.

    Source: R1 §2.2.2 and the template of §2.2.3. R1 adds a format reward to that of accuracy; a gate cannot be farmed.
    """

    bonus: float = 0.0
    """Paid for the form alone, 0 to 0.1: to get a base model started that does not know the form yet."""

    def __post_init__(self) -> None:
        if not 0 <= self.bonus <= MAX_FORMAT_BONUS:
            raise ConfigError(
                f"format: bonus must be 0 to {MAX_FORMAT_BONUS}, got {self.bonus:g}; a form that pays more than that "
                "is learned instead of the task"
            )

    @property
    def weight(self) -> float:
        return self.bonus

    sign: ClassVar[Literal[-1, 1]] = 1

    def share(self, problem: Problem, completion: Completion) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LanguageConsistency:
    """Share of the thinking's words that are in one language; nothing for thinking without words.

    Source: R1 §2.3.2. See `aha.tasks.language` for what it can and cannot see: a sentence repeated earns what thinking
    in that language earns, never more.
    """

    weight: float = 0.1
    language: Language = "en"

    sign: ClassVar[Literal[-1, 1]] = 1

    def __post_init__(self) -> None:
        _check_weight("language", self.weight)

    def share(self, problem: Problem, completion: Completion) -> float:
        return language_share(completion.reasoning, self.language) or 0.0


@dataclass(frozen=True, kw_only=True)
class LengthCost:
    """Tokens beyond a target: the whole weight at twice the target and beyond."""

    weight: float = 0.1
    target: int = 512
    """Tokens that cost nothing, the thinking included."""

    sign: ClassVar[Literal[-1, 1]] = -1

    def __post_init__(self) -> None:
        _check_weight("length", self.weight)
        _check("length: target", self.target >= 1, "at least 1 token", self.target)

    def share(self, problem: Problem, completion: Completion) -> float:
        return min(1.0, max(0.0, (completion.num_tokens - self.target) / self.target))


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """Soft punishment over the last `cache` tokens before the limit.

    Source: DAPO (arXiv:2503.14476) §3.4, where the most it takes is 1, next to accuracies of -1 and 1.
    """

    max_tokens: int
    """The limit, as in the recipe."""
    cache: int
    """Tokens before the limit over which the punishment grows from nothing to the whole weight."""
    weight: float = 0.5

    sign: ClassVar[Literal[-1, 1]] = -1

    def __post_init__(self) -> None:
        _check_weight("overlong", self.weight)
        _check("overlong: cache", 1 <= self.cache <= self.max_tokens, f"1 to max_tokens={self.max_tokens}", self.cache)

    def share(self, problem: Problem, completion: Completion) -> float:
        over = completion.num_tokens - (self.max_tokens - self.cache)
        return min(1.0, max(0.0, over / self.cache))


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Share of the n-grams of words that stood in the completion before."""

    weight: float = 0.1
    ngram: int = 8
    """Words in a row that count as the same when all are equal."""

    sign: ClassVar[Literal[-1, 1]] = -1

    def __post_init__(self) -> None:
        _check_weight("repetition", self.weight)
        _check("repetition: ngram", 2 <= self.ngram <= 100, "2 to 100 words", self.ngram)

    def share(self, problem: Problem, completion: Completion) -> float:
        words = f"{completion.reasoning} {completion.answer}".split()
        num_grams = len(words) - self.ngram + 1
        if num_grams < 2:
            return 0.0
        different = {tuple(words[start : start + self.ngram]) for start in range(num_grams)}
        return 1.0 - len(different) / num_grams


REWARDS: dict[str, type[Any]] = {
    "accuracy": Accuracy,
    "format": Format,
    "judge": Judge,
    "language": LanguageConsistency,
    "length": LengthCost,
    "overlong": Overlong,
    "repetition": Repetition,
}
"""Name → its options, a frozen dataclass."""


class RewardPlan(NamedTuple):
    """The rewards of a recipe, checked."""

    has_accuracy: bool
    is_gated: bool
    judge: Judge | None
    shaping: dict[str, Shaping]
    """Name → what is added or taken, without the judge."""

    @property
    def most(self) -> float:
        """Most that can be added to the accuracy."""
        paid = sum(shaping.weight for shaping in self.shaping.values() if shaping.sign > 0)
        return paid + (self.judge.weight if self.judge and self.has_accuracy else 0.0)

    @property
    def cost(self) -> float:
        """Most that can be taken."""
        return sum(shaping.weight for shaping in self.shaping.values() if shaping.sign < 0)


def read_rewards(specs: Sequence[str]) -> RewardPlan:
    """What the specs of a recipe ask for.

    Args:
        specs: "NAME" or "NAME:option=value,…" each, NAME in REWARDS.

    Raises:
        ConfigError: an unknown reward or option, one that stands twice, nothing that says what is right, or shaping
            that could outweigh being right.
    """
    found: dict[str, Any] = {}
    for spec in specs:
        name, _, text = spec.partition(":")
        if name not in REWARDS:
            hint = "; write a reward with several options in quotes" if "=" in name else ""
            raise ConfigError(f"{unknown_name('reward', name, REWARDS)}{hint}")
        if name in found:
            raise ConfigError(f"rewards: {name!r} stands twice")
        found[name] = _build(name, split_options(text, spec=spec))
    if not {"accuracy", "judge"} & found.keys():
        raise ConfigError(f"rewards={list(specs)} has nothing that says what is right; add accuracy (or judge)")
    shaping = {name: part for name, part in found.items() if name not in ("accuracy", "judge") and part.weight}
    plan = RewardPlan("accuracy" in found, "format" in found, found.get("judge"), shaping)
    if plan.most + plan.cost >= 1:
        weights = ", ".join(f"{name} {part.weight:g}" for name, part in found.items() if name != "accuracy")
        raise ConfigError(
            f"rewards: the weights beside accuracy sum to {plan.most + plan.cost:g} ({weights}) and must stay below 1, "
            "or a wrong answer could be paid more than a right one; lower some weight"
        )
    return plan


def _build(name: str, options: dict[str, str]) -> Any:
    needed = [field for field, default in _defaults(REWARDS[name]).items() if default and field not in options]
    if needed:
        raise ConfigError(f"reward {name} needs {', '.join(needed)}; write {name}:{'=…,'.join(needed)}=…")
    return REWARDS[name](**typed_options(options, REWARDS[name], owner=f"reward {name}"))


def _defaults(kind: type[Any]) -> dict[str, bool]:
    """Field → whether it must be given."""
    return {field.name: field.default is MISSING for field in fields(kind)}


def with_rewards(task: Task, specs: Sequence[str]) -> Task:
    """The task, paid by the rewards of a recipe; the task itself where they are its accuracy alone.

    Raises:
        ConfigError: as `read_rewards`.
        AhaError: a judge that cannot be asked.
    """
    if tuple(specs) == ("accuracy",):
        return task
    plan = read_rewards(specs)
    if plan.judge:
        plan.judge.connect()  # a key or a journal that cannot be used is said now, and not once a completion
    return Rewarded(task, plan)


class Rewarded(TaskWrapper):
    """A task whose reward is made of several. `is_correct` and everything else stay the task's."""

    def __init__(self, inner: Task, plan: RewardPlan) -> None:
        super().__init__(inner)
        self.plan = plan

    def score(self, problem: Problem, completion: Completion) -> Score:
        found = self.inner.score(problem, completion)
        if not found.outcome.is_judged:
            return found
        plan, is_well_formed = self.plan, has_form(completion)
        base = min(1.0, max(-1.0, found.reward)) if plan.has_accuracy else 0.0
        parts = {"accuracy": base} if plan.has_accuracy else {}
        if plan.is_gated:
            parts["format"] = float(is_well_formed)
            base = base if is_well_formed else min(base, 0.0)
        note = found.note if is_well_formed or not plan.is_gated else f"no thinking block and answer; {found.note}"
        shaped = 0.0
        for name, part in plan.shaping.items():
            # Nothing is paid for what is no answer; it still costs its length, or it would be the cheap way out.
            applies = is_well_formed or part.sign < 0
            value = part.sign * part.weight * part.share(problem, completion) if applies else 0.0
            shaped += value
            if name != "format":
                parts[name] = value
        if plan.judge and self._is_worth_judging(found, completion, is_well_formed=is_well_formed):
            verdict = plan.judge.ask(problem, completion)
            if verdict.mark is None:
                return replace(found, reward=0.0, note=f"judge: {verdict.note}", outcome=Outcome.ERROR, parts=parts)
            parts["judge"] = verdict.mark * (plan.judge.weight if plan.has_accuracy else 1.0)
            shaped += parts["judge"]
        return replace(found, reward=self._total(base + shaped, is_correct=found.is_correct), note=note, parts=parts)

    def _is_worth_judging(self, found: Score, completion: Completion, *, is_well_formed: bool) -> bool:
        """A judge costs money: what the gates have refused is not shown to it."""
        is_answer = is_well_formed if self.plan.is_gated else bool(completion.answer.strip())
        return is_answer and (found.is_correct or not self.plan.has_accuracy)

    def _total(self, total: float, *, is_correct: bool) -> float:
        """The sum as a reward from -1 to 1; one of a wrong answer stays below the least of a right one."""
        plan = self.plan
        scale = 1.0 + plan.most
        reward = total / scale
        if plan.has_accuracy and not is_correct:
            # Partial credit of the task and shaping together must not reach what the worst right answer is paid.
            # After the division, which would round the difference away.
            reward = min(reward, math.nextafter((1.0 - plan.cost) / scale, -1.0))
        return min(1.0, max(-1.0, reward))


def has_form(completion: Completion) -> bool:
    """Whether a completion is exactly one well-formed thinking block that is not empty, and then an answer."""
    thinking, answer = completion.reasoning, completion.answer
    return bool(thinking.strip() and answer.strip()) and not any(tag in thinking or tag in answer for tag in _TAGS)


def _check_weight(name: str, weight: float) -> None:
    _check(f"{name}: weight", 0 < weight < 1, "above 0 and below 1", weight)


def _check(name: str, is_ok: bool, rule: str, value: float) -> None:
    if not is_ok:
        raise ConfigError(f"{name} must be {rule}, got {value:g}")
