"""How many parameters a configuration comes to, how many of them a token uses, and what it leaves in the cache.

In formulas, without torch, so that a table of every known model appears at once; tests hold them equal to the modules.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from aha.models.config import ModelConfig
from aha.models.fp8_config import BLOCK_SIZE
from aha.models.vision_config import VisionShape


class ParameterCounts(NamedTuple):
    """Numbers of parameters. Gates' selection biases, which are buffers, are not among them."""

    total: int
    """Of the model itself: embedding, layers, head and eye, without multi-token prediction."""
    active: int
    """Of `total`, those that one token uses: of each sparse layer k of its E routed experts, and all the rest."""
    embedding: int
    """Of `total`, the input embedding: looked up, never multiplied."""
    head: int
    """Of `total`, the output head; 0 where it is the embedding itself."""
    mtp: int
    """In the modules of multi-token prediction, beside `total`; they share embedding and head."""
    mtp_active: int
    """Of `mtp`, those that one token uses."""

    @property
    def held(self) -> int:
        """What lies in memory: `total` and `mtp`."""
        return self.total + self.mtp


class Matrix(NamedTuple):
    """A matrix as it is stored in a file, and how many there are of its kind in a layer."""

    num_out: int
    num_in: int
    copies: int = 1
    num_active: int = 1
    """Of `copies`, those that a token is multiplied with."""
    is_routed: bool = False
    """Whether only the tokens that an expert is chosen for are."""

    @property
    def num_parameters(self) -> int:
        return self.copies * self.num_out * self.num_in

    @property
    def num_active_parameters(self) -> int:
        return self.num_active * self.num_out * self.num_in


@functools.cache
def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Parameters of a model of this shape; nothing is allocated.

    DeepSeek-V3 (arXiv:2412.19437, and README_WEIGHTS.md beside its weights) publishes 671B in total: `total`. Its 37B
    active lie between `active` without the embedding, which is looked up only (36.63B), and with it (37.55B). Its 11.5B
    of multi-token prediction leave eh_proj out (`mtp` is 11.61B); the 14B that its files have beyond 671B are
    `mtp + embedding + head`, since they hold the shared two again.
    """
    width = config.hidden_size
    shared = config.vocab_size * width
    head = 0 if config.tie_word_embeddings else shared
    layers = [_layer(config, index) for index in range(config.num_layers)]
    # eh_proj, and the norms of the embedding, of the hidden state and of what comes out.
    extra = 2 * width * width + 3 * width
    mtp = [_layer(config, config.num_layers + depth) for depth in range(config.num_mtp_layers)]
    outside = shared + head + width + (0 if config.vision is None else _eye(config.vision, width=width))
    return ParameterCounts(
        total=outside + sum(stored for stored, _ in layers),
        active=outside + sum(active for _, active in layers),
        embedding=shared,
        head=head,
        mtp=sum(stored + extra for stored, _ in mtp),
        mtp_active=sum(active + extra for _, active in mtp),
    )


def cache_bytes_per_token(config: ModelConfig, *, bytes_per_value: int = 2) -> int:
    """Bytes that one token leaves in the cache of all layers, those of multi-token prediction aside.

    Args:
        bytes_per_value: 2 in bfloat16, 4 in float32.
    """
    return config.num_layers * config.cached_width * bytes_per_value


def weight_bytes(config: ModelConfig, *, bytes_per_parameter: int = 2) -> int:
    """Bytes of the weights in memory, multi-token prediction included.

    Args:
        bytes_per_parameter: 2 in bfloat16, 4 in float32. Selection biases always have 4.
    """
    return count_parameters(config).held * bytes_per_parameter + 4 * num_selection_biases(config)


def fp8_weight_bytes(config: ModelConfig) -> int:
    """Bytes of the weights as DeepSeek-V3 stores them: matrices of the layers in FP8, each block with a scale.

    Source: DeepSeek-V3 report (arXiv:2412.19437) §3.3 and README_WEIGHTS.md. Embedding, head, norms, gates, eh_proj and
    the eye stay in bfloat16.
    """
    matrices = [
        matrix
        for index in range(config.num_layers + config.num_mtp_layers)
        for matrix in layer_matrices(config, index=index)
    ]
    saved = sum(m.num_parameters for m in matrices)
    return weight_bytes(config) - saved + 4 * sum(m.copies * _num_blocks(m) for m in matrices)


def shared_matrices(config: ModelConfig) -> int:
    """Parameters of the layers' matrices that every token is multiplied with: all but the routed experts'."""
    layers = (layer_matrices(config, index=index) for index in range(config.num_layers))
    return sum(matrix.num_parameters for layer in layers for matrix in layer if not matrix.is_routed)


def num_selection_biases(config: ModelConfig) -> int:
    """Float32 numbers that steer the choice of experts."""
    if config.experts is None or not config.experts.has_selection_bias:
        return 0
    num_sparse = sum(config.is_sparse(index) for index in range(config.num_layers + config.num_mtp_layers))
    return num_sparse * config.experts.num_experts


def layer_matrices(config: ModelConfig, *, index: int) -> Iterator[Matrix]:
    """The matrices of a layer that every token, or the tokens of an expert, are multiplied with; the gate aside."""
    yield from attention_matrices(config)
    yield from feed_forward_matrices(config, index=index)


def attention_matrices(config: ModelConfig) -> Iterator[Matrix]:
    """Those of a layer's attention."""
    width, mla, q_rows = config.hidden_size, config.mla, config.num_heads * config.head_dim
    if mla is None:
        kv_rows = config.num_kv_heads * config.head_dim
        yield from (Matrix(q_rows, width), Matrix(kv_rows, width, 2, 2))
    else:
        if mla.q_lora_rank is None:
            yield Matrix(q_rows, width)
        else:
            yield from (Matrix(mla.q_lora_rank, width), Matrix(q_rows, mla.q_lora_rank))
        yield Matrix(mla.cached_width, width)
        yield Matrix(config.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank)
    yield Matrix(width, config.attended_width)


