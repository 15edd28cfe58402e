"""What the children of bench.why do: every side of a choice in one process, taking turns on the same random weights."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch

from aha import hub
from aha.chat import ChatFormat
from aha.engine import Engine
from aha.estimate.why.variants import dense, with_heads, without_prediction
from aha.models import ModelConfig, Transformer, build_model, load_model
from aha.models.config_files import parse_config
from aha.models.counts import cache_bytes_per_token, count_parameters
from aha.models.shapes import SHAPES
from aha.tasks import get_task
from aha.train import grpo, sft
from aha.train.adapter import prepare_stage
from aha.train.batches import TrainingSequence, pack
from aha.train.logprobs import token_logprobs
from aha.train.optimizer import Optimizer
from aha.train.rollouts import ProblemStream, collect
from aha.types import SamplingParams
from bench import speculation
from bench.child import Job, Measurement, timed
from bench.v3 import SHAPES as WIDER_SHAPES
from bench.v3_races import make_model

TASK = "countdown"
Dtype = Literal["float32", "bfloat16"]
Sides = Mapping[str, Callable[[], object]]


def tiny_config() -> ModelConfig:
    """DeepSeek-V3 with everything it has, at a million parameters."""
    config = parse_config(SHAPES["v3_tiny"], source="v3_tiny")
    return dataclasses.replace(config, max_position_embeddings=8192)


def variants() -> dict[str, tuple[str, ModelConfig, Dtype, str]]:
    """Side -> its choice, shape, dtype and products. The first is the model as it is."""
    config = tiny_config()
    counts = count_parameters(config)
    return {
        "as it is": ("", config, "float32", "dense"),
        "dense, as many parameters": (
            "experts_against_total", dense(config, num_parameters=counts.total), "float32", "dense"
        ),
        "dense, as many active": (
            "experts_against_active", dense(config, num_parameters=counts.active), "float32", "dense"
        ),
        "full heads": (
            "attention_against_full_heads", with_heads(config, num_kv_heads=config.num_heads), "float32", "dense"
        ),
        "without prediction": ("multi_token_prediction", without_prediction(config), "float32", "dense"),
        "bfloat16": ("precision", config, "bfloat16", "dense"),
        "FP8 products, bfloat16": ("precision", config, "bfloat16", "fp8"),
    }  # fmt: skip


def race_training(job: Job) -> Measurement:
    """Gradients of one batch of countdown's demonstrations, tokens a second. Job: num_examples, rounds."""
    chat, task = ChatFormat.load(hub.resolve("tiny")), get_task(TASK)
    batch = sft.draw_examples(task, chat, num_examples=job["num_examples"], seed=0, step=0)
    num_tokens = sum(example.num_tokens for example in batch)
    sides, counts = {}, {}
    for side, (_, config, dtype, products) in variants().items():
        model = build_model(config, dtype=dtype, device="cpu")
        model.initialise(seed=0)
        settings: dict[str, Any] = {} if products == "dense" else {"products": products}
        prepare_stage(model, sft.SFTConfig(task=TASK, dtype=dtype, **settings))
        sides[side] = partial(_gradients, model, batch)
        counts[side] = count_parameters(config)._asdict()
    seconds = take_turns(sides, rounds=job["rounds"])
    return Measurement(
        seconds=seconds["as it is"], num_tokens=num_tokens, details={"seconds": seconds, "parameters": counts}
    )


def _gradients(model: Transformer, batch: list[TrainingSequence]) -> None:
    model.zero_grad()
    mtp_weight = speculation.MTP_WEIGHT if model.config.num_mtp_layers else 0.0
    sft.accumulate_gradients(model, batch, micro_batch_tokens=4096, mtp_weight=mtp_weight)


def race_decoding(job: Job) -> Measurement:
    """Steps behind a long shared prompt, over latents or over full heads. Job: prompt, rows, num_tokens, rounds."""
    config = tiny_config()
    shapes = {"as it is": config, "full heads": with_heads(config, num_kv_heads=config.num_heads)}
    prompt = torch.randint(8, config.vocab_size, (job["prompt"],), generator=torch.Generator().manual_seed(0)).tolist()
    engines = {}
    for side, shape in shapes.items():
        model = build_model(shape, dtype="float32", device="cpu")
        model.initialise(seed=0)
        engines[side] = Engine(model, stop_token_ids=())

    def write(engine: Engine, num_tokens: int) -> None:
        engine.generate([prompt], SamplingParams(num_samples=job["rows"], max_tokens=num_tokens, seed=0))

    # The prompt's own pass is taken off: what is left is `num_tokens` steps of all rows.
    long = take_turns({s: partial(write, e, job["num_tokens"] + 1) for s, e in engines.items()}, rounds=job["rounds"])
    short = take_turns({s: partial(write, e, 1) for s, e in engines.items()}, rounds=job["rounds"])
    seconds = {s: tuple(max(1e-9, t - statistics.median(short[s])) for t in long[s]) for s in engines}
    cached = {side: cache_bytes_per_token(shape, bytes_per_value=4) for side, shape in shapes.items()}
    details = {"seconds": seconds, "cache_bytes_per_token": cached}
    return Measurement(seconds=seconds["as it is"], num_tokens=job["rows"] * job["num_tokens"], details=details)


