"""Sparse experts: a gate chooses k of E small feed-forwards for each token.

Source: DeepSeekMoE with auxiliary-loss-free balancing, DeepSeek-V3 report (arXiv:2412.19437) §2.1.2, equations 12 to
16; Qwen3-MoE (arXiv:2505.09388 §2) is the same with softmax scores, without shared experts, groups and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ExpertsShape, ModelConfig
from aha.models.feed_forward import FeedForward
from aha.models.projection import HasGrouped, Pass, StoredPart

MAX_PADDED_ROWS = 2
"""Experts are padded to the largest one's rows while all have at most so many times the rows that there are."""


class Routing(NamedTuple):
    """What a gate decided for N tokens."""

    experts_Nk: Tensor
    """int64, the chosen experts of each token."""
    weights_Nk: Tensor
    """float32, what their results are multiplied by."""
    scores_NE: Tensor
    """float32, affinity of every expert before the bias: sigmoid or softmax."""

    def expert_load(self) -> Tensor:
        """int64: tokens that each expert was given."""
        return torch.bincount(self.experts_Nk.flatten(), minlength=self.scores_NE.shape[1])


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
        num_tokens, num_chosen = routing.experts_Nk.shape
        # M = N*k rows, one for each token and expert of its choice, those of an expert together.
        order_M = routing.experts_Nk.flatten().argsort(stable=True)
        counts_E = routing.expert_load()
        multiply = run.linear.grouped if isinstance(run.linear, HasGrouped) else grouped_linear
        rows_MD = x_ND.index_select(0, order_M // num_chosen)
        gate_MF, up_MF = multiply(rows_MD, self.gate_up_proj, counts_E).chunk(2, dim=-1)
        result_MD = multiply(F.silu(gate_MF) * up_MF, self.down_proj, counts_E)
        # Back to token order by a gather: its backward adds in a fixed order, which index_add does not promise.
        result_NkD = result_MD.index_select(0, order_M.argsort()).view(num_tokens, num_chosen, -1)
        y_ND = torch.bmm(routing.weights_Nk.to(x_ND.dtype).unsqueeze(1), result_NkD).squeeze(1)
        if self.shared_experts is not None:
            y_ND = y_ND + self.shared_experts(x_ND, run)
        return y_ND, routing

    def stored_parts(self) -> Iterator[StoredPart]:
        pairs = zip(self.gate_up_proj, self.down_proj, strict=True)
        for index, (gate_up_FD, down_DF) in enumerate(pairs):
            gate_FD, up_FD = gate_up_FD.chunk(2)
            for name, view in (("gate_proj", gate_FD), ("up_proj", up_FD), ("down_proj", down_DF)):
                yield StoredPart(f"mlp.experts.{index}.{name}.weight", view)


def grouped_linear(x_MD: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert, each times its expert's matrix: (M, F).

    One batched product where the experts' shares are even enough to pad them to the largest; else torch's grouped
    product, which takes rows of multiples of 16 bytes alone.

    Args:
        counts_E: int64, rows of each expert.
    """
    num_rows, largest = len(x_MD), int(counts_E.max())
    num_experts, width_out, width_in = weight_EFD.shape
    is_aligned = width_in * x_MD.element_size() % 16 == width_out * x_MD.element_size() % 16 == 0
    if is_aligned and num_experts * largest > MAX_PADDED_ROWS * num_rows:
        offsets_E = counts_E.cumsum(0).to(torch.int32)
        product: Tensor = F.grouped_mm(x_MD, weight_EFD.transpose(1, 2), offs=offsets_E)
        return product
    # The cell of each row in (E, largest): its expert's block, and its place among the expert's rows.
    starts_E = counts_E.cumsum(0) - counts_E
    expert_M = torch.arange(num_experts, device=x_MD.device).repeat_interleave(counts_E)
    cells_M = torch.arange(num_rows, device=x_MD.device) + (expert_M * largest - starts_E[expert_M])
    padded = x_MD.new_zeros(num_experts * largest, width_in).index_copy(0, cells_M, x_MD)
    product_ELF = torch.bmm(padded.view(num_experts, largest, width_in), weight_EFD.transpose(1, 2))
    return product_ELF.flatten(0, 1).index_select(0, cells_M)
