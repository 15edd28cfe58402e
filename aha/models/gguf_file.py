"""What a GGUF file says: its metadata and where its tensors lie. Every length is checked before it is believed.

Layout: ggml's docs/gguf.md, versions 2 and 3. The gguf package's own reader walks a file's arrays element by element
for as long as the file tells it to, past the end too, so a file of a few bytes can keep it busy for ever.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from aha.errors import ModelError, unknown_name

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types of tensors, by ggml's names, that are read; each against its own formula in the tests."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# Shortest possible entries, to tell a count that the file cannot hold: an empty name, a type and one byte; an empty
# name, one axis, a type and an offset.
_FIELD_BYTES, _TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_MAX_AXES = 4  # GGML_MAX_DIMS


class GgufTensor(NamedTuple):
    """One tensor, not yet read."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    """Outermost axis first, as PyTorch counts; the file counts the other way round."""
    rows: NDArray[np.uint8]
    """(number of rows, bytes of a row), as they lie in the file."""

    def values(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """The values of some rows, in float32, (number of rows, shape[-1]). Each row is quantised by itself.

        Raises:
            ModelError: a value is NaN or infinite.
        """
        with np.errstate(all="ignore"):  # a scale of NaN or infinity is told below
            stored = np.ascontiguousarray(self.rows[rows])
            if self.kind == GGMLQuantizationType.F32:
                stored = stored.view("<f4")
            elif self.kind == GGMLQuantizationType.F16:
                stored = stored.view("<f2")
            values: NDArray[np.float32] = dequantize(stored, self.kind).astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {self.name!r} holds NaN or infinity")
        return values


class GgufFile(NamedTuple):
    """A parsed file, mapped into memory."""

    path: Path
    fields: Mapping[str, Any]
    """Metadata: numbers, truth values, strings, and lists of one of those."""
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file and map its tensors.

    Raises:
        ModelError: one line that names the file and what is wrong with it: not GGUF, truncated, a version, byte order
            or type of tensor that is not read.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file
        raise ModelError(f"{path} is not a readable GGUF file: {error}") from None
    try:
        return _parse(_Cursor(data), path=path)
    except ModelError as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}") from None


class _Cursor:
    """A position in the file. Nothing is read that is not there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    @property
    def num_left(self) -> int:
        return len(self.data) - self.at

    def take(self, num_bytes: int, *, what: str) -> bytes:
        if num_bytes > self.num_left:
            raise ModelError(f"{what} needs {num_bytes} bytes at byte {self.at}, the file has {self.num_left} more")
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def number(self, code: str, *, what: str) -> Any:
        (value,) = struct.unpack(code, self.take(struct.calcsize(code), what=what))
        return value

    def count(self, code: str, *, item_bytes: int, what: str) -> int:
        """A number of items, each of which takes at least `item_bytes` of what is left."""
        value = int(self.number(code, what=what))
        if value * item_bytes > self.num_left:
            raise ModelError(f"{what} is {value}, more than the file has room for")
        return value

    def text(self, *, what: str) -> str:
        raw = self.take(self.count("<Q", item_bytes=1, what=f"the length of {what}"), what=what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"{what} is not UTF-8 text: {raw[:20]!r}") from None


def _parse(cursor: _Cursor, *, path: Path) -> GgufFile:
    if cursor.take(4, what="the magic number") != b"GGUF":
        raise ModelError("it does not begin with 'GGUF'")
    version = cursor.number("<I", what="the version")
    if version not in (2, 3):
        swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
        problem = "big-endian" if swapped in (2, 3) else f"version {version}"
        raise ModelError(f"it is {problem}; only versions 2 and 3 in little-endian order are read")
    num_tensors = cursor.count("<Q", item_bytes=_TENSOR_BYTES, what="the number of tensors")
    num_fields = cursor.count("<Q", item_bytes=_FIELD_BYTES, what="the number of metadata entries")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        name = cursor.text(what="a metadata key")
        if name in fields:
            raise ModelError(f"metadata {name!r} is there twice")
        fields[name] = _read_value(cursor, name=name)
    infos = [_read_info(cursor) for _ in range(num_tensors)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"general.alignment must be a power of two, got {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise ModelError(f"tensor {info.name!r} is there twice")
        tensors[info.name] = _map_tensor(info, data=cursor.data, start=start)
    return GgufFile(path, fields, tensors)


def _read_value(cursor: _Cursor, *, name: str) -> Any:
    what = f"metadata {name!r}"
    kind = cursor.number("<I", what=what)
    if kind == _STRING:
        return cursor.text(what=what)
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], what=what)
    if kind != _ARRAY:
        raise ModelError(f"{what} has the unknown type {kind}")
    item = cursor.number("<I", what=what)
    if item == _STRING:
        length = cursor.count("<Q", item_bytes=8, what=f"the length of {what}")
        return [cursor.text(what=f"an item of {what}") for _ in range(length)]
    if item not in _SCALARS:
        raise ModelError(f"{what} is a list of the unknown type {item}")
    code = _SCALARS[item]
    length = cursor.count("<Q", item_bytes=struct.calcsize(code), what=f"the length of {what}")
    return np.frombuffer(cursor.take(length * struct.calcsize(code), what=what), dtype=code).tolist()


class _Info(NamedTuple):
    """What the header says of one tensor."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _read_info(cursor: _Cursor) -> _Info:
    name = cursor.text(what="a tensor's name")
    what = f"tensor {name!r}"
    num_axes = cursor.number("<I", what=what)
    if not 1 <= num_axes <= _MAX_AXES:
        raise ModelError(f"{what} has {num_axes} axes; 1 to {_MAX_AXES} are possible")
    axes = struct.unpack(f"<{num_axes}Q", cursor.take(8 * num_axes, what=what))
    return _Info(name, axes[::-1], cursor.number("<I", what=what), cursor.number("<Q", what=what))


def _map_tensor(info: _Info, *, data: mmap.mmap, start: int) -> GgufTensor:
    what = f"tensor {info.name!r}"
    names = {kind.value: kind.name for kind in GGMLQuantizationType}
    if names.get(info.kind) not in READABLE:
        raise ModelError(f"{what}: " + unknown_name("GGUF tensor type", names.get(info.kind, str(info.kind)), READABLE))
    kind = GGMLQuantizationType(info.kind)
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    if info.shape[-1] % block_values or 0 in info.shape:
        raise ModelError(f"{what} has shape {info.shape}, whose rows are not whole blocks of {block_values} values")
    row_bytes = info.shape[-1] // block_values * block_bytes
    num_rows = math.prod(info.shape[:-1])
    begin, end = start + info.offset, start + info.offset + num_rows * row_bytes
    if end > len(data):
        raise ModelError(f"{what} ends at byte {end}, the file at byte {len(data)}: it is truncated")
    rows = np.frombuffer(data, dtype=np.uint8, count=num_rows * row_bytes, offset=begin)
    return GgufTensor(info.name, kind, info.shape, rows.reshape(num_rows, row_bytes))
