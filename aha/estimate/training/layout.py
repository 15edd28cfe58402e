"""How a training run is spread over GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aha.errors import ConfigError
from aha.models.config import ModelConfig

Schedule = Literal["1f1b", "zb1p", "dualpipe"]
Recomputation = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ways of parallelism; their product with `data` is the number of GPUs. Experts share the GPUs of `data`."""

    tensor: int = 1
    """GPUs that share every matrix of a layer, and a sequence's activations (arXiv:2205.05198 §4.2.2)."""
    context: int = 1
    """GPUs that share a sequence."""
    pipeline: int = 1
    """Stages."""
    virtual: int = 1
    """Chunks of layers a stage has (interleaved schedule, arXiv:2104.04473 §2.2)."""
    expert: int = 1
    """GPUs that the experts of a layer are spread over."""
    data: int = 1
    """Copies that see different sequences."""
    zero: Literal[1, 2, 3] = 1
    """What copies share: 1 the optimiser's state, 2 gradients too, 3 ("FSDP") weights too (arXiv:1910.02054)."""
    schedule: Schedule = "1f1b"
    """Of the pipeline. "zb1p" fills its bubble with gradients of weights (arXiv:2401.10241); "dualpipe" does, runs from
    both ends, and overlaps all-to-all with computation (arXiv:2412.19437 §3.2.1)."""
    recomputation: Recomputation = "none"
    """In the backward pass: "selective" norms, activations and MLA's up-projections (arXiv:2412.19437 §3.2.3); "full"
    every layer's forward pass."""
    micro_batch: int = 1
    """Sequences a pipeline works on at once."""

    def __post_init__(self) -> None:
        for name in ("tensor", "context", "pipeline", "virtual", "expert", "data", "micro_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.zero == 3 and self.pipeline > 1:
            raise ConfigError("zero 3 gathers whole layers and goes with one pipeline stage; use zero=1 or pipeline=1")
        if self.schedule == "dualpipe" and self.pipeline % 2:
            raise ConfigError(f"dualpipe runs from both ends and needs an even number of stages, got {self.pipeline}")

    @property
    def num_gpus(self) -> int:
        return self.tensor * self.context * self.pipeline * self.data

    @property
    def expert_copies(self) -> int:
        """GPUs that hold the same experts."""
        return max(1, self.num_gpus // (self.pipeline * self.expert))

    def describe(self) -> str:
        ways = [("TP", self.tensor), ("CP", self.context), ("PP", self.pipeline), ("EP", self.expert)]
        words = [f"{name}{number}" for name, number in ways if number > 1]
        if self.pipeline > 1:
            chunks = f" x{self.virtual} chunks" if self.virtual > 1 else ""
            words[-1 if self.expert == 1 else -2] += {"1f1b": chunks, "zb1p": " ZB1P", "dualpipe": " DualPipe"}[
                self.schedule
            ]
        words.append(f"DP{self.data} ZeRO-{self.zero}")
        return " · ".join((*words, f"recomputes {self.recomputation}", f"micro-batch {self.micro_batch}"))


def check_layout(layout: Layout, *, config: ModelConfig, num_gpus: int) -> None:
    """Raises ConfigError where a model cannot be spread so."""
    if layout.num_gpus != num_gpus:
        raise ConfigError(
            f"the layout ({layout.describe()}) is for {layout.num_gpus} GPUs, the run has {num_gpus}: tensor * context "
            "* pipeline * data must give that number"
        )
    if config.num_heads % layout.tensor:
        raise ConfigError(f"tensor {layout.tensor} must divide the model's {config.num_heads} heads")
    # Embedding and head may have chunks of their own, as in Llama 3.1 405B: 126 layers in 16 stages of 8 chunks.
    if layout.pipeline * layout.virtual > config.num_layers + config.num_mtp_layers + 2:
        raise ConfigError(f"{layout.pipeline} stages of {layout.virtual} chunks are more than the model has layers")
    experts = 1 if config.experts is None else config.experts.num_experts
    if experts % layout.expert:
        raise ConfigError(f"expert {layout.expert} must divide the model's {experts} experts")
    if num_gpus // layout.pipeline % layout.expert:
        raise ConfigError(f"expert {layout.expert} must divide the {num_gpus // layout.pipeline} GPUs of a stage")
