"""A model laid out on GPUs: what each of them holds, and how many conversations fit beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from aha.errors import ConfigError
from aha.estimate.hardware import GIB, GPU, Format
from aha.estimate.serving.assumptions import Assumptions
from aha.models.config import ModelConfig
from aha.models.counts import Matrix, fp8_weight_bytes, layer_matrices, weight_bytes

Layout = Literal["tensor", "expert"]
"""tensor: every matrix is cut over all GPUs. expert: the experts are, and each GPU has all else and its own
conversations (data-parallel attention, DeepSeek-V3 report, arXiv:2412.19437 §3.4)."""
WeightFormat = Literal["bfloat16", "float8", "int8"]
CacheFormat = Literal["bfloat16", "float8"]

MAX_GPUS = 4096


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One copy of a model on the GPUs that it is served from."""

    config: ModelConfig
    """With as many layers of multi-token prediction as are run: none or one."""
    gpu: GPU
    num_gpus: int
    layout: Layout
    weights: WeightFormat
    """int8 is weights only: they are multiplied in bfloat16."""
    cache: CacheFormat
    assumptions: Assumptions

    @property
    def product_format(self) -> Format:
        return "float8" if self.weights == "float8" else "bfloat16"

    @property
    def num_layers(self) -> int:
        """All that a token runs through, that of the draft included."""
        return self.config.num_layers + self.config.num_mtp_layers

    @cached_property
    def num_sparse_layers(self) -> int:
        return sum(self.config.is_sparse(index) for index in range(self.num_layers))

    @cached_property
    def matrices(self) -> list[Matrix]:
        """Of all layers; embedding, head and gates aside."""
        return [matrix for index in range(self.num_layers) for matrix in layer_matrices(self.config, index=index)]

    @cached_property
    def num_dense_active(self) -> int:
        """Parameters of the layers that every token is multiplied with, the gates among them."""
        return sum(m.num_active_parameters for m in self.matrices if not m.is_routed) + self.num_gate_parameters

    @cached_property
    def num_routed_active(self) -> int:
        """Parameters of the routed experts that a token chooses, in all layers."""
        return sum(m.num_active_parameters for m in self.matrices if m.is_routed)

    @property
    def bytes_per_parameter(self) -> int:
        """Of the layers' matrices; all else is bfloat16."""
        return 2 if self.weights == "bfloat16" else 1

    @property
    def weight_bytes(self) -> int:
        """Of the whole model. int8 is counted like FP8: one byte, and a scale for a block."""
        return weight_bytes(self.config) if self.weights == "bfloat16" else fp8_weight_bytes(self.config)

    @cached_property
    def routed_bytes(self) -> int:
        """Of all routed experts of all layers."""
        return self.bytes_per_parameter * sum(m.num_parameters for m in self.matrices if m.is_routed)

    @cached_property
    def dense_bytes(self) -> int:
        """Of what every token is multiplied with in the layers, the gates included."""
        shared = self.bytes_per_parameter * sum(m.num_parameters for m in self.matrices if not m.is_routed)
        return shared + 2 * self.num_gate_parameters

    @property
    def num_gate_parameters(self) -> int:
        experts = self.config.experts
        return 0 if experts is None else self.num_sparse_layers * experts.num_experts * self.config.hidden_size

    @property
    def head_bytes(self) -> int:
        return 2 * self.config.vocab_size * self.config.hidden_size

    @property
    def gpus_that_read(self) -> int:
        """How many GPUs read prompts of their own at the same time: those that are cut over read each one together.

        Where experts are spread within one node, prompts and answers take turns, and while one GPU reads a prompt the
        others wait for it at the next exchange ("DP attention imbalance", lmsys.org/blog/2025-05-05-large-scale-ep).
        Over several nodes prompts have GPUs of their own (the same page; DeepSeek-V3 report §3.4), which all read.
        """
        return self.num_gpus if self.layout == "expert" and self.num_gpus > self.gpu.gpus_per_node else 1

    @property
    def gpus_that_share(self) -> int:
        """Over how many GPUs a matrix that is no routed expert's is cut."""
        return self.num_gpus if self.layout == "tensor" else 1

    @property
    def experts_share(self) -> float:
        """What part of the routed experts a GPU holds: whole experts where they are spread."""
        if self.layout == "tensor" or self.config.experts is None:
            return 1 / self.num_gpus
        return -(-self.config.experts.num_experts // self.num_gpus) / self.config.experts.num_experts

    @property
    def weight_bytes_per_gpu(self) -> float:
        rest = self.weight_bytes - self.routed_bytes
        return rest / self.gpus_that_share + self.routed_bytes * self.experts_share

    @property
    def cache_bytes_per_token(self) -> int:
        """That a token leaves in all layers, the draft's included, kept once."""
        return self.num_layers * self.config.cached_width * (2 if self.cache == "bfloat16" else 1)

    @property
    def cache_bytes_per_gpu_token(self) -> float:
        """Of a conversation's token on a GPU that has it: heads are cut, a latent is not, and cannot be."""
        cuts = self.gpus_that_share if self.config.mla is None else 1
        return self.cache_bytes_per_token / min(cuts, self.config.num_kv_heads)

    @property
    def free_bytes_per_gpu(self) -> float:
        """For the cache: what the weights leave."""
        return self.assumptions.free * self.gpu.memory_bytes - self.weight_bytes_per_gpu

    def largest_batch(self, sequence_tokens: int) -> int:
        """Conversations of so many tokens that fit at once; 0: not one.

        Each has room for all its tokens from the start, so none is ever put aside.
        """
        fits = int(self.free_bytes_per_gpu // (sequence_tokens * self.cache_bytes_per_gpu_token))
        fits = min(max(fits, 0), int(self.assumptions.sequences))
        return fits * (self.num_gpus if self.layout == "expert" else 1)


def lay_out(
    config: ModelConfig,
    *,
    gpu: GPU,
    num_gpus: int,
    layout: Layout = "tensor",
    weights: WeightFormat = "bfloat16",
    cache: CacheFormat = "bfloat16",
    drafts: Literal[0, 1] = 0,
    assumptions: Assumptions | None = None,
) -> Replica:
    """A model on so many GPUs.

    Args:
        drafts: tokens predicted beyond the next one. A model without multi-token prediction gets a draft of one layer
            and the model's own head, which is EAGLE's size (arXiv:2401.15077 §3).

    Raises:
        ConfigError: a number of GPUs that the model cannot be cut over, or a format that the GPU does not multiply.
    """
    if layout == "expert" and config.experts is None:
        raise ConfigError("layout expert needs a model with experts; choose layout tensor")
    most = min(MAX_GPUS, config.experts.num_experts if layout == "expert" and config.experts else config.num_heads)
    if not 1 <= num_gpus <= most:
        what = "experts" if layout == "expert" else "attention heads"
        raise ConfigError(f"a replica with layout {layout} has 1 to {most} GPUs (its {what}), got {num_gpus}")
    replica = Replica(
        config=replace(config, num_mtp_layers=drafts),
        gpu=gpu,
        num_gpus=num_gpus,
        layout=layout,
        weights=weights,
        cache=cache,
        assumptions=assumptions or Assumptions.default(),
    )
    gpu.flops_per_second(replica.product_format)
    return replica


def describe_memory(replica: Replica, *, sequence_tokens: int) -> str:
    """What does not fit, in one line."""
    room = replica.assumptions.free * replica.gpu.memory_bytes / GIB
    one = sequence_tokens * replica.cache_bytes_per_gpu_token / GIB
    return (
        f"{replica.num_gpus} x {replica.gpu.title} hold {replica.weight_bytes_per_gpu / GIB:,.1f} GiB of "
        f"{replica.weights} weights each, and {room:,.1f} GiB are free for them and for {one:,.2f} GiB of cache a "
        f"conversation of {sequence_tokens:,} tokens"
    )
