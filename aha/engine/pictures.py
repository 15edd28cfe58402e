"""Prompts with pictures: what they must be like, and what the language model begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from aha.engine.rows import Request
from aha.errors import RequestError
from aha.models import InternVL, Transformer


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


def see(model: Transformer, request: Request, *, token_ids_N: Tensor) -> Tensor | None:
    """The embeddings of a request's prompt, features of its pictures in their places; None if it has no pictures.

    The tiles are let go of with the request's last sample: a group larger than the batch enters in pieces.
    """
    pixels_M3YX = request.pixels_M3YX
    if pixels_M3YX is None:
        return None
    if not request.num_waiting:
        request.pixels_M3YX = None
    seeing = cast(InternVL, model)
    return seeing.embed(token_ids_N, features_ND=seeing.image_features(pixels_M3YX))
