"""The cache's shape: dense blocks that grow with the longest row and shrink when it has gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aha.engine.cache import LENGTH_QUANTUM, DecodeAttention, KeyValueCache
from aha.models import PackedAttention
from tests.engine.conftest import DEEPSEEK_V3

FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "deepseek_v3": DEEPSEEK_V3}


def make_cache(make_model: Any, **fields: Any) -> KeyValueCache:
    return KeyValueCache(make_model(**fields).config, dtype=torch.float32, device=torch.device("cpu"))


def blocks(cache: KeyValueCache, *, num_rows: int) -> list[torch.Tensor]:
    """Keys and values of each layer: (B*K, S, C)."""
    return [block for views in cache.views(num_rows) for block in (views.keys_NCS.transpose(1, 2), views.values_NSC)]


def fill(cache: KeyValueCache, *, num_rows: int, num_columns: int) -> None:
    for tensor in blocks(cache, num_rows=num_rows):
        tensor[:, :num_columns] = torch.arange(tensor[:, :num_columns].numel()).view_as(tensor[:, :num_columns])


@pytest.mark.parametrize("family", FAMILIES)
def test_growing_and_shrinking_keep_what_is_cached(make_model: Any, family: str) -> None:
    cache = make_cache(make_model, **FAMILIES[family])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_moved_rows_hold_what_their_sources_held(make_model: Any, family: str) -> None:
    cache = make_cache(make_model, **FAMILIES[family])
    cache.reserve(5, num_columns=40)
    fill(cache, num_rows=5, num_columns=40)
    before = [tensor.view(5, -1, *tensor.shape[1:]).clone() for tensor in blocks(cache, num_rows=5)]
    cache.move(torch.tensor([4, 3]), targets=torch.tensor([0, 2]), num_columns=17)
    for old, tensor in zip(before, blocks(cache, num_rows=5), strict=True):
        new = tensor.view(old.shape)
        for row, source in enumerate((4, 1, 3, 3, 4)):
            assert torch.equal(new[row, :, :17], old[source, :, :17])
            assert torch.equal(new[row, :, 17:], old[row, :, 17:])


def test_latent_cache_holds_rank_and_rotated_channels_of_each_token_and_layer(make_model: Any) -> None:
    model = make_model(num_mtp_layers=1, **DEEPSEEK_V3)
    for num_mtp_layers in (0, 1):
        cache = KeyValueCache(
            model.config, dtype=torch.bfloat16, device=torch.device("cpu"), num_mtp_layers=num_mtp_layers
        )
        cache.reserve(3, num_columns=2 * LENGTH_QUANTUM)
        num_layers, rank, num_rotated = 2 + num_mtp_layers, 16, 6
        assert cache.num_bytes == 3 * 2 * LENGTH_QUANTUM * num_layers * (rank + num_rotated) * 2
    grouped = KeyValueCache(make_model().config, dtype=torch.float32, device=torch.device("cpu"))
    grouped.reserve(3, num_columns=2 * LENGTH_QUANTUM)
    assert grouped.num_bytes == 3 * 2 * LENGTH_QUANTUM * 2 * (2 * 2 * 10) * 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_tokens", [1, 2, 5])
@torch.no_grad()
def test_several_tokens_of_a_row_see_the_cache_and_each_other_in_order(
    make_model: Any, family: str, num_tokens: int
) -> None:
    """Rows of different lengths get T tokens at a time; each step overwrites what the last one wrote too far."""
    model = make_model(**FAMILIES[family])
    cache = KeyValueCache(model.config, dtype=torch.float32, device=torch.device("cpu"))
    lengths_B, generator = torch.tensor([0, 3, 7]), torch.Generator().manual_seed(num_tokens)
    token_ids_BT = torch.randint(97, (3, 30), generator=generator)
    cache.reserve(3, num_columns=30)
    for row, length in enumerate(lengths_B.tolist()):
        for column in range(length):  # rows fill one by one; the others' cells at that column are written again
            decode(model, cache, token_ids_BT, torch.full((row + 1,), column), num_tokens=1)
    for step in range(3):
        hidden_BTD = decode(model, cache, token_ids_BT, lengths_B, num_tokens=num_tokens)
        for row, length in enumerate(lengths_B.tolist()):
            whole = token_ids_BT[row, : length + num_tokens]
            positions = torch.arange(len(whole))
            expected = model.hidden_states(whole, positions_N=positions, attention=PackedAttention([len(whole)]))
            torch.testing.assert_close(hidden_BTD[row], expected[-num_tokens:], atol=3e-5, rtol=0)
        # As if all but the first had been rejected in one row, and all but two in another.
        lengths_B += torch.tensor([1, min(2, num_tokens), num_tokens])
        token_ids_BT[torch.arange(30) >= lengths_B.unsqueeze(1)] += step
        token_ids_BT %= 97


def decode(
    model: Any, cache: KeyValueCache, token_ids_BT: torch.Tensor, lengths_B: torch.Tensor, *, num_tokens: int
) -> torch.Tensor:
    """Hidden states (B, T, D) of the next T tokens of the first rows."""
    columns_BT = lengths_B.unsqueeze(1) + torch.arange(num_tokens)
    hidden_ND: torch.Tensor = model.hidden_states(
        token_ids_BT[: len(lengths_B)].gather(1, columns_BT).flatten(),
        positions_N=columns_BT.flatten(),
        attention=DecodeAttention(cache, lengths_B=lengths_B, num_tokens=num_tokens),
    )
    return hidden_ND.view(len(lengths_B), num_tokens, -1)
