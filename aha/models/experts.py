"""Sparse experts: a gate chooses k of E small feed-forwards for each token.

Source: DeepSeekMoE with auxiliary-loss-free balancing, DeepSeek-V3 report (arXiv:2412.19437) §2.1.2, equations 12 to
16; Qwen3-MoE (arXiv:2505.09388 §2) is the same with softmax scores, without shared experts, groups and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ExpertsShape, ModelConfig
from aha.models.feed_forward import FeedForward
from aha.models.projection import HasGrouped, Pass, StoredPart


class Routing(NamedTuple):
    """What a gate decided for N tokens."""

    experts_Nk: Tensor
    """int64, the chosen experts of each token."""
    weights_Nk: Tensor
    """float32, what their results are multiplied by."""
    scores_NE: Tensor
    """float32, affinity of every expert before the bias: sigmoid or softmax."""

    def expert_load(self, counts_N: Tensor | None = None) -> Tensor:
        """int64 (E,): tokens that each expert was given.

        Args:
            counts_N: int64, how often each token counts; once each without it.
        """
        num_experts, num_chosen = self.scores_NE.shape[1], self.experts_Nk.shape[1]
        chosen_M = self.experts_Nk.flatten()
        if counts_N is None:
            return torch.bincount(chosen_M, minlength=num_experts)
        # Sums of float64 are exact for any number of tokens that a step can have.
        counts_M = counts_N.to(chosen_M.device).repeat_interleave(num_chosen).double()
        return torch.bincount(chosen_M, weights=counts_M, minlength=num_experts).long()


class Gate(nn.Module):
    """Equations 13 to 16: affinities, the choice of k experts by affinity plus bias, and their weights without it.

    Everything in float32: bf16 affinities tie, and a tie decides which expert computes.
    """

    selection_bias: Tensor
    """b_i: float32 (E,) whatever the model's dtype. A buffer: no gradient reaches it, balancing moves it."""

    def __init__(self, config: ModelConfig, experts: ExpertsShape) -> None:
        super().__init__()
        self._experts = experts
        self.weight = nn.Parameter(torch.empty(experts.num_experts, config.hidden_size))
        if experts.has_selection_bias:
            self.register_buffer("selection_bias", torch.zeros(experts.num_experts, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        exact = self._buffers.get("selection_bias")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self._buffers.get("selection_bias")
        if exact is not None and moved is not None and moved.dtype != torch.float32:
            # The values from before the cast: a bias rounded to bf16 stops following its updates of 0.001.
            is_empty = exact.is_meta or moved.is_meta
            kept = torch.empty_like(moved, dtype=torch.float32) if is_empty else exact.to(moved.device)
            self._buffers["selection_bias"] = kept
        return self

    def forward(self, x_ND: Tensor) -> Routing:
        experts = self._experts
        logits_NE = F.linear(x_ND.float(), self.weight.float())
        scores_NE = logits_NE.sigmoid() if experts.scoring == "sigmoid" else logits_NE.softmax(dim=-1)
        choice_NE = scores_NE + self.selection_bias if experts.has_selection_bias else scores_NE
        chosen_Nk = self._within_groups(choice_NE).topk(experts.num_experts_per_token, dim=-1, sorted=False).indices
        weights_Nk = scores_NE.gather(1, chosen_Nk)
        if experts.renormalises:
            weights_Nk = weights_Nk / (weights_Nk.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(chosen_Nk, weights_Nk * experts.scaling_factor, scores_NE)

    def _within_groups(self, choice_NE: Tensor) -> Tensor:
        """Node-limited routing: only experts of a token's best groups, by the sum of their best two, can be chosen."""
        num_groups = self._experts.num_groups
        if num_groups == 1:
            return choice_NE
        grouped_NGE = choice_NE.view(len(choice_NE), num_groups, -1)
        group_scores_NG = grouped_NGE.topk(2, dim=-1).values.sum(dim=-1)
        best_NG = group_scores_NG.topk(self._experts.num_groups_per_token, dim=-1, sorted=False).indices
        is_out_NG = torch.ones_like(group_scores_NG, dtype=torch.bool).scatter_(1, best_NG, False)
        return grouped_NGE.masked_fill(is_out_NG.unsqueeze(-1), -torch.inf).flatten(1)

    def stored_parts(self) -> Iterator[StoredPart]:
        yield StoredPart("mlp.gate.weight", self.weight)
        if self._experts.has_selection_bias:
            yield StoredPart("mlp.gate.e_score_correction_bias", self.selection_bias)


class MixtureOfExperts(nn.Module):
    """Equation 12: the chosen experts' weighted sum, plus the shared experts' result as it is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        experts = config.experts
        self.gate = Gate(config, experts)
        width, num_experts, hidden = config.hidden_size, experts.num_experts, experts.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.shared_experts: FeedForward | None = None
        if experts.num_shared_experts:
            shared = experts.num_shared_experts * hidden
            self.shared_experts = FeedForward(config, intermediate_size=shared, hf_name="mlp.shared_experts")

    def forward(self, x_ND: Tensor, run: Pass) -> tuple[Tensor, Routing]:
        routing = self.gate(x_ND)
        order = ExpertOrder.of(routing.experts_Nk, num_experts=len(self.gate_up_proj))
        if isinstance(run.linear, HasGrouped):
            y_ND = self._by_products_of(run.linear, x_ND, routing, order)
        else:
            weights = (self.gate_up_proj, self.down_proj)
            y_ND = cast(Tensor, _ChosenExperts.apply(x_ND, routing.weights_Nk, *weights, order))  # type: ignore[no-untyped-call]
        if self.shared_experts is not None:
            y_ND = y_ND + self.shared_experts(x_ND, run)
        return y_ND, routing

    def _by_products_of(self, linear: HasGrouped, x_ND: Tensor, routing: Routing, order: ExpertOrder) -> Tensor:
        """The chosen experts' weighted sum, by products that are not the plain ones."""
        gate_MF, up_MF = linear.grouped(x_ND.index_select(0, order.tokens_M), self.gate_up_proj, order.ends_E).chunk(
            2, -1
        )
        inner_MF = F.silu(gate_MF) * up_MF * _weights_of_rows(routing.weights_Nk, order, dtype=x_ND.dtype)
        rows_MD = linear.grouped(inner_MF, self.down_proj, order.ends_E)
        return rows_MD.index_select(0, order.rows_Nk.flatten()).view(*order.rows_Nk.shape, -1).sum(dim=1)

    def stored_parts(self) -> Iterator[StoredPart]:
        pairs = zip(self.gate_up_proj, self.down_proj, strict=True)
        for index, (gate_up_FD, down_DF) in enumerate(pairs):
            gate_FD, up_FD = gate_up_FD.chunk(2)
            for name, view in (("gate_proj", gate_FD), ("up_proj", up_FD), ("down_proj", down_DF)):
                yield StoredPart(f"mlp.experts.{index}.{name}.weight", view)


class ExpertOrder(NamedTuple):
    """M = N*k rows, one for each token and expert of its choice, those of an expert together."""

    tokens_M: Tensor
    """int64, which token a row is of."""
    choices_M: Tensor
    """int64, which of the flattened (N, k) choices a row is."""
    rows_Nk: Tensor
    """int64, the row of each choice."""
    ends_E: Tensor
    """int32, the row behind each expert's last."""

    @classmethod
    def of(cls, experts_Nk: Tensor, *, num_experts: int) -> ExpertOrder:
        """The rows of a choice: by expert, and by token within an expert."""
        chosen_M = experts_Nk.flatten()
        choices_M = chosen_M.argsort(stable=True)
        rows_M = torch.empty_like(choices_M)
        rows_M[choices_M] = torch.arange(len(choices_M), device=choices_M.device)
        ends_E = torch.bincount(chosen_M, minlength=num_experts).cumsum(0, dtype=torch.int32)
        return cls(choices_M // experts_Nk.shape[1], choices_M, rows_M.view(experts_Nk.shape), ends_E)


class _ChosenExperts(torch.autograd.Function):
    """Equation 12's sum over the chosen experts, y = sum_e W_down (w_e silu(W_gate x) * W_up x), as grouped products.

    Written out because autograd keeps six matrices of M rows for it and adds its gradients up row by row: this keeps
    one, and every sum over a token's experts, forward and backward, is one gather that adds in a fixed order.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_Nk: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, order: ExpertOrder
    ) -> Tensor:
        gate_up_MF = grouped_product(x_ND.index_select(0, order.tokens_M), gate_up_EFD.transpose(1, 2), order.ends_E)
        gate_MF, up_MF = _halves(gate_up_MF)
        # A weighted input is a weighted result, and an expert's inner width is the smaller.
        inner_MF = F.silu(gate_MF).mul_(up_MF).mul_(_weights_of_rows(weights_Nk, order, dtype=x_ND.dtype))
        ctx.save_for_backward(x_ND, weights_Nk, gate_up_EFD, down_EDF, gate_up_MF)
        ctx.order = order
        return _sum_of_choices(grouped_product(inner_MF, down_EDF.transpose(1, 2), order.ends_E), order)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weights_Nk, gate_up_EFD, down_EDF, gate_up_MF = ctx.saved_tensors
        order: ExpertOrder = ctx.order
        gate_MF, up_MF = _halves(gate_up_MF)
        weights_M1 = _weights_of_rows(weights_Nk, order, dtype=x_ND.dtype)
        grad_y_MD = grad_outputs[0].index_select(0, order.tokens_M)
        grad_inner_MF = grouped_product(grad_y_MD, down_EDF, order.ends_E)
        silu_MF = F.silu(gate_MF)
        inner_MF = silu_MF * up_MF
        grad_weights_M = (grad_inner_MF * inner_MF).sum(dim=-1, dtype=torch.float32)
        grad_down = (
            grouped_outer(grad_y_MD, inner_MF.mul_(weights_M1), order.ends_E) if ctx.needs_input_grad[3] else None
        )
        grad_inner_MF.mul_(weights_M1)
        grad_up_MF = silu_MF.mul_(grad_inner_MF)
        grad_gate_MF = torch.ops.aten.silu_backward(grad_inner_MF.mul_(up_MF), gate_MF)
        grad_gate_up_MF = torch.cat((grad_gate_MF, grad_up_MF), dim=-1)
        grad_gate_up = None
        if ctx.needs_input_grad[2]:
            grad_gate_up = grouped_outer(grad_gate_up_MF, x_ND.index_select(0, order.tokens_M), order.ends_E)
        grad_x_ND = _sum_of_choices(grouped_product(grad_gate_up_MF, gate_up_EFD, order.ends_E), order)
        grad_weights_Nk = grad_weights_M.take(order.rows_Nk).to(weights_Nk.dtype)
        return grad_x_ND, grad_weights_Nk, grad_gate_up, grad_down, None


def _halves(gate_up_MF: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up; the gate copied, since silu over a strided bfloat16 matrix takes three times as long."""
    gate_MF, up_MF = gate_up_MF.chunk(2, dim=-1)
    return gate_MF.contiguous(), up_MF


def _weights_of_rows(weights_Nk: Tensor, order: ExpertOrder, *, dtype: torch.dtype) -> Tensor:
    return weights_Nk.take(order.choices_M).to(dtype).unsqueeze(1)


def _sum_of_choices(rows_MD: Tensor, order: ExpertOrder) -> Tensor:
    """Each token's k rows added up: gathered and added in one pass, in float32 and in the order of its choices."""
    return F.embedding_bag(order.rows_Nk, rows_MD, mode="sum")


def grouped_product(x_MI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert, each times its expert's matrix: (M, O). An expert without rows is not read.

    Args:
        ends_E: int32, the row behind each expert's last.
    """
    num_in, num_out = weight_EIO.shape[1:]
    pad_in, pad_out = _missing(x_MI, num_in), _missing(x_MI, num_out)
    if pad_in or pad_out:
        x_MI, weight_EIO = F.pad(x_MI, (0, pad_in)), F.pad(weight_EIO, (0, pad_out, 0, pad_in))
    product: Tensor = F.grouped_mm(x_MI, weight_EIO, offs=ends_E)
    return product[:, :num_out] if pad_out else product


def grouped_outer(left_MO: Tensor, right_MI: Tensor, ends_E: Tensor) -> Tensor:
    """Sums of outer products over each expert's rows: (E, O, I), zeros for an expert without rows."""
    num_out, num_in = left_MO.shape[1], right_MI.shape[1]
    pad_out, pad_in = _missing(left_MO, num_out), _missing(right_MI, num_in)
    if pad_in or pad_out:
        left_MO, right_MI = F.pad(left_MO, (0, pad_out)), F.pad(right_MI, (0, pad_in))
    product: Tensor = F.grouped_mm(left_MO.t(), right_MI, offs=ends_E)
    return product[:, :num_out, :num_in] if pad_in or pad_out else product


def _missing(x: Tensor, width: int) -> int:
    """Channels up to the next multiple of 16 bytes, which is all that torch's grouped product takes."""
    return -width % (16 // x.element_size())
