"""The gated feed-forward of a dense layer, and of the experts that see every token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ModelConfig
from aha.models.projection import Pass, Projection


class FeedForward(nn.Module):
    """down(silu(gate x) * up x) (SwiGLU, arXiv:2002.05202), gate and up projected by one product.

    Args:
        hf_name: what its matrices begin with in a file, relative to the layer.
    """

    def __init__(self, config: ModelConfig, *, intermediate_size: int, hf_name: str = "mlp") -> None:
        super().__init__()
        gate_up = {f"{hf_name}.gate_proj": intermediate_size, f"{hf_name}.up_proj": intermediate_size}
        down = {f"{hf_name}.down_proj": config.hidden_size}
        self.gate_up_proj = Projection(config.hidden_size, parts=gate_up, bias=config.has_mlp_bias)
        self.down_proj = Projection(intermediate_size, parts=down, bias=config.has_mlp_bias)

    def forward(self, x_ND: Tensor, run: Pass) -> Tensor:
        gate_NF, up_NF = self.gate_up_proj.project(x_ND, run).chunk(2, dim=-1)
        return self.down_proj.project(F.silu(gate_NF) * up_NF, run)
