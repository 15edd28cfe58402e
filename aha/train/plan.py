"""What a run would need and cost, from the model's configuration alone: nothing is downloaded or allocated.

Memory and work follow from this code's own shapes; how fast a machine does the work is an assumption, and is printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from aha.errors import ConfigError
from aha.models import ModelConfig
from aha.train.logprobs import CHUNK_ELEMENTS
from aha.train.machines import GIB, GPUS, Machine
from aha.train.plan_sizes import (
    BYTES,
    activation_bytes,
    adapted_matrices,
    read_parameters,
    sizes_of,
    widest_forward,
)
from aha.train.run_shape import RunShape

CACHE_QUANTUM = 32
"""Positions that a cache's capacity is a multiple of (aha.engine.cache)."""


class MemoryItem(NamedTuple):
    """One line of the memory table."""

    name: str
    num_bytes: int
    phase: Literal["always", "sampling", "training"]
    """Sampling and training take turns: the peak holds the larger of the two."""


class TimeItem(NamedTuple):
    """One line of the time table."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `aha.train.plan_table.describe` prints."""

    config: ModelConfig
    run: RunShape
    machine: Machine
    num_parameters: int
    memory: tuple[MemoryItem, ...]
    time: tuple[TimeItem, ...]
    num_sampled_tokens: int
    num_trained_tokens: int
    advice: tuple[str, ...]
    """What to change when it does not fit; empty when it does."""

    @property
    def peak_bytes(self) -> int:
        return peak_bytes(self.memory)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.machine.memory_bytes

    @property
    def seconds(self) -> float:
        return sum(item.seconds for item in self.time)

    @property
    def cost_usd(self) -> float:
        return self.seconds / 3600 * self.machine.price.usd_per_hour


def peak_bytes(memory: Sequence[MemoryItem]) -> int:
    """The most that lies in memory at once."""
    total = {
        phase: sum(i.num_bytes for i in memory if i.phase == phase) for phase in ("always", "sampling", "training")
    }
    return total["always"] + max(total["sampling"], total["training"])


def plan(config: ModelConfig, *, run: RunShape, machine: Machine) -> Plan:
    """Memory, time and dollars of one stage on one machine.

    Raises:
        ConfigError: a prompt and its completion do not fit the model's window.
    """
    if run.longest_sequence > config.max_position_embeddings:
        raise ConfigError(
            f"prompt_tokens {run.prompt_tokens} + max_tokens {run.max_tokens} exceed the model's window of "
            f"{config.max_position_embeddings} tokens; lower max_tokens"
        )
    num_completions = run.steps * run.prompts_per_step * run.group_size
    num_sampled = num_completions * (1 + run.refill_budget) if run.is_sampled else 0
    num_evaluated = run.num_evaluations * run.eval_problems
    result = Plan(
        config=config,
        run=run,
        machine=machine,
        num_parameters=sizes_of(config).held,
        memory=memory_of(config, run=run, machine=machine),
        time=_time(config, run, machine),
        num_sampled_tokens=round((num_sampled + num_evaluated) * run.completion_tokens),
        num_trained_tokens=num_completions * run.completion_tokens * run.is_trained,
        advice=(),
    )
    return result if result.fits else dataclasses.replace(result, advice=_advice(result))


class HasMemory(Protocol):
    """What a machine's kind decides about memory."""

    @property
    def is_cpu(self) -> bool: ...

    @property
    def runtime_bytes(self) -> int: ...


def memory_of(config: ModelConfig, *, run: RunShape, machine: HasMemory) -> tuple[MemoryItem, ...]:
    """What lies in memory, and when."""
    size, num_bytes = sizes_of(config), BYTES[run.dtype]
    trained = num_trained(config, run=run)
    items = [
        MemoryItem("Python and libraries", machine.runtime_bytes, "always"),
        MemoryItem(f"weights ({run.dtype})", size.held * num_bytes, "always"),
        MemoryItem("Adam moments (float32)", trained * 8, "always"),
        MemoryItem("gradients (float32)", trained * 4, "training"),
        MemoryItem(
            "activations of a micro-batch", activation_bytes(config, run=run, is_cpu=machine.is_cpu), "training"
        ),
        # float32 logits of a chunk, its probabilities and a cast of either.
        MemoryItem("logits chunk", 12 * CHUNK_ELEMENTS, "training"),
    ]
    if run.lora_rank:
        items.append(MemoryItem(f"LoRA adapters ({run.dtype})", trained * num_bytes, "always"))
    else:
        items.append(MemoryItem("head's gradient (float32, and cast)", size.head * (4 + num_bytes), "training"))
    if run.dtype == "bfloat16":
        items.append(MemoryItem("masters (float32)", trained * 4, "always"))
    if run.kl_coef > 0 and run.stage == "grpo":
        # With LoRA the reference is the same base with adapters of its own.
        items.append(MemoryItem(f"reference model ({run.dtype})", trained * num_bytes, "always"))
    if run.is_sampled or run.num_evaluations > 0:
        items.append(MemoryItem("key/value cache of rollouts", cache_bytes(config, run=run), "always"))
        # A row's logits, and float32 copies while it is drawn from.
        logits_bytes = _num_rows(run) * config.vocab_size * (num_bytes + 8)
        items.append(MemoryItem("logits of a token", logits_bytes, "sampling"))
        items.append(MemoryItem("prompts computed at once", prefill_bytes(config, run=run), "sampling"))
        if machine.is_cpu:
            items.append(MemoryItem("packed weights", (size.shared + size.head) * num_bytes, "sampling"))
    if not run.is_trained:
        items = [item for item in items if item.phase != "training" and item.num_bytes]
    return tuple(items)


