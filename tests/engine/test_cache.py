"""The cache's shape: dense blocks that grow with the longest row and shrink when it has gone."""

from __future__ import annotations

from typing import Any

import torch

from aha.engine.cache import LENGTH_QUANTUM, KeyValueCache


def make_cache(make_model: Any) -> KeyValueCache:
    return KeyValueCache(make_model().config, dtype=torch.float32, device=torch.device("cpu"))


def blocks(cache: KeyValueCache, *, num_rows: int) -> list[torch.Tensor]:
    """Keys and values of each layer: (B*K, S, C)."""
    return [block for views in cache.views(num_rows) for block in (views.keys_NCS.transpose(1, 2), views.values_NSC)]


def fill(cache: KeyValueCache, *, num_rows: int, num_columns: int) -> None:
    for tensor in blocks(cache, num_rows=num_rows):
        tensor[:, :num_columns] = torch.arange(tensor[:, :num_columns].numel()).view_as(tensor[:, :num_columns])


def test_growing_and_shrinking_keep_what_is_cached(make_model: Any) -> None:
    cache = make_cache(make_model)
    cache.reserve(3, num_columns=5)
    fill(cache, num_rows=3, num_columns=5)
    before = [tensor[:, :5].clone() for tensor in blocks(cache, num_rows=3)]
    for num_rows, num_columns in ((3, 40), (5, 40), (5, 300), (3, 6), (5, 33)):
        cache.reserve(num_rows, num_columns=num_columns)
        after = [tensor[:, :5] for tensor in blocks(cache, num_rows=3)]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert cache.num_columns >= num_columns


def test_blocks_are_dense_whatever_the_number_of_rows(make_model: Any) -> None:
    cache = make_cache(make_model)
    cache.reserve(7, num_columns=70)
    for num_rows in (1, 4, 7):
        assert all(tensor.is_contiguous() for tensor in blocks(cache, num_rows=num_rows))


def test_rows_shrink_with_a_crowd_before_one_row_grows_long(make_model: Any) -> None:
    cache = make_cache(make_model)
    cache.reserve(64, num_columns=64)
    cache.reserve(1, num_columns=64)
    assert cache.num_rows == 64, "while the columns suffice nothing is copied"
    cache.reserve(1, num_columns=700)
    assert cache.num_rows == 1


def test_memory_that_held_nan_is_zero_when_it_is_used_again(make_model: Any) -> None:
    cache = make_cache(make_model)
    cache.reserve(4, num_columns=64)
    for tensor in blocks(cache, num_rows=4):
        tensor.fill_(torch.nan)
    cache.reset(2, num_columns=1)
    for num_rows, num_columns in ((2, 40), (4, 64), (4, 100)):
        cache.reserve(num_rows, num_columns=num_columns)
        assert all(bool((tensor == 0).all()) for tensor in blocks(cache, num_rows=num_rows))


def test_columns_shrink_after_a_long_row_has_gone(make_model: Any) -> None:
    cache = make_cache(make_model)
    cache.reserve(4, num_columns=1000)
    cache.reserve(4, num_columns=600)
    assert cache.num_columns == 1024, "within a factor of two nothing is copied"
    cache.reserve(4, num_columns=20)
    assert (cache.num_rows, cache.num_columns) == (4, LENGTH_QUANTUM)
