"""Decoding speed of the engine, beside what this machine's matrix products alone would allow.

    python -m bench.engine_decode [--threads 2] [tiny] [smollm2]

A step is timed on its own and the median taken; the ceiling is the time of the model's matrix products at the same
number of rows, each with the faster of the plain and the packed kernel, and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aha import hub
from aha.engine import Engine
from aha.engine.packing import PackedWeights
from aha.errors import AhaError
from aha.models import Transformer, load_model
from aha.types import SamplingParams

ROW_COUNTS = (1, 8, 64, 512)
PROMPT_TOKENS = 32
SMALL_MODEL = 10_000_000
"""Parameters up to which 512 rows and many steps are quick; 512 rows of SmolLM2 take minutes and say what 64 say."""


class Speed(NamedTuple):
    """One row of the table."""

    num_rows: int
    step_ms: float
    ceiling_ms: float
    """The matrix products of a step."""

    @property
    def tokens_per_second(self) -> float:
        return self.num_rows / self.step_ms * 1e3


def main() -> None:
    """Print one table a model; a model that is not on this machine is named and left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny", "smollm2"], help="names or folders (default: both)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.models:
        try:
            model = load_model(hub.resolve(name))
        except AhaError as error:
            print(f"{name}: left out: {error}")
            continue
        is_small = model.num_parameters() <= SMALL_MODEL
        print(f"\n{name}: {model.num_parameters() / 1e6:.1f} M parameters, {model.dtype}, {arguments.threads} threads")
        print(f"{'weights':>8} {'rows':>5} {'tokens/s':>9} {'ms/step':>8} {'products ms':>12} {'share of ceiling':>17}")
        for quantize in ("none", "float16"):
            for num_rows in (n for n in ROW_COUNTS if is_small or n <= 64):
                engine = Engine(model, max_batch_size=num_rows, stop_token_ids=(), quantize=quantize)
                speed = measure(engine, num_rows=num_rows, num_steps=64 if is_small else 8)
                weights = "float16" if quantize == "float16" else "exact"
                print(
                    f"{weights:>8} {num_rows:>5} {speed.tokens_per_second:>9.0f} {speed.step_ms:>8.2f} "
                    f"{speed.ceiling_ms:>12.2f} {speed.ceiling_ms / speed.step_ms:>17.0%}",
                    flush=True,
                )


def measure(engine: Engine, *, num_rows: int, num_steps: int) -> Speed:
    """Median time of a decoding step of that many rows, their prompts already cached."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = engine.model.config.vocab_size
    prompts = torch.randint(0, vocab_size, (num_rows, PROMPT_TOKENS), generator=generator)
    for prompt in prompts.tolist():
        engine.submit(prompt, SamplingParams(max_tokens=num_steps + 4, seed=0))
    while engine.num_waiting:
        engine.step()
    engine.step()  # the first one packs the weights
    times = [_seconds(engine.step) for _ in range(num_steps)]
    return Speed(num_rows, statistics.median(times) * 1e3, product_seconds(engine.model, num_rows=num_rows) * 1e3)


@torch.inference_mode()
def product_seconds(model: Transformer, *, num_rows: int) -> float:
    """Time of the matrix products of one step, with the faster kernel for each."""
    layers = {name: p for name, p in model.layers[0].named_parameters() if p.dim() == 2}
    times = {name: _fastest(weight, num_rows=num_rows) for name, weight in layers.items()}
    return len(model.layers) * sum(times.values()) + _fastest(model.output_weight, num_rows=num_rows)


def _fastest(weight: Tensor, *, num_rows: int) -> float:
    x_ND = torch.randn(num_rows, weight.shape[1], dtype=weight.dtype)
    packed = PackedWeights(min_product_size=0)
    kernels: list[Callable[[], object]] = [lambda: F.linear(x_ND, weight), lambda: packed(x_ND, weight, None)]
    return min(statistics.median(_seconds(kernel) for _ in range(9)) for kernel in kernels)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
