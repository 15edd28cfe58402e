"""Bookkeeping of the running rows as tensors, so that a step costs the same Python for 1 row and for 512."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aha.engine.sampling import Drawn, RowSampling, stream_key
from aha.errors import RequestError
from aha.models import ModelConfig
from aha.types import SamplingParams


@dataclass(slots=True, eq=False)
class Request:
    """A prompt and how to continue it."""

    request_id: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    max_length: int
    """Prompt and completion tokens at which a sample must end."""
    pixels_M3YX: Tensor | None = None
    """Tiles of the prompt's pictures, if it has any."""
    features: list[Tensor] = field(default_factory=list)
    """What the model has seen of them so far, some tiles in each."""
    num_seen_tiles: int = 0
    num_started: int = 0
    """Samples that have entered the batch."""

    @property
    def is_seen(self) -> bool:
        """Whether no tile is left to look at."""
        return self.pixels_M3YX is None or self.num_seen_tiles == len(self.pixels_M3YX)

    @property
    def num_waiting(self) -> int:
        return self.sampling.num_samples - self.num_started


def check_prompt(config: ModelConfig, prompt_ids: Sequence[int]) -> None:
    """Whether a model can take a prompt.

    Raises:
        RequestError: it is empty, leaves no room for an answer, or holds ids that the model does not know.
    """
    window = config.max_position_embeddings
    if not prompt_ids:
        raise RequestError("the prompt is empty; give at least one token", param="messages")
    if len(prompt_ids) >= window:
        raise RequestError(
            f"prompt has {len(prompt_ids)} tokens, the model's window is {window} and must hold an answer too; "
            "shorten the prompt",
            param="messages",
            code="context_length_exceeded",
        )
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < config.vocab_size:
        raise RequestError(
            f"the prompt holds token ids from {min(prompt_ids)} to {max(prompt_ids)}, the model knows 0 to "
            f"{config.vocab_size - 1}; use the tokenizer of the model's own folder",
            param="messages",
        )


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

    def sampling(self, rows: slice) -> RowSampling:
        return RowSampling(self._temperatures_B[rows], self._top_k_B[rows], self._top_p_B[rows], self._min_p_B[rows])

    def record(self, drawn: Drawn, *, live: slice) -> None:
        """Append one drawn token to each of the rows."""
        rows_B = torch.arange(live.start, live.stop, device=self._device)
        columns_B = self.num_drawn_B[live]
        self._grow(self.num_live, int(columns_B.max()) + 1)
        self._token_ids_BT[rows_B, columns_B] = drawn.token_ids_B
        self._logprobs_BT[rows_B, columns_B] = drawn.logprobs_B
        self.last_tokens_B[live] = drawn.token_ids_B
        self.num_drawn_B[live] += 1

    def history(self, row: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Token ids and log-probabilities drawn so far."""
        count = int(self.num_drawn_B[row])
        return tuple(self._token_ids_BT[row, :count].tolist()), tuple(self._logprobs_BT[row, :count].tolist())

    def tail(self, row: int, *, num_tokens: int) -> list[int]:
        """The last token ids drawn."""
        count = int(self.num_drawn_B[row])
        token_ids: list[int] = self._token_ids_BT[row, max(0, count - num_tokens) : count].tolist()
        return token_ids

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
