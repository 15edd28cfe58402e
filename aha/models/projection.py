"""Matrices of a layer, what lies beside them, and what they are called in a Hugging Face file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from aha.models.lora import LowRank

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_ND, weight, bias or None) -> product; the engine passes one that uses packed copies of the weights."""


@runtime_checkable
class HasGrouped(Protocol):
    """A `Linear` that has its own product of rows with the matrices of experts (aha.models.experts.grouped_product)."""

    def grouped(self, x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor, /) -> Tensor: ...


class Attention(Protocol):
    """Which keys every token sees, and where they are kept."""

    @property
    def form(self) -> Literal["expanded", "latent"]:
        """What MLA should attend over: keys and values of every head, or the one latent that is cached."""

    def __call__(
        self,
        layer: int,
        q_NHC: Tensor,
        k_NKC: Tensor,
        v_NKC: Tensor,
        /,
        *,
        scale: float,
        latent_NR: Tensor | None = None,
    ) -> Tensor:
        """Attended values (N, H, width of v) of N tokens without padding; q and k are rotated.

        Args:
            scale: what products of queries and keys are multiplied by.
            latent_NR: what to keep of each token instead of k and v, with MLA.
        """


class Pass(NamedTuple):
    """What one forward pass brings along, the same for every layer."""

    attention: Attention
    linear: Linear
    weight_version: int
    rope: tuple[Tensor, Tensor]
    """cos and signed sin (N, 1, C) of the tokens' positions."""


class StoredPart(NamedTuple):
    """A tensor of a Hugging Face file, and where our model has it."""

    hf_name: str
    """Relative to the layer; of a tensor outside the layers, its whole name."""
    view: Tensor


@runtime_checkable
class HasStoredParts(Protocol):
    """A module that owns parameters itself, not by way of another."""

    def stored_parts(self) -> Iterator[StoredPart]: ...


class Projection(nn.Linear):
    """A matrix of a layer, which may have a low-rank adapter beside it (aha.models.lora).

    Args:
        parts: Hugging Face name, relative to the layer, of each matrix that lies in it one above the other -> its rows.
        has_bias: for all parts.
    """

    def __init__(self, num_in: int, *, parts: Mapping[str, int], bias: bool = False) -> None:
        super().__init__(num_in, sum(parts.values()), bias=bias)
        self.parts = dict(parts)
        self.adapter: LowRank | None = None

    def project(self, x_ND: Tensor, run: Pass) -> Tensor:
        """The matrix's product, and the adapter's added."""
        product = run.linear(x_ND, self.weight, self.bias)
        if self.adapter is None:
            return product
        return cast(Tensor, self.adapter(x_ND, product, run.linear, run.weight_version))

    def effective_weight(self, run: Pass) -> Tensor:
        """The weight with the adapter's product in it, for who needs the matrix itself; no gradient reaches that."""
        return (
            self.weight if self.adapter is None else self.adapter.merged(self.weight, weight_version=run.weight_version)
        )

    def part_rows(self) -> dict[str, slice]:
        """The rows of each part."""
        rows, start = {}, 0
        for name, size in self.parts.items():
            rows[name] = slice(start, start + size)
            start += size
        return rows

    def stored_parts(self) -> Iterator[StoredPart]:
        for name, rows in self.part_rows().items():
            yield StoredPart(f"{name}.weight", self.weight[rows])
            if self.bias is not None:
                yield StoredPart(f"{name}.bias", self.bias[rows])
