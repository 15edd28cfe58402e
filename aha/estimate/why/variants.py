"""A model's shape with one of its choices undone: dense instead of experts, full heads instead of latents."""

from __future__ import annotations

from dataclasses import replace

from aha.errors import ConfigError
from aha.models.config import ModelConfig
from aha.models.counts import count_parameters


def dense(config: ModelConfig, *, num_parameters: float) -> ModelConfig:
    """The same layers without experts, its feed-forward as wide as gives the number of parameters.

    Attention, depth and vocabulary stay, so that nothing else is compared. The width is rounded to whole channels,
    which leaves less than 2 D L parameters of a difference, one part in ten thousand of DeepSeek-V3.

    Raises:
        ConfigError: attention and vocabulary alone have more.
    """
    narrow = replace(config, experts=None, intermediate_size=1)
    least = count_parameters(narrow).total
    a_channel = count_parameters(replace(narrow, intermediate_size=2)).total - least
    width = 1 + round((num_parameters - least) / a_channel)
    if width < 1:
        raise ConfigError(
            f"a dense model with these layers has {least / 1e9:.3g}B parameters before its first feed-forward channel; "
            f"{num_parameters / 1e9:.3g}B is too few"
        )
    return replace(narrow, intermediate_size=width)


def with_heads(config: ModelConfig, *, num_kv_heads: int) -> ModelConfig:
    """Keys and values cached for each head, or for each group of heads, instead of latents or of fewer groups.

    A head of a model with latents has the channels of its unrotated part: V3's 128 heads of 128, as DeepSeek-V2's
    report counts them (arXiv:2405.04434 table 1).

    Raises:
        ConfigError: the heads do not divide into so many groups.
    """
    if config.num_heads % num_kv_heads:
        raise ConfigError(f"{config.num_heads} heads do not divide into {num_kv_heads} groups")
    width = config.head_dim if config.mla is None else config.mla.qk_nope_head_dim
    return replace(config, mla=None, num_kv_heads=num_kv_heads, head_dim=width)


def without_prediction(config: ModelConfig) -> ModelConfig:
    """The same model without modules of multi-token prediction."""
    return replace(config, num_mtp_layers=0)
