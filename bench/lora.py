"""What LoRA saves: peak memory and seconds of a training step, beside full fine-tuning on the same batch.

    python -m bench.lora [--model smollm2] [--micro-batch-tokens 1024 4096] [--all]

Each step runs in a process of its own: its model, its optimiser, the batch of an SFT step, nothing else. "above idle"
leaves out what the process held with torch loaded and no model.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench.child import Job, Measurement, peak_memory_bytes, run_child, timed

PROMPT_TOKENS, COMPLETION_TOKENS = 64, 128


def one_kind(job: Job) -> Measurement:
    """In the child: a few steps of one kind of training."""
    import torch

    from aha import hub
    from aha.models import load_model, num_trainable
    from aha.train.adapter import begin_lora, prepare_stage
    from aha.train.batches import TrainingSequence
    from aha.train.optimizer import Optimizer
    from aha.train.sft import SFTConfig, accumulate_gradients

    idle_bytes = peak_memory_bytes()
    settings: dict[str, Any] = {key: job[key] for key in ("lora_rank", "activations", "micro_batch_tokens")}
    config = SFTConfig(task="arithmetic", model=job["model"], **settings)
    folder = hub.resolve(config.model)
    model = load_model(folder, device="cpu")
    begin_lora(model, config, folder=folder)
    prepare_stage(model, config)
    optimizer = Optimizer(model)
    generator = torch.Generator().manual_seed(0)
    length = PROMPT_TOKENS + COMPLETION_TOKENS
    tokens = torch.randint(0, model.config.vocab_size, (job["sequences"], length), generator=generator).tolist()
    batch = [TrainingSequence(tuple(t[:PROMPT_TOKENS]), tuple(t[PROMPT_TOKENS:])) for t in tokens]

    def step() -> None:
        accumulate_gradients(model, batch, micro_batch_tokens=config.micro_batch_tokens)
        optimizer.clip_grad_norm(1.0)
        optimizer.step(learning_rate=1e-5)

    seconds = tuple(timed(step) for _ in range(job["steps"]))
    details = {"idle_bytes": idle_bytes, "trained": num_trainable(model), "dtype": str(model.dtype)}
    return Measurement(seconds=seconds, num_tokens=len(batch) * COMPLETION_TOKENS, details=details)


def main() -> None:
    """Measure every kind at every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--micro-batch-tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--all", action="store_true", help="each kind with activations kept and recomputed")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    length = PROMPT_TOKENS + COMPLETION_TOKENS
    kinds = {
        "full, as it is by default": {"lora_rank": 0, "activations": "auto"},
        "full, recomputing activations": {"lora_rank": 0, "activations": "recompute"},
        "LoRA rank 16, keeping activations": {"lora_rank": 16, "activations": "keep"},
        "LoRA rank 16, as it is by default": {"lora_rank": 16, "activations": "auto"},
    }
    print("| micro-batch | training | peak MB | of full | above idle MB | of full | seconds a step |")
    print("|---|---|---|---|---|---|---|")
    for size in asked.micro_batch_tokens:
        whole = above = 0.0
        for name, settings in kinds.items():
            if "by default" not in name and not asked.all:
                continue
            # Two micro-batches, so that gradients are there while activations are; two steps, so that moments are.
            job = {"model": asked.model, "micro_batch_tokens": size, "sequences": 2 * (size // length), "steps": 2}
            found = run_child("bench.lora:one_kind", job | settings, num_threads=asked.threads, timeout_seconds=1800)
            peak, idle = found.peak_bytes, int(found.details["idle_bytes"])
            whole, above = whole or peak, above or (peak - idle)
            shares = f"{peak / 1e6:.0f} | {peak / whole:.2f} | {(peak - idle) / 1e6:.0f} | {(peak - idle) / above:.2f}"
            print(f"| {size} | {name} | {shares} | {min(found.seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
