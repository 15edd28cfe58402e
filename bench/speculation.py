"""What drafting wins: a small DeepSeek-V3 with one prediction module is trained, then sampled with and without drafts.

    python -m bench.speculation [--steps 600] [--rounds 5] [--folder DIR] [--clock cpu]

Untrained modules are never right, so a minute of training comes first: countdown's demonstrations, the next token and
0.3 times the one after it (DeepSeek-V3 report, arXiv:2412.19437 §2.2). What counts is the ratio; ways take turns, so
that a drift of the machine hits all alike. Also reported: the share of drafts that would be right if they were the
module's likeliest tokens, or drawn with numbers of their own, or as well as any coupling allows. With --steps 0 the
model stays random and drafts are wrong: the ratio is then what a step costs, and 1/ratio - 1 the share of right drafts
from which on drafting pays for a model of this shape.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.chat import ChatFormat
from aha.engine import Engine, Speculation
from aha.evaluate import conversation
from aha.hub import resolve
from aha.models import (
    ExpertsShape,
    LatentAttentionShape,
    ModelConfig,
    PackedAttention,
    Transformer,
    build_model,
    load_model,
)
from aha.tasks import get_task
from aha.train.sft import draw_examples
from aha.types import SamplingParams
from bench.machine import describe_machine

TASK = "countdown"
EXAMPLES_PER_STEP = 16
MTP_WEIGHT = 0.3
"""Lambda of the report's §4.2 for the first 10T tokens."""
WARM_UP_TOKENS = 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""On a busy machine, and with one thread only, the processor's seconds say more than those that passed."""


