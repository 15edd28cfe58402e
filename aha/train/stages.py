"""The kinds of stages: what a recipe's `kind` may be, and the loop behind each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aha.train import distill, grpo, rejection, sft
from aha.train.distill import DistillConfig
from aha.train.grpo_config import GRPOConfig
from aha.train.rejection import RejectionConfig
from aha.train.sft import SFTConfig
from aha.train.stage import StageConfig


class Stage(NamedTuple):
    """A kind of stage."""

    config: type[StageConfig]
    train: Callable[..., None]
    """train(config, job, *, optimizer, first_step, state): runs the stage from `first_step` to its end."""
    collects: bool = False
    """Whether a later stage can train on its data, by its name."""


STAGES: dict[str, Stage] = {
    "distill": Stage(DistillConfig, distill.train, collects=True),
    "grpo": Stage(GRPOConfig, grpo.train),
    "rejection": Stage(RejectionConfig, rejection.train, collects=True),
    "sft": Stage(SFTConfig, sft.train),
}
"""Kind in a recipe → its settings and its loop."""
