"""Grouped-query attention: Llama, Qwen2 and Qwen3 differ in two switches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ModelConfig
from aha.models.projection import Pass, Projection, StoredPart
from aha.models.rope import rotate


class GroupedQueryAttention(nn.Module):
    """Attention whose query heads share key heads in groups (arXiv:2305.13245), q, k and v projected by one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        qkv = {"self_attn.q_proj": q_rows, "self_attn.k_proj": kv_rows, "self_attn.v_proj": kv_rows}
        self.qkv_proj = Projection(config.hidden_size, parts=qkv, bias=config.has_qkv_bias)
        self.o_proj = Projection(q_rows, parts={"self_attn.o_proj": config.hidden_size}, bias=config.has_output_bias)
        if config.has_qk_norm:
            self.q_norm = nn.Parameter(torch.ones(config.head_dim))
            self.k_norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(self, layer: int, x_ND: Tensor, run: Pass) -> Tensor:
        config = self._config
        num_q, num_kv, eps = config.num_heads, config.num_kv_heads, config.rms_norm_eps
        qkv = self.qkv_proj.project(x_ND, run).view(len(x_ND), num_q + 2 * num_kv, config.head_dim)
        if config.has_qk_norm:
            q_NHC = F.rms_norm(qkv[:, :num_q], (config.head_dim,), self.q_norm, eps)
            k_NKC = F.rms_norm(qkv[:, num_q : num_q + num_kv], (config.head_dim,), self.k_norm, eps)
            q_NHC, k_NKC = rotate(q_NHC, *run.rope), rotate(k_NKC, *run.rope)
        else:
            rotated = rotate(qkv[:, : num_q + num_kv], *run.rope)
            q_NHC, k_NKC = rotated[:, :num_q], rotated[:, num_q:]
        v_NKC = qkv[:, num_q + num_kv :]
        attended_NHC = run.attention(layer, q_NHC, k_NKC, v_NKC, scale=config.softmax_scale)
        return self.o_proj.project(attended_NHC.reshape(len(x_ND), -1), run)

    def stored_parts(self) -> Iterator[StoredPart]:
        if self._config.has_qk_norm:
            yield StoredPart("self_attn.q_norm.weight", self.q_norm)
            yield StoredPart("self_attn.k_norm.weight", self.k_norm)
