"""One GRPO step: sample 8 prompts x 8 completions, score, train. Ours beside TRL's GRPOTrainer, on the same prompts.

First with a reward that differs within every group, so that nothing can be dropped and both train on every token; then
with a task's own reward, where each side does what it does with groups of equal reward.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.child import Job, Measurement, MeasurementError, run_child, timed
from bench.gemm import TRAINING_ROWS
from bench.machine import available_bytes, num_cores, versions
from bench.rewards import Tally, chosen_task
from bench.sweep import MAX_TRIALS, Axis, Settings, Trial, describe, pick_fastest, say
from bench.table import Row

AHA, TRL = "bench.grpo_step:step_with_aha", "bench.trl_step:step_with_trl"
LEARNING_RATE = 1e-6
NUM_WARM_UP_STEPS = 1
# Float32 copies of a micro-batch's logits that TRL holds at its peak: 14.5 GB with 64 sequences of 144 tokens.
_LOGITS_COPIES = 8
_TITLES = {"spread": "every group teaches", "task": "the task's own reward"}


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What to measure."""

    folder: Path
    task: str = "arithmetic:min_terms=2,max_terms=2,max_number=9,products=false"
    """Easy enough that an untrained model is sometimes right, so that some groups teach."""
    prompts_per_step: int = 8
    group_size: int = 8
    num_tokens: int = 100
    """Of every completion with the made-up reward; the most tokens with the task's own."""
    scout_tokens: int = 24
    """The same while the peer's best settings are looked for."""
    max_trials: int = MAX_TRIALS
    """Most settings of the peer that are tried."""
    steps: int = 3
    """Timed steps, after one that warms up."""
    micro_batch_tokens: int = 2048
    """Ours; TRL's batch size is looked for."""
    vocab_size: int = 49_152
    """Of the model, to estimate which batch sizes of TRL fit in memory."""
    timeout_seconds: float = 3600.0


def step_with_aha(job: Job) -> Measurement:
    """Time our steps, made of the functions that `aha train` is made of.

    Job: folder, task, reward ("spread" or "task"), prompts_per_step, group_size, num_tokens, steps, dtype,
    micro_batch_tokens.
    """
    from aha.chat import ChatFormat
    from aha.engine import Engine
    from aha.models import load_model
    from aha.train.grpo import GRPOConfig, accumulate_gradients, training_sequences
    from aha.train.optimizer import Optimizer
    from aha.train.rollouts import ProblemStream, collect
    from aha.types import RolloutGroup, SamplingParams

    task = chosen_task(job)
    model, chat = load_model(job["folder"], dtype=job["dtype"], device="cpu"), ChatFormat.load(job["folder"])
    engine = Engine(model, stop_token_ids=() if job["reward"] == "spread" else chat.stop_token_ids)
    optimizer = Optimizer(model)
    config = GRPOConfig(task=job["task"], learning_rate=LEARNING_RATE, micro_batch_tokens=job["micro_batch_tokens"])
    sampling = SamplingParams(num_samples=job["group_size"], max_tokens=job["num_tokens"])
    stream = ProblemStream(task, seed=0)

    def take_step(seed: int) -> list[RolloutGroup]:
        problems = stream.take(job["prompts_per_step"])
        groups = collect(problems, task=task, chat=chat, engine=engine, sampling=sampling, seed=seed)
        if sequences := training_sequences(groups, config):
            accumulate_gradients(model, sequences, config=config)
            optimizer.clip_grad_norm(config.max_grad_norm)
            optimizer.step(learning_rate=LEARNING_RATE)
        return groups

    tally, seconds = Tally(group_size=job["group_size"]), []
    for step in range(NUM_WARM_UP_STEPS):
        take_step(step)
    for step in range(NUM_WARM_UP_STEPS, NUM_WARM_UP_STEPS + job["steps"]):
        seconds.append(timed(lambda step=step: tally.add_groups(take_step(step))))  # type: ignore[misc]
    details = {"dtype": str(model.dtype).removeprefix("torch."), **tally.summary()}
    return Measurement(seconds=tuple(seconds), num_tokens=tally.num_tokens, details=details)


def run(options: StepOptions) -> list[Row]:
    """Measure both sides with both rewards."""
    cores = num_cores()
    ours: Settings = {"dtype": "auto", "micro_batch_tokens": options.micro_batch_tokens, "threads": cores}
    theirs: Settings = {
        # Where the search begins.
        "dtype": "bfloat16",
        "batch_size": next((size for size in _batch_sizes(options) if _fits(size, options)), 1),
        "gradient_checkpointing": False,
        "continuous_batching": False,
        "threads": cores,
    }
    problem = "" if "trl" in versions() else "TRL is not installed; run: make bench"
    trials: list[Trial] = []
    if not problem:
        say("GRPO step: TRL's best settings")
        try:
            theirs, trials = _best_trl_settings(theirs, options)
        except MeasurementError as error:
            problem = str(error)
    rows = []
    for reward in ("spread", "task"):
        say(f"GRPO step, {_TITLES[reward]}")
        rows.append(_row("aha", AHA, ours, options, reward=reward))
        rows.append(_row("TRL GRPOTrainer", TRL, theirs, options, reward=reward, problem=problem))
    # The results file gets what was tried once, with TRL's first row.
    rows[1] = replace(rows[1], details={**rows[1].details, "trials": trials})
    return rows


