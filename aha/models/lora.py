"""LoRA: small trainable matrices beside frozen ones, added to what those compute.

Source: Hu et al., arXiv:2106.09685 §4.1: h = W x + (alpha / r) B A x, where A begins random and B begins zero, so that
training begins with the model as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.errors import ModelError
from aha.models.projection import Linear, Projection
from aha.models.transformer import Transformer

LoraTargets = Literal["all_linear", "attention", "mlp"]

_ATTENTION = ("qkv_proj", "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj")
_MLP = ("gate_up_proj", "down_proj")
TARGETS: dict[LoraTargets, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "mlp": _MLP,
    "all_linear": (*_ATTENTION, *_MLP),
}
"""Which matrices of the layers a word means; routed experts, multi-token prediction and vision have no adapters."""


class BaseWeights(NamedTuple):
    """The weights that an adapter belongs to."""

    folder: Path
    """Absolute."""
    sha256: str
    """Of all its safetensors files."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What a model with adapters was given."""

    rank: int
    alpha: float
    """The adapter's product is multiplied by alpha / rank."""
    scale: float
    """What alpha came to: alpha / rank, or alpha / sqrt(rank) in a file that says so."""
    seed: int = 0
    """What every A was drawn from, if it was drawn here."""
    base: BaseWeights | None = None
    """None: the base was never on disk, so that the adapter cannot be saved without it."""


