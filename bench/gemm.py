"""The ceiling: how fast this machine multiplies the model's own matrices and does nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.engine.packing import PackedWeights, can_pack, can_pack_int8
from aha.models import ModelConfig, read_config
from bench.child import Job, Measurement, timed

Product = Callable[[Tensor], Tensor]
# A training step's products have thousands of rows; from about here on more rows are no faster.
TRAINING_ROWS = 1024


def measure_products(job: Job) -> Measurement:
    """Time all matrix products of one forward pass over `num_rows` tokens, with the fastest kernel PyTorch has.

    Every layer has weights of its own, so that they come from memory as in a real pass and not from a warm cache.

    Args:
        job: folder, dtype ("float32", "bfloat16", or "int8" for the engine's products of 8-bit integers), num_rows,
            repetitions, has_head (whether the vocabulary's product is part of the pass).
    """
    config = read_config(job["folder"])
    weights = list(_weights(config, has_head=job["has_head"]))
    flops = 2.0 * job["num_rows"] * sum(weight.numel() for weight in weights)
    best: tuple[float, ...] = ()
    kernel_name = ""
    for name, prepare in _kernels(job["dtype"]).items():
        seconds = _time_pass(weights, prepare, job=job)
        if not best or min(seconds) < min(best):
            best, kernel_name = seconds, name
    gflops = flops / min(best) / 1e9
    return Measurement(seconds=best, num_tokens=job["num_rows"], details={"kernel": kernel_name, "gflops": gflops})


def _weights(config: ModelConfig, *, has_head: bool) -> Iterator[Tensor]:
    """Random float32 matrices (rows, columns) in the order in which a forward pass uses them."""
    width, attended = config.hidden_size, config.num_heads * config.head_dim
    qkv = attended + 2 * config.num_kv_heads * config.head_dim
    shapes = ((qkv, width), (width, attended), (2 * config.intermediate_size, width), (width, config.intermediate_size))
    for rows, columns in islice(cycle(shapes), 4 * config.num_layers):
        yield torch.randn(rows, columns) / columns**0.5
    if has_head:
        yield torch.randn(config.vocab_size, width) / width**0.5


def _kernels(dtype: str) -> dict[str, Callable[[Tensor], Product]]:
    """Ways to multiply by a float32 matrix in this dtype: name -> (weight -> product)."""
    if dtype == "int8":
        return {"fbgemm int8": _int8_product} if can_pack_int8("cpu") else {}
    torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    kernels: dict[str, Callable[[Tensor], Product]] = {"plain": lambda weight: _plain_product(weight.to(torch_dtype))}
    if can_pack(torch_dtype, "cpu"):
        kernels["packed"] = lambda weight: _packed_product(weight.to(torch_dtype))
    return kernels


def _plain_product(weight: Tensor) -> Product:
    return lambda x: F.linear(x.to(weight.dtype), weight)


def _packed_product(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), packed, None, "none", [], "")


def _int8_product(weight: Tensor) -> Product:
    linear = PackedWeights(quantize="int8")
    return lambda x: linear(x, weight, None)


@torch.inference_mode()
def _time_pass(weights: Sequence[Tensor], prepare: Callable[[Tensor], Product], *, job: Job) -> tuple[float, ...]:
    dtype = torch.bfloat16 if job["dtype"] == "bfloat16" else torch.float32
    inputs = {columns: torch.randn(job["num_rows"], columns, dtype=dtype) for columns in {w.shape[1] for w in weights}}
    steps = [(prepare(weight), inputs[weight.shape[1]]) for weight in weights]

    def forward() -> None:
        for product, x in steps:
            product(x)

    forward()
    return tuple(timed(forward) for _ in range(job["repetitions"]))