def race_drafts(job: Job) -> Measurement:
    """Sampling with drafts and without, after a short training. Job: steps, num_tokens, rounds, batches."""
    folder = hub.resolve("tiny")
    chat, task = ChatFormat.load(folder), get_task(TASK)
    config = dataclasses.replace(tiny_config(), eos_token_ids=chat.stop_token_ids)
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    optimizer = Optimizer(model, weight_decay=0.01)
    for step in range(job["steps"]):
        batch = sft.draw_examples(task, chat, num_examples=16, seed=0, step=step)
        sft.accumulate_gradients(model, batch, micro_batch_tokens=4096, mtp_weight=speculation.MTP_WEIGHT)
        optimizer.clip_grad_norm(1.0)
        optimizer.step(learning_rate=3e-3 * min(1.0, step / 20) * (1 - step / job["steps"]))
    problems = task.problems("test", seed=0)
    prompts = [chat.render(speculation.conversation(task, problem=next(problems))) for _ in range(max(job["batches"]))]
    found = {}
    for size in job["batches"]:
        measured = speculation.measure(
            model, prompts[:size], temperature=1.0, num_tokens=job["num_tokens"], num_rounds=job["rounds"],
            clock=speculation.CLOCKS["cpu"],
        )  # fmt: skip
        found[str(size)] = {way: one._asdict() for way, one in measured.items() if way != "auto"}
    return Measurement(seconds=(0.0,), num_tokens=0, details={"batches": found})


def race_critic(job: Job) -> Measurement:
    """A step's training without a critic and with one of the same shape. Job: side ("group" or "critic"), shape,
    num_sequences, length, rounds. The critic is a second model of this shape, trained on the same tokens: forward for
    the values, forward and backward, an optimiser of its own. Its loss is a stand-in of the same cost."""
    shape = WIDER_SHAPES[job["shape"]]
    policy = make_model(shape, dtype="float32")
    optimizers = {policy: Optimizer(policy)}
    size = (job["num_sequences"], job["length"])
    tokens_BT = torch.randint(0, shape["vocab"], size, generator=torch.Generator().manual_seed(0))
    batch = pack([TrainingSequence(tuple(row[:16]), tuple(row[16:])) for row in tokens_BT.tolist()])

    def learn(model: Transformer) -> None:
        token_logprobs(model, batch).logprobs_M.mean().neg().backward()
        optimizers[model].clip_grad_norm(1.0)
        optimizers[model].step(learning_rate=1e-6)

    def group_step() -> None:
        with torch.no_grad():
            for _ in ("old policy", "reference"):
                token_logprobs(policy, batch)
        learn(policy)

    sides: dict[str, Callable[[], object]] = {"GRPO's group": group_step}
    if job["side"] == "critic":
        critic = make_model(shape, dtype="float32")
        optimizers[critic] = Optimizer(critic)

        def critic_step() -> None:
            group_step()
            with torch.no_grad():
                token_logprobs(critic, batch)  # values
            learn(critic)

        sides["PPO's critic"] = critic_step
    seconds = take_turns(sides, rounds=job["rounds"])
    return Measurement(seconds=seconds["GRPO's group"], num_tokens=tokens_BT.numel(), details={"seconds": seconds})


def race_dropping(job: Job) -> Measurement:
    """A GRPO step's training on all groups and on all but a share. Job: prompts, group_size, max_tokens, flat_share,
    rounds. The share is taken off the end, whatever the rewards; how many groups were flat of themselves is told."""
    folder = hub.resolve("tiny")
    model, chat, task = load_model(folder, dtype="float32", device="cpu"), ChatFormat.load(folder), get_task(TASK)
    config = grpo.GRPOConfig(task=TASK, prompts_per_step=job["prompts"], group_size=job["group_size"])
    sampling = SamplingParams(num_samples=job["group_size"], max_tokens=job["max_tokens"])
    problems = ProblemStream(task, seed=0).take(job["prompts"])
    groups = collect(
        problems, task=task, chat=chat, engine=Engine(model, stop_token_ids=chat.stop_token_ids), sampling=sampling,
        seed=0,
    )  # fmt: skip
    every = [
        TrainingSequence(group.prompt_ids, r.completion.token_ids, 1.0, r.completion.logprobs)
        for group in groups
        for r in group.rollouts
    ]
    kept = every[: round(len(groups) * (1 - job["flat_share"])) * job["group_size"]]
    num_flat = sum(not any(grpo.advantages_of(group, config)) for group in groups)
    sides = {
        "flat groups dropped": partial(_train, model, kept, config),
        "all trained": partial(_train, model, every, config),
    }
    seconds = take_turns(sides, rounds=job["rounds"])
    tokens = {"flat groups dropped": sum(s.num_tokens for s in kept), "all trained": sum(s.num_tokens for s in every)}
    details = {"seconds": seconds, "tokens": tokens, "own_flat_share": num_flat / len(groups)}
    return Measurement(seconds=(0.0,), num_tokens=sum(s.num_tokens for s in every), details=details)


def _train(model: Transformer, sequences: list[TrainingSequence], config: grpo.GRPOConfig) -> None:
    model.zero_grad()
    grpo.accumulate_gradients(model, sequences, config=config)


def take_turns(sides: Sides, *, rounds: int) -> dict[str, tuple[float, ...]]:
    """Seconds of each side in each round, after one that warms up."""
    for run in sides.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            found[name].append(timed(run))
    return {name: tuple(seconds) for name, seconds in found.items()}
