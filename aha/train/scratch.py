"""Models made from nothing: where the shape and the tokenizer that `architecture` names come from."""

from __future__ import annotations

from pathlib import Path

from aha import hub
from aha.errors import ConfigError, ModelError
from aha.models import ModelConfig, parse_config, read_config
from aha.models.shapes import SHAPES
from aha.train.stage import StageConfig


def architecture_config(config: StageConfig) -> ModelConfig:
    """The shape of a stage's model that is made from nothing.

    Raises:
        ConfigError: none is named, or nothing has that name.
        ModelError: a config.json that cannot be used.
    """
    if config.architecture in SHAPES:
        return parse_config(SHAPES[config.architecture], source=config.architecture)
    return read_config(tokenizer_folder(config))


def tokenizer_folder(config: StageConfig) -> Path:
    """The folder of its tokenizer: the model whose shape it takes, or the built-in one for a shape by name."""
    if not config.architecture:
        raise ConfigError(
            'model = "scratch" needs architecture = a folder with config.json and tokenizer.json, or one of: '
            + ", ".join(sorted(SHAPES))
        )
    if config.architecture in SHAPES:
        return hub.resolve("tiny")
    try:
        return hub.resolve(config.architecture)
    except ModelError as error:
        raise ConfigError(f"architecture: {error}; or one of the shapes: {', '.join(sorted(SHAPES))}") from None
