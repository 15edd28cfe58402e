"""Prompts with pictures: what they must be like, and what the language model begins with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from aha.engine.request import Request
from aha.errors import RequestError
from aha.models import InternVL, Transformer

TILES_PER_STEP = 8
"""Tiles that a GPU looks at between two tokens of the others; a CPU, which needs seconds for one, takes one."""


def check_pixels(model: Transformer, prompt_ids: Sequence[int], *, pixels_M3YX: Tensor) -> None:
    """Whether a prompt has as many image tokens as its tiles give features.

    Raises:
        RequestError: it has not, the tiles are of another size, or the model has no vision tower.
    """
    vision = model.config.vision
    if vision is None:
        raise RequestError("the model has no vision tower and sees no pictures; send text only", param="messages")
    expected = (vision.num_channels, vision.image_size, vision.image_size)
    if tuple(pixels_M3YX.shape[1:]) != expected or not len(pixels_M3YX):
        raise RequestError(
            f"the tiles have the shape {tuple(pixels_M3YX.shape)}, the model sees tiles of {expected}",
            param="messages",
        )
    num_tokens, num_features = prompt_ids.count(vision.image_token_id), len(pixels_M3YX) * vision.tokens_per_tile
    if num_tokens != num_features:
        raise RequestError(
            f"the prompt has {num_tokens} image tokens (id {vision.image_token_id}) for {len(pixels_M3YX)} tiles of "
            f"{vision.tokens_per_tile} features; they must be {num_features}",
            param="messages",
        )


class Look(NamedTuple):
    """What a step spent in the vision tower."""

    request_id: int
    elapsed_ns: int


class PictureQueue:
    """Requests with pictures that the model has not wholly seen, in order.

    A step looks at a few tiles only, so that those who wait for their next token do not notice.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._requests: deque[Request] = deque()
        self._tiles_per_step = 1 if model.device.type == "cpu" else TILES_PER_STEP
        self.last_look: Look | None = None
        """None if the last step had nothing to look at."""

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """To be looked at from its first tile on."""
        request.features.clear()
        request.num_seen_tiles = 0
        self._requests.append(request)

    def look(self) -> Request | None:
        """See the next tiles of the first request, and return it if those were its last ones."""
        self.last_look = None
        if not self._requests:
            return None
        began_ns = time.perf_counter_ns()
        request = self._requests[0]
        assert request.pixels_M3YX is not None
        start = request.num_seen_tiles
        tiles_M3YX = request.pixels_M3YX[start : start + self._tiles_per_step]
        request.features.append(cast(InternVL, self._model).image_features(tiles_M3YX))
        request.num_seen_tiles += len(tiles_M3YX)
        self.last_look = Look(request.request_id, time.perf_counter_ns() - began_ns)
        return self._requests.popleft() if request.is_seen else None

    def drop(self, request_id: int) -> None:
        """Forget a request; an unknown id is no error."""
        self._requests = deque(request for request in self._requests if request.request_id != request_id)

    def start_over(self, seen: Iterable[Request]) -> None:
        """The weights have changed: look at everything again, first at what had been seen already."""
        requests = [*seen, *self._requests]
        self._requests.clear()
        self.last_look = None
        for request in requests:
            self.add(request)

    def clear(self) -> None:
        """Forget all requests."""
        self._requests.clear()


def embed(model: Transformer, request: Request, *, token_ids_N: Tensor) -> Tensor | None:
    """The embeddings of a prompt, with what was seen of its pictures in their places; None if it has no pictures."""
    if request.pixels_M3YX is None:
        return None
    return cast(InternVL, model).embed(token_ids_N, features_ND=torch.cat(request.features))
