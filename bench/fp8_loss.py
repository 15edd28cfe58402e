"""What FP8 products cost in loss: the same model, first weights and examples, trained in bfloat16 and in FP8.

    python -m bench.fp8_loss [--start scratch|MODEL] [--steps 300] [--learning-rate 1.5e-3] [--seeds 0 1 2]
                             [--architecture tiny] [--device cpu]

The figure is the mean loss over the last tenth of the steps, and how far it lies from bfloat16's: DeepSeek-V3's report
(arXiv:2412.19437 §3.3) says "below 0.25 %" for FP8. A third side is bfloat16 once more, with its gradients added up in
another order: how far that lies off is what chance does, and a difference below it says nothing. From scratch chance is
large, since a small loss falls in steps that come a little sooner or later; from a trained MODEL it is small.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

import torch

from aha import hub
from aha.chat import ChatFormat
from aha.models import Transformer, build_model, load_model, read_config
from aha.tasks import get_task
from aha.train.adapter import prepare_stage
from aha.train.optimizer import Optimizer
from aha.train.sft import SFTConfig, accumulate_gradients, draw_examples
from aha.train.stage import scheduled_learning_rate

SIDES: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "bfloat16, added up in another order": {"micro_batch_tokens": 1024},
    "fp8": {"products": "fp8"},
}
"""What is compared with the first of them: its settings beside the common ones."""


class Trained(NamedTuple):
    """One training."""

    loss: float
    """Mean over the last tenth of the steps, nats a token."""
    seconds: float


def train(config: SFTConfig) -> Trained:
    """Train on countdown's written-out searches, as recipes/tiny_base.toml does in many more steps."""
    model, chat = _begin(config)
    optimizer = Optimizer(model, weight_decay=config.weight_decay)
    task, losses, started = get_task(config.task), list[float](), time.perf_counter()
    for step in range(config.steps):
        batch = draw_examples(task, chat, num_examples=config.examples_per_step, seed=config.seed, step=step)
        losses.append(accumulate_gradients(model, batch, micro_batch_tokens=config.micro_batch_tokens)["loss"])
        optimizer.clip_grad_norm(config.max_grad_norm)
        optimizer.step(learning_rate=scheduled_learning_rate(config, step=step))
    return Trained(statistics.fmean(losses[-max(1, config.steps // 10) :]), time.perf_counter() - started)


def _begin(config: SFTConfig) -> tuple[Transformer, ChatFormat]:
    folder = hub.resolve(config.architecture if config.model == "scratch" else config.model)
    if config.model == "scratch":
        model = build_model(read_config(folder), dtype=config.dtype, device=config.device)
        model.initialise(seed=config.seed)
    else:
        model = load_model(folder, dtype=config.dtype, device=config.device)
    prepare_stage(model, config)
    return model, ChatFormat.load(folder)


def main() -> None:
    """Train every side from every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--start", default="scratch", help='"scratch", or a MODEL to go on with')
    parser.add_argument("--architecture", default="tiny", help="a MODEL whose config.json and tokenizer scratch takes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    common: dict[str, Any] = {
        "task": "countdown",
        "model": asked.start,
        "architecture": asked.architecture if asked.start == "scratch" else "",
        "steps": asked.steps,
        "learning_rate": asked.learning_rate,
        "device": asked.device,
        # FP8 is compared with bfloat16, so that everything but its products is bfloat16 too.
        "dtype": "bfloat16",
        "examples_per_step": 16,
        "schedule": "linear",
        "warmup_steps": min(50, asked.steps // 4),
        "weight_decay": 0.01,
        "micro_batch_tokens": 2048,
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: {vars(asked)}\n")
    print("| seed | side | loss | from bfloat16 | seconds a step |\n|---|---|---|---|---|")
    gaps: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in asked.seeds:
        first = 0.0
        for side, settings in SIDES.items():
            done = train(SFTConfig(**{**common, "seed": seed, **settings}))
            first = first or done.loss
            gaps[side].append(100 * (done.loss / first - 1))
            figures = f"{done.loss:.5f} | {gaps[side][-1]:+.3f} % | {done.seconds / asked.steps:.3f}"
            print(f"| {seed} | {side} | {figures} |", flush=True)
    for side in list(SIDES)[1:]:
        mean, largest = statistics.fmean(gaps[side]), max(map(abs, gaps[side]))
        print(f"\n{side}: {mean:+.3f} % from bfloat16 in the mean of {len(gaps[side])} seeds, at most {largest:.3f} %")


if __name__ == "__main__":
    main()
