"""A dense decoder: Llama, Qwen2 and Qwen3 differ in three switches, so they are one module.

Training, evaluation and serving run the same code on the same parameters: `hidden_states` takes tokens with all
padding removed, and an `Attention` that says which keys each of them sees (a packed batch, or a cache).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aha.models.attention import PackedAttention
from aha.models.config import Llama3Rope, ModelConfig

if TYPE_CHECKING:
    from aha.models.lora import Lora, LowRank

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_NHC, k_NKC, v_NKC) -> attended_NHC, on N tokens without padding; q and k are rotated."""
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_ND, weight, bias or None) -> product; the engine passes one that uses packed copies of the weights."""


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of channels: float32, (C/2,).

    Source: RoFormer (arXiv:2104.09864) §3.2.2; the llama3 stretching as published with Llama 3.1.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if not isinstance(scaling, Llama3Rope):
        return frequencies / scaling
    original = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    # Long wavelengths are stretched by `factor`, short ones kept, those between blended.
    blend = (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    is_long = wavelengths > original / scaling.low_freq_factor
    is_short = wavelengths < original / scaling.high_freq_factor
    return torch.where(is_long, frequencies / scaling.factor, torch.where(is_short, frequencies, blended))


def rotate(x_NHC: Tensor, cos_N1C: Tensor, sin_N1C: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout; `sin` carries the sign of its first half."""
    half = x_NHC.shape[-1] // 2
    return x_NHC * cos_N1C + torch.cat((x_NHC[..., half:], x_NHC[..., :half]), dim=-1) * sin_N1C


class Projection(nn.Linear):
    """A matrix of a layer, which may have a low-rank adapter beside it (aha.models.lora)."""

    def __init__(self, num_in: int, num_out: int, *, bias: bool) -> None:
        super().__init__(num_in, num_out, bias=bias)
        self.adapter: LowRank | None = None

    def project(self, x_ND: Tensor, linear: Linear, *, weight_version: int) -> Tensor:
        """The matrix's product by way of `linear`, and the adapter's added."""
        product = linear(x_ND, self.weight, self.bias)
        return product if self.adapter is None else cast(Tensor, self.adapter(x_ND, product, linear, weight_version))


