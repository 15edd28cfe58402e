"""LoRA in a run: how it begins, what its checkpoints hold, and how its adapter becomes a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aha.errors import ConfigError
from aha.export import write_merged
from aha.export.proof import Proof
from aha.models import (
    BaseWeights,
    Transformer,
    attach_lora,
    hash_weights,
    is_adapter_folder,
    load_adapter_into,
    merge,
    reset_lora,
    save_adapter,
)
from aha.train.stage import StageConfig, TrainingConfig, derive_seed


def begin_lora(model: Transformer, config: StageConfig, *, folder: Path) -> None:
    """Put the adapters that a run asks for beside the model it starts from, or make an adapter a model of its own.

    Raises:
        ConfigError: a new adapter on one that is not merged yet.
    """
    if model.lora is not None and config.lora_rank:
        raise ConfigError(
            f"{config.model} is a LoRA adapter itself, and an adapter needs a whole base; first: "
            f"aha export {config.model} --to hf DIR, then model=DIR"
        )
    if model.lora is not None:
        merge(model)
    if config.lora_rank:
        attach_lora(
            model,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets,
            seed=derive_seed(config.seed, "lora"),
            base=BaseWeights(folder.resolve(), hash_weights(folder)),
        )


def prepare_stage(model: Transformer, config: StageConfig) -> None:
    """Settings of a stage that the model itself follows."""
    model.activations = "recompute" if config.recomputes_activations else "keep"
    model.products = config.products if isinstance(config, TrainingConfig) else "full"


def save_weights(model: Transformer, folder: Path) -> None:
    """What a checkpoint keeps of a model: all of it, or its adapter with a reference to the base."""
    if model.lora is None:
        model.save(folder)
    else:
        save_adapter(model, folder)


def load_adapter(model: Transformer, folder: Path) -> None:
    """Copy what `save_weights` kept of an adapter into the model's; a whole model's folder means a fresh adapter.

    Raises:
        ModelError: the folder cannot be read, or the adapter in it belongs to other base weights.
    """
    if is_adapter_folder(folder):
        load_adapter_into(model, folder)
    else:
        reset_lora(model)


def finish_lora(model: Transformer, run_folder: Path, *, prompts: Sequence[Sequence[int]]) -> Proof:
    """Write a run's adapter/, and its model/ with the adapter merged and proven equal to what was trained.

    Raises:
        ModelError: the merged model differs; adapter/ is there all the same.
    """
    save_adapter(model, run_folder / "adapter")
    proof = write_merged(model, run_folder / "model", prompts=prompts)
    from aha.train.run import write_text_atomically  # here: it imports this module

    write_text_atomically(run_folder / "merge.json", proof.to_json())
    return proof
