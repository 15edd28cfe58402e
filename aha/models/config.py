"""Shapes of decoders: what a config.json comes to, whatever family and dialect it is in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aha.errors import ModelError
from aha.models.vision_config import VisionShape

ModelType = Literal["llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3", "kimi_k2"]

MAX_COUNT = 10_000
"""Most layers, and most experts of one: a file with a wrong number must not keep a machine busy for hours."""
MAX_EXPERTS = 200_000
"""Most routed experts of all layers together, for the same reason; Kimi-K2 has 23,040."""


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Frequency-dependent stretching of Llama 3.1 and later ("rope_type": "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if not (1 <= self.factor < math.inf and 0 < self.low_freq_factor < self.high_freq_factor < math.inf):
            raise ModelError(f"llama3 rope scaling needs factor >= 1 and 0 < low < high frequency factor, got {self}")
        if self.original_max_position_embeddings < 1:
            raise ModelError("llama3 rope scaling needs original_max_position_embeddings of at least 1")


@dataclass(frozen=True, kw_only=True)
class YarnRope:
    """YaRN (arXiv:2309.00071 §3.2-3.4): long wavelengths are stretched, and the attention's temperature follows."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    """Rotations over the original window from which a wavelength is kept."""
    beta_slow: float = 1.0
    """Rotations below which it is stretched by the whole factor."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """DeepSeek's two weights of the temperature; with this one, its square multiplies the softmax scale."""
    attention_factor: float | None = None
    """What cos and sin are multiplied by; None: it follows from the factor."""
    truncate: bool = True
    """Whether the bounds of the blended wavelengths are rounded to whole channels."""

    def __post_init__(self) -> None:
        if not (1 <= self.factor < math.inf and 0 < self.beta_slow <= self.beta_fast < math.inf):
            raise ModelError(f"yarn rope scaling needs factor >= 1 and 0 < beta_slow <= beta_fast, got {self}")
        if self.original_max_position_embeddings < 1:
            raise ModelError("yarn rope scaling needs original_max_position_embeddings of at least 1")
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise ModelError(
                    f"{name} of yarn rope scaling must be at least 0 and finite, got {getattr(self, name)}"
                )

    @property
    def rotation_scale(self) -> float:
        """What cos and sin are multiplied by: 1 for DeepSeek-V3 and Kimi-K2, 0.1 ln(factor) + 1 without mscale."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    @property
    def softmax_scale(self) -> float:
        """What MLA's softmax scale is multiplied by: m**2 with m = 0.1 mscale_all_dim ln(factor) + 1."""
        return self._temperature(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _temperature(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


RopeScaling = Llama3Rope | YarnRope | float | None


@dataclass(frozen=True, kw_only=True)
class LatentAttentionShape:
    """Multi-head latent attention (DeepSeek-V3 report, arXiv:2412.19437 §2.1.1)."""

    q_lora_rank: int | None
    """Width of the queries' latent, d'_c; None: queries are projected in one step (Moonlight)."""
    kv_lora_rank: int
    """Width of the latent that is cached, d_c (R)."""
    qk_nope_head_dim: int
    """Channels of a head's query and key without positions, d_h."""
    qk_rope_head_dim: int
    """Rotated channels, d_h^R; one key for all heads has them, and it is cached too."""
    v_head_dim: int

    def __post_init__(self) -> None:
        _check_positive(self, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if self.q_lora_rank is not None and not 1 <= self.q_lora_rank < 2**63:
            raise ModelError(f"q_lora_rank must be null or at least 1, got {self.q_lora_rank}")
        if self.qk_rope_head_dim % 2:
            raise ModelError(f"qk_rope_head_dim must be even for rotary positions, got {self.qk_rope_head_dim}")

    @property
    def cached_width(self) -> int:
        """Numbers cached for each token and layer: the latent, then the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, kw_only=True)
class ExpertsShape:
    """Sparse experts: DeepSeekMoE's sigmoid scores with a selection bias (arXiv:2412.19437 §2.1.2), or softmax."""

    num_experts: int
    """Routed experts, E."""
    num_experts_per_token: int
    """k."""
    intermediate_size: int
    """Width of one expert, F."""
    num_shared_experts: int = 0
    """Experts that see every token; they are one gated feed-forward of so many widths."""
    scoring: Literal["softmax", "sigmoid"]
    has_selection_bias: bool
    """Whether a bias that balances the load takes part in choosing experts, and in nothing else."""
    num_groups: int = 1
    num_groups_per_token: int = 1
    """Experts are chosen within so many of the groups (node-limited routing)."""
    renormalises: bool = True
    """Whether the k weights are divided by their sum."""
    scaling_factor: float = 1.0
    """What the k weights are multiplied by then."""
    first_layer: int = 0
    """Layers before it are dense."""
    layer_step: int = 1
    """Layer i from there on is sparse if i + 1 is a multiple of this, or always with 1."""
    dense_layers: tuple[int, ...] = ()
    """Layers that are dense besides."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_experts", "num_experts_per_token", "intermediate_size", "num_groups",
                        "num_groups_per_token", "layer_step")  # fmt: skip
        if self.num_experts > MAX_COUNT:
            raise ModelError(f"a layer has at most {MAX_COUNT} experts, got {self.num_experts}")
        if self.num_shared_experts < 0 or self.first_layer < 0:
            raise ModelError("n_shared_experts and first_k_dense_replace must be at least 0")
        if self.num_experts_per_token > self.num_experts:
            raise ModelError(f"num_experts_per_tok {self.num_experts_per_token} exceeds {self.num_experts} experts")
        if self.num_experts % self.num_groups or self.num_groups_per_token > self.num_groups:
            raise ModelError(
                f"n_group {self.num_groups} must divide {self.num_experts} experts and be at least topk_group "
                f"{self.num_groups_per_token}"
            )
        group_size = self.num_experts // self.num_groups
        if self.num_groups > 1 and (
            group_size < 2 or self.num_groups_per_token * group_size < self.num_experts_per_token
        ):
            raise ModelError(
                f"topk_group {self.num_groups_per_token} of {self.num_groups} groups of {group_size} experts cannot "
                f"give {self.num_experts_per_token} experts; groups need two experts at least"
            )
        if not (math.isfinite(self.scaling_factor) and self.scaling_factor > 0):
            raise ModelError(f"routed_scaling_factor must be above 0 and finite, got {self.scaling_factor}")

    def has_layer(self, index: int) -> bool:
        """Whether layer `index` has experts."""
        is_due = index >= self.first_layer and (index + 1) % self.layer_step == 0
        return is_due and index not in self.dense_layers


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder-only transformer."""

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    """D."""
    intermediate_size: int
    """F."""
    num_layers: int
    num_heads: int
    """Query heads, H."""
    num_kv_heads: int
    """Key/value heads, K; divides `num_heads`."""
    head_dim: int
    """C, channels of a query head; need not be hidden_size / num_heads."""
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = None
    """None is plain RoPE; a number divides every position ("linear"); the others stretch by frequency."""
    rope_interleaved: bool = False
    """Whether channels 2i and 2i+1 are a pair (DeepSeek), or channels i and i + C/2 (all others)."""
    tie_word_embeddings: bool = False
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    """Bias on the attention's output projection (Llama's `attention_bias` sets both)."""
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    """RMS norm over each query and key head before RoPE (Qwen3)."""
    mla: LatentAttentionShape | None = None
    """None: grouped-query attention."""
    experts: ExpertsShape | None = None
    """None: every layer is dense."""
    num_mtp_layers: int = 0
    """Multi-token prediction modules behind the last layer (arXiv:2412.19437 §2.2)."""
    vision: VisionShape | None = None
    """The eye of an InternVL, whose language model all other fields describe; None: it reads text only."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
                        "num_kv_heads", "head_dim", "max_position_embeddings")  # fmt: skip
        if self.num_mtp_layers < 0:
            raise ModelError(f"num_nextn_predict_layers must be at least 0, got {self.num_mtp_layers}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ModelError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.initializer_range < math.inf:
            raise ModelError(f"initializer_range must be at least 0 and finite, got {self.initializer_range}")
        if isinstance(self.rope_scaling, YarnRope) and self.rope_theta <= 1:
            raise ModelError(f"yarn rope scaling needs a rope_theta above 1, got {self.rope_theta}")
        if self.num_layers + self.num_mtp_layers > MAX_COUNT:
            raise ModelError(f"a model has at most {MAX_COUNT} layers, got {self.num_layers + self.num_mtp_layers}")
        num_experts = 0 if self.experts is None else self.experts.num_experts
        if (self.num_layers + self.num_mtp_layers) * num_experts > MAX_EXPERTS:
            raise ModelError(f"a model has at most {MAX_EXPERTS} experts in all its layers, got {num_experts} in each")
        if isinstance(self.rope_scaling, float) and not 0 < self.rope_scaling < math.inf:
            raise ModelError(f"the factor of linear rope scaling must be above 0, got {self.rope_scaling}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_key_value_heads {self.num_kv_heads} must divide num_attention_heads {self.num_heads}"
            )
        if self.vision is not None and self.vision.image_token_id >= self.vocab_size:
            raise ModelError(f"image_token_id {self.vision.image_token_id} must be below vocab_size {self.vocab_size}")
        if self.rope_dim % 2:
            raise ModelError(f"head_dim must be even for rotary positions, got {self.rope_dim}")

    @property
    def rope_dim(self) -> int:
        """Channels of a head that are rotated."""
        return self.head_dim if self.mla is None else self.mla.qk_rope_head_dim

    @property
    def attended_width(self) -> int:
        """Channels of what attention gives, all heads together: the output projection's inputs."""
        return self.num_heads * (self.head_dim if self.mla is None else self.mla.v_head_dim)

    @property
    def cached_width(self) -> int:
        """Numbers cached for each token and layer: keys and values, or MLA's latent."""
        return 2 * self.num_kv_heads * self.head_dim if self.mla is None else self.mla.cached_width

    @property
    def softmax_scale(self) -> float:
        """What queries times keys are multiplied by before the softmax."""
        scale = float(self.head_dim**-0.5)
        # Only MLA's models carry YaRN's temperature here; with the others it lies in cos and sin.
        if self.mla is not None and isinstance(self.rope_scaling, YarnRope):
            return scale * self.rope_scaling.softmax_scale
        return scale

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts; those of multi-token prediction, behind the last, do if any has."""
        return self.experts is not None and (layer >= self.num_layers or self.experts.has_layer(layer))


def _check_positive(shape: object, *names: str) -> None:
    for name in names:
        value = getattr(shape, name)
        if value < 1:
            raise ModelError(f"{name} must be at least 1, got {value}")
        if value >= 2**63:
            raise ModelError(f"{name} has an impossible size of {len(str(value))} digits")
