"""What FP8 products gain on a Hopper GPU, and how exact they are there.

    python -m bench.fp8_gpu [--tokens 4096] [--repetitions 20]

For the matrices of DeepSeek-V3 and of Qwen2.5-7B: seconds of a forward product, and of one with both gradients, in
bfloat16 and in FP8 with everything that is quantised on the way; and how far the GPU's FP8 product lies from the same
FP8 numbers multiplied in float32. Prints what is missing on a machine without such a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models.fp8 import quantise_activations, quantise_weight
from aha.models.fp8_config import WEIGHT_BLOCK
from aha.models.fp8_product import SCALES, fp8_linear, has_fp8_units, multiply, multiply_emulated

SHAPES = {
    "V3 q_b_proj": (1536, 24_576),
    "V3 kv_a_proj_with_mqa": (7168, 576),
    "V3 o_proj": (16_384, 7168),
    "V3 shared expert gate and up": (7168, 4096),
    "V3 dense down": (18_432, 7168),
    "Qwen2.5-7B gate and up": (3584, 37_888),
    "Qwen2.5-7B down": (18_944, 3584),
}
"""Matrix → (inputs, outputs)."""
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def seconds(action: Callable[[], object], *, repetitions: int) -> float:
    """Median over repetitions, on the GPU's own clock."""
    found = []
    for _ in range(repetitions + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return statistics.median(found[3:])


def row(name: str, *, tokens: int, repetitions: int) -> str:
    """One matrix's figures as a row of the table."""
    num_in, num_out = SHAPES[name]
    x = torch.randn(tokens, num_in, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(num_out, num_in, device="cuda", dtype=torch.bfloat16).mul_(num_in**-0.5).requires_grad_()
    grad = torch.randn(tokens, num_out, device="cuda", dtype=torch.bfloat16)

    def both(product: Product) -> tuple[float, float]:
        with torch.no_grad():
            forward = seconds(lambda: product(x, weight, None), repetitions=repetitions)
        return forward, seconds(lambda: product(x, weight, None).backward(grad), repetitions=repetitions)

    (plain, plain_step), (ours, ours_step) = both(F.linear), both(fp8_linear)
    with torch.no_grad():
        left, right = quantise_activations(x, scale_fmt=SCALES), quantise_weight(weight, scale_fmt=SCALES)
        alone = seconds(
            lambda: multiply(left, right, right_block=WEIGHT_BLOCK, dtype=torch.bfloat16), repetitions=repetitions
        )
        exact = multiply_emulated(left, right, right_block=WEIGHT_BLOCK, dtype=torch.float32)
        error = multiply(left, right, right_block=WEIGHT_BLOCK, dtype=torch.float32) - exact
    figures = (
        f"{plain * 1e3:.3f} | {ours * 1e3:.3f} | {alone * 1e3:.3f} | {plain_step * 1e3:.3f} | {ours_step * 1e3:.3f}"
    )
    return f"| {name} | {figures} | {float(error.norm() / exact.norm()):.1e} |"


def main() -> int:
    """Measure every matrix and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=20)
    asked = parser.parse_args()
    if not (torch.cuda.is_available() and has_fp8_units(torch.device("cuda"))):
        print("error: needs a Hopper GPU (compute capability 9.0), and a torch of CUDA 12.9 or later", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {asked.tokens} tokens; milliseconds\n")
    print("| matrix | bf16 | FP8 | FP8, quantised before | bf16 with gradients | FP8 with gradients | error |")
    print("|---|---|---|---|---|---|---|")
    for name in SHAPES:
        print(row(name, tokens=asked.tokens, repetitions=asked.repetitions), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
