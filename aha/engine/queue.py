"""Requests that wait for rows, and who of them enters next."""

from __future__ import annotations

from collections import deque

from aha.engine.pictures import PictureQueue
from aha.engine.request import Request
from aha.models import Transformer

MAX_PREFILL_TOKENS = 8192
"""Prompt tokens of one pass; a longer prompt passes alone. Bounds the memory of its activations."""


class RequestQueue:
    """First come, first served; requests with pictures join the line when the model has seen these.

    Args:
        max_batch_size: most completions that run at once.
        max_cached_tokens: most cached positions, counted as rows x longest row.
    """

    def __init__(self, model: Transformer, *, max_batch_size: int, max_cached_tokens: int) -> None:
        self.unseen = PictureQueue(model)
        self._waiting: deque[Request] = deque()
        self._max_batch_size = max_batch_size
        self._max_cached_tokens = max_cached_tokens

    def __bool__(self) -> bool:
        return bool(self._waiting or self.unseen)

    @property
    def num_waiting(self) -> int:
        """Completions that wait for a free row and for nothing else."""
        return sum(request.num_waiting for request in self._waiting)

    def add(self, request: Request) -> None:
        """To the end of the line."""
        (self._waiting.append if request.is_seen else self.unseen.add)(request)

    def drop(self, request_id: int) -> None:
        """Forget a request; an unknown id is no error."""
        self.unseen.drop(request_id)
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)

    def clear(self) -> None:
        """Forget all requests."""
        self._waiting.clear()
        self.unseen.clear()

    def start_over(self) -> None:
        """The weights have changed: what was seen of pictures is seen anew."""
        self.unseen.start_over(request for request in self._waiting if request.pixels_M3YX is not None)
        self._waiting = deque(request for request in self._waiting if request.pixels_M3YX is None)

    def look(self) -> None:
        """Look at some tiles of the next picture."""
        seen = self.unseen.look()
        if seen is not None:
            self._waiting.append(seen)

    def admit(self, *, num_running: int, longest: int) -> list[tuple[Request, int]]:
        """Take requests from the line, in order, each with how many of its samples enter now.

        Args:
            num_running: rows that are taken.
            longest: most tokens that any of them can come to hold.
        """
        admitted: list[tuple[Request, int]] = []
        num_rows, num_tokens = num_running, 0
        while self._waiting:
            request = self._waiting[0]
            # A group enters whole, so that its prompt is computed once; one larger than the batch enters in pieces.
            count = min(request.num_waiting, self._max_batch_size)
            longest = max(longest, request.max_length)
            fits = num_rows + count <= self._max_batch_size and (num_rows + count) * longest <= self._max_cached_tokens
            num_tokens += len(request.prompt_ids)
            is_first = not admitted
            if (not fits and num_rows > 0) or (num_tokens > MAX_PREFILL_TOKENS and not is_first):
                break
            # Pictures pass alone: an image token that stands in a text by chance is not one of theirs.
            sees = any(one.pixels_M3YX is not None for one in (request, *(before for before, _ in admitted)))
            if sees and not is_first:
                break
            if not fits:
                count = max(1, min(count, self._max_cached_tokens // longest))
            num_rows += count
            admitted.append((request, count))
            if count == request.num_waiting:
                self._waiting.popleft()
            else:
                break
        return admitted
