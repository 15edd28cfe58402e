"""Sampling speed: our engine beside transformers' `generate` and llama.cpp, with 1, 8 and 64 sequences.

Every side completes the same prompts (44 tokens, all different) with exactly the same number of new tokens at
temperature 1, no truncation of the distribution, the end-of-sequence token ignored.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import llama_cpp
from bench.child import Job, Measurement, MeasurementError, run_child, timed
from bench.machine import num_cores
from bench.prompts import equal_prompts
from bench.sweep import MAX_TRIALS, Axis, Settings, Trial, describe, pick_fastest, say
from bench.table import Row

WARM_UP_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What to measure."""

    folder: Path
    num_sequences: tuple[int, ...] = (1, 8, 64)
    num_tokens: int = 100
    """New tokens of every sequence."""
    scout_tokens: int = 24
    """New tokens while a peer's best settings are looked for."""
    max_trials: int = MAX_TRIALS
    """Most settings of each peer that are tried."""
    rounds: int = 3
    """Timed repetitions; each visits every side once, so that a drift of the machine hits all alike."""
    timeout_seconds: float = 1800.0
    scratch: Path = llama_cpp.SCRATCH
    """Where llama.cpp's package and models lie."""


def sample_with_aha(job: Job) -> Measurement:
    """Time our engine. Job: folder, prompts, num_tokens, dtype, quantize."""
    from aha.engine import Engine
    from aha.models import load_model
    from aha.types import SamplingParams

    model = load_model(job["folder"], dtype=job["dtype"], device="cpu")
    engine = Engine(model, stop_token_ids=(), quantize=job["quantize"])
    engine.generate(job["prompts"], SamplingParams(max_tokens=WARM_UP_TOKENS))
    sampling = SamplingParams(max_tokens=job["num_tokens"])
    sampled: list[int] = []
    seconds = timed(lambda: sampled.extend(c[0].num_tokens for c in engine.generate(job["prompts"], sampling)))
    assert sampled == [job["num_tokens"]] * len(job["prompts"]), "a sequence ended early"
    return Measurement(
        seconds=(seconds,), num_tokens=sum(sampled), details={"dtype": str(model.dtype).removeprefix("torch.")}
    )


