"""Scores answers to problems of reasoning-gym's generators by the rules in `gym_rules`."""

from __future__ import annotations

import json
import re
from typing import Any

from aha.tasks.jobs.gym_config import make_dataset, rule_of
from aha.tasks.jobs.gym_golds import gold_of
from aha.tasks.jobs.gym_rules import RULES
from aha.tasks.jobs.gym_scorers import CHECKERS
from aha.tasks.jobs.plain import decode
from aha.tasks.verifiers import UnreadableError

EMPTY_ANSWERS = ("I don't know", "0", "?")
"""Answers that deserve nothing; many scorers give them a little, which part credit must not."""


def answer(question: Any) -> dict[str, float]:
    """{"score": the scorer's, in [0, 1], "floor": the most it gives an empty answer to this problem}.

    Raises:
        UnreadableError: when the answer cannot be read, by our rules or because the scorer raised on it.
    """
    dataset = make_dataset(question["dataset"], json.dumps(question["parameters"], sort_keys=True), seed=0)

    def score(text: str) -> float:
        return own_score(question["dataset"], dataset, question["entry"], question=question["question"], text=text)

    try:
        found = score(question["text"])
    except UnreadableError:
        raise
    except Exception as error:  # noqa: BLE001 - third-party scorers raise anything
        # The same scorer reads the right answer: then this text is at fault. If it does not, the scorer is.
        score(gold_of(question["dataset"], decode(question["entry"])))
        raise UnreadableError(f"the scorer cannot read it: {type(error).__name__}") from None
    if is_right(found) or not question["partial"]:
        return {"score": found, "floor": 0.0}
    return {"score": found, "floor": max(_score_or_zero(score, text) for text in EMPTY_ANSWERS)}


def is_right(score: float) -> bool:
    """Whether a scorer's number means right: exactly 1. Some give 0.99 for near, and some more than 1 for wrong."""
    return abs(score - 1.0) <= 1e-9


def own_score(name: str, dataset: Any, entry: Any, *, question: str, text: str) -> float:
    """The number that a text gets by this generator's rule, as the scorer gives it.

    Args:
        entry: the problem's answer and metadata in the form of `plain.encode`; read anew each time, since some scorers
            write into it.
        text: an answer without outer white space.
    """
    rule = RULES.get(name) or rule_of(name)
    if rule.form and not re.fullmatch(rule.form, text, re.IGNORECASE):
        raise UnreadableError(f"not in the form that {name} asks for")
    problem = {"question": question, **decode(entry)}
    if rule.how == "ours":
        return CHECKERS[name](problem, text, dataset)
    gold = problem["answer"]
    if isinstance(gold, str) and text == gold.strip():
        text = gold  # a board may begin with a space, which the answer has lost
    return float(dataset.score_answer(text, problem))


def _score_or_zero(score: Any, text: str) -> float:
    try:
        found = float(score(text))
    except UnreadableError:
        return 0.0
    return found if 0 <= found < 1 else 0.0