def make_model(chat: ChatFormat, *, num_layers: int, width: int) -> Transformer:
    """A V3 in small: latent attention, a dense layer, sparse ones behind it, one prediction module."""
    config = ModelConfig(
        model_type="deepseek_v3",
        vocab_size=len(chat.vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=num_layers,
        num_heads=width // 32,
        num_kv_heads=width // 32,
        head_dim=48,
        max_position_embeddings=1024,
        rope_interleaved=True,
        mla=LatentAttentionShape(
            q_lora_rank=None, kv_lora_rank=width // 4, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32
        ),
        experts=ExpertsShape(
            num_experts=8,
            num_experts_per_token=2,
            intermediate_size=width // 2,
            num_shared_experts=1,
            scoring="sigmoid",
            has_selection_bias=True,
            scaling_factor=1.0,
            first_layer=1,
        ),
        num_mtp_layers=1,
        eos_token_ids=chat.stop_token_ids,
    )
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    return model


def losses(model: Transformer, documents: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token, and of the one after it, which no document's last two tokens have."""
    token_ids_N = torch.tensor([token_id for document in documents for token_id in document])
    lengths = [len(document) for document in documents]
    positions_N = torch.cat([torch.arange(length) for length in lengths])
    left_N = torch.cat([torch.arange(length - 1, -1, -1) for length in lengths])  # tokens behind each in its document
    attention = PackedAttention(lengths)
    hidden_ND = model.hidden_states(token_ids_N, positions_N=positions_N, attention=attention)
    ahead_ND = model.mtp_states(hidden_ND, token_ids_N.roll(-1), depth=0, positions_N=positions_N, attention=attention)
    found = []
    for states_ND, distance in ((hidden_ND, 1), (ahead_ND, 2)):
        has_target_N = left_N >= distance
        logits_NV = F.linear(states_ND[has_target_N], model.output_weight)
        found.append(F.cross_entropy(logits_NV, token_ids_N.roll(-distance)[has_target_N]))
    return found[0], found[1]


def train(model: Transformer, chat: ChatFormat, *, num_steps: int, learning_rate: float = 2e-3) -> None:
    """A plain loop: AdamW, a linear schedule."""
    task = get_task(TASK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    began = time.perf_counter()
    for step in range(num_steps):
        examples = draw_examples(task, chat, num_examples=EXAMPLES_PER_STEP, seed=0, step=step)
        next_loss, ahead_loss = losses(model, [[*e.prompt_ids, *e.completion_ids] for e in examples])
        optimizer.zero_grad()
        (next_loss + MTP_WEIGHT * ahead_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / 20) * (1 - step / num_steps)
        optimizer.step()
        if step % 100 == 99 or step == num_steps - 1:
            seconds = time.perf_counter() - began
            print(f"step {step + 1}  next {next_loss:.3f}  ahead {ahead_loss:.3f}  {seconds:.0f} s", flush=True)
    model.weight_version += 1


class Measured(NamedTuple):
    """One way at one batch and temperature."""

    tokens_per_second: float
    """Of all rounds together: completions end where the model ends them, so that rounds differ in length."""
    acceptance: float
    """Drafts that were right; nan without drafts."""


WAYS: tuple[Speculation, ...] = ("off", "always", "auto")


def measure(
    model: Transformer,
    prompts: list[list[int]],
    *,
    temperature: float,
    num_tokens: int,
    num_rounds: int,
    clock: Callable[[], float],
) -> dict[str, Measured]:
    """Tokens a second of every way; they take turns."""
    engines = {way: Engine(model, speculation=way, clock=clock) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for engine in engines.values():
        engine.generate(prompts, SamplingParams(max_tokens=WARM_UP_TOKENS, seed=0))
    num_written = 0
    for round_number in range(num_rounds):
        written = []
        for way, engine in engines.items():
            sampling = SamplingParams(temperature=temperature, max_tokens=num_tokens, seed=round_number)
            began = clock()
            written.append([c.token_ids for (c,) in engine.generate(prompts, sampling)])
            seconds[way].append(clock() - began)
        assert written[0] == written[1] == written[2], "drafts changed what was written"
        num_written += sum(map(len, written[0]))
    return {
        way: Measured(
            num_written / sum(seconds[way]),
            engine.num_accepted_tokens / engine.num_drafted_tokens if engine.num_drafted_tokens else float("nan"),
        )
        for way, engine in engines.items()
    }


@torch.no_grad()
def couplings(
    model: Transformer, samples: list[tuple[list[int], tuple[int, ...]]], *, temperature: float
) -> dict[str, float]:
    """Share of drafts that would be right, by how they are drawn: p the model's distribution, q the module's.

    Args:
        samples: prompts and completions.
    """
    same = likeliest = independent = best = 0.0
    count = 0
    for prompt, completion in samples:
        document = [*prompt, *completion]
        token_ids_N, positions_N = torch.tensor(document), torch.arange(len(document))
        attention = PackedAttention([len(document)])
        hidden_ND = model.hidden_states(token_ids_N, positions_N=positions_N, attention=attention)
        ahead_ND = model.mtp_states(
            hidden_ND[:-1], token_ids_N[1:], depth=0, positions_N=positions_N[:-1],
            attention=PackedAttention([len(document) - 1]),
        )  # fmt: skip
        p_NV, q_NV = (
            (F.linear(states_ND[len(prompt) - 1 :], model.output_weight).double() / temperature).softmax(dim=-1)
            for states_ND in (hidden_ND[1:], ahead_ND)
        )
        p_end_NV, q_end_NV = p_NV.cumsum(dim=-1), q_NV.cumsum(dim=-1)
        starts_NV = torch.maximum(p_end_NV - p_NV, q_end_NV - q_NV)
        same += float((torch.minimum(p_end_NV, q_end_NV) - starts_NV).clamp(min=0).sum())
        likeliest += float(p_NV.gather(1, q_NV.argmax(dim=-1, keepdim=True)).sum())
        independent += float((p_NV * q_NV).sum())
        best += float(torch.minimum(p_NV, q_NV).sum())
        count += len(p_NV)
    shares = {"same number": same, "likeliest": likeliest, "own number": independent, "best possible": best}
    return {name: total / count for name, total in shares.items()}


def main() -> None:
    """Train or load, measure, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100, help="most new tokens of a sequence")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--folder", type=Path, help="where the trained model is kept, and found the next time")
    asked = parser.parse_args()
    tokenizer_folder = resolve("tiny")
    chat = ChatFormat.load(tokenizer_folder)
    if asked.folder and (asked.folder / "config.json").exists():
        model = load_model(asked.folder, dtype="float32", device="cpu")
    else:
        model = make_model(chat, num_layers=asked.layers, width=asked.width)
        if asked.steps:
            train(model, chat, num_steps=asked.steps)
        if asked.folder:
            model.save(asked.folder)
    report(model, chat, asked)


def report(model: Transformer, chat: ChatFormat, asked: Any) -> None:
    """Print what was found as Markdown."""
    machine = describe_machine()
    where = f"{torch.get_num_threads()} threads of {machine['processor']}, load average {machine['load_average']}"
    print(f"\n{model.num_parameters():,} parameters, {where}, {asked.clock} seconds\n")
    task = get_task(TASK)
    problems = task.problems("test", seed=0)
    prompts = [chat.render(conversation(task, problem=next(problems))) for _ in range(max(asked.batches))]
    print(
        "| batch | temperature | without | with drafts | ratio | auto | ratio | drafts accepted |\n" + "|---" * 8 + "|"
    )
    for batch in asked.batches:
        for temperature in (0.0, 1.0):
            found = measure(
                model,
                prompts[:batch],
                temperature=temperature,
                num_tokens=asked.tokens,
                num_rounds=asked.rounds,
                clock=CLOCKS[asked.clock],
            )
            plain, drafted, auto = (found[way] for way in WAYS)
            ratios = [way.tokens_per_second / plain.tokens_per_second for way in (drafted, auto)]
            speeds = [f"{way.tokens_per_second:.0f}" for way in (plain, drafted, auto)]
            print(
                f"| {batch} | {temperature:g} | {speeds[0]} tokens/s | {speeds[1]} | {ratios[0]:.2f}x | {speeds[2]} | "
                f"{ratios[1]:.2f}x | {drafted.acceptance:.0%} |",
                flush=True,
            )
    completions = Engine(model).generate(prompts, SamplingParams(num_samples=8, max_tokens=asked.tokens, seed=1))
    samples = [(p, c.token_ids) for p, group in zip(prompts, completions, strict=True) for c in group]
    shares = couplings(model, samples, temperature=1.0)
    print("\nright at temperature 1, by how a draft is drawn: " + ", ".join(f"{n} {s:.1%}" for n, s in shares.items()))


if __name__ == "__main__":
    main()
