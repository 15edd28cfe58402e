"""Makes problems with reasoning-gym's generators. No text of a model comes here."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import numpy as np

from aha.tasks.jobs.gym_config import ITEMS_PER_SEED, ParameterError, make_dataset, rule_of, typed_parameters
from aha.tasks.jobs.gym_golds import gold_of
from aha.tasks.jobs.gym_scores import is_right, own_score
from aha.tasks.jobs.plain import encode
from aha.tasks.verifiers import UnreadableError

BATCH_SECONDS = 1.0
"""Generators differ a thousandfold in speed: a batch ends after this CPU time, however few items it has."""


def answer(question: Any) -> dict[str, Any]:
    """{"dataset", "parameters"} → typed parameters; with {"seed", "start", "count"} → the problems of these indices.

    "refused" says in words for the user why there are none.
    """
    try:
        if "seed" not in question:
            return {"refused": "", "parameters": typed_parameters(question["dataset"], question["parameters"])}
        return {"refused": "", **_items(**question)}
    except ParameterError as error:
        return {"refused": str(error)}


def _items(dataset: str, parameters: dict[str, Any], seed: int, start: int, count: int) -> dict[str, Any]:
    rule = rule_of(dataset)
    began = time.process_time()
    items, fault = [], ""
    index = start
    while index < start + count and time.process_time() - began < BATCH_SECONDS:
        made = make_dataset(dataset, json.dumps(parameters, sort_keys=True), seed=seed + index // ITEMS_PER_SEED)
        # Some generators draw from the global generators too.
        random.seed(f"{seed} {index}")
        np.random.seed((seed + index) % 2**32)
        try:
            item = _item(dataset, made, index % ITEMS_PER_SEED, hint=rule.hint)
        except Exception as error:  # noqa: BLE001 - some indices of some parameters fail; all of them is reported
            item, fault = None, f"{type(error).__name__}: {error}"[:200]
        if item is not None:
            items.append(item)
        index += 1
    return {"items": items, "next": index, "fault": fault}


def _item(name: str, dataset: Any, index: int, *, hint: str) -> dict[str, Any] | None:
    """A problem, or nothing when its own right answer is unknown, empty, or not accepted by its scorer."""
    entry = dataset[index]
    gold = gold_of(name, entry).strip()
    question = f"{entry['question']}\n{hint}".rstrip() if hint else str(entry["question"])
    plain = {"answer": encode(entry["answer"]), "metadata": encode(entry["metadata"])}
    try:
        is_sound = bool(gold) and is_right(own_score(name, dataset, plain, question=question, text=gold))
    except UnreadableError:
        is_sound = False
    return {"question": question, "answer": gold, "entry": plain} if is_sound else None
