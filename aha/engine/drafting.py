"""Drafts of the next tokens by a model's own multi-token prediction modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.engine.cache import DecodeAttention, KeyValueCache, PrefillAttention
from aha.engine.rows import Rows
from aha.models import Linear, Transformer


class Pending(NamedTuple):
    """What the model computed of each live row and the modules have not seen yet; T is that of the longest."""

    hidden_BTD: Tensor
    token_ids_BT: Tensor
    """The token drawn after each of them."""
    counts_B: Tensor
    """How many of the T are the row's."""
    columns_B: Tensor
    """Position of the first."""
    first_columns_B: Tensor
    """Position from which on the modules have seen all before the first. Drafting had been off till there."""
    carried_BKD: Tensor
    """For module k = 1, 2, …, which lags k positions behind, module k-1's state at its first position."""

    def joined(self, other: Pending) -> Pending:
        """With the rows of `other` behind these."""
        width = max(self.token_ids_BT.shape[1], other.token_ids_BT.shape[1])
        first, second = self._padded(width), other._padded(width)
        return Pending(*(torch.cat(pair) for pair in zip(first, second, strict=True)))

    def _padded(self, width: int) -> Pending:
        missing = width - self.token_ids_BT.shape[1]
        return self._replace(
            hidden_BTD=F.pad(self.hidden_BTD, (0, 0, 0, missing)), token_ids_BT=F.pad(self.token_ids_BT, (0, missing))
        )