class Layer(nn.Module):
    """Pre-norm attention and gated feed-forward, with q/k/v and gate/up fused into one parameter each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        qkv_width = (config.num_heads + 2 * config.num_kv_heads) * head_dim
        self.input_norm = nn.Parameter(torch.ones(width))
        self.qkv_proj = Projection(width, qkv_width, bias=config.has_qkv_bias)
        self.o_proj = Projection(config.num_heads * head_dim, width, bias=config.has_output_bias)
        self.post_attention_norm = nn.Parameter(torch.ones(width))
        self.gate_up_proj = Projection(width, 2 * config.intermediate_size, bias=config.has_mlp_bias)
        self.down_proj = Projection(config.intermediate_size, width, bias=config.has_mlp_bias)
        if config.has_qk_norm:
            self.q_norm = nn.Parameter(torch.ones(head_dim))
            self.k_norm = nn.Parameter(torch.ones(head_dim))


class Transformer(nn.Module):
    """A causal language model whose parameters the engine and the trainer share."""

    weight_version: int
    """Raised by whoever changes the parameters; caches and packed copies are keyed by it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight_version = 0
        self.lora: Lora | None = None
        """What adapters lie beside the matrices; None for a plain model."""
        self.activations: Literal["keep", "recompute"] = "keep"
        """Whether training keeps what each layer computes for the backward pass, or its input only."""
        self.products: Literal["full", "fp8"] = "full"
        """What training multiplies the layers' matrices in: the parameters' dtype, or FP8 (aha.models.fp8_product)."""
        self.embed_tokens = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_norm = nn.Parameter(torch.ones(config.hidden_size))
        if not config.tie_word_embeddings:
            self.lm_head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self._rope_tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def output_weight(self) -> Tensor:
        """The head's weight (V, D); the embedding itself when the two are tied."""
        return self.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.device

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def initialise(self, *, seed: int) -> None:
        """Draw weights: normal with `initializer_range`, projections into the residual stream smaller by depth."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.config.initializer_range / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = residual_std if is_residual else self.config.initializer_range
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        self.weight_version += 1

    def rope_tables(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin (N, 1, C) of the positions, in the parameters' dtype."""
        key = (self.device, self.dtype)
        needed = int(positions_N.max()) + 1 if positions_N.numel() else 1
        if key not in self._rope_tables or len(self._rope_tables[key][0]) < needed:
            length = max(256, 1 << (needed - 1).bit_length())
            # fp32, then cast: bf16 angles are off by whole radians at position 1,000.
            angles = torch.outer(torch.arange(length, dtype=torch.float32), rope_frequencies(self.config))
            cos, sin = angles.cos(), angles.sin()
            tables = (torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))
            self._rope_tables[key] = tuple(t.unsqueeze(1).to(self.device, self.dtype) for t in tables)  # type: ignore[assignment]
        cos_table, sin_table = self._rope_tables[key]
        return cos_table[positions_N], sin_table[positions_N]

    def hidden_states(
        self, token_ids_N: Tensor, *, positions_N: Tensor, attention: Attention, linear: Linear = F.linear
    ) -> Tensor:
        """Final hidden states (N, D), after the last norm, of N tokens without padding.

        Args:
            token_ids_N: int64.
            positions_N: int64, each token's position in its own sequence.
            attention: which keys every token sees, and where keys and values are kept.
            linear: the matrix product; the engine passes one with prepacked weights.
        """
        cos_N1C, sin_N1C = self.rope_tables(positions_N)
        x_ND = F.embedding(token_ids_N, self.embed_tokens)
        recomputes = self.activations == "recompute" and torch.is_grad_enabled()
        for index, layer in enumerate(cast(Iterable[Layer], self.layers)):
            arguments = (index, layer, x_ND, (cos_N1C, sin_N1C), attention, linear)
            if recomputes:
                x_ND = checkpoint(self._through_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x_ND = self._through_layer(*arguments)
        return F.rms_norm(x_ND, (self.config.hidden_size,), self.final_norm, self.config.rms_norm_eps)

    def _through_layer(
        self, index: int, layer: Layer, x_ND: Tensor, rope: tuple[Tensor, Tensor], attention: Attention, linear: Linear
    ) -> Tensor:
        config = self.config
        num_tokens, num_q, num_kv, head_dim = len(x_ND), config.num_heads, config.num_kv_heads, config.head_dim
        eps = config.rms_norm_eps
        cos_N1C, sin_N1C = rope
        version = self.weight_version
        normed_ND = F.rms_norm(x_ND, (config.hidden_size,), layer.input_norm, eps)
        qkv = layer.qkv_proj.project(normed_ND, linear, weight_version=version).view(
            num_tokens, num_q + 2 * num_kv, head_dim
        )
        if config.has_qk_norm:
            q_NHC = F.rms_norm(qkv[:, :num_q], (head_dim,), layer.q_norm, eps)
            k_NKC = F.rms_norm(qkv[:, num_q : num_q + num_kv], (head_dim,), layer.k_norm, eps)
            q_NHC, k_NKC = rotate(q_NHC, cos_N1C, sin_N1C), rotate(k_NKC, cos_N1C, sin_N1C)
        else:
            rotated = rotate(qkv[:, : num_q + num_kv], cos_N1C, sin_N1C)
            q_NHC, k_NKC = rotated[:, :num_q], rotated[:, num_q:]
        attended_NHC = attention(index, q_NHC, k_NKC, qkv[:, num_q + num_kv :])
        x_ND = x_ND + layer.o_proj.project(attended_NHC.reshape(num_tokens, -1), linear, weight_version=version)
        normed_ND = F.rms_norm(x_ND, (config.hidden_size,), layer.post_attention_norm, eps)
        gate_NF, up_NF = layer.gate_up_proj.project(normed_ND, linear, weight_version=version).chunk(2, dim=-1)
        return x_ND + layer.down_proj.project(F.silu(gate_NF) * up_NF, linear, weight_version=version)

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of B sequences of equal length, positions from 0."""
        batch, length = token_ids_BT.shape
        hidden_ND = self.hidden_states(
            token_ids_BT.reshape(-1),
            positions_N=torch.arange(length, device=token_ids_BT.device).repeat(batch),
            attention=PackedAttention([length] * batch),
        )
        return F.linear(hidden_ND, self.output_weight).view(batch, length, -1)

    def save(
        self,
        folder: Path | str,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        form: Literal["full", "fp8", "fp8_ue8m0"] = "full",
    ) -> None:
        """Write config.json and model.safetensors in the Hugging Face layout, each file atomically; adapters merged."""
        from aha.models.checkpoint import save_model  # here: checkpoint imports this module

        save_model(self, folder=Path(folder), dtype=dtype, form=form)