def _best_trl_settings(start: Settings, options: StepOptions) -> tuple[Settings, list[Trial]]:
    # One batch holds whole groups or divides them; what could push the machine out of memory is not tried.
    sizes = [size for size in _batch_sizes(options) if _fits(size, options)]
    axes: tuple[Axis, ...] = (
        ("dtype", ("float32", "bfloat16")),
        ("batch_size", sizes),
        ("gradient_checkpointing", (False, True)),
        ("continuous_batching", (False, True)),
    )
    measure = _measure(TRL, options, reward="spread", is_scout=True)
    return pick_fastest(start, axes, measure=measure, label="TRL", max_trials=options.max_trials)


def _batch_sizes(options: StepOptions) -> list[int]:
    """Sequences of a micro-batch, large first: they are likelier to win, and a limit on trials cuts the rest."""
    num_completions = options.prompts_per_step * options.group_size
    return [size for size in (64, 32, 16, 8, 4, 2, 1) if num_completions % size == 0]


def _fits(batch_size: int, options: StepOptions) -> bool:
    from bench.prompts import PROMPT_TOKENS

    logits_bytes = 4 * batch_size * (PROMPT_TOKENS + options.num_tokens) * options.vocab_size
    available = available_bytes()
    return not available or _LOGITS_COPIES * logits_bytes < 0.9 * available


def _measure(
    entry: str, options: StepOptions, *, reward: str, is_scout: bool = False
) -> Callable[[Settings], Measurement]:
    def measure(settings: Settings) -> Measurement:
        job = {
            "folder": str(options.folder),
            "task": options.task,
            "reward": reward,
            "prompts_per_step": options.prompts_per_step,
            "group_size": options.group_size,
            "num_tokens": options.scout_tokens if is_scout else options.num_tokens,
            "steps": 1 if is_scout else options.steps,
            **settings,
        }
        return run_child(entry, job, num_threads=settings["threads"], timeout_seconds=options.timeout_seconds)

    return measure


def _row(side: str, entry: str, settings: Settings, options: StepOptions, *, reward: str, problem: str = "") -> Row:
    what = f"GRPO step {options.prompts_per_step} x {options.group_size} x {options.num_tokens}, {_TITLES[reward]}"
    if not problem:
        try:
            found = _measure(entry, options, reward=reward)(settings)
        except MeasurementError as error:
            problem = str(error)
            say(f"  {side}: {error}")
    if problem:
        return Row(what=what, side=side, settings=describe(settings), figures=(), unit="s/step", problem=problem)
    settings = {**settings, **({"dtype": found.details["dtype"]} if "dtype" in found.details else {})}
    summary = (
        f"{found.details['teaching_fraction']:.0%} of groups teach, {found.details['mean_tokens']:.0f} tokens each"
    )
    return Row(
        what=what,
        side=side,
        settings=f"{describe(settings)}; {summary}",
        figures=found.seconds,
        unit="s/step",
        peak_bytes=found.peak_bytes,
        ceiling=_ceiling(settings, options, found.details) if reward == "spread" else None,
        details=dict(found.details),
    )


def _ceiling(settings: Settings, options: StepOptions, details: Mapping[str, Any]) -> float | None:
    """Seconds of a step if it were matrix products alone.

    Every completion token once through the model to sample it and three times to train it (forward, and two products
    for each one backward); the prompt of a group counts once.
    """
    num_rows = options.prompts_per_step * options.group_size

    def pass_seconds(rows: int, *, part: Literal["layers", "all"]) -> float:
        job = {"folder": str(options.folder), "dtype": settings["dtype"], "num_rows": rows, "repetitions": 5}
        found = run_child(
            "bench.gemm:measure_products", {**job, "has_head": part == "all"}, num_threads=settings["threads"],
            timeout_seconds=options.timeout_seconds,
        )  # fmt: skip
        return statistics.median(found.seconds)

    try:
        sampling = options.num_tokens * pass_seconds(num_rows, part="all")
        layers, both = pass_seconds(TRAINING_ROWS, part="layers"), pass_seconds(TRAINING_ROWS, part="all")
    except MeasurementError as error:
        say(f"  the ceiling: {error}")
        return None
    num_completion_tokens = num_rows * options.num_tokens
    num_tokens = num_completion_tokens + options.prompts_per_step * details["prompt_tokens"]
    training = 3 * (num_tokens * layers + num_completion_tokens * max(both - layers, 0.0)) / TRAINING_ROWS
    return float(sampling + training)
