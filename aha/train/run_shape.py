"""The settings of a stage that decide what it needs: what a plan is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aha.errors import ConfigError
from aha.models import LoraTargets


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """The settings of a stage that decide what it needs."""

    stage: Literal["sft", "grpo", "rejection"]
    steps: int
    prompts_per_step: int
    """Prompts (P) of a GRPO step, examples of an SFT step."""
    max_tokens: int
    """Most tokens of a completion."""
    dtype: Literal["float32", "bfloat16"]
    """What the model computes in."""
    group_size: int = 1
    """Completions per prompt (G)."""
    prompt_tokens: int = 128
    """Tokens of a prompt, chat template included."""
    mean_tokens: int = 0
    """Tokens of an average completion; 0 takes `max_tokens`, which bounds time and cost from above."""
    micro_batch_tokens: int = 4096
    lora_rank: int = 0
    """Above 0 only adapters have gradients, masters and moments."""
    lora_targets: LoraTargets = "all_linear"
    activations: Literal["auto", "keep", "recompute"] = "auto"
    """Whether a layer's activations are kept for the backward pass; "auto" recomputes them with LoRA."""
    refill_budget: float = 0.0
    """Further prompts sampled, as a share of `prompts_per_step`; the plan takes all of them."""
    kl_coef: float = 0.0
    """Above 0 a reference model lies in memory too."""
    mtp_weight: float = 0.0
    """Above 0 the modules of multi-token prediction, if the model has any, are computed in training."""
    num_evaluations: int = 2
    eval_problems: int = 500
    """Problems of each evaluation."""
    max_batch_size: int = 512
    """Completions that the engine runs at once."""
    max_cached_tokens: int = 262_144
    """Positions that the engine's cache may hold."""

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "max_tokens", "group_size", "prompt_tokens", "micro_batch_tokens",
                     "max_batch_size", "max_cached_tokens"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.mean_tokens <= self.max_tokens:
            raise ConfigError(f"mean_tokens must be from 0 to max_tokens {self.max_tokens}, got {self.mean_tokens}")

    @property
    def is_sampled(self) -> bool:
        """Whether the stage samples completions in its steps."""
        return self.stage != "sft"

    @property
    def is_trained(self) -> bool:
        """Whether the stage changes the weights."""
        return self.stage != "rejection"

    @property
    def completion_tokens(self) -> int:
        """Tokens of an average completion."""
        return self.mean_tokens or self.max_tokens

    @property
    def recomputes(self) -> bool:
        return self.activations == "recompute" or (self.activations == "auto" and self.lora_rank > 0)

    @property
    def longest_sequence(self) -> int:
        return self.prompt_tokens + self.max_tokens
