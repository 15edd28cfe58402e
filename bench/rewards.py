"""What both sides of a GRPO step are rewarded by, and what came of it."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aha.tasks import get_task
from aha.tasks.base import Split, Task
from aha.types import Completion, Problem, RolloutGroup, Score
from bench.child import Job


@dataclass(frozen=True)
class SpreadRewards:
    """A task's problems with rewards that mean nothing and always differ: a hash of the completion."""

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def system_prompt(self) -> str:
        return self.task.system_prompt

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        return self.task.problems(split, seed=seed)

    def score(self, problem: Problem, completion: Completion) -> Score:
        digest = hashlib.sha256(str(completion.token_ids).encode()).digest()
        return Score(int.from_bytes(digest[:4], "big") / 2**32, is_correct=False)


def chosen_task(job: Job) -> Task:
    """The job's task with its own reward ("task"), or with the made-up one ("spread")."""
    task = get_task(job["task"])
    return SpreadRewards(task) if job["reward"] == "spread" else task


@dataclass
class Tally:
    """Rewards and lengths of the timed steps, the same for both sides."""

    group_size: int
    rewards: list[float] = field(default_factory=list)
    """In order: the completions of a group are neighbours."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each completion."""
    prompt_lengths: list[int] = field(default_factory=list)

    def add_groups(self, groups: Sequence[RolloutGroup]) -> None:
        for group in groups:
            self.prompt_lengths += [len(group.prompt_ids)] * len(group.rollouts)
            self.rewards += [r.score.reward for r in group.rollouts]
            self.lengths += [r.completion.num_tokens for r in group.rollouts]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def summary(self) -> dict[str, Any]:
        """Share of groups whose rewards differ, mean reward, mean lengths."""
        starts = range(0, len(self.rewards), self.group_size)
        is_mixed = [len(set(self.rewards[start : start + self.group_size])) > 1 for start in starts]
        return {
            "teaching_fraction": statistics.fmean(is_mixed),
            "mean_reward": statistics.fmean(self.rewards),
            "mean_tokens": statistics.fmean(self.lengths),
            "prompt_tokens": statistics.fmean(self.prompt_lengths),
        }
