"""Bookkeeping of the running rows as tensors, so that a step costs the same Python for 1 row and for 512."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aha.engine.request import Request
from aha.engine.sampling import Drawn, RowSampling, draw, stream_key, uniforms

MARGIN_TOKENS = 8
"""Tokens decoded before those that can spell a stop string: decoders treat the first ones specially."""


def at_last(values_BT: Tensor, counts_B: Tensor) -> Tensor:
    """The value of each row's last counted place."""
    if values_BT.shape[1] == 1:
        return values_BT[:, 0]
    return values_BT.gather(1, counts_B.unsqueeze(1) - 1).squeeze(1)


class Rows:
    """What every row is doing. Rows 0 to num_live-1 are live, in the order of the cache's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.owners: list[tuple[Request, int]] = []
        """Request and index of the sample of each live row."""
        self.lengths_B = self._integers()
        """Tokens whose keys and values are cached."""
        self.max_lengths_B = self._integers()
        self.last_tokens_B = self._integers()
        self.num_drawn_B = self._integers()
        self.stream_keys_B = self._integers()
        self._top_k_B = self._integers()
        self._temperatures_B = self._floats()
        self._top_p_B = self._floats()
        self._min_p_B = self._floats()
        self.has_stop_strings = False
        """Whether any live row ends at a string."""
        self._token_ids_BT = torch.zeros((0, 0), dtype=torch.long, device=device)
        self._logprobs_BT = torch.zeros((0, 0), device=device)

    def _integers(self) -> Tensor:
        return torch.zeros(0, dtype=torch.long, device=self._device)

    def _floats(self) -> Tensor:
        return torch.zeros(0, device=self._device)

    @property
    def num_live(self) -> int:
        return len(self.owners)

    @property
    def max_length(self) -> int:
        """Most tokens that any live row can come to hold; 0 without rows."""
        return int(self.max_lengths_B[: self.num_live].max()) if self.owners else 0

    @property
    def longest(self) -> int:
        """Most tokens cached in any live row."""
        return int(self.lengths_B[: self.num_live].max())

    def add(self, request: Request, *, count: int) -> list[int]:
        """Append rows for the request's next samples, its prompt counted as cached.

        Returns:
            Their indices.
        """
        first = self.num_live
        samples = range(request.num_started, request.num_started + count)
        request.num_started += count
        self.owners.extend((request, index) for index in samples)
        self.has_stop_strings |= bool(request.sampling.stop)
        self._grow(self.num_live, 1)
        new = slice(first, self.num_live)
        self.lengths_B[new] = len(request.prompt_ids)
        self.max_lengths_B[new] = request.max_length
        self.num_drawn_B[new] = 0
        drawn_before = request.sampling.first_sample
        self.stream_keys_B[new] = torch.tensor(
            [stream_key(request.seed, sample_index=drawn_before + i) for i in samples]
        )
        self._top_k_B[new] = request.sampling.top_k
        self._temperatures_B[new] = request.sampling.temperature
        self._top_p_B[new] = request.sampling.top_p
        self._min_p_B[new] = request.sampling.min_p
        return list(range(first, self.num_live))

    def draw(self, logits_NV: Tensor, *, live: slice, num_tokens: int = 1, ahead: int = 0) -> Drawn:
        """Draw the next tokens of some rows, each with the number that belongs to its place in its completion.

        Args:
            logits_NV: N = B*T, the T tokens of a row together.
            num_tokens: T.
            ahead: tokens between the last one recorded and the first of these.
        """
        fields = (self._temperatures_B, self._top_k_B, self._top_p_B, self._min_p_B)
        keys_N, sampling = self.stream_keys_B[live], RowSampling(*(field[live] for field in fields))
        places_N = self.num_drawn_B[live] + ahead
        if num_tokens > 1:
            keys_N = keys_N.repeat_interleave(num_tokens)
            sampling = RowSampling(*(field.repeat_interleave(num_tokens) for field in sampling))
            places_N = (places_N.unsqueeze(1) + torch.arange(num_tokens, device=self._device)).view(-1)
        return draw(logits_NV, uniforms_B=uniforms(keys_N, positions_B=places_N), sampling=sampling)

    def record(self, token_ids_BT: Tensor, logprobs_BT: Tensor, *, counts_B: Tensor, live: slice) -> None:
        """Append the first drawn tokens, so many as counted, to each of the rows."""
        rows_B1 = torch.arange(live.start, live.stop, device=self._device).unsqueeze(1)
        places_BT = self.num_drawn_B[live].unsqueeze(1)
        if token_ids_BT.shape[1] > 1:
            places_BT = places_BT + torch.arange(token_ids_BT.shape[1], device=self._device)
        self._grow(self.num_live, int(places_BT.max()) + 1)
        # Tokens beyond the count are written too; the next ones take their places.
        self._token_ids_BT[rows_B1, places_BT] = token_ids_BT
        self._logprobs_BT[rows_B1, places_BT] = logprobs_BT
        self.last_tokens_B[live] = at_last(token_ids_BT, counts_B)
        self.num_drawn_B[live] += counts_B

    def history(self, row: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Token ids and log-probabilities drawn so far."""
        count = int(self.num_drawn_B[row])
        return tuple(self._token_ids_BT[row, :count].tolist()), tuple(self._logprobs_BT[row, :count].tolist())

    def cut_at_stop_strings(
        self, counts_B: Tensor, *, first_row: int, decode: Callable[[Sequence[int]], str]
    ) -> list[tuple[int, int]]:
        """Find the tokens that complete a stop string of their row, and forget what was recorded behind them.

        Args:
            counts_B: the row's tokens that are new.

        Returns:
            For each row that ends so, which of B it is and how many of its new tokens stay.
        """
        found = []
        for index, count in enumerate(counts_B.tolist()):
            if num_kept := self._find_stop_string(first_row + index, num_new=count, decode=decode):
                self.num_drawn_B[first_row + index] -= count - num_kept
                found.append((index, num_kept))
        return found

    def _find_stop_string(self, row: int, *, num_new: int, decode: Callable[[Sequence[int]], str]) -> int:
        """How many of a row's last `num_new` tokens reach to where one of its stop strings is complete; 0: none is."""
        stop, count = self.owners[row][0].sampling.stop, int(self.num_drawn_B[row])
        if not stop:
            return 0
        # A token is at least one byte, so a string of n bytes lies within the last n tokens.
        num_tail = max(len(text.encode()) for text in stop) + MARGIN_TOKENS
        for num_read in range(1, num_new + 1):
            end = count - num_new + num_read
            tail = decode(self._token_ids_BT[row, max(0, end - num_tail) : end].tolist())
            if any(text in tail for text in stop):
                return num_read
        return 0

    def compact(self, sources: Sequence[int], *, targets: Sequence[int], num_live: int) -> None:
        """Move rows and forget those from `num_live` on."""
        if sources:
            to, of = torch.tensor(targets, device=self._device), torch.tensor(sources, device=self._device)
            for tensor in self._tensors().values():
                tensor[to] = tensor[of]
        for source, target in zip(sources, targets, strict=True):
            self.owners[target] = self.owners[source]
        del self.owners[num_live:]
        self.has_stop_strings = self.has_stop_strings and any(request.sampling.stop for request, _ in self.owners)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _grow(self, num_rows: int, num_columns: int) -> None:
        old_rows, old_columns = self._token_ids_BT.shape
        if num_rows <= old_rows and num_columns <= old_columns:
            return
        rows = old_rows if num_rows <= old_rows else max(num_rows, 2 * old_rows)
        columns = old_columns if num_columns <= old_columns else max(num_columns, 2 * old_columns)
        for name, old in self._tensors().items():
            grown = old.new_zeros((rows, columns) if old.dim() == 2 else (rows,))
            grown[tuple(slice(size) for size in old.shape)] = old
            setattr(self, name, grown)
