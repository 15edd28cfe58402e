"""Which model is meant: its shape, from a name, a folder or any config.json. Nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from aha.catalogue import find_entry, list_entries
from aha.errors import ModelError
from aha.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model as an estimate sees it."""

    name: str
    config: ModelConfig
    source: str
    """Where the configuration was read."""


def find_shape(name: str) -> Shape:
    """The shape of a model: a hub id, with its owner or without, a built-in name, a folder or a config.json.

    Raises:
        ModelError: nothing of that name, or a configuration that cannot be read.
    """
    known = {id.partition("/")[2].lower(): id for entry in list_entries() for id in entry.ids}
    entry = find_entry(known.get(name.lower(), name))
    if entry.config is None:
        raise ModelError(f"the shape of {name!r} is not known: {entry.note}")
    return Shape(name=entry.name, config=entry.config, source=entry.source)
