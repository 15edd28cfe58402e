"""Multi-head latent attention (MLA): keys and values of all heads are read out of one small latent for each token.

Source: DeepSeek-V3 report (arXiv:2412.19437) §2.1.1, equations 1 to 11; the norms of both latents, §4.2; absorbed
decoding as in DeepSeek-V2 (arXiv:2405.04434) §2.1.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.config import ModelConfig
from aha.models.projection import Pass, Projection, StoredPart
from aha.models.rope import rotate, split_pairs

LATENT_EPS = 1e-6
"""Of the two latents' norms, whatever rms_norm_eps says (transformers and DeepSeek's own code)."""


class LatentAttention(nn.Module):
    """MLA in both of its forms, from one set of weights.

    Expanded, for prompts and training: every token's keys and values are made out of its latent, and attention is that
    of as many heads. Absorbed, for decoding over a cache of latents: W^UK is moved over to the query and W^UV behind
    the sum, so that all heads attend over the latents themselves, which are never expanded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.mla is not None
        self._config = config
        self._mla = mla = config.mla
        width, num_heads, bias = config.hidden_size, config.num_heads, config.has_qkv_bias
        if mla.q_lora_rank is None:
            self.q_proj = Projection(width, parts={"self_attn.q_proj": num_heads * config.head_dim})
        else:
            self.q_a_proj = Projection(width, parts={"self_attn.q_a_proj": mla.q_lora_rank}, bias=bias)
            self.q_a_norm = nn.Parameter(torch.ones(mla.q_lora_rank))
            self.q_b_proj = Projection(mla.q_lora_rank, parts={"self_attn.q_b_proj": num_heads * config.head_dim})
        self.kv_a_proj = Projection(width, parts={"self_attn.kv_a_proj_with_mqa": mla.cached_width}, bias=bias)
        self.kv_a_norm = nn.Parameter(torch.ones(mla.kv_lora_rank))
        kv_rows = num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        self.kv_b_proj = Projection(mla.kv_lora_rank, parts={"self_attn.kv_b_proj": kv_rows})
        o_parts = {"self_attn.o_proj": width}
        self.o_proj = Projection(num_heads * mla.v_head_dim, parts=o_parts, bias=config.has_output_bias)

    def forward(self, layer: int, x_ND: Tensor, run: Pass) -> Tensor:
        """Equation 11, u = W^O [o_1; …; o_H], of what both forms of attention give."""
        q_nope_NHC, q_rope_NHC = self._queries(x_ND, run)
        latent_NR, k_rope_N1C = self._latents(x_ND, run)
        # Queries and the shared key are turned together: half the operations, which bound a step of few rows.
        rope_NHC = self._rotate(torch.cat((q_rope_NHC, k_rope_N1C), dim=1), run)
        q_rope_NHC, k_rope_N1C = rope_NHC.split((self._config.num_heads, 1), dim=1)
        # What is cached: the latent after its norm, the shared key after its rotation.
        cached_NR = torch.cat((latent_NR, k_rope_N1C.squeeze(1)), dim=-1)
        attend = self._absorbed if run.attention.form == "latent" else self._expanded
        attended_NHC = attend(layer, q_nope_NHC, q_rope_NHC, cached_NR, run)
        return self.o_proj.project(attended_NHC.reshape(len(x_ND), -1), run)

    def _queries(self, x_ND: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        """Equations 6 to 8: c^Q = norm(W^DQ h), q = W^UQ c^Q (N, H, d_h), and W^QR c^Q, to be rotated (N, H, d_h^R)."""
        mla = self._mla
        if mla.q_lora_rank is None:
            q = self.q_proj.project(x_ND, run)
        else:
            q_latent = F.rms_norm(self.q_a_proj.project(x_ND, run), (mla.q_lora_rank,), self.q_a_norm, LATENT_EPS)
            q = self.q_b_proj.project(q_latent, run)
        q_NHC = q.view(len(x_ND), self._config.num_heads, self._config.head_dim)
        q_nope_NHC, q_rope_NHC = q_NHC.split((mla.qk_nope_head_dim, mla.qk_rope_head_dim), dim=-1)
        return q_nope_NHC, q_rope_NHC

    def _latents(self, x_ND: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        """Equations 1 and 3: c = norm(W^DKV h) (N, R), and the one key of all heads, to be rotated (N, 1, d_h^R)."""
        mla = self._mla
        latent_NR, k_rope_NC = self.kv_a_proj.project(x_ND, run).split((mla.kv_lora_rank, mla.qk_rope_head_dim), dim=-1)
        latent_NR = F.rms_norm(latent_NR, (mla.kv_lora_rank,), self.kv_a_norm, LATENT_EPS)
        return latent_NR, k_rope_NC.unsqueeze(1)

    def _rotate(self, x_NHC: Tensor, run: Pass) -> Tensor:
        """Equations 3 and 8: their RoPE."""
        return rotate(split_pairs(x_NHC) if self._config.rope_interleaved else x_NHC, *run.rope)

    def _expanded(self, layer: int, q_nope_NHC: Tensor, q_rope_NHC: Tensor, cached_NR: Tensor, run: Pass) -> Tensor:
        """Equations 2, 4, 5, 9 and 10: k = [W^UK c; k^R], v = W^UV c, q = [q^C; q^R], o = softmax(q k s) v."""
        mla, num_heads = self._mla, self._config.num_heads
        latent_NR, k_rope_NC = cached_NR.split((mla.kv_lora_rank, mla.qk_rope_head_dim), dim=-1)
        kv_NHC = self.kv_b_proj.project(latent_NR, run).view(len(cached_NR), num_heads, -1)
        k_nope_NHC, v_NHC = kv_NHC.split((mla.qk_nope_head_dim, mla.v_head_dim), dim=-1)
        k_NHC = torch.cat((k_nope_NHC, k_rope_NC.unsqueeze(1).expand(-1, num_heads, -1)), dim=-1)
        q_NHC = torch.cat((q_nope_NHC, q_rope_NHC), dim=-1)
        return run.attention(layer, q_NHC, k_NHC, v_NHC, scale=self._config.softmax_scale, latent_NR=cached_NR)

    def _absorbed(self, layer: int, q_nope_NHC: Tensor, q_rope_NHC: Tensor, cached_NR: Tensor, run: Pass) -> Tensor:
        """The same function over latents: q' = W^UK^T q attends over c, and W^UV reads the values out of the sum."""
        mla, num_heads = self._mla, self._config.num_heads
        # Views of kv_b_proj, not copies: a step of the optimiser changes both forms at once.
        up_HCR = self.kv_b_proj.effective_weight(run).view(num_heads, -1, mla.kv_lora_rank)
        up_k_HCR, up_v_HCR = up_HCR.split((mla.qk_nope_head_dim, mla.v_head_dim), dim=1)
        q_latent_NHR = torch.bmm(q_nope_NHC.transpose(0, 1), up_k_HCR).transpose(0, 1)
        q_NHR = torch.cat((q_latent_NHR, q_rope_NHC), dim=-1)
        k_N1R = cached_NR.unsqueeze(1)
        v_N1R = k_N1R[..., : mla.kv_lora_rank]
        attended_NHR = run.attention(layer, q_NHR, k_N1R, v_N1R, scale=self._config.softmax_scale, latent_NR=cached_NR)
        return torch.bmm(attended_NHR.transpose(0, 1), up_v_HCR.transpose(1, 2)).transpose(0, 1)

    def stored_parts(self) -> Iterator[StoredPart]:
        if self._mla.q_lora_rank is not None:
            yield StoredPart("self_attn.q_a_layernorm.weight", self.q_a_norm)
        yield StoredPart("self_attn.kv_a_layernorm.weight", self.kv_a_norm)
