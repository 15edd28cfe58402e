"""The knobs of a GRPO stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from aha.errors import ConfigError, unknown_name
from aha.tasks.rewards import read_rewards
from aha.train.kl import KLEstimator
from aha.train.losses import LOSSES, Loss
from aha.train.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(TrainingConfig):
    """Reinforcement learning from verifiable rewards."""

    loss: str = "dapo"
    """Name in LOSSES: grpo, dr_grpo, dapo, gspo, cispo or rloo. docs/losses.md compares them."""
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
    filter_groups: Literal["reward", "accuracy"] = "reward"
    """Groups that are left out, and replaced within the refill budget: of equal reward, or also all right or all wrong
    whatever else their rewards say, as in DAPO's dynamic sampling."""
    advantage_scale: Literal["auto", "std", "none", "leave_one_out"] = "auto"
    """"auto" is the loss's own: std divides by the group's standard deviation, leave_one_out is RLOO's baseline."""
    aggregation: Literal["auto", "token_mean", "sequence_mean", "constant"] = "auto"
    """"auto" is the loss's own mean: over tokens, over sequences of their means, or of their sums / max_tokens."""
    truncated: Literal["score", "mask"] = "score"
    """What a completion that ran out of tokens does: count with its score, or stay out of loss and baseline."""
    clip_low: float = 0.0
    """How far below 1 the ratio may fall before its gradient stops; 0 takes the loss's own, 0.2 for most."""
    clip_high: float = 0.0
    """How far above 1 the ratio may rise; 0 takes the loss's own: 0.28 for dapo, to leave room for unlikely tokens."""
    importance_cap: float = 0.0
    """Largest weight that makes up for a sampler whose probabilities are not the trainer's; 0 is off, 2 is usual."""
    kl_coef: float = 0.0
    """Weight of the KL term to the starting model (beta). 0 leaves the reference model and its memory out."""
    kl_estimator: KLEstimator = "k3"
    """k1 as in a reward, k2, or k3 times the ratio: all have the KL's gradient on policy, and differ off it."""
    balance_speed: float = 0.0
    """By how much a step moves the selection biases of experts. 0, unlike in supervised stages: a policy whose routing
    is moved between its update and its next samples changes by more than its gradient."""
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
        if self.products == "fp8" and not self.importance_cap:
            # The engine samples with the parameters as they are.
            raise ConfigError(
                'products = "fp8" makes the trainer another model than the sampler; set importance_cap = 2'
            )
        rules = (
            ("group_size", self.group_size >= 2, "at least 2: a lone completion has nothing to be compared with"),
            ("prompts_per_step", self.prompts_per_step >= 1, "at least 1"),
            ("updates_per_step", self.updates_per_step >= 1, "at least 1"),
            ("temperature", 0 < self.temperature <= 10, "above 0 and at most 10: without chance there are no groups"),
            ("refill_budget", self.refill_budget >= 0, "0 or more"),
            ("clip_low", 0 <= self.clip_low <= 1, "between 0 (the loss's own) and 1"),
            ("clip_high", self.clip_high >= 0, "0 (the loss's own) or more"),
            ("importance_cap", self.importance_cap == 0 or self.importance_cap >= 1, "0 (off) or at least 1"),
            ("kl_coef", self.kl_coef >= 0, "0 or more"),
            ("preflight_prompts", self.preflight_prompts >= 0, "0 or more"),
            ("samples_per_step", self.samples_per_step >= 0, "0 or more"),
        )
        for name, is_ok, rule in rules:
            if not is_ok:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)}")

    @property
    def chosen_loss(self) -> Loss:
        """The named loss, with what this stage sets in place of its paper's."""
        own = LOSSES[self.loss]
        return replace(
            own,
            aggregation=own.aggregation if self.aggregation == "auto" else self.aggregation,
            advantage_scale=own.advantage_scale if self.advantage_scale == "auto" else self.advantage_scale,
            clip_low=self.clip_low or own.clip_low,
            clip_high=self.clip_high or own.clip_high,
        )
