"""A model with one choice undone has the parameters, the cache and the operations that it should, counted by hand."""

from __future__ import annotations

import pytest

from aha.errors import ConfigError
from aha.estimate.flops import causal_keys, token_flops
from aha.estimate.shape import find_shape
from aha.estimate.why.variants import dense, with_heads, without_prediction
from aha.models.counts import cache_bytes_per_token, count_parameters

V3 = find_shape("DeepSeek-V3").config
COUNTS = count_parameters(V3)


@pytest.mark.parametrize("target", [COUNTS.total, COUNTS.active, 67e9])
def test_dense_variant_has_the_parameters_it_was_asked_for(target: float) -> None:
    config = dense(V3, num_parameters=target)
    counts = count_parameters(config)
    assert config.experts is None
    assert counts.total == counts.active
    assert abs(counts.total - target) <= 3 * 61 * 7168 / 2
    assert (config.num_layers, config.hidden_size, config.mla) == (V3.num_layers, V3.hidden_size, V3.mla)


def test_dense_variant_of_all_parameters_takes_the_operations_of_671_billion() -> None:
    config = without_prediction(dense(V3, num_parameters=COUNTS.total))
    flops = token_flops(config, visible_keys=causal_keys(4096))
    norms = 61 * (2 * 7168 + 1536 + 512) + 7168
    assert flops.forward - flops.attention == 2 * (count_parameters(config).total - 129_280 * 7168 - norms)
    sparse = token_flops(without_prediction(V3), visible_keys=causal_keys(4096))
    # 670.1 and 36.6 billion parameters are multiplied with; attention has 61 x 2 x 2048.5 x 128 x 320 = 10.2 GFLOP.
    assert flops.forward / sparse.forward == pytest.approx((2 * 670.1 + 10.2) / (2 * 36.6 + 10.2), rel=1e-2)


def test_dense_variant_refuses_fewer_parameters_than_the_attention_has() -> None:
    with pytest.raises(ConfigError, match=r"13\.\dB parameters before its first feed-forward channel; 5B is too few"):
        dense(V3, num_parameters=5e9)


def test_caches_of_latents_full_heads_and_groups_have_their_published_sizes() -> None:
    assert cache_bytes_per_token(V3) == (512 + 64) * 61 * 2 == 70_272
    assert cache_bytes_per_token(with_heads(V3, num_kv_heads=128)) == 2 * 128 * 128 * 61 * 2 == 3_997_696
    assert cache_bytes_per_token(with_heads(V3, num_kv_heads=8)) == 2 * 8 * 128 * 61 * 2 == 249_856


def test_full_heads_have_four_square_matrices_instead_of_the_latents() -> None:
    full = count_parameters(with_heads(V3, num_kv_heads=128))
    heads = 4 * 7168 * 128 * 128
    latents = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168 + 1536 + 512
    assert full.total - COUNTS.total == 61 * (heads - latents)
    assert full.active - COUNTS.active == 61 * (heads - latents)


def test_full_heads_of_a_grouped_model_keep_their_width() -> None:
    config = find_shape("meta-llama/Llama-3.1-405B").config
    full = with_heads(config, num_kv_heads=config.num_heads)
    assert (full.head_dim, full.num_kv_heads) == (config.head_dim, 128)
    assert cache_bytes_per_token(full) == 16 * cache_bytes_per_token(config)


def test_groups_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="128 heads do not divide into 7 groups"):
        with_heads(V3, num_kv_heads=7)


def test_prediction_taken_out_leaves_the_model_alone() -> None:
    counts = count_parameters(without_prediction(V3))
    assert (counts.total, counts.mtp) == (COUNTS.total, 0)
