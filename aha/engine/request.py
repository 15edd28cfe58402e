"""A prompt and how to continue it, checked before it waits for a row."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

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


def make_request(
    prompt_ids: Sequence[int], *, sampling: SamplingParams, config: ModelConfig, request_id: int
) -> Request:
    """A request that the model can take.

    Raises:
        RequestError: the prompt is empty, does not fit the model's window, or holds tokens that the model has not.
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
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    max_length = min(len(prompt_ids) + sampling.max_tokens, window)
    return Request(request_id, tuple(prompt_ids), sampling, seed, max_length)
