"""What FP8 products cost in loss: one model pre-trained from the same seed in float32, in bfloat16 and in FP8.

    python -m bench.fp8_loss [--steps 400] [--seeds 0 1 2] [--device cpu] [--architecture tiny]

Every side sees the same examples in the same order from the same first weights. The figure is the mean loss over the
last tenth of the steps, and how far it lies from bfloat16's: DeepSeek-V3's report (arXiv:2412.19437 §3.3) says "below
0.25 %" for FP8. How far float32 lies from bfloat16 says what rounding alone does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Literal, NamedTuple

import torch

from aha import hub
from aha.chat import ChatFormat
from aha.models import Transformer, build_model, read_config
from aha.tasks import get_task
from aha.train.adapter import prepare_stage
from aha.train.optimizer import Optimizer
from aha.train.sft import SFTConfig, accumulate_gradients, draw_examples
from aha.train.stage import scheduled_learning_rate

Side = Literal["bfloat16", "float32", "fp8"]
SIDES: tuple[Side, ...] = ("bfloat16", "float32", "fp8")


class Trained(NamedTuple):
    """One pre-training."""

    loss: float
    """Mean over the last tenth of the steps, nats a token."""
    seconds: float


def pretrain(side: Side, *, seed: int, steps: int, device: str, architecture: str) -> Trained:
    """Pre-train on countdown's written-out searches, as recipes/tiny_base.toml does in many more steps."""
    config = SFTConfig(
        task="countdown",
        model="scratch",
        architecture=architecture,
        steps=steps,
        examples_per_step=16,
        learning_rate=1.5e-3,
        schedule="linear",
        warmup_steps=min(50, steps // 4),
        weight_decay=0.01,
        micro_batch_tokens=2048,
        # FP8 is compared with bfloat16, so that everything but its products is bfloat16 too.
        dtype="float32" if side == "float32" else "bfloat16",
        products="fp8" if side == "fp8" else "full",
        seed=seed,
    )
    model, chat = _make(config, device=device)
    optimizer = Optimizer(model, weight_decay=config.weight_decay)
    task, losses, started = get_task(config.task), list[float](), time.perf_counter()
    for step in range(steps):
        batch = draw_examples(task, chat, num_examples=config.examples_per_step, seed=seed, step=step)
        losses.append(accumulate_gradients(model, batch, micro_batch_tokens=config.micro_batch_tokens))
        optimizer.clip_grad_norm(config.max_grad_norm)
        optimizer.step(learning_rate=scheduled_learning_rate(config, step=step))
    return Trained(statistics.fmean(losses[-max(1, steps // 10) :]), time.perf_counter() - started)


def _make(config: SFTConfig, *, device: str) -> tuple[Transformer, ChatFormat]:
    folder = hub.resolve(config.architecture)
    model = build_model(read_config(folder), dtype=config.dtype, device=device)
    model.initialise(seed=config.seed)
    prepare_stage(model, config)
    return model, ChatFormat.load(folder)


def main() -> None:
    """Pre-train every side from every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--architecture", default="tiny", help="a MODEL whose config.json and tokenizer are taken")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.architecture}, {asked.steps} steps\n")
    print("| seed | side | loss | from bfloat16 | seconds a step |")
    print("|---|---|---|---|---|")
    gaps: dict[Side, list[float]] = {side: [] for side in SIDES}
    for seed in asked.seeds:
        first = 0.0
        for side in SIDES:
            done = pretrain(side, seed=seed, steps=asked.steps, device=asked.device, architecture=asked.architecture)
            first = first or done.loss
            gaps[side].append(100 * (done.loss / first - 1))
            figures = f"{done.loss:.5f} | {gaps[side][-1]:+.3f} % | {done.seconds / asked.steps:.3f}"
            print(f"| {seed} | {side} | {figures} |", flush=True)
    for side in SIDES[1:]:
        mean, largest = statistics.fmean(gaps[side]), max(map(abs, gaps[side]))
        print(f"\n{side} from bfloat16: {mean:+.3f} % in the mean of {len(gaps[side])} seeds, at most {largest:.3f} %")


if __name__ == "__main__":
    main()
