"""Pictures in requests: data URIs only, decoded away from the event loop, one request at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from aha.errors import RequestError
from aha.images import PictureReader, read_data_uri
from aha.models import VisionShape
from aha.serve.openai import ChatMessage, ChatRequest, ContentPart
from aha.types import Message, Picture

MAX_PICTURES = 16
"""Of one request."""
MAX_PICTURE_BODY_BYTES = 16 * 2**20
"""Of a request to a model that sees; base64 takes four bytes for three."""


class PictureIntake:
    """Turns requests into messages with decoded pictures.

    Args:
        reader: None for a model without a vision tower.
        model_name: for errors.
    """

    def __init__(self, reader: PictureReader | None, *, model_name: str) -> None:
        self._reader = reader
        self._model_name = model_name
        # A picture of the largest allowed size takes some hundred megabytes while it is unpacked.
        self._turnstile = asyncio.Semaphore(1)

    @classmethod
    def of_model(cls, vision: VisionShape | None, *, folder: Path, model_name: str) -> PictureIntake:
        """For the model of a folder. Raises ModelError when the folder asks for pictures of another kind."""
        reader = None
        if vision is not None:
            reader = PictureReader.load(folder, tile_size=vision.image_size, tokens_per_tile=vision.tokens_per_tile)
        return cls(reader, model_name=model_name)

    async def messages(self, request: ChatRequest) -> list[Message]:
        """The request's messages.

        Raises:
            RequestError: pictures for a model that sees none, too many, in another role than the user's, or broken.
        """
        num_pictures = sum(part.type == "image_url" for message in request.messages for part in message.parts)
        if not num_pictures:
            return [message.to_message() for message in request.messages]
        if num_pictures > MAX_PICTURES:
            said = f"a request holds at most {MAX_PICTURES} pictures, got {num_pictures}"
            raise RequestError(said, param="messages", code="too_many_images")
        async with self._turnstile:
            return [
                message.to_message(await run_in_threadpool(self._read_all, message, param=f"messages[{index}]"))
                for index, message in enumerate(request.messages)
            ]

    def _read_all(self, message: ChatMessage, *, param: str) -> list[Picture]:
        pictures: list[Picture] = []
        position = 0
        for index, part in enumerate(message.parts):
            if part.type == "image_url":
                pictures.append(self._read(message, part, position=position, param=f"{param}.content[{index}]"))
            position += len(part.text or "")
        return pictures

    def _read(self, message: ChatMessage, part: ContentPart, *, position: int, param: str) -> Picture:
        if self._reader is None:
            said = f"the model {self._model_name!r} has no vision tower and sees no pictures; send text only"
            raise RequestError(said, param=param, code="unsupported_parameter")
        if message.role != "user":
            raise RequestError("pictures stand in messages of the role 'user' only", param=param)
        assert part.image_url is not None, "checked with the request"
        reader = self._reader
        if part.image_url.detail == "low":
            reader = replace(reader, min_tiles=1, max_tiles=1)
        param += ".image_url.url"
        return reader.read(read_data_uri(part.image_url.url, param=param), position=position, param=param)
