"""The fastest layout that fits, among those that people use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from aha.errors import ConfigError
from aha.estimate.hardware import GIB
from aha.estimate.training.layout import Layout, Recomputation
from aha.estimate.training.memory import TrainingMemory, training_memory
from aha.estimate.training.terms import Setting, step_terms
from aha.models.config import ModelConfig

RECOMPUTATIONS: tuple[Recomputation, ...] = ("none", "selective", "full")
MAX_TENSOR = 8
"""Ways of tensor parallelism: beyond a node of eight its waiting outweighs it (arXiv:2104.04473 §3.2, takeaway 1)."""
MAX_PIPELINE = 64
MAX_EXPERT = 64
"""GPUs that experts are spread over: DeepSeek-V3's, the widest that a training report states."""
LEAST_USED = 0.75
"""Share of the GPUs that a layout is for at the least; the others would stand idle."""
LONG_SEQUENCE = 32_768
"""Tokens of a sequence from which on GPUs may share it."""


@lru_cache(maxsize=1024)
def search_layout(setting: Setting, *, num_gpus: int) -> Layout:
    """The layout that takes the fewest GPU seconds a token, of all that fit; GPUs that it leaves idle are paid for.

    Args:
        setting: whose layout is left aside.
        num_gpus: that are paid for; the layout may be for a few less (usable_counts).

    Raises:
        ConfigError: none fits; says what is missing.
    """
    best: tuple[float, Layout] | None = None
    least: tuple[float, Layout] | None = None
    for shape in (shape for count in usable_counts(num_gpus) for shape in _shapes(setting, num_gpus=count)):
        for recomputation in RECOMPUTATIONS:
            layout = replace(shape, recomputation=recomputation)
            memory = memory_of(replace(setting, layout=layout))
            if least is None or memory.total < least[0]:
                least = memory.total, layout
            if memory.fits(setting.gpu):
                seconds = sum(term.seconds_per_token for term in step_terms(replace(setting, layout=layout)))
                seconds *= num_gpus / layout.num_gpus
                if best is None or seconds < best[0]:
                    best = seconds, layout
                break
    if best is not None:
        return best[1]
    raise ConfigError(_refusal(setting, num_gpus=num_gpus, least=least))


def usable_counts(num_gpus: int) -> list[int]:
    """Numbers of GPUs that a run on so many is laid out for: all of them, or fewer that powers of two divide better.

    257 nodes are 256 and a spare one: 2,056 GPUs have no more than 8 as a common factor with what models divide by.
    """
    counts = {num_gpus}
    step = 2
    while num_gpus - num_gpus % step >= LEAST_USED * num_gpus:
        counts.add(num_gpus - num_gpus % step)
        step *= 2
    return sorted(counts, reverse=True)


def memory_of(setting: Setting) -> TrainingMemory:
    """Of the fullest GPU."""
    return training_memory(
        setting.config,
        layout=setting.layout,
        sequence_tokens=setting.sequence_tokens,
        num_micro_batches=max(1, int(setting.num_micro_batches)),
        precision=setting.precision,
        assumptions=setting.assumptions,
    )


def _refusal(setting: Setting, *, num_gpus: int, least: tuple[float, Layout] | None) -> str:
    sequences = setting.batch_tokens / setting.sequence_tokens
    if least is None:
        return (
            f"{num_gpus:,} GPUs are more than a batch of {sequences:,.0f} sequences keeps busy in any layout; use "
            "fewer GPUs or a larger batch"
        )
    gib, layout = least
    return (
        f"it does not fit: {num_gpus:,} x {setting.gpu.title} need {gib / GIB:,.0f} GiB each at the least "
        f"({layout.describe()}) and have {setting.gpu.memory_gib}; use more GPUs or larger ones, or a smaller model"
    )


def _shapes(setting: Setting, *, num_gpus: int) -> Iterator[Layout]:
    config, gpu = setting.config, setting.gpu
    sequences = setting.batch_tokens / setting.sequence_tokens
    for tensor in _divisors(num_gpus, most=min(MAX_TENSOR, gpu.gpus_per_node)):
        if config.num_heads % tensor:
            continue
        for context in _contexts(setting, ways=num_gpus // tensor):
            for pipeline in _divisors(num_gpus // (tensor * context), most=min(MAX_PIPELINE, config.num_layers)):
                data = num_gpus // (tensor * context * pipeline)
                if data > sequences:
                    continue
                for expert in _experts(config, stage_gpus=num_gpus // pipeline, tensor=tensor):
                    shape = Layout(tensor=tensor, context=context, pipeline=pipeline, expert=expert, data=data)
                    yield from _variants(shape, config=config, sequences=sequences)


def _variants(shape: Layout, *, config: ModelConfig, sequences: float) -> Iterator[Layout]:
    """Schedules, chunks, ZeRO stages and micro-batches of a layout."""
    if shape.pipeline == 1:
        for micro_batch in (1, 2, 4):
            if shape.data * micro_batch <= max(shape.data, sequences):
                yield replace(shape, micro_batch=micro_batch)
                if shape.expert == 1 and shape.data > 1:
                    yield replace(shape, micro_batch=micro_batch, zero=3)
        return
    if shape.expert > 1 and shape.pipeline % 2 == 0:
        yield replace(shape, schedule="dualpipe")
    if shape.data > 1:
        yield replace(shape, zero=2, virtual=4 if 4 * shape.pipeline <= config.num_layers else 1)
    for virtual in (1, 4):
        if shape.pipeline * virtual <= config.num_layers:
            yield replace(shape, virtual=virtual)


def _contexts(setting: Setting, *, ways: int) -> list[int]:
    if setting.sequence_tokens < LONG_SEQUENCE:
        return [1]
    return _divisors(ways, most=setting.sequence_tokens // 8192)


def _experts(config: ModelConfig, *, stage_gpus: int, tensor: int) -> list[int]:
    if config.experts is None:
        return [1]
    ways = [n for n in _divisors(config.experts.num_experts, most=min(stage_gpus, MAX_EXPERT)) if stage_gpus % n == 0]
    return [n for n in ways if n % tensor == 0 and n in (1, 8, 16, 32, ways[-1])]


def _divisors(number: int, *, most: int) -> list[int]:
    return [n for n in range(1, most + 1) if number % n == 0]
