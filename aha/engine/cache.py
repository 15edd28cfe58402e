"""Keys and values of the running rows, and the attention that reads and writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from aha.models import ModelConfig, PackedAttention

LENGTH_QUANTUM = 32
"""Capacities are multiples of this many positions. Small, since attention computes a row's whole capacity."""


class LayerViews(NamedTuple):
    """What attention reads and writes of one layer: views of the same numbers."""

    keys_NCS: Tensor
    """N = B*K: of the live rows, dense but for the exchange of the last two axes."""
    values_NSC: Tensor
    """With MLA the keys themselves: the values are their first channels."""
    key_cells: Tensor
    """(cells, C), one cell for each row, key head and position of the whole layer."""
    value_cells: Tensor | None
    """None with MLA."""


class KeyValueCache:
    """One row per running completion; a row's token at position p lies at column p.

    With MLA a token has one cell, its latent and its rotated key; else one cell for each key head's key and value.

    Rows 0 to B-1 are live: rows that retire are overwritten by the last ones, so every product runs over a dense block.
    A block stays dense by reaching over all columns, used or not: oneDNN copies any other before it multiplies, which
    takes longer than the product. So columns grow by one quantum at a time, and the memory of earlier requests is used
    again, handed from layer to layer: fresh memory of this size costs more than the copy.

    Args:
        config: shape of the model.
        dtype: of the keys and values; the model's.
        device: where they lie.
        num_mtp_layers: modules of multi-token prediction whose tokens are cached too; their layers follow the model's.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, num_mtp_layers: int = 0
    ) -> None:
        self._config = config
        self._layers: list[Tensor] = []
        """Keys and values of each layer: (2, B, K, S, C), with MLA (1, B, 1, S, R); views of `_blocks`."""
        # Zeros where nothing is cached, here and below: a masked value is still multiplied by 0, and 0 x NaN is NaN.
        num_layers = config.num_layers + num_mtp_layers
        self._blocks = [torch.zeros(0, dtype=dtype, device=device) for _ in range(num_layers)]
        self._spare = torch.zeros(0, dtype=dtype, device=device)
        self._views: list[LayerViews] = []
        self._num_viewed_rows = 0
        self.reset(0, num_columns=0)

    @property
    def dtype(self) -> torch.dtype:
        return self._spare.dtype

    @property
    def device(self) -> torch.device:
        return self._spare.device

    @property
    def is_latent(self) -> bool:
        return self._config.mla is not None

    @property
    def num_kv_heads(self) -> int:
        """Cells of a token."""
        return 1 if self.is_latent else self._config.num_kv_heads

    @property
    def num_heads(self) -> int:
        """Query heads, which share the cells of a token."""
        return self._config.num_heads

    @property
    def width(self) -> int:
        """Channels of a cell."""
        return self._config.head_dim if self._config.mla is None else self._config.mla.cached_width

    @property
    def num_rows(self) -> int:
        """Rows there is room for."""
        return self._layers[0].shape[1]

    @property
    def num_columns(self) -> int:
        """Positions there is room for in each row."""
        return self._layers[0].shape[3]

    @property
    def num_bytes(self) -> int:
        """Memory of the rows and columns there are now, in all layers."""
        return sum(layer.nbytes for layer in self._layers)

    def reset(self, num_rows: int, *, num_columns: int) -> None:
        """Forget everything and make room for this many rows and positions.

        The shape decides which kernels run, so a run that repeats another must start from the same one.
        """
        shape = self._shape(num_rows, num_columns)
        self._views.clear()
        self._layers.clear()
        for index, block in enumerate(self._blocks):
            self._blocks[index] = _at_least(block, num_elements=math.prod(shape))
            self._layers.append(_shaped(self._blocks[index], shape).zero_())

    def reserve(self, num_rows: int, *, num_columns: int) -> None:
        """Make room for this many rows and positions; what is cached there stays.

        Columns shrink too, once they are more than twice what is asked for: else one long row, when it has gone, would
        go on to slow all others.
        """
        # Rows shrink with them, so that one long row after a crowd does not make the cache long for the crowd.
        rows = self.num_rows if num_rows <= self.num_rows < 2 * num_rows else num_rows
        shape = self._shape(rows, num_columns)
        columns = shape[3]
        if num_rows <= self.num_rows and columns <= self.num_columns <= 2 * columns:
            return
        self._views.clear()
        kept_rows, kept = min(rows, self.num_rows), min(columns, self.num_columns)
        for index, old in enumerate(self._layers):
            self._spare = _at_least(self._spare, num_elements=math.prod(shape))
            self._layers[index] = _shaped(self._spare, shape)
            self._layers[index][:, :kept_rows, :, :kept] = old[:, :kept_rows, :, :kept]
            self._layers[index][:, kept_rows:] = 0
            self._layers[index][:, :kept_rows, :, kept:] = 0
            self._blocks[index], self._spare = self._spare, self._blocks[index]

    def _shape(self, num_rows: int, num_columns: int) -> tuple[int, int, int, int, int]:
        rounded = -(-num_columns // LENGTH_QUANTUM) * LENGTH_QUANTUM
        return (1 if self.is_latent else 2, num_rows, self.num_kv_heads, rounded, self.width)

    def move(self, sources: Tensor, *, targets: Tensor, num_columns: int) -> None:
        """Copy the first columns of rows onto other rows."""
        for layer in self._layers:
            layer[:, targets, :, :num_columns] = layer[:, sources, :, :num_columns]

    def slots(self, rows_N: Tensor, *, columns_N: Tensor) -> Tensor:
        """Flat indices (N*K,) of the cells that token N of a row and column takes in each layer."""
        heads_1K = torch.arange(self.num_kv_heads, device=rows_N.device).unsqueeze(0)
        return ((rows_N.unsqueeze(1) * self.num_kv_heads + heads_1K) * self.num_columns + columns_N.unsqueeze(1)).view(
            -1
        )

    def views(self, num_rows: int) -> Sequence[LayerViews]:
        """Views for each layer, of the first rows. Made once for many steps: views are slow."""
        if not self._views or self._num_viewed_rows != num_rows:
            blocks = [layer[:, :num_rows].flatten(1, 2) for layer in self._layers]
            cells = [layer.view(len(layer), -1, self.width) for layer in self._layers]
            self._views = [
                # block[-1]: of one plane the first is the last.
                LayerViews(block[0].transpose(1, 2), block[-1], cell[0], cell[1] if len(cell) > 1 else None)
                for block, cell in zip(blocks, cells, strict=True)
            ]
            self._num_viewed_rows = num_rows
        return self._views


def _write(views: LayerViews, slots: Tensor, k_NKC: Tensor, v_NKC: Tensor, latent_NR: Tensor | None) -> None:
    """Put tokens into their cells: keys and values, or the latent instead of both."""
    if views.value_cells is None:
        assert latent_NR is not None
        views.key_cells.index_copy_(0, slots, latent_NR)
    else:
        views.key_cells.index_copy_(0, slots, k_NKC.flatten(0, 1))
        views.value_cells.index_copy_(0, slots, v_NKC.flatten(0, 1))


def _at_least(block: Tensor, *, num_elements: int) -> Tensor:
    """The block if it is large enough, else a new one; nobody needs what the old one holds."""
    return block if block.numel() >= num_elements else block.new_zeros(num_elements)


def _shaped(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    return block[: math.prod(shape)].view(shape)


class PrefillAttention:
    """Causal attention of whole prompts, each written once and copied into the rows of its group.

    Args:
        cache: with room reserved for the rows.
        lengths: tokens of each prompt.
        rows: the rows of each prompt's completions.
        first_column: where in its rows a prompt begins.
    """

    def __init__(
        self, cache: KeyValueCache, *, lengths: Sequence[int], rows: Sequence[Sequence[int]], first_column: int = 0
    ) -> None:
        self._views = cache.views(0)
        self.form: Literal["expanded"] = "expanded"
        self._inner = PackedAttention(lengths)
        sources, target_rows, columns = [], [], []
        start = 0
        for length, group in zip(lengths, rows, strict=True):
            offsets_T = torch.arange(length)
            sources.append((start + offsets_T).repeat(len(group)))
            columns.append(offsets_T.repeat(len(group)) + first_column)
            target_rows.append(torch.tensor(list(group)).repeat_interleave(length))
            start += length
        device = cache.device
        self._sources_N = torch.cat(sources).to(device)
        self._slots = cache.slots(torch.cat(target_rows).to(device), columns_N=torch.cat(columns).to(device))

    def __call__(
        self,
        layer: int,
        q_NHC: Tensor,
        k_NKC: Tensor,
        v_NKC: Tensor,
        /,
        *,
        scale: float,
        latent_NR: Tensor | None = None,
    ) -> Tensor:
        sources_N = self._sources_N
        kept_NR = None if latent_NR is None else latent_NR[sources_N]
        k_kept, v_kept = (k_NKC, v_NKC) if kept_NR is not None else (k_NKC[sources_N], v_NKC[sources_N])
        _write(self._views[layer], self._slots, k_kept, v_kept, kept_NR)
        return self._inner(layer, q_NHC, k_NKC, v_NKC, scale=scale)


class DecodeAttention:
    """Attention of T new tokens per row to everything cached in its row, and to each other in their order.

    Two batched products over the dense block of rows: on CPU they take half the time of the fused kernel, which
    computes one row and head at a time (docs/LOG.md).

    Args:
        cache: with room reserved for T more positions.
        lengths_B: tokens cached in each row before these; cells behind them are overwritten.
        num_tokens: T. The tokens of a row stand together: N = B*T.
        first_columns_B: columns of each row that hold nothing yet lie before this one; None, there are none. A token
            before it sees itself alone.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        *,
        lengths_B: Tensor,
        num_tokens: int = 1,
        first_columns_B: Tensor | None = None,
    ) -> None:
        self._views = cache.views(len(lengths_B))
        self._num_tokens = num_tokens
        self.form: Literal["expanded", "latent"] = "latent" if cache.is_latent else "expanded"
        device = lengths_B.device
        columns_BT, rows_N = lengths_B.unsqueeze(1), torch.arange(len(lengths_B), device=device)
        if num_tokens > 1:
            columns_BT = columns_BT + torch.arange(num_tokens, device=device)
            rows_N = rows_N.repeat_interleave(num_tokens)
        self._slots = cache.slots(rows_N, columns_N=columns_BT.view(-1))
        # A row of -inf behind each token, for every key head: the products start from it.
        columns_S = torch.arange(cache.num_columns, device=device)
        is_hidden_BTS = columns_S > columns_BT.unsqueeze(2)
        if first_columns_B is not None:
            # Never all of them: a softmax of nothing is NaN, which masking does not keep from others.
            is_hidden_BTS |= columns_S < columns_BT.minimum(first_columns_B.unsqueeze(1)).unsqueeze(2)
        bias_BTS = torch.zeros(is_hidden_BTS.shape, dtype=cache.dtype, device=device)
        bias_BTS.masked_fill_(is_hidden_BTS, -math.inf)
        self._bias_NGS = bias_BTS.repeat_interleave(cache.num_kv_heads, dim=0)  # N = B*K; 1 of G is enough for T = 1
        if num_tokens > 1:
            self._bias_NGS = self._bias_NGS.repeat_interleave(cache.num_heads // cache.num_kv_heads, dim=1)

    def __call__(
        self,
        layer: int,
        q_NHC: Tensor,
        k_NKC: Tensor,
        v_NKC: Tensor,
        /,
        *,
        scale: float,
        latent_NR: Tensor | None = None,
    ) -> Tensor:
        num_queries, num_heads, width = q_NHC.shape
        num_kv_heads, num_tokens = k_NKC.shape[1], self._num_tokens
        group = num_heads // num_kv_heads
        views = self._views[layer]
        _write(views, self._slots, k_NKC, v_NKC, latent_NR)
        # Tokens of a row, and query heads that share a key head, are the rows of one small product: nothing is
        # repeated. A lone token needs no exchange of axes, and its few views take no time from a small model.
        if num_tokens > 1:
            q_NHC = q_NHC.reshape(-1, num_tokens, num_kv_heads, group, width).transpose(1, 2)
        queries = q_NHC.reshape(-1, num_tokens * group, width)
        scores = torch.baddbmm(self._bias_NGS, queries, views.keys_NCS, alpha=scale)
        attended = torch.bmm(scores.softmax(dim=-1), views.values_NSC)
        if num_tokens > 1:
            attended = attended.view(-1, num_kv_heads, num_tokens, group, width).transpose(1, 2)
        # MLA's values are the first channels of its keys. All are multiplied: a narrower view would be copied first.
        return attended.reshape(num_queries, num_heads, width)[..., : v_NKC.shape[-1]]