def feed_forward_matrices(config: ModelConfig, *, index: int) -> Iterator[Matrix]:
    """Those of a layer's feed-forward, or of its experts."""
    width, experts = config.hidden_size, config.experts
    if experts is None or not config.is_sparse(index):
        yield from _feed_forward(width, config.intermediate_size)
        return
    for matrix in _feed_forward(width, experts.intermediate_size):
        yield matrix._replace(
            copies=matrix.copies * experts.num_experts,
            num_active=matrix.copies * experts.num_experts_per_token,
            is_routed=True,
        )
    if experts.num_shared_experts:
        yield from _feed_forward(width, experts.num_shared_experts * experts.intermediate_size)


def _feed_forward(width: int, hidden: int) -> tuple[Matrix, Matrix]:
    """Gate and up, and down."""
    return Matrix(hidden, width, 2, 2), Matrix(width, hidden)


def _layer(config: ModelConfig, index: int) -> tuple[int, int]:
    """Parameters of a layer, and those that a token uses."""
    rest = 2 * config.hidden_size + _attention_vectors(config)
    if config.has_mlp_bias and not config.is_sparse(index):
        rest += 2 * config.intermediate_size + config.hidden_size
    if config.experts is not None and config.is_sparse(index):
        rest += config.experts.num_experts * config.hidden_size
        if config.has_mlp_bias and config.experts.num_shared_experts:
            rest += 2 * config.experts.num_shared_experts * config.experts.intermediate_size + config.hidden_size
    matrices = list(layer_matrices(config, index=index))
    stored, active = sum(m.num_parameters for m in matrices), sum(m.num_active_parameters for m in matrices)
    return rest + stored, rest + active


def _attention_vectors(config: ModelConfig) -> int:
    """Biases and norms of a layer's attention."""
    count = config.hidden_size if config.has_output_bias else 0
    if config.mla is None:
        biases = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim if config.has_qkv_bias else 0
        return count + biases + (2 * config.head_dim if config.has_qk_norm else 0)
    count += config.mla.kv_lora_rank + (config.mla.q_lora_rank or 0)
    if config.has_qkv_bias:
        count += config.mla.cached_width + (config.mla.q_lora_rank or 0)
    return count


def _num_blocks(matrix: Matrix) -> int:
    return -(-matrix.num_out // BLOCK_SIZE) * -(-matrix.num_in // BLOCK_SIZE)


def _eye(vision: VisionShape, *, width: int) -> int:
    """Vision tower and projector (aha.models.vision)."""
    channels, hidden = vision.hidden_size, vision.intermediate_size
    norm = channels if vision.norm_type == "rms_norm" else 2 * channels
    embeddings = channels * (vision.num_channels * vision.patch_size**2 + 1) + channels
    embeddings += channels * vision.has_mask_token
    embeddings += channels * (1 + vision.grid**2) * vision.has_position_embeddings
    attention = 4 * channels * channels + channels * (1 + 3 * vision.has_qkv_bias + 2 * vision.has_qk_norm)
    layer = attention + 2 * channels * hidden + hidden + channels + 2 * norm + 2 * channels
    shuffled = channels * vision.downsample**2
    projector = 2 * shuffled + shuffled * width + width + width * width + width
    return embeddings + vision.num_layers * layer + 2 * channels * vision.has_final_norm + projector
