"""A dense model of a size: the shape is Llama 3's, the size is its own count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aha.estimate.dense_shape import MAX_PARAMETERS, MIN_PARAMETERS, dense_shape
from aha.models.counts import count_parameters
from aha.models.known import known_config


def test_8b_is_llama_31_8b() -> None:
    ours, llama = dense_shape(8.03e9), known_config("meta-llama/Llama-3.1-8B")
    for name in ("hidden_size", "num_layers", "intermediate_size", "num_heads", "num_kv_heads", "vocab_size"):
        assert getattr(ours, name) == getattr(llama, name), name


@pytest.mark.parametrize("name", ["Llama-3.1-70B", "Llama-3.1-405B"])
def test_larger_llamas_are_met_in_width_and_depth_within_a_fifth(name: str) -> None:
    llama = known_config(f"meta-llama/{name}")
    ours = dense_shape(count_parameters(llama).total)
    assert ours.hidden_size == pytest.approx(llama.hidden_size, rel=0.2)
    assert ours.num_layers == pytest.approx(llama.num_layers, rel=0.2)


@given(st.floats(MIN_PARAMETERS, MAX_PARAMETERS))
def test_size_is_near_what_was_asked_for(num_parameters: float) -> None:
    # A head more is 12 % of the smallest, 0.8 % of the largest.
    assert count_parameters(dense_shape(num_parameters)).total == pytest.approx(num_parameters, rel=0.3)


def test_size_never_shrinks() -> None:
    sizes = [count_parameters(dense_shape(1.3**power * 1e8)).total for power in range(40)]
    assert sizes == sorted(sizes)
