"""From the bytes of a picture file to the tiles that a vision tower sees. Pillow decodes; nothing is fetched.

A file is data from anywhere: only common formats are tried, its size is known before its pixels are unpacked, and
whatever is wrong with it ends in one line.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aha.errors import ConfigError, ModelError, RequestError
from aha.types import Message, Picture

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Each further decoder is more code that strangers' bytes reach. Of moving pictures the first frame is taken."""
MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
"""150 MB once unpacked; the cameras of current telephones stay below."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3
"""Pillow's and Hugging Face's number of the filter."""


class Grid(NamedTuple):
    """How a picture is cut."""

    num_columns: int
    num_rows: int


def choose_grid(width: int, height: int, *, tile_size: int, min_tiles: int = 1, max_tiles: int = 12) -> Grid:
    """The grid whose shape is nearest to the picture's; of two alike the larger one, if the picture fills half of it.

    Source: InternVL 1.5 (arXiv:2404.16821) §3.2, "dynamic aspect ratio matching".

    Args:
        width: of the picture in pixels, as `height`.
        tile_size: rows and columns of a tile, in pixels.
    """
    grids = [Grid(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    best, least = Grid(1, 1), math.inf
    for grid in sorted(grids, key=math.prod):  # stable: among as many tiles, fewer columns first
        num_tiles = math.prod(grid)
        difference = abs(width / height - grid.num_columns / grid.num_rows)
        is_half_filled = width * height > 0.5 * tile_size**2 * num_tiles
        if num_tiles >= min_tiles and (difference < least or (difference == least and is_half_filled)):
            best, least = grid, difference
    return best


@dataclass(frozen=True, kw_only=True)
class PictureReader:
    """Reads pictures for one model."""

    tile_size: int
    """Rows and columns of a tile, in pixels."""
    tokens_per_tile: int
    min_tiles: int = 1
    max_tiles: int = 12
    """Without the small copy of the whole picture that follows several tiles."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    """Of each colour, on the scale from 0 to 1."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles <= 64:
            raise ModelError(f"tiles must be 1 <= min <= max <= 64, got {self.min_tiles} and {self.max_tiles}")
        if not len(self.mean) == len(self.std) == 3 or not all(0 < value < math.inf for value in self.std):
            raise ModelError(f"mean and std must be three numbers, std above 0, got {self.mean} and {self.std}")

    @classmethod
    def load(cls, folder: Path, *, tile_size: int, tokens_per_tile: int) -> PictureReader:
        """With the colours and tile counts of the folder's preprocessor_config.json, or InternVL's without one.

        Raises:
            ModelError: a file that cannot be read, or that asks for pictures which this model cannot take.
        """
        path = folder / "preprocessor_config.json"
        try:
            if not path.exists() and (folder / "processor_config.json").exists():
                path = folder / "processor_config.json"  # where transformers 5 writes it
            raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            raw = raw.get("image_processor", raw)
            _refuse_other_processing(raw, tile_size=tile_size)
            return cls(
                tile_size=tile_size,
                tokens_per_tile=tokens_per_tile,
                min_tiles=int(raw.get("min_patches", 1)),
                max_tiles=int(raw.get("max_patches", 12)),
                mean=tuple(float(value) for value in raw.get("image_mean", IMAGENET_MEAN)),
                std=tuple(float(value) for value in raw.get("image_std", IMAGENET_STD)),
            )
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None

    def read(self, data: bytes, *, position: int = 0, param: str | None = None) -> Picture:
        """The picture in a file, as tiles in reading order and then, if there are several, the whole of it as one.

        Args:
            position: characters of its message that stand before it.
            param: what the caller of an API calls it, for errors.

        Raises:
            RequestError: not a picture, a broken one, or one that is too large.
            ConfigError: Pillow is not installed.
        """
        image = decode(data, param=param)
        size = self.tile_size
        grid = choose_grid(*image.size, tile_size=size, min_tiles=self.min_tiles, max_tiles=self.max_tiles)
        whole_YX3 = np.asarray(image.resize((size * grid.num_columns, size * grid.num_rows), resample=BICUBIC))
        tiles_RYCX3 = whole_YX3.reshape(grid.num_rows, size, grid.num_columns, size, 3)
        tiles_MYX3 = tiles_RYCX3.swapaxes(1, 2).reshape(-1, size, size, 3)
        if len(tiles_MYX3) > 1:
            small_YX3 = np.asarray(image.resize((size, size), resample=BICUBIC))
            tiles_MYX3 = np.concatenate((tiles_MYX3, small_YX3[None]))
        return Picture(
            pixels_M3YX=self._normalise(tiles_MYX3),
            num_tokens=len(tiles_MYX3) * self.tokens_per_tile,
            position=position,
        )

    def _normalise(self, tiles_MYX3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(colour / 255 - mean) / std, channels first, each step rounded to float32 as in the reference."""
        mean_3, std_3 = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        # Of 256 colours in three channels each is computed once.
        shades = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)
        table_3V = (shades[None, :] - mean_3[:, None]) / std_3[:, None]
        return np.stack([table_3V[channel][tiles_MYX3[..., channel]] for channel in range(3)], axis=1)


def _refuse_other_processing(raw: Mapping[str, Any], *, tile_size: int) -> None:
    """Whatever would make the pixels others than the ones this module makes."""
    size = raw.get("size") or {"height": tile_size, "width": tile_size}
    if dict(size) != {"height": tile_size, "width": tile_size}:
        raise ModelError(f"size {size} is not supported; config.json says tiles of {tile_size} by {tile_size} pixels")
    if raw.get("resample", BICUBIC) != BICUBIC:
        raise ModelError(f"resample {raw['resample']!r} is not supported; only {BICUBIC} (bicubic) is")
    if not math.isclose(float(raw.get("rescale_factor", 1 / 255)), 1 / 255, rel_tol=1e-6):
        raise ModelError(f"rescale_factor {raw['rescale_factor']} is not supported; only 1/255 is")
    for key in ("do_rescale", "do_normalize", "do_resize"):
        if not raw.get(key, True):
            raise ModelError(f"{key} false is not supported; only true is")


def decode(data: bytes, *, param: str | None = None) -> Image.Image:
    """The picture in a file: RGB, upright, what is transparent on white.

    Raises:
        RequestError: not a picture, a broken one, or one that is too large.
        ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ConfigError("pictures need Pillow; install it with: pip install 'aha[vision]'") from None
    if not data:
        raise _refusal("the picture is empty (0 bytes)", param=param)
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(f"the picture has {len(data)} bytes, the most is {MAX_FILE_BYTES}; make it smaller", param=param)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_many_pixels(f"{image.width} x {image.height} pixels", param=param)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("too many pixels", param=param) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise _refusal(f"the picture is of no known format; choose from: {known}", param=param) from None
    # Pillow's readers raise whatever a broken byte leads them to: struct.error, SyntaxError, KeyError, zlib.error...
    except Exception as error:  # noqa: BLE001
        raise _refusal(f"the picture is truncated or broken ({_first_line(error)})", param=param) from None


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion would cut every grey above 255 to white.
        grey_YX = np.clip(np.asarray(image) // 256, 0, 255)
        image = Image.fromarray(grey_YX.astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def read_data_uri(url: str, *, param: str | None = None) -> bytes:
    """The bytes in "data:image/png;base64,...".

    Raises:
        RequestError: another kind of URL, which is never fetched, or one that is not base64.
    """
    head, comma, body = url.partition(",")
    scheme = url.partition(":")[0][:20].lower()
    if scheme != "data":
        raise _refusal(
            f"pictures are not fetched ({scheme or 'no'} URL); send the file itself as data:image/png;base64,...",
            param=param,
        )
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        said = f"a picture's data URI begins with data:image/TYPE;base64, - got {head[:40]!r}"
        raise _refusal(said, param=param)
    try:
        return base64.b64decode(body.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise _refusal("the picture's data URI is not valid base64", param=param) from None


def read_file(path: Path) -> bytes:
    """The bytes of a picture file.

    Raises:
        RequestError: no such file, or one that is too large.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot read the picture {path}: {error.strerror}") from None


def stack_pixels(messages: Sequence[Message]) -> NDArray[np.float32] | None:
    """All tiles of a conversation, in the order in which the prompt has them."""
    tiles = [picture.pixels_M3YX for message in messages for picture in message.pictures]
    return np.concatenate(tiles) if tiles else None


def _too_many_pixels(what: str, *, param: str | None) -> RequestError:
    return _refusal(f"the picture has {what}, the most is {MAX_PIXELS} in all; make it smaller", param=param)


def _refusal(message: str, *, param: str | None) -> RequestError:
    return RequestError(message, param=param, code="invalid_image")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]
