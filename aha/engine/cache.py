"""Keys and values of the running rows, and the attention that reads and writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aha.models import ModelConfig, PackedAttention

LENGTH_QUANTUM = 64
"""Capacities are multiples of this many positions, so that growing is rare."""


class KeyValueCache:
    """One row per running completion; a row's token at position p lies at column p.

    Rows 0 to B-1 are live: rows that retire are overwritten by the last ones, so every product runs over a dense block.

    Args:
        config: shape of the model.
        dtype: of the keys and values; the model's.
        device: where they lie.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._flat = torch.zeros(0, dtype=dtype, device=device)
        self._data = self._view(self._flat, num_rows=0, num_columns=0)

    @property
    def dtype(self) -> torch.dtype:
        return self._data.dtype

    @property
    def device(self) -> torch.device:
        return self._data.device

    @property
    def num_kv_heads(self) -> int:
        return self._config.num_kv_heads

    @property
    def num_rows(self) -> int:
        """Rows there is room for."""
        return self._data.shape[2]

    @property
    def num_columns(self) -> int:
        """Positions there is room for in each row."""
        return self._data.shape[4]

    def reset(self, num_rows: int, *, num_columns: int) -> None:
        """Forget everything and take exactly this shape, in the memory there is if it suffices.

        The shape decides which kernels run, so a run that repeats another must start from the same one.
        """
        self._data = self._data[:, :, :0]
        size = self._size(num_rows, num_columns)
        if size > len(self._flat):
            # Zeros, not empty: a masked key still multiplies its value by 0, and 0 x NaN is NaN.
            self._flat = self._flat.new_zeros(0)  # free the old block before asking for the new one
            self._flat = self._flat.new_zeros(size)
        self._data = self._view(self._flat, num_rows=num_rows, num_columns=num_columns)

    def reserve(self, num_rows: int, *, num_columns: int) -> None:
        """Make room for this many rows and positions; what is cached stays."""
        if num_rows <= self.num_rows and num_columns <= self.num_columns:
            return
        if num_columns > self.num_columns:
            wanted = max(num_columns, self.num_columns * 3 // 2)
            num_columns = -(-wanted // LENGTH_QUANTUM) * LENGTH_QUANTUM
        num_rows, num_columns = max(num_rows, self.num_rows), max(num_columns, self.num_columns)
        old = self._data
        self._flat = self._flat.new_zeros(self._size(num_rows, num_columns))
        self._data = self._view(self._flat, num_rows=num_rows, num_columns=num_columns)
        self._data[:, :, : old.shape[2], :, : old.shape[4]] = old

    def _size(self, num_rows: int, num_columns: int) -> int:
        config = self._config
        return 2 * config.num_layers * num_rows * config.num_kv_heads * num_columns * config.head_dim

    def _view(self, flat: Tensor, *, num_rows: int, num_columns: int) -> Tensor:
        """Keys and values of all layers: (2, L, B, K, S, C)."""
        config = self._config
        shape = (2, config.num_layers, num_rows, config.num_kv_heads, num_columns, config.head_dim)
        return flat[: self._size(num_rows, num_columns)].view(shape)

    def move(self, sources: Tensor, *, targets: Tensor, num_columns: int) -> None:
        """Copy the first columns of rows onto other rows."""
        self._data[:, :, targets, :, :num_columns] = self._data[:, :, sources, :, :num_columns]

    def write(self, layer: int, keys_MC: Tensor, values_MC: Tensor, *, slots_M: Tensor) -> None:
        """Store M key and value vectors (one per token and head) at flat indices into the layer's (B, K, S)."""
        keys, values = self._data[0, layer], self._data[1, layer]
        keys.view(-1, keys.shape[-1]).index_copy_(0, slots_M, keys_MC)
        values.view(-1, values.shape[-1]).index_copy_(0, slots_M, values_MC)

    def slots(self, rows_N: Tensor, *, columns_N: Tensor) -> Tensor:
        """Flat indices (N*K,) of the cells that token N of a row and column takes in each layer."""
        heads_1K = torch.arange(self.num_kv_heads, device=rows_N.device).unsqueeze(0)
        return ((rows_N.unsqueeze(1) * self.num_kv_heads + heads_1K) * self.num_columns + columns_N.unsqueeze(1)).view(
            -1
        )

    def layer(self, index: int, *, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
        """Views (B*K, S, C) of the first rows' keys and values."""
        keys, values = self._data[:, index, :num_rows, :, :num_columns].flatten(1, 2).unbind(0)
        return keys, values


class PrefillAttention:
    """Causal attention of whole prompts, each written once and copied into the rows of its group.

    Args:
        cache: with room reserved for the rows.
        lengths: tokens of each prompt.
        rows: the rows of each prompt's completions.
    """

    def __init__(self, cache: KeyValueCache, *, lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        self._cache = cache
        self._inner = PackedAttention(lengths)
        sources, target_rows, columns = [], [], []
        start = 0
        for length, group in zip(lengths, rows, strict=True):
            offsets_T = torch.arange(length)
            sources.append((start + offsets_T).repeat(len(group)))
            columns.append(offsets_T.repeat(len(group)))
            target_rows.append(torch.tensor(list(group)).repeat_interleave(length))
            start += length
        device = cache.device
        self._sources_N = torch.cat(sources).to(device)
        self._slots = cache.slots(torch.cat(target_rows).to(device), columns_N=torch.cat(columns).to(device))

    def __call__(self, layer: int, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor) -> Tensor:
        keys, values = k_NKC[self._sources_N].flatten(0, 1), v_NKC[self._sources_N].flatten(0, 1)
        self._cache.write(layer, keys, values, slots_M=self._slots)
        return self._inner(layer, q_NHC, k_NKC, v_NKC)


class DecodeAttention:
    """Attention of one new token per row to everything cached in its row.

    Two batched products over the dense block of rows: on CPU they take half the time of the fused kernel, which
    computes one row and head at a time (docs/LOG.md).

    Args:
        cache: with room reserved for one more position.
        lengths_B: tokens cached in each row before this one.
    """

    def __init__(self, cache: KeyValueCache, *, lengths_B: Tensor) -> None:
        self._cache = cache
        self._num_rows = len(lengths_B)
        self._num_columns = int(lengths_B.max()) + 1
        self._slots = cache.slots(torch.arange(self._num_rows, device=lengths_B.device), columns_N=lengths_B)
        # A row of -inf behind each row's length, for every key head: the products start from it.
        columns_1S = torch.arange(self._num_columns, device=cache.device).unsqueeze(0)
        bias_BS = torch.zeros(self._num_rows, self._num_columns, dtype=cache.dtype, device=cache.device)
        bias_BS.masked_fill_(columns_1S > lengths_B.unsqueeze(1), -math.inf)
        self._bias_N1S = bias_BS.repeat_interleave(cache.num_kv_heads, dim=0).unsqueeze(1)  # N = B*K

    def __call__(self, layer: int, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor) -> Tensor:
        num_rows, num_heads, head_dim = q_NHC.shape
        num_kv_heads = k_NKC.shape[1]
        self._cache.write(layer, k_NKC.flatten(0, 1), v_NKC.flatten(0, 1), slots_M=self._slots)
        keys, values = self._cache.layer(layer, num_rows=num_rows, num_columns=self._num_columns)
        # Query heads that share a key head are the rows of one small product: nothing is repeated.
        queries = q_NHC.reshape(num_rows * num_kv_heads, num_heads // num_kv_heads, head_dim)
        scores = torch.baddbmm(self._bias_N1S, queries, keys.transpose(1, 2), alpha=head_dim**-0.5)
        return torch.bmm(scores.softmax(dim=-1), values).view(num_rows, num_heads, head_dim)
