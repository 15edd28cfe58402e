"""One pre-norm layer: attention, then a feed-forward or experts, each added to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ModelConfig
from aha.models.experts import MixtureOfExperts, Routing
from aha.models.feed_forward import FeedForward
from aha.models.grouped_query import GroupedQueryAttention
from aha.models.latent import LatentAttention
from aha.models.projection import Pass, StoredPart


class Layer(nn.Module):
    """Layer `index` of a model; those behind the last one are the blocks of multi-token prediction."""

    def __init__(self, config: ModelConfig, *, index: int) -> None:
        super().__init__()
        self._norm_shape, self._eps = (config.hidden_size,), config.rms_norm_eps
        self.index = index
        self.input_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.attention = GroupedQueryAttention(config) if config.mla is None else LatentAttention(config)
        self.post_attention_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.feed_forward: FeedForward | MixtureOfExperts
        if config.is_sparse(index):
            self.feed_forward = MixtureOfExperts(config)
        else:
            self.feed_forward = FeedForward(config, intermediate_size=config.intermediate_size)

    def forward(self, x_ND: Tensor, run: Pass) -> tuple[Tensor, Routing | None]:
        """The residual stream behind the layer, and where its gate sent the tokens.

        The routing is a result and not a side effect, so that what is computed again for the backward pass is not
        counted again.
        """
        normed_ND = F.rms_norm(x_ND, self._norm_shape, self.input_norm, self._eps)
        x_ND = x_ND + self.attention(self.index, normed_ND, run)
        normed_ND = F.rms_norm(x_ND, self._norm_shape, self.post_attention_norm, self._eps)
        if isinstance(self.feed_forward, MixtureOfExperts):
            y_ND, routing = self.feed_forward(normed_ND, run)
            return x_ND + y_ND, routing
        return x_ND + self.feed_forward(normed_ND, run), None

    def stored_parts(self) -> Iterator[StoredPart]:
        yield StoredPart("input_layernorm.weight", self.input_norm)
        yield StoredPart("post_attention_layernorm.weight", self.post_attention_norm)
