"""The knobs of a GRPO stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aha.errors import ConfigError, unknown_name
from aha.tasks.rewards import read_rewards
from aha.train.losses import LOSSES, KLEstimator
from aha.train.stage import StageConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(StageConfig):
    """Reinforcement learning from verifiable rewards."""

    loss: str = "grpo"
    """Name in LOSSES."""
    prompts_per_step: int = 32
    """Prompts sampled in each step (P)."""
    group_size: int = 16
    """Completions per prompt (G); at least 2, or every advantage is 0."""
    temperature: float = 1.0
    """Of sampling, and of the log-probabilities that are trained."""
    updates_per_step: int = 1
    """Optimiser steps on each step's rollouts. 1 is on policy: the ratio is 1 and nothing is clipped."""
    refill_budget: float = 0.0
    """Further prompts that may be sampled to replace groups of equal reward, as a share of prompts_per_step."""
    advantage_scale: Literal["std", "none"] = "std"
    """Whether advantages are divided by their group's standard deviation."""
    truncated: Literal["score", "mask"] = "score"
    """What a completion that ran out of tokens does: count with its score, or stay out of loss and baseline."""
    clip_low: float = 0.2
    """How far below 1 the ratio may fall before its gradient stops."""
    clip_high: float = 0.28
    """How far above 1 the ratio may rise: "clip-higher" of DAPO leaves room for unlikely tokens."""
    kl_coef: float = 0.0
    """Weight of the KL term to the starting model (beta). 0 leaves the reference model and its memory out."""
    kl_estimator: KLEstimator = "k3"
    """k3 times the ratio, or k2: both have the KL's gradient on policy."""
    preflight_prompts: int = 16
    """Groups sampled before training to see whether the run can learn; 0 trains without looking."""
    rewards: tuple[str, ...] = ("accuracy",)
    """What is paid: names in REWARDS with their options, e.g. ["accuracy", "length:weight=0.1,target=512"]."""
    samples_per_step: int = 2
    """Completions of each step that samples.jsonl keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ConfigError(unknown_name("loss", self.loss, LOSSES))
        read_rewards(self.rewards)
        rules = (
            ("group_size", self.group_size >= 2, "at least 2: a lone completion has nothing to be compared with"),
            ("prompts_per_step", self.prompts_per_step >= 1, "at least 1"),
            ("updates_per_step", self.updates_per_step >= 1, "at least 1"),
            ("temperature", 0 < self.temperature <= 10, "above 0 and at most 10: without chance there are no groups"),
            ("refill_budget", self.refill_budget >= 0, "0 or more"),
            ("clip_low", 0 < self.clip_low <= 1, "above 0 and at most 1"),
            ("clip_high", self.clip_high > 0, "above 0"),
            ("kl_coef", self.kl_coef >= 0, "0 or more"),
            ("preflight_prompts", self.preflight_prompts >= 0, "0 or more"),
            ("samples_per_step", self.samples_per_step >= 0, "0 or more"),
        )
        for name, is_ok, rule in rules:
            if not is_ok:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)}")
