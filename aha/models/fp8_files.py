"""Model folders in FP8: what config.json says of it, and where each weight's scales lie.

Source: README_WEIGHTS.md of DeepSeek-V3: beside each matrix X.weight in float8_e4m3fn stands X.weight_scale_inv,
float32, with one number for each block of 128 x 128. Embedding, head, norms, gate, and the projection of a
multi-token-prediction module's two inputs (eh_proj) stay in bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from aha.errors import ModelError
from aha.models.fp8 import dequantise_weight, quantise_weight, scale_shape
from aha.models.fp8_config import WEIGHT_BLOCK, Fp8Format, ScaleFormat
from aha.models.safetensors_file import SafetensorsFile, open_safetensors

Form = Literal["full", "fp8", "fp8_ue8m0"]
"""How a folder's matrices are stored: in the model's dtype, or in FP8, with scales of 24 bits or powers of two."""
SCALE_FORMATS: dict[str, ScaleFormat] = {"fp8": "float", "fp8_ue8m0": "ue8m0"}
"""Form → its scales."""
STORED_FP8 = "F8_E4M3"
"""safetensors' name of float8_e4m3fn."""

SCALE_SUFFIX = "_scale_inv"
_SCALE_DTYPES = ("F32", "BF16", "F8_E8M0")
_CONVERTED = re.compile(r"\.layers\.\d+\.(self_attn|mlp)\.(.+\.)?\w+_proj(_with_mqa)?\.weight$")


@dataclass(frozen=True)
class _Declared:
    """What a file says of a tensor."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass
class Fp8Weights:
    """The FP8 matrices of a folder: checked before anything is allocated, then read one at a time."""

    format: Fp8Format | None
    """None: the folder is plain, and holds none."""
    _weights: dict[str, _Declared] = field(default_factory=dict)
    _scales: dict[str, _Declared] = field(default_factory=dict)

    def note(self, name: str, *, path: Path, shape: tuple[int, ...], dtype: str) -> Literal["scale", "weight", "plain"]:
        """Take down what a file says of a tensor, if it is in FP8 or holds the scales of one that is.

        Raises:
            ModelError: a tensor that can be neither.
        """
        if self.format is None:
            return "plain"
        declared = _Declared(path, shape, dtype)
        if name.endswith(SCALE_SUFFIX):
            if name in self._scales:
                raise ModelError(f"{path}: tensor {name!r} is in another file of {path.parent} too")
            if dtype not in _SCALE_DTYPES:
                raise ModelError(f"{path}: tensor {name!r} has dtype {dtype}; choose from: {', '.join(_SCALE_DTYPES)}")
            self._scales[name] = declared
            return "scale"
        if dtype != STORED_FP8:
            return "plain"
        if len(shape) != 2:
            raise ModelError(f"{path}: tensor {name!r} is in FP8 and has shape {shape}; only matrices have blocks")
        if any(_is_part_of(name, module) for module in self.format.not_converted):
            raise ModelError(f"{path}: tensor {name!r} is in FP8, but config.json's modules_to_not_convert names it")
        self._weights[name] = declared
        return "weight"

    def check(self) -> None:
        """Compare weights with scales.

        Raises:
            ModelError: naming the scales that are missing, misshapen or nobody's.
        """
        if self.format is None:
            return
        for name, weight in self._weights.items():
            scale = self._scales.get(name + SCALE_SUFFIX)
            if scale is None:
                raise ModelError(f"{weight.path}: {name!r} is in FP8, but {name + SCALE_SUFFIX!r} is missing")
            expected = scale_shape(weight.shape, block=self.format.block)
            if scale.shape != expected:
                blocks = f"{weight.shape} in blocks of {list(self.format.block)} has {expected}"
                raise ModelError(f"{scale.path}: tensor {name + SCALE_SUFFIX!r} has shape {scale.shape}; {blocks}")
        for name, scale in self._scales.items():
            if name.removesuffix(SCALE_SUFFIX) not in self._weights:
                raise ModelError(f"{scale.path}: unexpected tensor {name!r}: no tensor in FP8 has these scales")

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def read_into(self, target: Tensor, *, name: str, file: SafetensorsFile) -> None:
        """Write one matrix of an open file into its parameter; its scales may lie in another file."""
        assert self.format is not None, "a plain folder holds none"
        scale = name + SCALE_SUFFIX
        path = self._scales[scale].path
        with nullcontext(file) if path == file.path else open_safetensors(path) as beside:
            scale_inv = beside.read(scale)
        if bool((scale_inv.float() <= 0).any()):
            raise ModelError(f"{path}: tensor {scale!r} has a scale that is not above 0; the file is damaged")
        dequantise_weight(file.read(name), scale_inv.to(target.device), out=target, block=self.format.block)


def _is_part_of(name: str, module: str) -> bool:
    """Whether a tensor belongs to a module of this name, or to one whose name ends in it."""
    owner = name.rpartition(".")[0]
    return owner == module or owner.startswith(module + ".") or owner.endswith("." + module)


def is_converted(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is stored in FP8 when a model is: every matrix of a layer's attention, feed-forward, experts."""
    return len(shape) == 2 and _CONVERTED.search("." + name) is not None


def fp8_tensors(tensors: Iterable[tuple[str, Tensor]], *, form: Form) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of a model's tensors with its layers' matrices in FP8, each followed by its scales.

    Raises:
        ModelError: a matrix that holds NaN or infinity, by its name.
    """
    for name, values in tensors:
        if not is_converted(name, values.shape):
            yield name, values
            continue
        quantised = quantise_weight(values, scale_fmt=SCALE_FORMATS[form])
        if not bool(quantised.scale_inv.isfinite().all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinity and cannot be written in FP8")
        yield name, quantised.values
        yield name + SCALE_SUFFIX, quantised.scale_inv


def fp8_format(names_and_shapes: Iterable[tuple[str, Sequence[int]]], *, form: Form) -> Fp8Format:
    """The format of a folder that `fp8_tensors` fills."""
    kept = {
        name.removesuffix(".weight")
        for name, shape in names_and_shapes
        if name.endswith(".weight") and len(shape) >= 2 and not is_converted(name, shape)
    }
    # Of tied weights the head is in no file, and is a module all the same.
    return Fp8Format(scale_fmt=SCALE_FORMATS[form], not_converted=tuple(sorted(kept | {"lm_head"})))


def is_ragged(name: str, shape: Sequence[int]) -> bool:
    """Whether a matrix that is stored in FP8 has a side that its blocks do not divide."""
    return is_converted(name, shape) and any(side % size for side, size in zip(shape, WEIGHT_BLOCK, strict=True))
