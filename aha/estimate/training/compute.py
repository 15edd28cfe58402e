"""Seconds that one GPU computes for a token of training: matrix products, attention, and what moves through memory.

All are GPU seconds a token: where several GPUs share a token (tensor parallelism), their seconds are summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from aha.estimate.flops import attention_flops
from aha.estimate.hardware import GPU, Format
from aha.estimate.training.assumptions import Assumptions
from aha.models.config import ModelConfig
from aha.models.counts import Matrix, attention_matrices, feed_forward_matrices

ATTENTION_BACKWARD = 2.5
"""Attention's backward pass over its forward pass, as executed: it computes scores again (arXiv:2307.08691 §4.1)."""
BF16_BYTES = 2
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Device:
    """A GPU as kernels find it."""

    gpu: GPU
    assumptions: Assumptions
    precision: Format
    """Of the layers' products."""

    def product_seconds(self, operations: float, format: Format) -> float:
        """Of a matrix product's multiplications."""
        return operations / self.gpu.reached_flops_per_second(format)

    def output_seconds(self, num_bytes: float) -> float:
        """Of what a product writes or accumulates."""
        bandwidth = self.gpu.memory_gb_per_second * 1e9 * self.assumptions.output_bandwidth_share
        return num_bytes / bandwidth

    def memory_seconds(self, num_bytes: float) -> float:
        """Of operations that read and write and hardly compute."""
        bandwidth = self.gpu.memory_gb_per_second * 1e9 * self.assumptions.elementwise_bandwidth_share
        return num_bytes / bandwidth

    def attention_seconds(self, operations: float) -> float:
        """Of scores and the values they weigh, `operations` as executed."""
        peak = self.gpu.flops_per_second("bfloat16")
        return operations / (peak * self.assumptions.attention_share(self.gpu.generation))


class Pass(NamedTuple):
    """GPU seconds a token."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Work:
    """How the matrices of a layer lie on the GPUs."""

    tensor: int
    tokens: float
    """In a micro-batch, of a tensor-parallel group: what a gradient of the weights is summed over at once."""
    expert_tokens: float
    """Of them, those that one expert sees, gathered from all GPUs that share experts."""


class LayerPasses(NamedTuple):
    """Of one layer, GPU seconds a token."""

    projections: Pass
    attention: Pass
    feed_forward: Pass
    experts: Pass
    gate: Pass
    memory: Pass
    casts: Pass
    """To float8 and back."""
    up_projections: float
    """The forward pass of MLA's up-projections, for where they are recomputed."""
    recomputed_memory: float
    """The forward pass of norms and activation functions, likewise."""


def product_pass(matrix: Matrix, *, copies: int, is_row: bool, device: Device, work: Work, format: Format) -> Pass:
    """A linear layer for one token: forward, gradient of its inputs, gradient of its weights.

    A product of M x K with K x N takes 2MNK operations at the speed that good shapes reach, and the time to write its
    M x N results: so fitted, DeepGEMM's table of February 2025 (M = 4096) is met within 6 %. The gradient of weights
    accumulates K x N float32 numbers, read and written, once a micro-batch.

    Args:
        copies: matrices that are stored apart and multiplied as one, such as a gate and its up-projection.
        is_row: whether tensor parallelism splits the inputs (and every GPU writes all outputs), or the outputs.
    """
    num_out, num_in = copies * matrix.num_out, matrix.num_in
    times = matrix.num_active / copies
    multiply = device.product_seconds(2.0 * num_out * num_in, format)
    rows, columns = (work.tensor, 1) if is_row else (1, work.tensor)
    forward = multiply + device.output_seconds(BF16_BYTES * num_out * rows)
    inputs = multiply + device.output_seconds(BF16_BYTES * num_in * columns)
    tokens = work.expert_tokens if matrix.is_routed else work.tokens
    weights = multiply + device.output_seconds(2 * GRADIENT_BYTES * num_out * num_in / max(1.0, tokens))
    return Pass(times * forward, times * (inputs + weights))


