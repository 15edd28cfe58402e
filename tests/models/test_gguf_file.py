"""Blocks of every type against ggml's formulas, written out one value at a time; and files that lie."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from aha.errors import ModelError
from aha.models.gguf_file import READABLE, read_gguf

Block = bytes


def half(block: Block, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def f32(block: Block) -> list[float]:
    return list(struct.unpack("<f", block))


def f16(block: Block) -> list[float]:
    return [half(block, 0)]


def bf16(block: Block) -> list[float]:
    return list(struct.unpack("<f", b"\0\0" + block))


def q8_0(block: Block) -> list[float]:
    return [half(block, 0) * q for q in struct.unpack_from("<32b", block, 2)]


def q4_0(block: Block) -> list[float]:
    quants = block[2:]
    return [half(block, 0) * (q - 8) for q in [*(b & 15 for b in quants), *(b >> 4 for b in quants)]]


def q4_1(block: Block) -> list[float]:
    quants = block[4:]
    return [half(block, 0) * q + half(block, 2) for q in [*(b & 15 for b in quants), *(b >> 4 for b in quants)]]


def five_bits(high: bytes, low: bytes) -> list[int]:
    """The fifth bit of value i is bit i of the four bytes before the nibbles."""
    bits = int.from_bytes(high, "little")
    return [
        nibble | ((bits >> i & 1) << 4) for i, nibble in enumerate([*(b & 15 for b in low), *(b >> 4 for b in low)])
    ]


def q5_0(block: Block) -> list[float]:
    return [half(block, 0) * (q - 16) for q in five_bits(block[2:6], block[6:])]


def q5_1(block: Block) -> list[float]:
    return [half(block, 0) * q + half(block, 2) for q in five_bits(block[4:8], block[8:])]


def q2_k(block: Block) -> list[float]:
    scales, quants, d, dmin = block[:16], block[16:80], half(block, 80), half(block, 82)
    values = []
    for i in range(256):
        scale = scales[i // 16]
        quant = quants[32 * (i // 128) + i % 32] >> 2 * (i % 128 // 32) & 3
        values.append(d * (scale & 15) * quant - dmin * (scale >> 4))
    return values


def q3_k(block: Block) -> list[float]:
    mask, quants, packed, d = block[:32], block[32:96], block[96:108], half(block, 108)
    values = []
    for i in range(256):
        group = i // 16
        low = packed[group] & 15 if group < 8 else packed[group - 8] >> 4
        scale = (low | (packed[8 + group % 4] >> 2 * (group // 4) & 3) << 4) - 32
        quant = quants[32 * (i // 128) + i % 32] >> 2 * (i % 128 // 32) & 3
        is_set = mask[i % 32] >> (4 * (i // 128) + i % 128 // 32) & 1
        values.append(d * scale * (quant - (0 if is_set else 4)))
    return values


def six_bit_scale(packed: bytes, group: int) -> tuple[int, int]:
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    return packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4


def q4_k(block: Block) -> list[float]:
    d, dmin, packed, quants = half(block, 0), half(block, 2), block[4:16], block[16:144]
    values = []
    for i in range(256):
        scale, minimum = six_bit_scale(packed, i // 32)
        quant = quants[32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15
        values.append(d * scale * quant - dmin * minimum)
    return values


def q5_k(block: Block) -> list[float]:
    d, dmin, packed, high, quants = half(block, 0), half(block, 2), block[4:16], block[16:48], block[48:176]
    values = []
    for i in range(256):
        scale, minimum = six_bit_scale(packed, i // 32)
        quant = quants[32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15
        quant |= (high[i % 32] >> i // 32 & 1) << 4
        values.append(d * scale * quant - dmin * minimum)
    return values


def q6_k(block: Block) -> list[float]:
    low, high, scales, d = block[:128], block[128:192], struct.unpack_from("<16b", block, 192), half(block, 208)
    values = []
    for i in range(256):
        part, quarter, lane = i // 128, i % 128 // 32, i % 32
        nibble = low[64 * part + 32 * (quarter % 2) + lane] >> 4 * (quarter // 2) & 15
        quant = (nibble | (high[32 * part + lane] >> 2 * quarter & 3) << 4) - 32
        values.append(d * scales[i // 16] * quant)
    return values


FORMULAS: dict[str, Callable[[Block], list[float]]] = {
    "F32": f32, "F16": f16, "BF16": bf16, "Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1,
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
HALVES = {"F16": (0,), "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82),
          "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # fmt: skip
"""Where a block has its float16 numbers, which random bytes would make NaN."""


def random_block(kind: str, generator: random.Random) -> Block:
    block = bytearray(generator.randbytes(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]))
    for at in HALVES.get(kind, ()):
        struct.pack_into("<e", block, at, generator.uniform(-2, 2))
    if kind == "F32":
        struct.pack_into("<f", block, 0, generator.uniform(-2, 2))
    if kind == "BF16":
        block[1] = 0x3F
    return bytes(block)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(*, fields: bytes = b"", num_fields: int = 0, tensors: bytes = b"", num_tensors: int = 0, data: bytes = b"",
         version: int = 3) -> bytes:  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + fields + tensors
    return head + b"\0" * (-len(head) % 32) + data


def tensor_info(name: str, shape: tuple[int, ...], kind: int, *, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + axes + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize("kind", READABLE)
def test_block_is_what_its_formula_says(tmp_path: Path, kind: str) -> None:
    generator = random.Random(kind)
    number = GGMLQuantizationType[kind]
    num_values = GGML_QUANT_SIZES[number][0]
    blocks = [random_block(kind, generator) for _ in range(3 * 2)]
    info = tensor_info("odd", (3, 2 * num_values), number.value)
    (tmp_path / "m.gguf").write_bytes(gguf(tensors=info, num_tensors=1, data=b"".join(blocks)))
    tensor = read_gguf(tmp_path / "m.gguf").tensors["odd"]
    expected = np.array([FORMULAS[kind](block) for block in blocks]).reshape(3, -1)
    assert tensor.shape == (3, 2 * num_values)
    np.testing.assert_allclose(tensor.values(slice(None)), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(tensor.values(np.array([2, 0])), tensor.values(slice(None))[[2, 0]])
    assert len({round(value, 6) for value in expected.reshape(-1)}) >= 6, "the blocks are not all the same"


def test_super_block_made_by_hand_has_the_values_it_was_made_of(tmp_path: Path) -> None:
    """Q4_K: eight groups of 32 values, each with a six-bit scale and minimum that are packed into twelve bytes."""
    scales, minimums = [1, 2, 3, 63, 17, 32, 48, 5], [0, 7, 63, 1, 16, 33, 2, 60]
    packed = [scales[i] | scales[4 + i] >> 4 << 6 for i in range(4)]
    packed += [minimums[i] | minimums[4 + i] >> 4 << 6 for i in range(4)]
    packed += [scales[4 + i] & 15 | (minimums[4 + i] & 15) << 4 for i in range(4)]
    quants = [[(7 * group + 3 * i) % 16 for i in range(32)] for group in range(8)]
    nibbles = [quants[2 * pair][i] | quants[2 * pair + 1][i] << 4 for pair in range(4) for i in range(32)]
    block = struct.pack("<ee", 0.5, 0.25) + bytes(packed) + bytes(nibbles)
    info = tensor_info("w", (1, 256), GGMLQuantizationType.Q4_K.value)
    (tmp_path / "m.gguf").write_bytes(gguf(tensors=info, num_tensors=1, data=block))
    expected = [0.5 * scales[g] * quants[g][i] - 0.25 * minimums[g] for g in range(8) for i in range(32)]
    assert read_gguf(tmp_path / "m.gguf").tensors["w"].values(slice(None))[0].tolist() == expected


def test_metadata_of_every_type_is_read(tmp_path: Path) -> None:
    codes = {0: ("<B", 200), 1: ("<b", -3), 2: ("<H", 60000), 3: ("<h", -300), 4: ("<I", 2**31), 5: ("<i", -70000),
             6: ("<f", 0.5), 7: ("<?", True), 10: ("<Q", 2**40), 11: ("<q", -(2**40)), 12: ("<d", 0.1)}  # fmt: skip
    fields = b"".join(text(f"k{t}") + struct.pack("<I", t) + struct.pack(c, v) for t, (c, v) in codes.items())
    fields += text("s") + struct.pack("<I", 8) + text("grün")
    fields += text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("")
    fields += text("floats") + struct.pack("<IIQ2f", 9, 6, 2, 1.0, -2.5)
    (tmp_path / "m.gguf").write_bytes(gguf(fields=fields, num_fields=len(codes) + 3, version=2))
    found = read_gguf(tmp_path / "m.gguf").fields
    assert all(found[f"k{t}"] == value for t, (_, value) in codes.items())
    assert (found["s"], found["words"], found["floats"]) == ("grün", ["a", ""], [1.0, -2.5])


ENDLESS = text("k") + struct.pack("<IIQ", 9, 0, 2**60)
"""A list of 2**60 bytes in a file of a hundred: the gguf package's reader goes through them one by one."""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"GG", "the magic number needs 4 bytes at byte 0, the file has 2 more"),
        (b"not a gguf file at all", "does not begin with 'GGUF'"),
        (gguf(version=1), "it is version 1; only versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is big-endian"),
        (gguf(num_tensors=2**63), "the number of tensors is 9223372036854775808, more than the file has room for"),
        (gguf(num_fields=2**63), "the number of metadata entries is 9223372036854775808, more than"),
        (gguf(fields=ENDLESS, num_fields=1), "the length of metadata 'k' is 1152921504606846976, more than"),
        (gguf(fields=text("k") + struct.pack("<IIQ", 9, 9, 1), num_fields=1), "'k' is a list of the unknown type 9"),
        (gguf(fields=text("k") + struct.pack("<I", 99), num_fields=1), "metadata 'k' has the unknown type 99"),
        (
            gguf(fields=struct.pack("<Q", 2**62), num_fields=1, data=b"\0" * 32),
            "the length of a metadata key is 4611686018427387904",
        ),
        (gguf(fields=struct.pack("<Q", 2) + b"\xff\xfe" + b"\0" * 16, num_fields=1), "a metadata key is not UTF-8"),
        (gguf(fields=(text("k") + struct.pack("<IB", 0, 1)) * 2, num_fields=2), "metadata 'k' is there twice"),
        (gguf(tensors=tensor_info("w", (2**40, 2**40), 0), num_tensors=1), "it is truncated"),
        (gguf(tensors=tensor_info("w", (2, 8), 0, offset=2**63), num_tensors=1), "it is truncated"),
        (gguf(tensors=tensor_info("w", (1,) * 9, 0), num_tensors=1), "tensor 'w' has 9 axes"),
        (gguf(tensors=tensor_info("w", (0, 8), 0), num_tensors=1), "has shape (0, 8)"),
        (gguf(tensors=tensor_info("w", (2, 40), 8), num_tensors=1), "rows are not whole blocks of 32"),
        (gguf(tensors=tensor_info("w", (1, 256), 16), num_tensors=1), "unknown GGUF tensor type 'IQ2_XXS'"),
        (gguf(tensors=tensor_info("w", (1, 256), 4), num_tensors=1), "unknown GGUF tensor type '4'"),
        (gguf(tensors=tensor_info("w", (1, 1), 0) * 2, num_tensors=2, data=b"\0" * 8), "tensor 'w' is there twice"),
        (gguf(fields=text("general.alignment") + struct.pack("<II", 4, 3), num_fields=1), "must be a power of two"),
        (gguf(fields=text("general.alignment") + struct.pack("<II", 4, 0), num_fields=1), "must be a power of two"),
    ],
)
def test_file_that_lies_is_one_clear_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_gguf(tmp_path / "m.gguf")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    block = struct.pack("<e", float("inf")) + bytes(range(32))
    info = tensor_info("w", (1, 32), GGMLQuantizationType.Q8_0.value)
    (tmp_path / "m.gguf").write_bytes(gguf(tensors=info, num_tensors=1, data=block))
    with pytest.raises(ModelError, match="tensor 'w' holds NaN or infinity"):
        read_gguf(tmp_path / "m.gguf").tensors["w"].values(slice(None))
