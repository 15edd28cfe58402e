"""`aha train RECIPE --dry-run`: what a recipe would need, stage by stage, without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from aha import hub
from aha.chat import ChatFormat
from aha.evaluate import conversation
from aha.models import ModelConfig, choose_dtype, read_config
from aha.models.known import KNOWN_CONFIGS, known_config
from aha.tasks import get_task
from aha.train.collecting import CollectingConfig
from aha.train.distill import DistillConfig
from aha.train.grpo_config import GRPOConfig
from aha.train.machines import CPU_RUNTIME_BYTES, GIB, GPU_RUNTIME_BYTES, GPUS, Machine, find_machine
from aha.train.plan import four_bit_savings, memory_of, num_trained, peak_bytes, plan
from aha.train.plan_table import describe, describe_total
from aha.train.run_shape import RunShape
from aha.train.scratch import architecture_config, tokenizer_folder
from aha.train.sft import SupervisedConfig
from aha.train.source import read_source
from aha.train.stage import StageConfig, TrainingConfig

DTypeName = Literal["float32", "bfloat16"]
UNKNOWN_TOKENIZER_TOKENS_PER_CHAR = 0.5
"""Prompt length where the tokenizer is not here: on the long side for English, which has about 0.25."""
TEMPLATE_TOKENS = 24


def dry_run(source: str, *, overrides: Sequence[str] = ()) -> str:
    """Memory, time and dollars of every stage of a recipe, as text.

    Raises:
        AhaError: a recipe, model or setting that cannot be used.
    """
    checked = read_source(source, overrides=overrides)
    parts, plans = [checked.note] if checked.note else [], []
    for index, (stage, config) in enumerate(zip(checked.recipe.stages, checked.configs, strict=True)):
        machine_name = config.price.removesuffix("-hour")
        on_gpu = machine_name in GPUS
        dtype: DTypeName = "bfloat16" if config.dtype == "auto" and on_gpu else _resolve_dtype(config)
        machine = find_machine(
            machine_name if on_gpu else "cpu", dtype=dtype, on=datetime.now(UTC).date(), price=config.price
        )
        if isinstance(config, DistillConfig):
            parts.append(_describe_teacher(config, name=stage.name, dtype=dtype, machine=machine))
        # Before the first stage, after every one that trains and after the last, and what `eval_every` asks in between.
        is_after = isinstance(config, TrainingConfig) or index == len(checked.configs) - 1
        num_between = (config.num_steps - 1) // config.eval_every if config.eval_every else 0
        num_evaluations = (index == 0) + is_after + num_between
        shape = _shape(config, dtype=dtype, num_evaluations=num_evaluations)
        planned = plan(_model_config(config), run=shape, machine=machine)
        parts.append(f"stage {stage.name}: {config.task} on {config.model_words}\n{describe(planned)}")
        plans.append(planned)
    if len(plans) > 1:
        parts.append(describe_total(plans))
    return "\n\n".join(parts)


def _describe_teacher(config: DistillConfig, *, name: str, dtype: DTypeName, machine: Machine) -> str:
    """What the teacher's answers of a distilling stage take, before its student's steps."""
    head = f"stage {name}: the teacher {config.teacher}"
    if config.is_endpoint:
        return f"{head}\n  at most ${config.budget_usd:.2f}, the budget"
    if config.method == "on_policy":
        return f"{head}\n  its weights lie in memory beside the student's"
    model = config.model if config.teacher_is_previous else config.teacher
    asked = replace(config, model=model)
    shape = RunShape(
        stage="rejection",
        steps=config.collect_steps,
        prompts_per_step=config.prompts_per_step,
        group_size=config.num_samples,
        max_tokens=config.max_tokens,
        prompt_tokens=_prompt_tokens(asked),
        dtype=dtype,
        num_evaluations=0,
    )
    return f"{head}\n{describe(plan(_model_config(asked), run=shape, machine=machine))}"


class _Kind(NamedTuple):
    """A machine, as far as memory goes."""

    is_cpu: bool
    runtime_bytes: int


def memory_line(configs: Sequence[StageConfig], *, model: ModelConfig, dtype: DTypeName, is_cpu: bool) -> str:
    """What a run will hold at its peak, in one line, with what LoRA saves or would save."""
    kind = _Kind(is_cpu, CPU_RUNTIME_BYTES if is_cpu else GPU_RUNTIME_BYTES)

    def peak(lora_rank: int) -> float:
        shapes = [_shape(replace(config, lora_rank=lora_rank), dtype=dtype, num_evaluations=2) for config in configs]
        return max(peak_bytes(memory_of(model, run=shape, machine=kind)) for shape in shapes) / GIB

    rank = configs[0].lora_rank
    if not rank:
        would = "" if configs[0].model == "scratch" else f"; with lora_rank=16 {peak(16):.1f} GiB"
        return f"memory: about {peak(0):.1f} GiB at the peak{would}"
    trained = num_trained(model, run=_shape(configs[0], dtype=dtype, num_evaluations=0))
    saved = four_bit_savings(model, dtype=dtype) / GIB
    return (
        f"memory: about {peak(rank):.1f} GiB at the peak, {peak(0):.1f} GiB without LoRA; {trained / 1e6:.2f} M "
        f"parameters are trained; 4-bit base weights (QLoRA) would save {saved:.1f} GiB more, but are not supported"
    )


def _resolve_dtype(config: StageConfig) -> DTypeName:
    is_bfloat16 = choose_dtype(config.dtype, device=torch.device("cpu")) == torch.bfloat16
    return "bfloat16" if is_bfloat16 else "float32"


def _model_config(config: StageConfig) -> ModelConfig:
    if config.model in KNOWN_CONFIGS:
        return known_config(config.model)
    return architecture_config(config) if config.model == "scratch" else read_config(hub.resolve(config.model))


def _shape(config: StageConfig, *, dtype: DTypeName, num_evaluations: int) -> RunShape:
    common = {
        "steps": config.steps,
        "max_tokens": config.max_tokens,
        "dtype": dtype,
        "lora_rank": config.lora_rank,
        "lora_targets": config.lora_targets,
        "activations": config.activations,
        "micro_batch_tokens": config.micro_batch_tokens if isinstance(config, TrainingConfig) else 1,
        "prompt_tokens": _prompt_tokens(config),
        "num_evaluations": num_evaluations,
        "eval_problems": config.eval_problems,
    }
    if isinstance(config, GRPOConfig):
        return RunShape(
            stage="grpo",
            prompts_per_step=config.prompts_per_step,
            group_size=config.group_size,
            refill_budget=config.refill_budget,
            kl_coef=config.kl_coef,
            **common,  # type: ignore[arg-type]
        )
    if isinstance(config, SupervisedConfig):
        return RunShape(
            stage="sft",
            prompts_per_step=config.examples_per_step,
            mtp_weight=config.mtp_weight,
            **common,  # type: ignore[arg-type]
        )
    assert isinstance(config, CollectingConfig)
    return RunShape(
        stage="rejection",
        prompts_per_step=config.prompts_per_step,
        group_size=config.num_samples,
        **common,  # type: ignore[arg-type]
    )


def _prompt_tokens(config: StageConfig) -> int:
    """Tokens of the longest of some prompts; estimated from characters where the tokenizer is not on this machine."""
    task = get_task(config.task)
    asked = [conversation(task, problem=p) for p in islice(task.problems("train", seed=config.seed), 32)]
    is_here = config.model not in KNOWN_CONFIGS or Path(config.model).is_dir()
    if is_here:
        chat = ChatFormat.load(tokenizer_folder(config) if config.model == "scratch" else hub.resolve(config.model))
        return max(len(chat.render(messages)) for messages in asked)
    longest = max(sum(len(message.content) for message in messages) for messages in asked)
    return TEMPLATE_TOKENS + int(longest * UNKNOWN_TOKENIZER_TOKENS_PER_CHAR)