class LowRank(nn.Module):
    """The adapters of one fused matrix: for each of its parts an A (r, in) and a B (rows of the part, r).

    Args:
        rows: Hugging Face name of each adapted part -> the rows that it has in the fused matrix.
    """

    def __init__(self, weight: Tensor, *, rows: Mapping[str, slice], rank: int, scale: float) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.rank = rank
        self.scale = scale
        # One A for all parts: x is read once. The rows of the parts' Bs lie one above the other, as in the matrix.
        num_rows = sum(part.stop - part.start for part in self.rows.values())
        self.a = nn.Parameter(weight.new_zeros(rank * len(self.rows), weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(num_rows, rank))
        # Made of the parameters, and kept until they change; the engine reads these at every token.
        self._block: tuple[tuple[int, int], Tensor] | None = None
        self._merged: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x_ND: Tensor, product: Tensor, linear: Linear, weight_version: int) -> Tensor:
        """The fused matrix's product with the adapters' products added."""
        if linear is not F.linear:
            # The engine's packed products: two large ones cost it less than many small ones.
            b = self._block_diagonal_b(product.shape[1], weight_version=weight_version)
            return product + linear(linear(x_ND, self.a, None), b, None)
        reduced = F.linear(x_ND, self.a)
        if self.scale != 1.0:
            reduced = reduced * self.scale
        inputs = reduced.split(self.rank, dim=1)
        added = [F.linear(part, b) for part, (_, _, b) in zip(inputs, self.parts(), strict=True)]
        if self.b.shape[0] == product.shape[1]:
            return product + (added[0] if len(added) == 1 else torch.cat(added, dim=1))
        for rows, part in zip(self.rows.values(), added, strict=True):
            product = torch.cat((product[:, : rows.start], product[:, rows] + part, product[:, rows.stop :]), dim=1)
        return product

    def _block_diagonal_b(self, num_rows: int, *, weight_version: int) -> Tensor:
        """All parts' Bs, times the scale, in one matrix; made again when the parameters have changed."""
        key = self._key(weight_version)
        if self._block is None or self._block[0] != key:
            with torch.inference_mode(mode=False), torch.no_grad():
                block = self.b.new_zeros(num_rows, len(self.a))
                for index, (name, _, b) in enumerate(self.parts()):
                    block[self.rows[name], index * self.rank : (index + 1) * self.rank] = b * self.scale
            self._block = (key, block)
        return self._block[1]

    def merged(self, weight: Tensor, *, weight_version: int) -> Tensor:
        """The fused matrix with the adapters in it, in its own dtype; made again when the parameters have changed."""
        key = self._key(weight_version)
        if self._merged is None or self._merged[0] != key:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._merged = (key, self.added_to(weight).to(weight.dtype))
        return self._merged[1]

    def _key(self, weight_version: int) -> tuple[int, int]:
        # Not torch's own counter: a fused AdamW step on float32 parameters does not raise it.
        return id(self.a), weight_version

    def parts(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(Hugging Face name, A, B) of each adapted part; views of the parameters."""
        start = 0
        for (name, rows), a in zip(self.rows.items(), self.a.split(self.rank), strict=True):
            stop = start + rows.stop - rows.start
            yield name, a, self.b[start:stop]
            start = stop

    @torch.no_grad()
    def delta(self, name: str) -> Tensor:
        """What the adapter adds to one part's matrix: scale * B A, in float32."""
        a, b = next((a, b) for found, a, b in self.parts() if found == name)
        return self.scale * (b.float() @ a.float())

    @torch.no_grad()
    def added_to(self, weight: Tensor) -> Tensor:
        """W + scale * B A of the fused matrix, in float32."""
        total = weight.float().clone()
        for name, rows in self.rows.items():
            total[rows] += self.delta(name)
        return total


def attach_lora(
    model: Transformer,
    *,
    rank: int,
    alpha: float,
    targets: LoraTargets = "all_linear",
    seed: int = 0,
    base: BaseWeights | None = None,
) -> None:
    """Freeze the model and put trainable adapters beside its matrices; what it computes does not change.

    Source: arXiv:2106.09685 §4.1; A is drawn as `nn.Linear` draws its weights (Kaiming uniform, a = sqrt(5)).

    Args:
        targets: which matrices of each layer; norms, biases, embedding and head stay frozen.
        seed: fixes every A.

    Raises:
        ModelError: a rank that no matrix can have, or a model with adapters already.
    """
    if model.lora is not None:
        raise ModelError("the model has a LoRA adapter already; merge it first")
    smallest = min(projection.in_features for _, projection in adaptable(model))
    if not 1 <= rank <= smallest:
        raise ModelError(f"lora_rank must be from 1 to {smallest}, the narrowest matrix of this model; got {rank}")
    scale = alpha / rank
    attach_parts(model, names=part_names(model, targets=targets), rank=rank, scale=scale)
    model.lora = Lora(rank=rank, alpha=alpha, scale=scale, seed=seed, base=base)
    reset_lora(model)


@torch.no_grad()
def reset_lora(model: Transformer) -> None:
    """Begin the adapters anew: A drawn from the seed that it was drawn from at first, B zero."""
    assert model.lora is not None
    generator = torch.Generator().manual_seed(model.lora.seed)
    for _, low_rank in adapters(model):
        bound = 1.0 / math.sqrt(low_rank.a.shape[1])
        low_rank.a.copy_(torch.empty(low_rank.a.shape).uniform_(-bound, bound, generator=generator))
        low_rank.b.zero_()
    model.weight_version += 1


def attach_parts(model: Transformer, *, names: set[str], rank: int, scale: float) -> None:
    """Freeze the model and put adapters, all zero, beside the named matrices."""
    model.requires_grad_(False)
    for prefix, projection in adaptable(model):
        rows = {name: part for name, part in part_rows(projection, prefix=prefix).items() if name in names}
        if rows:
            projection.adapter = LowRank(projection.weight, rows=rows, rank=rank, scale=scale)


def adaptable(model: Transformer) -> Iterator[tuple[str, Projection]]:
    """("layers.0.attention.qkv_proj", module) of every matrix that can have adapters."""
    for name, module in model.named_modules():
        if isinstance(module, Projection) and name.startswith("layers."):
            yield name, module


def adapters(model: Transformer) -> Iterator[tuple[str, LowRank]]:
    """("layers.0.attention.qkv_proj", adapters) of every matrix that has some."""
    for name, projection in adaptable(model):
        if projection.adapter is not None:
            yield name, projection.adapter


def part_rows(projection: Projection, *, prefix: str) -> dict[str, slice]:
    """Hugging Face names ("layers.0.self_attn.q_proj") of a fused matrix's parts, and the rows of each."""
    index = prefix.split(".")[1]
    return {f"layers.{index}.{name}": rows for name, rows in projection.part_rows().items()}


def part_names(model: Transformer, *, targets: LoraTargets) -> set[str]:
    """Hugging Face names of all matrices that a word means."""
    return {
        name
        for prefix, projection in adaptable(model)
        if prefix.rpartition(".")[2] in TARGETS[targets]
        for name in part_rows(projection, prefix=prefix)
    }


def num_trainable(model: Transformer) -> int:
    """Parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def frozen_twin(model: Transformer) -> Transformer:
    """A second model on the same base weights, with frozen copies of the adapters as they are now.

    This is what a KL term measures from: "the base with the adapter disabled" as long as B is zero, and the model as
    it is now after that. It costs the memory of the adapters only.
    """
    shared = {id(p): p for name, p in model.named_parameters() if ".adapter." not in name}
    return copy.deepcopy(model, shared).requires_grad_(False)


def without_adapter(model: Transformer) -> Transformer:
    """The base alone, on the same tensors."""
    twin = frozen_twin(model)
    for _, projection in adaptable(twin):
        projection.adapter = None
    twin.lora = None
    return twin


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Add the adapters to the matrices, in float32 and then rounded, and drop them; the model is plain again."""
    for _, projection in adaptable(model):
        if projection.adapter is not None:
            projection.weight.copy_(projection.adapter.added_to(projection.weight))
            projection.adapter = None
    model.lora = None
    model.requires_grad_(True)
    model.weight_version += 1
