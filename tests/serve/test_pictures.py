"""Pictures over HTTP: seen as the engine sees them, and refused in OpenAI's shape when they cannot be."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from aha.chat import ChatFormat
from aha.engine import Engine
from aha.images import PictureReader, stack_pixels
from aha.models import load_model
from aha.serve.engine_thread import MAX_PIXEL_BYTES, EngineThread
from aha.serve.errors import ServerBusyError
from aha.types import Message, SamplingParams

PATH = "/v1/chat/completions"
READER = PictureReader(tile_size=28, tokens_per_tile=4)


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "PNG")
    return file.getvalue()


def part(data: bytes, **more: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def post(live: Any, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "babble", "messages": list(messages), "max_tokens": 6, "temperature": 0, **fields}
    return httpx.post(f"{live.url}{PATH}", json=body, timeout=30)


GOOD = part(png(28, 28))


def expected_answer(vision_folder: Path, message: Message) -> tuple[str, int]:
    """What an engine of its own says, and the prompt's tokens."""
    chat = ChatFormat.load(vision_folder)
    engine = Engine(load_model(vision_folder, dtype="float32", device="cpu"), stop_token_ids=chat.stop_token_ids)
    prompt_ids, pixels = chat.render([message]), stack_pixels([message])
    assert pixels is not None
    sampling = SamplingParams(max_tokens=6, temperature=0.0)
    ((done,),) = engine.generate([prompt_ids], sampling, pixels=[torch.from_numpy(pixels)])
    return chat.parse(done, starts_in_thinking=False).answer, len(prompt_ids)


def test_answer_about_pictures_is_the_engines(seer: Any, vision_folder: Path) -> None:
    one, two = png(28, 28), png(100, 40, seed=1)
    response = post(seer, user(part(one), text("compare "), part(two), text("now")))
    pictures = (READER.read(one), READER.read(two, position=8))
    answer, num_tokens = expected_answer(vision_folder, Message("user", "compare now", pictures=pictures))
    body = response.json()
    assert body["choices"][0]["message"]["content"] == answer
    # Every image token is in the bill: 1 tile, and a grid of 5 x 2 with its small copy.
    assert body["usage"]["prompt_tokens"] == num_tokens
    assert num_tokens > 4 * (1 + 11)


def test_official_client_streams_an_answer_about_a_picture(seer: Any) -> None:
    message = user(text("what?"), part(png(28, 28)))
    whole = post(seer, message).json()
    with seer.client() as client:
        stream = client.chat.completions.create(
            model="babble", messages=[message], max_tokens=6, temperature=0, stream=True,  # type: ignore[list-item]
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole["choices"][0]["message"]["content"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == whole["usage"]["prompt_tokens"]


def test_low_detail_takes_one_tile(seer: Any) -> None:
    message = [user(part(png(200, 100), detail=detail)) for detail in ("low", "high", "auto")]
    low, high, auto = (post(seer, one).json()["usage"]["prompt_tokens"] for one in message)
    assert high == auto == low + 4 * (8 + 1 - 1)  # a grid of 4 x 2 and its small copy


def test_several_samples_of_a_picture_and_earlier_turns_work(seer: Any) -> None:
    before = [user(GOOD), {"role": "assistant", "content": "seen"}]
    body = post(seer, *before, user(text("again"), part(png(30, 30))), n=3, temperature=1, seed=1).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]


def test_caller_who_hangs_up_frees_the_row_of_a_picture(seer: Any) -> None:
    body = {"model": "babble", "messages": [user(part(png(28, 28)))], "stream": True, "max_tokens": 150}
    with httpx.stream("POST", f"{seer.url}{PATH}", json=body, timeout=30) as response:
        assert next(response.iter_lines()).startswith("data: ")
    seer.wait_until_idle()
    assert post(seer, user(text("still there?"))).status_code == 200


URL = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
BROKEN = part(png(64, 64)[:200])
REFUSED: list[tuple[list[dict[str, Any]], str | None, str, str | None]] = [
    ([user(URL)], "messages[0].content[0].image_url.url", "pictures are not fetched (https URL)", "invalid_image"),
    ([user(text("a"), BROKEN)], "messages[0].content[1].image_url.url", "truncated or broken", "invalid_image"),
    ([user(text("a")), user(part(b""))], "messages[1].content[0].image_url.url", "empty (0 bytes)", "invalid_image"),
    ([user(part(b"GIF89a"))], "messages[0].content[0].image_url.url", "the picture", "invalid_image"),
    ([user(*[GOOD] * 17)], "messages", "at most 16 pictures, got 17", "too_many_images"),
    ([{"role": "system", "content": [GOOD]}], "messages[0].content[0]", "of the role 'user' only", None),
    ([user({"type": "image_url"})], "messages[0].content[0]", "must hold image_url", None),
    ([user({"type": "text"})], "messages[0].content[0]", "must hold text", None),
    ([user({**GOOD, "text": "a"})], "messages[0].content[0]", "must not hold text", None),
    ([user({"type": "image_url", "image_url": "x"})], "messages[0].content[0].image_url", "should be an object", None),
    ([user({"type": "image_url", "image_url": {}})], "messages[0].content[0].image_url.url", "is required", None),
    ([user({"type": "audio"})], "messages[0].content[0].type", "'text' or 'image_url'", None),
    ([user(part(png(9, 9), detail="x"))], "messages[0].content[0].image_url.detail", "'auto', 'low' or 'high'", None),
    ([user(*[part(png(300, 100))] * 8)], "messages", "the model's window is 256", "context_length_exceeded"),
]


@pytest.mark.parametrize(("messages", "param", "said", "code"), REFUSED, ids=[said[:30] for _, _, said, _ in REFUSED])
def test_picture_that_cannot_be_seen_is_named(
    seer: Any, messages: list[dict[str, Any]], param: str | None, said: str, code: str | None
) -> None:
    response = post(seer, *messages)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 300
    if code:
        assert error["code"] == code


def test_model_without_an_eye_names_itself(live: Any) -> None:
    with live.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="babble", messages=[user(text("what?"), GOOD)])  # type: ignore[list-item]
    assert "the model 'babble' has no vision tower and sees no pictures" in str(caught.value)
    assert caught.value.param == "messages[0].content[1]"


def test_card_says_what_the_model_reads(seer: Any, live: Any) -> None:
    for server, modalities in ((seer, ["text", "image"]), (live, ["text"])):
        assert httpx.get(f"{server.url}/v1/models/babble").json()["input_modalities"] == modalities


def test_only_a_model_that_sees_takes_large_bodies(seer: Any, live: Any) -> None:
    large = user(part(png(1000, 900)))  # 2.7 MB of noise, 3.6 MB as base64
    assert post(seer, large).status_code == 200
    assert post(live, large).status_code == 413


def test_pictures_that_wait_are_bounded(vision_folder: Path) -> None:
    async def fill() -> None:
        engine = Engine(load_model(vision_folder, dtype="float32", device="cpu"))
        thread = EngineThread(engine)
        thread._problem = ""  # as after start(), without a thread that would take the requests away
        pixels = np.broadcast_to(np.float32(0), (MAX_PIXEL_BYTES // 4,))
        thread.submit([1, 2], SamplingParams(), pixels_M3YX=pixels)
        thread.submit([1, 2], SamplingParams())
        with pytest.raises(ServerBusyError, match="pictures of other requests"):
            thread.submit([1, 2], SamplingParams(), pixels_M3YX=pixels)

    asyncio.run(fill())
