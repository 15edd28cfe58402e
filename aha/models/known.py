"""Well-known open models (known.toml): their configurations, so that tables and dry runs need no download."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from aha.errors import ModelError, unknown_name
from aha.models.config import ModelConfig
from aha.models.config_files import parse_config

Verified = Literal["real weights", "random weights", "config only"]
"""How far a model is verified in this project: see the head of known.toml."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One shape of known.toml, with the names that share it."""

    name: str
    """Without its owner, the variants' suffixes in brackets: "Qwen2.5-7B (-Instruct)"."""
    family: str
    owner: str
    licence: str
    verified: Verified
    price_id: str
    """In the price book; empty where no API is known that sells this very model."""
    source: str
    """Where the configuration was read."""
    note: str
    configs: Mapping[str, Mapping[str, Any]]
    """Hugging Face id of each variant -> its configuration, in the dialect of config.json."""


def _read_known() -> tuple[KnownModel, ...]:
    tables = tomllib.loads(resources.files("aha.models").joinpath("known.toml").read_text(encoding="utf-8"))
    known: dict[str, Mapping[str, Any]] = {}
    models = []
    for family in tables["family"]:
        for name, table in family["models"].items():
            model = _read_model(name, {**family, **table}, family, towers=tables["towers"], known=known)
            models.append(model)
            known.update(model.configs)
    return tuple(models)


def _read_model(
    name: str,
    table: Mapping[str, Any],
    family: Mapping[str, Any],
    *,
    towers: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
) -> KnownModel:
    own = table["config"] if table["config"] is not family["config"] else {}
    raw = {**family["config"], **own}
    if "q_lora_rank" in raw:
        raw["q_lora_rank"] = raw["q_lora_rank"] or None  # TOML has no null
    if "language" in table:
        text = {**known[table["language"]], **table["text"]}
        raw |= {"text_config": text, "vision_config": towers[table["tower"]], "tie_word_embeddings": False}
    variants = table.get("variants", {"": {}})
    suffixes = [suffix for suffix in variants if suffix]
    shown = name + (f" ({', '.join(suffixes)})" if "" in variants and suffixes else "".join(suffixes))
    return KnownModel(
        name=shown,
        family=table["name"],
        owner=table["owner"],
        licence=table["licence"],
        verified=table["verified"],
        price_id=table.get("price", ""),
        source=table["source"],
        note=table.get("note", ""),
        configs={f"{table['owner']}/{name}{suffix}": raw | keys for suffix, keys in variants.items()},
    )


KNOWN_MODELS: tuple[KnownModel, ...] = _read_known()
"""In the order of known.toml."""

KNOWN_CONFIGS: dict[str, Mapping[str, Any]] = {
    model_id: raw for model in KNOWN_MODELS for model_id, raw in model.configs.items()
}
"""Hugging Face id -> its configuration, in the dialect of config.json."""


def known_config(name: str) -> ModelConfig:
    """The configuration of a model of KNOWN_CONFIGS, by its Hugging Face id.

    Raises:
        ModelError: for an id that is not listed, with the nearest ones.
    """
    if name not in KNOWN_CONFIGS:
        raise ModelError(unknown_name("model", name, KNOWN_CONFIGS))
    return parse_config(KNOWN_CONFIGS[name], source=name)


def find_known(words: str) -> Iterator[KnownModel]:
    """Models whose name, id or family contains every one of the words, whatever their case."""
    wanted = words.lower().split()
    for model in KNOWN_MODELS:
        text = " ".join((model.name, model.family, *model.configs)).lower()
        if all(word in text for word in wanted):
            yield model
