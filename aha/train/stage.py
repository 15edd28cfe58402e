"""What every training stage shares: its settings, and the job that a stage works on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from aha.errors import ConfigError
from aha.models import LoraTargets


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings that every stage has, also one that only collects data. A recipe gives them once, above its stages."""

    task: str
    """What to learn: "NAME", "NAME:option=value,…" or a data file."""
    model: str = "tiny"
    """Where to start: a folder, a run, a built-in name, a Hugging Face id, or "scratch" with `architecture`."""
    architecture: str = ""
    """What to make from nothing, when `model` is "scratch": "v3_tiny", or a folder or model whose config.json and
    tokenizer to take."""
    start: Literal["previous", "base"] = "previous"
    """What the stage begins with: the model that the stage before left, or the run's first model once more, as R1's
    second supervised stage does."""
    steps: int = 100
    """Steps of the stage: optimiser steps, or batches of prompts where it collects data."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model computes in; "auto" is bfloat16 where the processor has it. Masters are always float32."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    lora_rank: int = 0
    """Rank of trainable matrices beside the frozen ones (LoRA); 0 trains the model itself."""
    lora_alpha: float = 32.0
    """The adapter's product is multiplied by lora_alpha / lora_rank."""
    lora_targets: LoraTargets = "all_linear"
    """Which matrices of every layer get an adapter."""
    activations: Literal["auto", "keep", "recompute"] = "auto"
    """"recompute" keeps each layer's input only and computes the rest again: less memory, a third more work, the same
    result; "auto" does so with LoRA."""
    seed: int = 0
    """Every draw of the run follows from it."""
    checkpoint_every: int = 20
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between evaluations during training; 0 evaluates before and after only."""
    eval_problems: int = 500
    """Held-out problems of the evaluations before and after; 0 leaves both out."""
    eval_temperature: float = 0.6
    """Of the evaluations: R1's protocol, as `aha eval` has it. 1 is the policy as it is trained, 0 is greedy."""
    eval_top_p: float = 0.95
    """Nucleus of the evaluations: R1's protocol. 1 is off."""
    max_tokens: int = 256
    """Most tokens of a completion."""
    price: str = "cpu-2core-hour"
    """Id in the price book of what an hour of this machine costs."""

    def __post_init__(self) -> None:
        self._check_least(steps=1, checkpoint_every=1, eval_every=0, eval_problems=0, max_tokens=1, seed=0, lora_rank=0)
        if self.lora_rank and self.model == "scratch":
            why = 'lora_rank needs a base whose weights stay as they are, and model = "scratch" has none'
            raise ConfigError(f"{why}; set lora_rank=0, or name a model")
        self._check_rules(
            ("lora_alpha", self.lora_alpha > 0, "above 0"),
            ("eval_temperature", 0 <= self.eval_temperature <= 10, "between 0 and 10"),
            ("eval_top_p", 0 < self.eval_top_p <= 1, "above 0 and at most 1"),
        )

    @property
    def model_words(self) -> str:
        """Where the run starts, as people read it."""
        return f"{self.architecture} from scratch" if self.model == "scratch" else self.model

    @property
    def num_steps(self) -> int:
        """All steps of the stage, as checkpoints and metrics count them."""
        return self.steps

    @property
    def teacher_is_previous(self) -> bool:
        """Whether the stage learns from the model that the stage before left."""
        return False

    def _check_least(self, **at_least: float) -> None:
        """Raises ConfigError for a field below its least value."""
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def _check_rules(self, *rules: tuple[str, bool, str]) -> None:
        """Raises ConfigError for a field (name, whether it is in order, the rule) that is not in order."""
        for name, is_ok, rule in rules:
            if not is_ok:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)!r}")

    @property
    def recomputes_activations(self) -> bool:
        """What `activations` means here."""
        return self.activations == "recompute" or (self.activations == "auto" and self.lora_rank > 0)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """Settings of every stage that changes the weights."""

    learning_rate: float = 1e-5
    """Peak rate of the optimiser, after the warm-up."""
    schedule: Literal["constant", "linear"] = "constant"
    """The rate after the warm-up: "linear" falls to `final_learning_rate_ratio` of the peak at the last step."""
    final_learning_rate_ratio: float = 0.05
    """Share of the peak rate that is left at the last step of a "linear" schedule."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    micro_batch_tokens: int = 4096
    """Tokens computed at a time: changes memory and speed, not results."""
    products: Literal["full", "fp8"] = "full"
    """What the layers' matrices are multiplied in: the model's dtype, or 8-bit floats with a scale for every 128 of
    them, as DeepSeek-V3 was trained. Faster on Hopper GPUs only; elsewhere the same numbers, computed slower."""
    balance_speed: float = 0.001
    """By how much a step moves the selection bias of an expert with too much or too little work (gamma, 0.001 in
    DeepSeek-V3's report, §4.2), for models that have such a bias; 0 holds the biases, and so does
    LoRA, whose base stays as it is."""
    balance_until: float = 1.0
    """Share of the stage's steps after which the biases are held: DeepSeek-V3 held them for its last 3 % of tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(micro_batch_tokens=1, warmup_steps=0, weight_decay=0, balance_speed=0)
        if self.products == "fp8" and self.lora_rank:
            raise ConfigError('products = "fp8" trains the model itself, not adapters; set lora_rank = 0')
        self._check_rules(
            ("balance_until", 0 <= self.balance_until <= 1, "between 0 and 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("final_learning_rate_ratio", 0 <= self.final_learning_rate_ratio <= 1, "between 0 and 1"),
        )


def scheduled_learning_rate(config: TrainingConfig, *, step: int) -> float:
    """Rate of a step, counted from 0: linear warm-up, then constant or linear decay."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return config.learning_rate * warmup
    remaining = 1.0 - step / config.steps
    return config.learning_rate * warmup * max(config.final_learning_rate_ratio, remaining)


def scheduled_balance_speed(config: TrainingConfig, *, step: int) -> float:
    """How far a step, counted from 0, moves the selection biases of experts."""
    is_held = config.lora_rank > 0 or step >= config.balance_until * config.steps
    return 0.0 if is_held else config.balance_speed


def stage_seed(seed: int, stage_index: int) -> int:
    """What the draws of a stage follow from: the run's seed in the first one, another one in each later stage.

    So that two stages on one task see other problems and other examples, or the same in another order.
    """
    return derive_seed(seed, "stage", stage_index) if stage_index else seed


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for one draw, from the run's seed and what the draw is for.

    Counter-based: no generator has a state to save, and a resumed run draws what the uninterrupted one would have.
    """
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
