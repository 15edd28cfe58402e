"""Experts that share the work evenly: where a step's tokens went, and what evens it out.

Source: DeepSeek-V3 report (arXiv:2412.19437) §2.1.2 and §4.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aha.models import Routing, Transformer
from aha.models.experts import Gate


class RoutedLayer(NamedTuple):
    """What one gate decided for the rows of a micro-batch, and which of those rows are a document's."""

    routing: Routing
    document_means_BN: Tensor
    """float32; times one value a row it gives the mean over each document's tokens."""

    def expert_load(self) -> Tensor:
        """int64 (E,): tokens that each expert was given, those that documents share once for each document."""
        return self.routing.expert_load((self.document_means_BN > 0).sum(dim=0))


class ExpertLoad:
    """Tokens that each expert was given in a step, summed over its micro-batches.

    What a layer computes again for the backward pass is not counted again, since a gate's decision is the layer's
    result and not a side effect. A row that documents share counts once for each of them, so that a step's loads do not
    depend on its split into micro-batches.
    """

    def __init__(self) -> None:
        self._loads: list[Tensor] = []

    def add(self, loads: Sequence[Tensor]) -> None:
        """Count a micro-batch: the load of each sparse layer, those of multi-token prediction last."""
        # A micro-batch of very short documents may not have reached the later modules.
        nothing = torch.zeros((), dtype=torch.int64)
        counted = [load_E.cpu() for load_E in loads]
        self._loads = [a + b for a, b in itertools.zip_longest(self._loads, counted, fillvalue=nothing)]

    @property
    def loads(self) -> list[Tensor]:
        """int64 (E,), for each sparse layer."""
        return self._loads


def load_metrics(loads: Sequence[ExpertLoad]) -> dict[str, float]:
    """How uneven a step was, over all its updates; nothing for a dense model.

    `expert_max_violation` is MaxVio of arXiv:2408.15664 §4.1: the largest load over the mean one, minus 1.
    """
    counted = [torch.stack(load.loads) for load in loads if load.loads]
    if not counted:
        return {}
    loads_LE = torch.stack(counted).sum(dim=0).double()
    mean_L = loads_LE.mean(dim=1)
    cv_L = loads_LE.std(dim=1, correction=0) / mean_L
    return {
        "expert_load_cv": cv_L.mean().item(),
        "expert_load_cv_worst": cv_L.max().item(),
        "expert_max_violation": (loads_LE.amax(dim=1) / mean_L - 1).max().item(),
        "unused_experts": int((loads_LE == 0).sum()),
    }


@torch.no_grad()
def move_biases(model: Transformer, load: ExpertLoad, *, speed: float) -> None:
    """b_i += speed * sign(mean load - load_i), in every gate that has a selection bias.

    Source: report §2.1.2: the bias falls by gamma where an expert is overloaded and rises by gamma where it is
    underloaded, after each step; at the mean itself it stays. As there, the change is not centred (torchtitan
    subtracts its mean): the same number added to all biases of a layer changes no choice, within groups neither.

    Belongs to the optimiser's step, which raises `weight_version` for both.
    """
    experts = model.config.experts
    if experts is None or not experts.has_selection_bias:
        return
    # Modules of multi-token prediction come last, and have no load where they are not trained.
    for gate, load_E in zip(gates_of(model), load.loads, strict=False):
        surplus_E = load_E.double() - load_E.double().mean()
        gate.selection_bias -= speed * surplus_E.sign().to(gate.selection_bias)


def gates_of(model: Transformer) -> Iterator[Gate]:
    """Gates in the order of their layers, those of multi-token prediction behind the last."""
    for module in (*model.layers, *model.mtp):
        yield from (part for part in module.modules() if isinstance(part, Gate))


def sequence_balance_loss(layers: Sequence[RoutedLayer], *, num_experts_per_token: int) -> Tensor:
    """Sum over documents and layers of sum_i f_i P_i: how uneven each document alone is; 1 a layer when even.

    Source: report §2.1.2, equations 17 to 20, without alpha: f_i = E / (k T) * (tokens of the document that have
    expert i among their k largest affinities), P_i = the mean of its normalised affinity. As equation 18 has it, the
    selection bias takes no part. T is the document's length, so a packed batch gives what its documents give alone.
    """
    return torch.stack([_of_layer(layer, num_chosen=num_experts_per_token) for layer in layers]).sum()


def _of_layer(layer: RoutedLayer, *, num_chosen: int) -> Tensor:
    scores_NE = layer.routing.scores_NE
    largest_Nk = scores_NE.topk(num_chosen, dim=-1, sorted=False).indices
    is_largest_NE = torch.zeros_like(scores_NE).scatter_(1, largest_Nk, 1.0)
    f_BE = layer.document_means_BN @ is_largest_NE * (scores_NE.shape[1] / num_chosen)
    p_BE = layer.document_means_BN @ (scores_NE / scores_NE.sum(dim=-1, keepdim=True))
    return (f_BE * p_BE).sum()


def document_means(rows: Sequence[Tensor], *, num_rows: int) -> Tensor:
    """The matrix (B, N) that takes one value a row to each document's mean.

    Args:
        rows: for each document, which of the N rows hold its tokens.
    """
    means_BN = torch.zeros(len(rows), num_rows)
    for mean_N, rows_of_document in zip(means_BN, rows, strict=True):
        mean_N[rows_of_document] = 1.0 / len(rows_of_document)
    return means_BN
