"""Which model is meant: its shape, from a name, a folder or any config.json. Nothing is loaded."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from typing import Literal

from aha.catalogue import find_entry, list_entries, published_format
from aha.errors import ModelError
from aha.estimate.hardware import GPU
from aha.models.config import ModelConfig
from aha.models.known import KNOWN_CONFIGS, KNOWN_MODELS, known_config


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model as an estimate sees it."""

    name: str
    config: ModelConfig
    source: str
    """Where the configuration was read."""
    published_format: Literal["bfloat16", "float8"] = "bfloat16"
    """Of its weights, by its config.json."""

    def natural_format(self, gpu: GPU) -> Literal["bfloat16", "float8"]:
        """What its layers are multiplied in where nobody says: FP8 where it is published so and the GPU can."""
        return self.published_format if self.published_format in gpu.teraflops else "bfloat16"


def known_shape(model_id: str) -> Shape:
    """The shape of a model of known.toml, by its whole id: no file and no network is asked."""
    raw = KNOWN_CONFIGS[model_id]
    source = next(model.source for model in KNOWN_MODELS if model_id in model.configs)
    return Shape(name=model_id, config=known_config(model_id), source=source, published_format=published_format(raw))


def find_shape(name: str) -> Shape:
    """The shape of a model: a hub id, with its owner or without, a built-in name, a folder or a config.json.

    Raises:
        ModelError: nothing of that name, or a configuration that cannot be read.
    """
    known = {id.partition("/")[2].lower(): id for entry in list_entries() for id in entry.ids}
    try:
        entry = find_entry(known.get(name.lower(), name))
    except ModelError:
        # No path and no hub id: a name, of which the shorter and the longer one is a likelier slip than a letter.
        near = sorted((id for id in known if id.startswith(name.lower())), key=len)
        near = near or difflib.get_close_matches(name.lower(), known, n=1)
        if "/" in name or os.path.exists(name) or not near:
            raise
        raise ModelError(f"unknown model {name!r}; did you mean {known[near[0]]!r}? aha models lists all") from None
    if entry.config is None:
        raise ModelError(f"the shape of {name!r} is not known: {entry.note}")
    return Shape(name=entry.name, config=entry.config, source=entry.source, published_format=entry.published_format)