class Drafter:
    """Drafts K tokens a row with the model's K modules, and keeps what the modules need of every live row.

    Module k makes a draft of token i + k + 2 from its state at position i, which it computes from module k-1's state
    there (the model's, for k = 0) and token i + k + 1 (DeepSeek-V3 report, arXiv:2412.19437 §2.2). So of n positions it
    can compute all but the last k with tokens that are known; those it computes with drafts, and once more when it is
    known what became of these. Its key of position i lies in column i + k of its layer, so that whatever is computed
    once more begins in the column where the model's new tokens do; the shift is the same for all keys and queries.

    Args:
        model: with `num_mtp_layers` modules.
        linear: the engine's products.
    """

    def __init__(self, model: Transformer, *, linear: Linear) -> None:
        self._model = model
        self._linear = linear
        self.num_drafts = model.config.num_mtp_layers
        """K."""
        self._pending: Pending | None = None

    def clear(self) -> None:
        """Forget all rows."""
        self._pending = None

    def read_prompts(
        self,
        cache: KeyValueCache,
        hidden_ND: Tensor,
        token_ids_N: Tensor,
        *,
        lengths: Sequence[int],
        rows: Sequence[Sequence[int]],
    ) -> Tensor:
        """Compute whole prompts, but for their last positions, which need tokens that are not drawn yet.

        Args:
            hidden_ND: what the model made of the prompts, which lie one after the other.
            lengths: tokens of each prompt.
            rows: the rows of each prompt's completions.

        Returns:
            `Pending.carried_BKD` for each prompt.
        """
        states, token_ids = list(hidden_ND.split(list(lengths))), token_ids_N.split(list(lengths))
        carried_PKD = hidden_ND.new_zeros(len(lengths), self.num_drafts - 1, hidden_ND.shape[1])
        for depth in range(self.num_drafts):
            states = [prompt_TD[:-1] for prompt_TD in states]
            known = [index for index, prompt_TD in enumerate(states) if len(prompt_TD)]
            if not known:
                break
            sizes, kept_rows = [len(states[i]) for i in known], [rows[i] for i in known]
            computed_ND = self._model.mtp_states(
                torch.cat([states[i] for i in known]),
                torch.cat([token_ids[i][depth + 1 :] for i in known]),
                depth=depth,
                positions_N=torch.cat([torch.arange(size) for size in sizes]).to(hidden_ND.device) + depth,
                attention=PrefillAttention(cache, lengths=sizes, rows=kept_rows, first_column=depth),
                linear=self._linear,
            )
            for index, prompt_TD in zip(known, computed_ND.split(sizes), strict=True):
                states[index] = prompt_TD
                if depth + 1 < self.num_drafts:
                    carried_PKD[index, depth] = prompt_TD[-1]
        return carried_PKD

    def add(self, last_BD: Tensor, token_ids_B: Tensor, *, columns_B: Tensor, carried_BKD: Tensor | None) -> None:
        """Take in rows behind the live ones.

        Args:
            last_BD: what the model made of the last token of each one's prompt.
            token_ids_B: the token drawn after it.
            columns_B: its position.
            carried_BKD: from `read_prompts`; None if the modules did not read the prompts.
        """
        new = self._first_seen(last_BD, token_ids_B, columns_B)
        if carried_BKD is not None:
            new = new._replace(first_columns_B=torch.zeros_like(columns_B), carried_BKD=carried_BKD)
        self._pending = new if self._pending is None else self._pending.joined(new)

    def _first_seen(self, hidden_BD: Tensor, token_ids_B: Tensor, columns_B: Tensor) -> Pending:
        """Rows of which the modules have seen nothing before these tokens, or not all."""
        return Pending(
            hidden_BD.unsqueeze(1),
            token_ids_B.unsqueeze(1),
            torch.ones_like(columns_B),
            columns_B,
            columns_B,
            hidden_BD.new_zeros(len(hidden_BD), self.num_drafts - 1, hidden_BD.shape[1]),
        )

    def follow(self, hidden_BTD: Tensor, token_ids_BT: Tensor, *, counts_B: Tensor, columns_B: Tensor) -> None:
        """Take note of a step of all live rows.

        Args:
            hidden_BTD: what the model made of its tokens; T = 1 after a step without drafts.
            token_ids_BT: the token drawn after each.
            counts_B: how many of them each row wrote.
            columns_B: position of the first.
        """
        assert self._pending is not None
        if hidden_BTD.shape[1] == 1:
            # Tokens that wait from before will never be seen: what the modules know of a row begins again here.
            self._pending = self._first_seen(hidden_BTD[:, 0], token_ids_BT[:, 0], columns_B)
        else:
            self._pending = Pending(
                hidden_BTD, token_ids_BT, counts_B, columns_B, self._pending.first_columns_B, self._pending.carried_BKD
            )

    def compact(self, sources: Sequence[int], *, targets: Sequence[int], num_live: int) -> None:
        """Move rows and forget those from `num_live` on."""
        if self._pending is None or num_live == 0:
            self._pending = None
            return
        kept = list(range(num_live))
        for source, target in zip(sources, targets, strict=True):
            kept[target] = source
        kept_B = torch.tensor(kept, device=self._model.device)
        self._pending = Pending(*(field[kept_B] for field in self._pending))

    def draft(self, cache: KeyValueCache, rows: Rows) -> Tensor:
        """The next K tokens (B, K) of every live row, each drawn with the number that its true draw will have.

        The same number takes the same token out of two distributions as far as these are alike, so that drafts are
        right more often than draws of their own would be. At temperature 0 a draft is the likeliest token.

        Args:
            cache: with room for 2K more columns than the rows have tokens.
        """
        pending = self._pending
        assert pending is not None
        num_rows, width = len(pending.counts_B), int(pending.counts_B.max())
        rows_B = torch.arange(num_rows, device=cache.device)
        states_BTD = pending.hidden_BTD[:, :width]
        # The tokens drawn, and behind each row's last one the drafts as they come.
        token_ids_BT = F.pad(pending.token_ids_BT[:, :width], (0, self.num_drafts))
        carried, drafts = [], []
        for depth in range(self.num_drafts):
            if depth > 0:
                states_BTD = torch.cat((pending.carried_BKD[:, depth - 1 : depth], states_BTD), dim=1)
                carried.append(states_BTD[rows_B, pending.counts_B])
            states_BTD = self._states(cache, states_BTD, token_ids_BT, depth=depth, pending=pending)
            last_B = pending.counts_B + (depth - 1)
            logits_BV = self._linear(states_BTD[rows_B, last_B], self._model.output_weight, None)
            drawn = rows.draw(logits_BV, live=slice(0, num_rows), ahead=depth)
            token_ids_BT[rows_B, last_B + 1] = drawn.token_ids_B
            drafts.append(drawn.token_ids_B)
        if carried:
            self._pending = pending._replace(carried_BKD=torch.stack(carried, dim=1))
        return torch.stack(drafts, dim=1)

    def _states(
        self, cache: KeyValueCache, states_BTD: Tensor, token_ids_BT: Tensor, *, depth: int, pending: Pending
    ) -> Tensor:
        """One module over the tokens that wait and, for deeper ones, the last before them again."""
        num_rows, num_tokens, _ = states_BTD.shape
        columns_BT = pending.columns_B.unsqueeze(1) + torch.arange(num_tokens, device=cache.device)
        attention = DecodeAttention(
            cache,
            lengths_B=pending.columns_B,
            num_tokens=num_tokens,
            first_columns_B=pending.first_columns_B + depth,
        )
        states_ND = self._model.mtp_states(
            states_BTD.flatten(0, 1),
            token_ids_BT[:, :num_tokens].flatten(),
            depth=depth,
            positions_N=columns_BT.flatten(),
            attention=attention,
            linear=self._linear,
        )
        return states_ND.view(num_rows, num_tokens, -1)
