"""A dense model of which only the size is known: the shape that Llama 3 gives it."""

from __future__ import annotations

from aha.models.config import ModelConfig
from aha.models.counts import count_parameters

MIN_PARAMETERS = 1e8
MAX_PARAMETERS = 1e13
_HEAD_CHANNELS = 128
SHAPE_SOURCE = (
    "assumed: a dense decoder in the proportions of Llama 3.1 8B (its config.json): a layer for every 128 of "
    "width, feed-forward 3.5 times as wide, 8 key/value heads of 128, 128,256 words"
)


def dense_shape(num_parameters: float) -> ModelConfig:
    """The shape whose size is nearest; its own count is what an estimate is of.

    Args:
        num_parameters: from 1e8 to 1e13.
    """
    assert MIN_PARAMETERS <= num_parameters <= MAX_PARAMETERS, "a size that a model may have"
    low, high = 1, 1024  # the width in heads: sizes grow with it, to 4e13
    while low < high:
        middle = (low + high) // 2
        if count_parameters(_of_width(middle)).total < num_parameters:
            low = middle + 1
        else:
            high = middle
    around = [_of_width(heads) for heads in (low - 1, low) if heads >= 1]
    return min(around, key=lambda config: abs(count_parameters(config).total - num_parameters))


def _of_width(num_heads: int) -> ModelConfig:
    width = num_heads * _HEAD_CHANNELS
    return ModelConfig(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_layers=num_heads,
        num_heads=num_heads,
        # 8, or the nearest smaller number that divides the heads.
        num_kv_heads=next(count for count in range(min(8, num_heads), 0, -1) if num_heads % count == 0),
        head_dim=_HEAD_CHANNELS,
        max_position_embeddings=131_072,
    )