def num_trained(config: ModelConfig, *, run: RunShape) -> int:
    """Parameters that have gradients: all of them, or those of the adapters; none where data is only collected."""
    if not run.is_trained:
        return 0
    if not run.lora_rank:
        return sizes_of(config).held
    adapted = adapted_matrices(config, run=run)
    return run.lora_rank * sum(matrix.copies * (matrix.num_in + matrix.num_out) for matrix in adapted)


def four_bit_savings(config: ModelConfig, *, dtype: Literal["float32", "bfloat16"]) -> int:
    """Bytes that the layers' matrices would take less as NF4 with quantised scales (QLoRA, arXiv:2305.14314 §3)."""
    return int(sizes_of(config).matrices * (BYTES[dtype] - 4.127 / 8))


def _num_rows(run: RunShape) -> int:
    """Completions that the engine runs at once."""
    wanted = run.prompts_per_step * run.group_size if run.is_sampled else 0
    if run.num_evaluations:
        wanted = max(wanted, run.eval_problems)
    return max(1, min(wanted, run.max_batch_size, run.max_cached_tokens // run.longest_sequence))


def prefill_bytes(config: ModelConfig, *, run: RunShape) -> int:
    """Widest point of the prompts' forward pass, which keeps nothing."""
    num_tokens = min(_num_rows(run), max(run.prompts_per_step, run.eval_problems)) * run.prompt_tokens
    return int(num_tokens * widest_forward(config)) * BYTES[run.dtype]


def cache_bytes(config: ModelConfig, *, run: RunShape) -> int:
    """The cache at its longest, the layer that is growing, and the memory that waits for the next one.

    A token has its keys and values, or with MLA its latent and rotated key.
    """
    columns = _round_up(run.longest_sequence)
    per_position = config.cached_width * BYTES[run.dtype]
    return _num_rows(run) * columns * per_position * (config.num_layers + 2)


def _round_up(columns: int) -> int:
    return -(-columns // CACHE_QUANTUM) * CACHE_QUANTUM


def _time(config: ModelConfig, run: RunShape, machine: Machine) -> tuple[TimeItem, ...]:
    num_completions = run.steps * run.prompts_per_step * run.group_size
    items = []
    if run.is_trained:
        items.append(TimeItem("training", num_completions * training_flops(config, run=run) / _speed(machine)))
    if run.is_sampled:
        num_prompts = run.steps * run.prompts_per_step * (1 + run.refill_budget)
        seconds = _sampling_seconds(config, run, machine, num_prompts=num_prompts, group_size=run.group_size)
        items.insert(0, TimeItem("sampling", seconds))
    num_evaluated = run.num_evaluations * run.eval_problems
    if num_evaluated:
        seconds = _sampling_seconds(config, run, machine, num_prompts=num_evaluated, group_size=1)
        items.append(TimeItem(f"{run.num_evaluations} evaluations", seconds))
    return tuple(items)


def _speed(machine: Machine) -> float:
    """Operations a second in training."""
    return machine.teraflops * 1e12 * machine.training_efficiency


def training_flops(config: ModelConfig, *, run: RunShape) -> float:
    """Operations to train on one completion with its share of the prompt.

    Source: 6 a parameter and token (arXiv:2001.08361 §2.1), of the routed experts those that the token chooses; 12 a
    channel, layer and visible key; the head computes completion tokens only, and its logits twice. Completions of one
    prompt that share a micro-batch compute it once; in multi-token prediction they do not.
    """
    size = sizes_of(config)
    num_tokens = run.prompt_tokens + run.completion_tokens
    num_sharing = max(1, min(run.group_size, run.micro_batch_tokens // num_tokens))
    num_computed = run.prompt_tokens / num_sharing + run.completion_tokens
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * num_tokens / 2
    # LoRA has no gradients of the large matrices, but its own small products; recomputing is one more forward pass.
    body, head = (4 * size.active + 6 * num_trained(config, run=run), 6 * size.head) if run.lora_rank else (
        6 * size.active, 8 * size.head
    )  # fmt: skip
    if run.recomputes:
        body, attention = body + 2 * size.active, attention * 4 / 3
    flops = num_computed * body + num_tokens * attention + run.completion_tokens * head
    if run.mtp_weight > 0:
        share = config.num_mtp_layers / config.num_layers
        flops += num_tokens * ((8 if run.recomputes else 6) * size.mtp_active + share * attention)
        flops += config.num_mtp_layers * run.completion_tokens * head
    if run.kl_coef > 0 and run.stage == "grpo":
        flops += num_computed * 2 * size.active + num_tokens * attention / 3 + run.completion_tokens * 2 * size.head
    return flops


def _sampling_seconds(
    config: ModelConfig, run: RunShape, machine: Machine, *, num_prompts: float, group_size: int
) -> float:
    """Every prompt once through the layers, then one token of every row at a time."""
    size, num_bytes = sizes_of(config), BYTES[run.dtype]
    speed = machine.teraflops * 1e12 * machine.sampling_efficiency
    bandwidth = machine.memory_gb_per_second * 1e9 * machine.sampling_efficiency
    num_tokens = num_prompts * group_size * run.completion_tokens
    num_rows = min(_num_rows(run), num_prompts * group_size)
    num_steps = num_tokens / num_rows
    num_keys = run.prompt_tokens + run.completion_tokens / 2
    # Absorbed MLA attends over the latents themselves; the products around it are kv_b_proj's, and are in `active`.
    width = config.head_dim if config.mla is None else config.mla.cached_width
    attention = 4 * config.num_layers * config.num_heads * width * num_keys
    cached_bytes = config.num_layers * config.cached_width * num_keys * num_bytes
    compute = num_tokens * (2 * (size.active + size.head) + attention) / speed
    read_bytes = (read_parameters(config, num_rows=num_rows) + size.head) * num_bytes
    traffic = (num_steps * read_bytes + num_tokens * cached_bytes) / bandwidth
    launches = num_steps * config.num_layers * machine.layer_overhead_us * 1e-6
    prefill = num_prompts * run.prompt_tokens * 2 * size.active / speed
    return prefill + max(compute, traffic) + launches


def _advice(unfit: Plan) -> tuple[str, ...]:
    """Changes any of which makes the run fit, and the machines that hold it unchanged; or that nothing helps."""
    run = unfit.run
    changes: list[tuple[dict[str, Any], str]] = []
    if run.dtype == "float32":
        changes.append(({"dtype": "bfloat16"}, "half the weights and activations"))
    if run.kl_coef > 0:
        changes.append(({"kl_coef": 0.0}, "no reference model"))
    for tokens in _halvings(run.micro_batch_tokens, least=run.longest_sequence):
        changes.append(({"micro_batch_tokens": tokens}, "same result"))
    # A sequence is never split, so shorter thinking helps only together with the micro-batch it allows.
    for tokens in _halvings(run.max_tokens, least=64):
        micro_batch_tokens = min(run.micro_batch_tokens, run.prompt_tokens + tokens)
        changes.append(({"max_tokens": tokens, "micro_batch_tokens": micro_batch_tokens}, "shorter thinking"))
    if not run.recomputes:
        changes.append(({"activations": "recompute"}, "same result, a third more work"))
    if not run.lora_rank:
        changes.append(({"lora_rank": 16}, "trains an adapter beside the frozen model"))
    chosen: dict[str, str] = {}
    for change, effect in changes:
        if effect not in chosen and _fits(unfit, change):
            chosen[effect] = " ".join(f"{name}={value}" for name, value in change.items()) + f" ({effect})"
    return (*chosen.values(), *_machines_advice(unfit, has_change=bool(chosen)))


def _halvings(value: int, *, least: int) -> Iterator[int]:
    while (value := value // 2) >= least:
        yield value


def _fits(unfit: Plan, change: dict[str, Any]) -> bool:
    mean_tokens = min(unfit.run.mean_tokens, change.get("max_tokens", unfit.run.max_tokens))
    run = dataclasses.replace(unfit.run, mean_tokens=mean_tokens, **change)
    return dataclasses.replace(unfit, run=run, memory=memory_of(unfit.config, run=run, machine=unfit.machine)).fits


def _machines_advice(unfit: Plan, *, has_change: bool) -> tuple[str, ...]:
    enough = [name for name, gpu in GPUS.items() if gpu.memory_gib * GIB >= unfit.peak_bytes]
    machines = f"unchanged on another machine: {', '.join(enough)}"
    if has_change:
        return (machines,) if enough else ()
    needed = f"no setting makes it fit in {unfit.machine.memory_bytes / GIB:.0f} GiB"
    return (
        f"{needed}; {machines}" if enough else f"{needed}, and no machine listed here holds it; use a smaller model",
    )
