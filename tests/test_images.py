"""Pictures: cut and coloured as in the reference, and a broken file is a line and nothing worse."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from aha import images
from aha.errors import ConfigError, ModelError, RequestError
from aha.images import Grid, PictureReader, choose_grid, decode, read_data_uri, read_file

TILE = 28
READER = PictureReader(tile_size=TILE, tokens_per_tile=4)
SIZES = [(28, 28), (61, 33), (33, 61), (400, 30), (29, 411), (300, 200), (1, 1), (1, 90)]


def picture(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(colours, "RGBA").convert(mode)


def encoded(image: Image.Image, *, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def theirs(image: Image.Image, **options: Any) -> np.ndarray[Any, Any]:
    processor = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, image_mean=images.IMAGENET_MEAN,
        image_std=images.IMAGENET_STD, **options,
    )  # fmt: skip
    return np.stack(processor(images=image)["pixel_values"])


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pixels_equal_the_reference_to_the_last_bit(width: int, height: int) -> None:
    image = picture(width, height)
    read = READER.read(encoded(image))
    expected = theirs(image)
    assert read.pixels_M3YX.dtype == np.float32
    assert np.array_equal(read.pixels_M3YX, expected)
    assert read.num_tokens == 4 * len(expected)


@pytest.mark.parametrize("options", [{"min_patches": 3}, {"max_patches": 5}, {"max_patches": 1}])
def test_tile_limits_are_those_of_the_reference(options: dict[str, int]) -> None:
    image = picture(150, 70)
    reader = PictureReader(
        tile_size=TILE, tokens_per_tile=4, **{name.replace("patches", "tiles"): n for name, n in options.items()}
    )
    assert np.array_equal(reader.read(encoded(image)).pixels_M3YX, theirs(image, **options))


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), max_tiles=st.integers(1, 12))
def test_grid_is_the_one_of_the_reference(width: int, height: int, max_tiles: int) -> None:
    expected = get_optimal_tiled_canvas((height, width), (448, 448), 1, max_tiles)
    assert choose_grid(width, height, tile_size=448, max_tiles=max_tiles) == Grid(*expected)


def test_grids_by_hand() -> None:
    assert choose_grid(448, 448, tile_size=448) == (1, 1)
    assert choose_grid(800, 800, tile_size=448) == (2, 2)  # as square as one tile, and filled by more than half
    assert choose_grid(3000, 1000, tile_size=448) == (6, 2)
    assert choose_grid(10, 5000, tile_size=448) == (1, 12)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("BMP", "RGB"),
                                            ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"),
                                            ("GIF", "P")])  # fmt: skip
def test_formats_and_colour_modes_are_read_as_in_the_reference(kind: str, mode: str) -> None:
    data = encoded(picture(40, 40, mode=mode), kind=kind)
    assert np.array_equal(READER.read(data).pixels_M3YX, theirs(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_stands_on_white(mode: str) -> None:
    image = picture(30, 30, mode=mode)
    image.putalpha(0)
    assert np.asarray(decode(encoded(image))).min() == 255


def test_transparent_colour_of_a_palette_stands_on_white() -> None:
    image = Image.new("P", (8, 8), color=3)
    image.putpalette([10 * i for i in range(3 * 8)])
    assert np.asarray(decode(encoded(image, transparency=3))).min() == 255


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey_YX = np.arange(0, 65_536, 256, dtype=np.uint16).reshape(16, 16)
    assert np.asarray(decode(encoded(Image.fromarray(grey_YX))))[..., 0].tolist() == (grey_YX // 256).tolist()


def test_camera_orientation_is_followed() -> None:
    image = picture(20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: what was stored as rows is a column
    data = encoded(image, exif=exif)
    assert decode(data).size == (10, 20)
    assert decode(data).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_a_moving_picture_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    data = encoded(
        frames[0], kind=kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
    )
    assert decode(data).getpixel((3, 3)) == (255, 0, 0)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


WHOLE = encoded(picture(64, 64))
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the picture is empty (0 bytes)"),
    "text": (b"hello, I am a picture", "no known format; choose from: PNG, JPEG, WEBP, GIF, BMP"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no known format"),
    "tiff": (encoded(picture(4, 4), kind="TIFF"), "no known format"),
    "signature": (WHOLE[:8], "the picture"),
    "half": (WHOLE[: len(WHOLE) // 2], "truncated or broken"),
    "half_jpeg": (encoded(picture(64, 64), kind="JPEG")[:900], "truncated or broken"),
    "no_pixels": (png_header(10, 10), "truncated or broken"),
    "damaged": (WHOLE[:60] + b"\xff" * 40 + WHOLE[100:], "truncated or broken"),
    "large": (png_header(8000, 7000), "the picture has 8000 x 7000 pixels, the most is 50000000"),
    "bomb": (png_header(12_000, 12_000), "pixels, the most is 50000000"),
    "huge_bomb": (png_header(2**31 - 1, 2**31 - 1), "pixels, the most is 50000000"),
    "many_bytes": (b"\0" * (images.MAX_FILE_BYTES + 1), "20971521 bytes, the most is 20971520"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_picture_is_refused_in_one_line(case: str) -> None:
    data, said = BAD[case]
    with pytest.raises(RequestError, match="^the picture") as caught:
        decode(data, param="messages[0].content[1]")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.param, caught.value.code) == ("messages[0].content[1]", "invalid_image")


@settings(max_examples=150)
@given(data=st.data(), kind=st.sampled_from(images.FORMATS))
def test_damaged_file_never_does_more_than_refuse(data: st.DataObject, kind: str) -> None:
    whole = bytearray(encoded(picture(24, 18), kind=kind))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    kept = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(RequestError):  # whatever else it raises fails the test
        decode(kept)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/a.png", "pictures are not fetched (http URL)"),
        ("https://example.com/a.png", "not fetched (https URL); send the file itself as data:image/png;base64,..."),
        ("file:///etc/passwd", "not fetched (file URL)"),
        ("", "not fetched (no URL)"),
        ("data:text/plain;base64,aGk=", "begins with data:image/TYPE;base64,"),
        ("data:image/png,abc", "begins with data:image/TYPE;base64,"),
        ("data:image/png;base64", "begins with data:image/TYPE;base64,"),
        ("data:image/png;base64,a", "not valid base64"),
        ("data:image/png;base64,aGk=\n", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
    ],
)
def test_url_that_is_no_picture_is_refused(url: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_data_uri(url)
    assert said in str(caught.value)


def test_data_uri_gives_back_the_file() -> None:
    uri = "data:image/png;base64," + base64.b64encode(WHOLE).decode()
    assert read_data_uri(uri) == read_data_uri("DATA:image/PNG;BASE64," + uri.partition(",")[2]) == WHOLE


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read the picture .*none.png: No such file"):
        read_file(tmp_path / "none.png")
    (tmp_path / "one.png").write_bytes(WHOLE)
    assert read_file(tmp_path / "one.png") == WHOLE


def test_missing_pillow_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'aha\[vision\]'"):
        decode(WHOLE)


def test_colours_and_tile_counts_come_from_the_folder(tmp_path: Path) -> None:
    assert PictureReader.load(tmp_path, tile_size=TILE, tokens_per_tile=4) == READER
    processor = GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE}, max_patches=6)
    processor.save_pretrained(tmp_path)
    reader = PictureReader.load(tmp_path, tile_size=TILE, tokens_per_tile=4)
    assert reader.max_tiles == 6
    image = picture(150, 70)
    assert np.array_equal(
        reader.read(encoded(image)).pixels_M3YX, np.stack(processor(images=image, crop_to_patches=True)["pixel_values"])
    )


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"size": {"height": 384, "width": 384}}, "tiles of 28 by 28 pixels"),
        ({"size": 28}, "cannot be read"),
        ({"resample": 2}, "only 3 (bicubic) is"),
        ({"rescale_factor": 1.0}, "only 1/255 is"),
        ({"do_normalize": False}, "do_normalize false"),
        ({"image_std": [0, 1, 1]}, "std above 0"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"max_patches": 10_000}, "1 <= min <= max <= 64"),
        ([], "cannot be read"),
    ],
)
def test_preprocessing_that_would_be_done_wrongly_is_refused(raw: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError) as caught:
        PictureReader.load(tmp_path, tile_size=TILE, tokens_per_tile=4)
    assert said in str(caught.value)
