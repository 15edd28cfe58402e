"""Operations of a token against sums worked out by hand from the published configurations."""

from __future__ import annotations

import pytest

from aha.estimate.flops import causal_keys, token_flops
from aha.estimate.shape import find_shape
from aha.models.counts import count_parameters


def test_dense_model_takes_two_operations_a_parameter_and_its_attention() -> None:
    config = find_shape("meta-llama/Llama-3.1-405B").config
    flops = token_flops(config, visible_keys=causal_keys(8191))
    counts = count_parameters(config)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    assert flops.forward - flops.attention == 2 * (counts.total - counts.embedding - norms)
    assert flops.attention == 126 * 2 * 4096 * 128 * (128 + 128)


def test_deepseek_v3_takes_its_published_active_parameters_and_its_attention() -> None:
    flops = token_flops(find_shape("DeepSeek-V3").config, visible_keys=causal_keys(4095))
    assert flops.experts == 58 * 8 * 3 * 2 * 7168 * 2048
    assert flops.feed_forward == 2 * (58 * 3 * 7168 * 2048 + 3 * 3 * 7168 * 18432)
    assert flops.attention == 61 * 2 * 2048 * 128 * (192 + 128)
    # 36.6 billion: the 37 that the report counts, without the embedding.
    assert (flops.forward - flops.attention - flops.mtp) / 2 == pytest.approx(36.6e9, rel=2e-3)


def test_training_counts_the_backward_pass_twice() -> None:
    flops = token_flops(find_shape("smollm2").config, visible_keys=1.0)
    assert flops.training == 3 * flops.forward
