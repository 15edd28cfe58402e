"""The prompts that every side completes: different questions of one length, so that nobody pads or shares."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path

from aha.chat import ChatFormat
from aha.tasks import get_task
from aha.types import Message

PROMPT_TOKENS = 44
"""Wanted length; the nearest one that enough questions have is taken."""
NUM_CANDIDATES = 800
TASK = "arithmetic:min_terms=2,max_terms=3,max_number=20"


def equal_prompts(folder: Path | str, *, num_prompts: int) -> list[list[int]]:
    """Token ids of `num_prompts` different arithmetic questions of equal length, rendered by the model's template."""
    chat = ChatFormat.load(folder)
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for problem in islice(get_task(TASK).problems("train", seed=0), NUM_CANDIDATES):
        ids = chat.render([Message("user", problem.prompt)])
        if ids not in by_length[len(ids)]:
            by_length[len(ids)].append(ids)
    enough = [length for length, prompts in by_length.items() if len(prompts) >= num_prompts]
    return by_length[min(enough, key=lambda length: abs(length - PROMPT_TOKENS))][:num_prompts]