def sample_with_transformers(job: Job) -> Measurement:
    """Time transformers' `generate`. Job: folder, prompts, num_tokens, dtype, cache."""
    import torch
    import transformers

    make_config: Any = transformers.GenerationConfig
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], dtype=getattr(torch, job["dtype"]))
    token_ids_BT = torch.tensor(job["prompts"])
    # Where a field is unset, `generate` takes the model's own: without this the end-of-sequence token comes back.
    model.generation_config = make_config()

    def generate(num_tokens: int) -> torch.Tensor:
        config = make_config(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=num_tokens,
            pad_token_id=0,
            cache_implementation=None if job["cache"] == "dynamic" else job["cache"],
        )
        with torch.inference_mode():
            sampled: torch.Tensor = model.generate(
                token_ids_BT, attention_mask=torch.ones_like(token_ids_BT), generation_config=config
            )
        return sampled

    generate(WARM_UP_TOKENS)
    outputs: list[torch.Tensor] = []
    seconds = timed(lambda: outputs.append(generate(job["num_tokens"])))
    num_new = outputs[0].shape[1] - token_ids_BT.shape[1]
    assert num_new == job["num_tokens"], f"sampled {num_new} tokens"
    return Measurement(seconds=(seconds,), num_tokens=num_new * len(token_ids_BT))


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One side of a comparison with its settings."""

    name: str
    settings: Settings
    measure: Callable[[Settings, int], Measurement]
    """(settings, new tokens of each sequence) -> measurement."""
    trials: Sequence[Trial] = ()
    problem: str = ""
    """Why it cannot be measured; empty when it can."""


def run(options: RolloutOptions) -> list[Row]:
    """Measure every side at every number of sequences."""
    prompts = equal_prompts(options.folder, num_prompts=max(options.num_sequences))
    rows = []
    for num_sequences in options.num_sequences:
        say(f"rollouts, {num_sequences} sequences")
        contestants = _contestants(options, prompts[:num_sequences])
        rows += _compare(contestants, options, num_sequences=num_sequences, prompt_tokens=len(prompts[0]))
    return rows


def _contestants(options: RolloutOptions, prompts: list[list[int]]) -> list[Contestant]:
    cores = num_cores()
    ours = partial(_measure_in_python, "sample_with_aha", options, prompts)
    settings = {"dtype": "auto", "quantize": "none", "threads": cores}
    sides = [Contestant(name="aha", settings=settings, measure=ours)]
    if len(prompts) == 1:
        quantized = {**settings, "dtype": "float32", "quantize": "int8"}
        sides.append(Contestant(name="aha, int8 weights", settings=quantized, measure=ours))
    transformers = Contestant(
        name="transformers generate",
        settings={"dtype": "float32", "cache": "dynamic", "threads": cores},
        measure=partial(_measure_in_python, "sample_with_transformers", options, prompts),
    )
    llama = Contestant(
        name="llama.cpp",
        settings={"model": "Q4_0", "threads": cores, "flash_attention": False, "sampling": "temperature 1"},
        measure=partial(_measure_llama_cpp, options, prompts),
        problem=llama_cpp.missing(options.scratch, folder=options.folder),
    )
    threads = ("threads", range(1, cores + 1))
    transformers_axes: list[Axis] = [("dtype", ("float32", "bfloat16")), ("cache", ("dynamic", "static")), threads]
    llama_axes: list[Axis] = [
        ("model", llama_cpp.MODELS),
        threads,
        ("flash_attention", (False, True)),
        ("sampling", ("temperature 1", "greedy")),
    ]
    return [*sides, _at_its_best(transformers, transformers_axes, options), _at_its_best(llama, llama_axes, options)]


def _measure_in_python(
    function: str, options: RolloutOptions, prompts: list[list[int]], settings: Settings, num_tokens: int
) -> Measurement:
    job = {"folder": str(options.folder), "prompts": prompts, "num_tokens": num_tokens, **settings}
    entry, timeout_seconds = f"bench.rollouts:{function}", options.timeout_seconds
    return run_child(entry, job, num_threads=settings["threads"], timeout_seconds=timeout_seconds)


def _measure_llama_cpp(
    options: RolloutOptions, prompts: list[list[int]], settings: Settings, num_tokens: int
) -> Measurement:
    setup = llama_cpp.Setup(scratch=options.scratch, timeout_seconds=options.timeout_seconds)
    return llama_cpp.sample(settings, prompts=prompts, num_tokens=num_tokens, options=setup)


def _at_its_best(contestant: Contestant, axes: Sequence[Axis], options: RolloutOptions) -> Contestant:
    if contestant.problem:
        say(f"  {contestant.name} is left out: {contestant.problem}")
        return contestant
    try:
        settings, trials = pick_fastest(
            contestant.settings,
            axes,
            measure=lambda settings: contestant.measure(settings, options.scout_tokens),
            label=contestant.name,
            max_trials=options.max_trials,
        )
    except MeasurementError as error:
        return replace(contestant, problem=str(error))
    return replace(contestant, settings=settings, trials=trials)


def _compare(
    contestants: Sequence[Contestant], options: RolloutOptions, *, num_sequences: int, prompt_tokens: int
) -> list[Row]:
    """Visit all sides round after round; the first one is what the others are compared with."""
    found: list[list[Measurement]] = [[] for _ in contestants]
    problems = [contestant.problem for contestant in contestants]
    for _ in range(options.rounds):
        for index, contestant in enumerate(contestants):
            if problems[index]:
                continue
            try:
                found[index].append(contestant.measure(contestant.settings, options.num_tokens))
            except MeasurementError as error:
                problems[index] = str(error)
                say(f"  {contestant.name}: {error}")
    title = f"{num_sequences} sequence{'s' if num_sequences > 1 else ''} x {options.num_tokens} tokens"
    rows = []
    for contestant, measurements, problem in zip(contestants, found, problems, strict=True):
        settings = dict(contestant.settings) | _actual(measurements)
        ceiling = _ceiling(settings, options, num_sequences=num_sequences) if measurements else None
        rows.append(
            Row(
                what=title,
                side=contestant.name,
                settings=describe(settings),
                figures=tuple(m.num_tokens / m.seconds[0] for m in measurements),
                unit="tokens/s",
                peak_bytes=max((m.peak_bytes for m in measurements), default=0),
                ceiling=ceiling,
                problem="" if measurements else problem,
                details={"prompt_tokens": prompt_tokens, "trials": list(contestant.trials)},
            )
        )
    return rows


def _actual(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What "auto" turned out to be."""
    return {"dtype": measurements[0].details["dtype"]} if measurements and "dtype" in measurements[0].details else {}


def _ceiling(settings: Settings, options: RolloutOptions, *, num_sequences: int) -> float | None:
    """Tokens a second if sampling were matrix products alone; None for a side that multiplies in other formats."""
    if "dtype" not in settings:
        return None
    dtype = "int8" if settings.get("quantize") == "int8" else settings["dtype"]
    job = {"folder": str(options.folder), "dtype": dtype, "num_rows": num_sequences, "repetitions": 10}
    try:
        found = run_child(
            "bench.gemm:measure_products", {**job, "has_head": True}, num_threads=settings["threads"],
            timeout_seconds=options.timeout_seconds,
        )  # fmt: skip
    except MeasurementError as error:
        say(f"  the ceiling for {dtype}: {error}")
        return None
    return num_sequences / statistics.median(found.seconds)