@cache
def layer_passes(
    config: ModelConfig, *, is_sparse: bool, visible_keys: float, device: Device, work: Work
) -> LayerPasses:
    """All that a layer computes for a token."""
    index = next((i for i in range(config.num_layers) if config.is_sparse(i) == is_sparse), config.num_layers)
    wide = list(feed_forward_matrices(config, index=index))
    matrices = list(attention_matrices(config))
    num_experts = config.experts.num_experts if config.experts is not None else 1

    def passes(chosen: list[Matrix]) -> Pass:
        done = []
        for matrix in chosen:
            copies = matrix.copies // num_experts if matrix.is_routed else matrix.copies
            is_row = matrix is matrices[-1] or matrix.num_out == config.hidden_size
            done.append(
                product_pass(matrix, copies=copies, is_row=is_row, device=device, work=work, format=device.precision)
            )
        return Pass(sum(each.forward for each in done), sum(each.backward for each in done))

    scores = attention_flops(config, visible_keys=visible_keys)
    gate = 2.0 * num_experts * config.hidden_size if is_sparse else 0.0
    moved = moved_bytes(config, is_sparse=is_sparse)
    cast = cast_bytes(config, is_sparse=is_sparse) if device.precision == "float8" else Pass(0.0, 0.0)
    # The norms' inputs are kept, so each is read and written once; so are both halves of the gated activation.
    again = BF16_BYTES * (2 * 2.0 * config.hidden_size + 3 * activated_width(config, is_sparse=is_sparse))
    up = [] if config.mla is None else [m for m in matrices[:-1] if m.num_in < config.hidden_size]
    return LayerPasses(
        projections=passes(matrices),
        attention=Pass(device.attention_seconds(scores), device.attention_seconds(ATTENTION_BACKWARD * scores)),
        feed_forward=passes([m for m in wide if not m.is_routed]),
        experts=passes([m for m in wide if m.is_routed]),
        gate=Pass(device.product_seconds(gate, "bfloat16"), device.product_seconds(2 * gate, "bfloat16")),
        memory=Pass(device.memory_seconds(moved.forward), device.memory_seconds(moved.backward)),
        casts=Pass(device.memory_seconds(cast.forward), device.memory_seconds(cast.backward)),
        up_projections=passes(up).forward,
        recomputed_memory=device.memory_seconds(again),
    )


def moved_bytes(config: ModelConfig, *, is_sparse: bool) -> Pass:
    """Bytes of a token that a layer's norms, rotations, activations and permutations read and write (kernels fused).

    In numbers of 2 bytes. Norm with its residual: reads two and writes two widths, and back reads four and writes one.
    Rotation and its copies: reads and writes queries, keys, values. Gated activation: reads two widths and writes one,
    and back reads three and writes two. Experts: each of the k copies of a token is read and written on its way there
    and back.
    """
    width, mla = config.hidden_size, config.mla
    if mla is None:
        turned = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    else:
        head = 2 * (mla.qk_nope_head_dim + mla.qk_rope_head_dim) + mla.v_head_dim
        turned = config.num_heads * head + (mla.q_lora_rank or 0) + mla.kv_lora_rank
    hidden, carried = activated_width(config, is_sparse=is_sparse), carried_width(config, is_sparse=is_sparse)
    forward = 2 * 4 * width + 2 * turned + 3 * hidden + 4 * carried
    backward = 2 * 5 * width + 2 * turned + 5 * hidden + 4 * carried
    return Pass(BF16_BYTES * float(forward), BF16_BYTES * float(backward))


def cast_bytes(config: ModelConfig, *, is_sparse: bool) -> Pass:
    """Bytes of a token that casts of a layer's inputs (forward) and of its outputs' gradients (backward) move.

    Each number is read in bfloat16 and written twice in float8, along rows and along columns: the weights' gradient
    needs blocks the other way (arXiv:2412.19437 §3.3.1).
    """
    inputs = [m.num_in for m in attention_matrices(config)]
    outputs = [m.num_out * m.copies for m in attention_matrices(config)]
    hidden, carried = activated_width(config, is_sparse=is_sparse), carried_width(config, is_sparse=is_sparse)
    forward = sum(inputs) + config.hidden_size + hidden + carried
    backward = sum(outputs) + config.hidden_size + 2 * hidden + carried
    return Pass(4.0 * forward, 4.0 * backward)


def activated_width(config: ModelConfig, *, is_sparse: bool) -> int:
    """Numbers that a token has behind the gated activations of a layer, those of its experts together."""
    experts = config.experts
    if not is_sparse or experts is None:
        return config.intermediate_size
    return (experts.num_experts_per_token + experts.num_shared_experts) * experts.intermediate_size


def carried_width(config: ModelConfig, *, is_sparse: bool) -> int:
    """Numbers of a token's copies that go to routed experts."""
    if not is_sparse or config.experts is None:
        return 0
    return config.experts.num_experts_per_token * config.hidden_size


def head_pass(config: ModelConfig, *, device: Device, work: Work) -> Pass:
    """The output head and its loss: in bfloat16, the logits read and written once each way in float32."""
    matrix = Matrix(config.vocab_size, config.hidden_size)
    product = product_pass(matrix, copies=1, is_row=False, device=device, work=work, format="bfloat16")
    loss = device.memory_seconds(2 * 4.0 * config.vocab_size)
    return Pass(product.forward + loss, product.backward + loss)


def joint_pass(config: ModelConfig, *, device: Device, work: Work) -> Pass:
    """The projection that joins hidden state and embedding in a module of multi-token prediction."""
    matrix = Matrix(config.hidden_size, 2 * config.hidden_size)
    return product_pass(matrix, copies=1, is_row=False, device=device, work=work, format=device.precision)
