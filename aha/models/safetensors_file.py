"""Safetensors files read and written tensor by tensor, so that no more than one of them is in memory besides the model.

The library's own reader maps the file, and pages of it that were read count as memory of ours; its writer wants all
tensors at once. Here the library checks a file's form, and plain reads and writes move the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aha.errors import ModelError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
"""safetensors' name of a dtype -> torch's, in the order of the library."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


class TensorHeader(NamedTuple):
    """What a file declares about a tensor."""

    dtype: str
    """safetensors' name of it."""
    shape: tuple[int, ...]
    start: int
    """First byte of its data in the file."""
    num_bytes: int


class SafetensorsFile:
    """An open file whose form has been checked."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        declared = json.loads(file.read(header_bytes))
        declared.pop("__metadata__", None)
        self.headers: dict[str, TensorHeader] = {}
        for name, header in declared.items():
            start, end = header["data_offsets"]
            place = 8 + header_bytes + start
            self.headers[name] = TensorHeader(header["dtype"], tuple(header["shape"]), place, end - start)
        """Name -> header, in the order of the data."""

    def read(self, name: str) -> Tensor:
        """A tensor's values, in the file's dtype, in memory of their own."""
        header = self.headers[name]
        values = torch.empty(header.shape, dtype=DTYPES[header.dtype])
        self._fill(values, header)
        return values

    def read_into(self, target: Tensor, *, name: str) -> None:
        """Put a tensor's values into one of the same shape; of the same dtype, without a copy between."""
        header = self.headers[name]
        if target.dtype == DTYPES[header.dtype] and target.device.type == "cpu" and target.is_contiguous():
            self._fill(target, header)
        else:
            target.copy_(self.read(name))

    def _fill(self, values: Tensor, header: TensorHeader) -> None:
        if not header.num_bytes:
            return
        rest = _as_bytes(values)
        self._file.seek(header.start)
        while rest:
            count = self._file.readinto(rest)
            if not count:
                raise OSError("the file became shorter while it was read")
            rest = rest[count:]


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsFile]:
    """A safetensors file; a torn one is the user's error, not ours.

    Raises:
        ModelError: naming a file that is truncated, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # it has checked header, offsets and length
        with path.open("rb", buffering=0) as file:
            yield SafetensorsFile(path, file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None


class SafetensorsWriter:
    """A file that is written byte for byte as the library writes it, with one tensor in memory at a time.

    Args:
        shapes: dtype and shape of every tensor; each is to be written once, in any order.
    """

    def __init__(self, path: Path, *, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._shapes = shapes
        # The library's order: wide dtypes first, so that all are aligned, then names.
        names = sorted(shapes, key=lambda name: (-_RANKS[shapes[name][0]], name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._starts, end = {}, 0
        for name in names:
            dtype, shape = shapes[name]
            self._starts[name], end = end, end + tensor_bytes(dtype, shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [self._starts[name], end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        # Without a buffer: closing it when the disk is full would fail once more.
        self._file = path.open("wb", buffering=0)
        try:
            self._write_all(memoryview(struct.pack("<Q", len(text)) + text))
            self._file.truncate(self._data + end)
        except OSError:
            self._file.close()
            raise

    def write(self, name: str, values: Tensor) -> None:
        """Put a tensor in its place, in the dtype that was announced."""
        dtype, shape = self._shapes[name]
        assert tuple(values.shape) == shape, name
        if values.numel():
            self._file.seek(self._data + self._starts[name])
            self._write_all(_as_bytes(values.to("cpu", dtype).contiguous()))

    def _write_all(self, rest: memoryview) -> None:
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        self._file.close()


def tensor_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _as_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(values.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
