"""Rejection sampling: the policy answers training prompts, and its good answers become a supervised dataset.

Source: R1 (arXiv:2501.12948v1) §2.3.3. The stage leaves the weights alone; a later `sft` stage trains on its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aha.train.collecting import CollectingConfig, Collector
from aha.train.job import Job
from aha.train.optimizer import Optimizer
from aha.train.teacher import LocalTeacher


@dataclass(frozen=True, kw_only=True)
class RejectionConfig(CollectingConfig):
    """Best of n by the verifier, R1's filters, no duplicates, no held-out problems: data/NAME of the run."""


def train(
    config: RejectionConfig,
    job: Job,
    *,
    optimizer: Optimizer | None,
    first_step: int = 0,
    state: dict[str, Any] | None = None,
) -> None:
    """Run the stage from `first_step` to its end.

    Raises:
        ConfigError: nothing was kept.
    """
    teacher = LocalTeacher(job.engine, job.chat, name=f"the policy before stage {job.stage_name}")
    collector = Collector.resumed(config, job, teacher=teacher, state=state)
    for step in range(first_step, config.steps):
        collector.step(step)
        job.after_step(config, step=step, optimizer=None, state=collector.state)
    collector.finish()
