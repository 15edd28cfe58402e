"""A prompt and how to continue it, checked before it waits for a row."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from aha.errors import RequestError
from aha.models import ModelConfig
from aha.types import SamplingParams

MAX_PREFILL_TOKENS = 8192
"""Prompt tokens of one pass; a longer prompt passes alone. Bounds the memory of its activations."""


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


def admit(
    waiting: deque[Request], *, num_running: int, longest: int, max_batch_size: int, max_cached_tokens: int
) -> list[tuple[Request, int]]:
    """Take requests from the queue, in order, each with how many of its samples enter now.

    Args:
        num_running: rows that are taken.
        longest: most tokens that any of them can come to hold.
    """
    admitted: list[tuple[Request, int]] = []
    num_rows, num_tokens = num_running, 0
    while waiting:
        request = waiting[0]
        # A group enters whole, so that its prompt is computed once; one larger than the batch enters in pieces.
        count = min(request.num_waiting, max_batch_size)
        longest = max(longest, request.max_length)
        fits = num_rows + count <= max_batch_size and (num_rows + count) * longest <= max_cached_tokens
        num_tokens += len(request.prompt_ids)
        is_first = not admitted
        if (not fits and num_rows > 0) or (num_tokens > MAX_PREFILL_TOKENS and not is_first):
            break
        # Pictures pass alone: an image token that stands in a text by chance is not one of theirs.
        sees = any(one.pixels_M3YX is not None for one in (request, *(before for before, _ in admitted)))
        if sees and not is_first:
            break
        if not fits:
            count = max(1, min(count, max_cached_tokens // longest))
        num_rows += count
        admitted.append((request, count))
        if count == request.num_waiting:
            waiting.popleft()
        else:
            break
    return admitted
