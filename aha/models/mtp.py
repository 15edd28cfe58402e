"""Multi-token prediction: a module behind the last layer that predicts one token further ahead.

Source: DeepSeek-V3 report (arXiv:2412.19437) §2.2, equations 21 to 23, with the released weights' order: embedding
first, then hidden state (transformers `MtpLayer`; equation 21 is written the other way round).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ModelConfig
from aha.models.experts import Routing
from aha.models.layer import Layer
from aha.models.projection import Pass, Projection, StoredPart


class MultiTokenPrediction(nn.Module):
    """Module k: from a hidden state of depth k - 1 and the embedding of the token after, that of depth k.

    Embedding and head are the model's own.
    """

    def __init__(self, config: ModelConfig, *, depth: int) -> None:
        super().__init__()
        width = config.hidden_size
        self._norm_shape, self._eps = (width,), config.rms_norm_eps
        self.embedding_norm = nn.Parameter(torch.ones(width))
        self.hidden_norm = nn.Parameter(torch.ones(width))
        self.eh_proj = Projection(2 * width, parts={"eh_proj": width})
        self.block = Layer(config, index=config.num_layers + depth)
        self.final_norm = nn.Parameter(torch.ones(width))

    def forward(self, embedded_ND: Tensor, hidden_ND: Tensor, run: Pass) -> tuple[Tensor, Routing | None]:
        """Hidden states (N, D) that the head makes logits of the token after the next of.

        Args:
            embedded_ND: embeddings of each token's successor, t_{i+1}.
            hidden_ND: h_i after the final norm, or what the module before returned.
        """
        embedded_ND = F.rms_norm(embedded_ND, self._norm_shape, self.embedding_norm, self._eps)
        hidden_ND = F.rms_norm(hidden_ND, self._norm_shape, self.hidden_norm, self._eps)
        x_ND = self.eh_proj.project(torch.cat((embedded_ND, hidden_ND), dim=-1), run)
        x_ND, routing = self.block(x_ND, run)
        return F.rms_norm(x_ND, self._norm_shape, self.final_norm, self._eps), routing

    def stored_parts(self) -> Iterator[StoredPart]:
        yield StoredPart("enorm.weight", self.embedding_norm)
        yield StoredPart("hnorm.weight", self.hidden_norm)
        yield StoredPart("shared_head.norm.weight", self.final_norm)
