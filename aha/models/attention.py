"""Causal attention over documents without padding: each computed once, though several share their beginning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PADDED_RATIO = 1.25
"""Documents share a bucket while the longest is at most this much longer than the shortest."""

MAX_PLAIN_LENGTH = 512
"""Most attention weights that are kept on a CPU, for each of the N rows, head and layer."""


class PackedAttention:
    """Causal attention within each of several documents whose tokens lie in N rows without padding.

    Documents of similar length are computed together, padded at their right end, where causality hides the padding.
    Documents may share rows: the completions of one prompt read the prompt's keys and values from the same rows, so
    that everything outside attention computes the prompt once.

    Args:
        lengths: tokens of each document.
        rows: for each document, which of the N rows hold its tokens, in order; None when the documents lie one after
            the other. Every row belongs to some document, and always at the same position.
    """

    def __init__(self, lengths: Sequence[int], *, rows: Sequence[Tensor] | None = None) -> None:
        self._lengths = tuple(lengths)
        self._is_one_block = rows is None and len(set(lengths)) == 1
        documents = list(torch.arange(sum(lengths)).split(self._lengths)) if rows is None else list(rows)
        self._gathers, self._restore_N = _plan_buckets(documents)

    @property
    def form(self) -> Literal["expanded"]:
        return "expanded"

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
        if self._is_one_block:
            shape = (len(self._lengths), self._lengths[0])
            # MLA's narrower values would be padded for the fused kernel, whose backward pass is slow besides.
            is_plain = latent_NR is not None and _is_plain(q_NHC, num_weights=shape[0] * shape[1] ** 2)
            attend = _causal_by_products if is_plain else _causal
            return attend(*(x.unflatten(0, shape) for x in (q_NHC, k_NKC, v_NKC)), scale=scale).flatten(0, 1)
        parts = []
        for gather_BT in self._gathers:
            is_plain = _is_plain(q_NHC, num_weights=gather_BT.numel() * gather_BT.shape[1])
            attend = _causal_by_products if is_plain else _causal
            parts.append(attend(*_gathered(gather_BT, q_NHC, k_NKC, v_NKC), scale=scale).flatten(0, 1))
        return torch.cat(parts).index_select(0, self._restore_N.to(q_NHC.device))


def _is_plain(q_NHC: Tensor, *, num_weights: int) -> bool:
    """Whether all attention weights are kept: on a CPU, while there are not many more than rows that are paid for.

    Long prompts that many documents share would have many more.
    """
    return q_NHC.device.type == "cpu" and num_weights <= MAX_PLAIN_LENGTH * len(q_NHC)


def _gathered(gather_BT: Tensor, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor) -> list[Tensor]:
    """The rows of one bucket's queries, keys and values: (B, T, heads, width) each."""
    # index_select, not indexing: its backward adds in a fixed order, and resumed runs must be bit-identical.
    rows = gather_BT.flatten().to(q_NHC.device)
    if k_NKC.shape[-1] != v_NKC.shape[-1]:
        # MLA's values are narrower than its keys.
        return [x.index_select(0, rows).unflatten(0, gather_BT.shape) for x in (q_NHC, k_NKC, v_NKC)]
    block = torch.cat((q_NHC, k_NKC, v_NKC), dim=1).index_select(0, rows).unflatten(0, gather_BT.shape)
    return list(block.split((q_NHC.shape[1], k_NKC.shape[1], v_NKC.shape[1]), dim=2))


def _plan_buckets(documents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The (B, T) rows that each bucket reads, and where each of the N rows is found in their concatenation.

    Padding repeats a document's last row: it stands after the document, where no real position sees it, and its own
    result is never read.
    """
    buckets: list[list[Tensor]] = []
    for document in sorted(documents, key=len):
        if buckets and len(document) <= MAX_PADDED_RATIO * len(buckets[-1][0]):
            buckets[-1].append(document)
        else:
            buckets.append([document])
    restore_N = torch.empty(1 + max(int(d.max()) for d in documents), dtype=torch.long)
    gathers, offset = [], 0
    for bucket in buckets:
        width = len(bucket[-1])
        gather_BT = torch.stack([torch.cat((d, d[-1:].expand(width - len(d)))) for d in bucket])
        for index, document in enumerate(bucket):
            start = offset + index * width
            restore_N[document] = torch.arange(start, start + len(document))
        gathers.append(gather_BT)
        offset += gather_BT.numel()
    return gathers, restore_N


def _causal(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, *, scale: float) -> Tensor:
    """Causal softmax attention of equally long sequences: (B, T, H, C)."""
    width = v_BTKC.shape[-1]
    if width != k_BTKC.shape[-1]:  # MLA: fused kernels want values as wide as keys
        v_BTKC = F.pad(v_BTKC, (0, k_BTKC.shape[-1] - width))
    q_BHTC, k_BKTC, v_BKTC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
    is_grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    attended_BHTC = F.scaled_dot_product_attention(
        q_BHTC, k_BKTC, v_BKTC, is_causal=True, enable_gqa=is_grouped, scale=scale
    )
    return attended_BHTC.transpose(1, 2)[..., :width]


def _causal_by_products(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, *, scale: float) -> Tensor:
    """The same as two batched products and a softmax, which keeps all weights in memory.

    On a CPU the fused kernel's backward pass takes four times as long as this one's (docs/LOG.md).
    """
    batch, length, num_heads, head_dim = q_BTHC.shape
    num_kv = k_BTKC.shape[2]
    group = num_heads // num_kv
    # Query heads that share a key head stand below each other in one product: N = B*K, rows G*T.
    q_NRC = (
        q_BTHC.unflatten(2, (num_kv, group)).permute(0, 2, 3, 1, 4).reshape(batch * num_kv, group * length, head_dim)
    )
    k_NCT = k_BTKC.permute(0, 2, 3, 1).reshape(batch * num_kv, head_dim, length)
    v_NTC = v_BTKC.transpose(1, 2).reshape(batch * num_kv, length, v_BTKC.shape[-1])
    bias_TT = q_BTHC.new_full((length, length), -math.inf).triu_(1)
    scores_NRT = torch.baddbmm(bias_TT.repeat(group, 1), q_NRC, k_NCT, alpha=scale)
    attended_NRC = torch.bmm(scores_NRT.softmax(dim=-1), v_NTC)
    return attended_NRC.view(batch, num_kv, group, length, -1).permute(0, 3, 1, 2, 4).flatten(2, 3)
