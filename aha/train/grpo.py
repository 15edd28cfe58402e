"""Group Relative Policy Optimisation: sample groups, score them, push towards what scored above its group."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from aha.chat import ChatFormat
from aha.models import Transformer
from aha.tasks import get_task
from aha.train.batches import TrainingSequence, pack, split_by_tokens
from aha.train.grpo_config import GRPOConfig
from aha.train.job import Job
from aha.train.logprobs import token_logprobs
from aha.train.losses import LOSSES, group_advantages, kl_penalty
from aha.train.metrics import rollout_metrics, sample_rows
from aha.train.optimizer import Optimizer
from aha.train.rollouts import ProblemStream, collect
from aha.train.stage import derive_seed, scheduled_learning_rate
from aha.train.watchdog import explain
from aha.types import FinishReason, Rollout, RolloutGroup, SamplingParams


def train(
    config: GRPOConfig, job: Job, *, optimizer: Optimizer, first_step: int = 0, state: dict[str, Any] | None = None
) -> None:
    """Run the stage from `first_step` to its end.

    Source: DeepSeekMath (arXiv:2402.03300); R1 §2.2.1; dropping flat groups and the token mean as in DAPO
    (arXiv:2503.14476).

    Args:
        state: what the checkpoint kept for this stage: the problems taken so far.
    """
    task = get_task(config.task)
    stream = ProblemStream(task, seed=config.seed, cursor=(state or {}).get("problem_cursor", 0))
    sampling = SamplingParams(
        num_samples=config.group_size, temperature=config.temperature, max_tokens=config.max_tokens
    )
    reference = job.load_reference(first_step=first_step) if config.kl_coef else None
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        groups: list[RolloutGroup] = []
        waits: list[float] = []
        while num_missing := missing_prompts(groups, config):
            problems = stream.take(num_missing)
            seed = derive_seed(config.seed, "step", job.stage_index, step, len(groups))
            groups += collect(
                problems,
                task=task,
                chat=job.chat,
                engine=job.engine,
                sampling=sampling,
                seed=seed,
                on_wait=waits.append,
            )
        rollout_seconds = time.perf_counter() - started

        started = time.perf_counter()
        # Groups of equal reward have no gradient: from here on they cost nothing.
        sequences = training_sequences(groups, config)
        learning_rate = scheduled_learning_rate(config, step=step)
        if config.updates_per_step > 1:
            sequences = with_old_logprobs(job.model, sequences, config)
        updates = []
        for number in range(config.updates_per_step):
            if minibatch := sequences[number :: config.updates_per_step]:
                update = accumulate_gradients(job.model, minibatch, config=config, reference=reference)
                grad_norm = optimizer.clip_grad_norm(config.max_grad_norm)
                is_taken = job.step_if_finite(optimizer, learning_rate=learning_rate, grad_norm=grad_norm)
                if not is_taken:
                    job.dump_skipped(step, minibatch)
                updates.append({**update, "grad_norm": grad_norm, "is_skipped": not is_taken})
        train_seconds = time.perf_counter() - started

        metrics = rollout_metrics(groups, num_thinking_tokens=thinking_tokens(groups, job.chat)) | merge(updates)
        num_trained = sum(s.num_trained for s in sequences)
        prompt_tokens, completion_tokens = metrics["prompt_tokens"], metrics["completion_tokens"]
        job.charge(
            "sampling", seconds=rollout_seconds, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
        job.charge("training", seconds=train_seconds, trained_tokens=num_trained)
        metrics |= {
            "learning_rate": learning_rate,
            "trained_tokens": num_trained,
            "rollout_seconds": rollout_seconds,
            "scoring_seconds": sum(waits),  # of the rollouts' seconds: what was left to score when sampling had ended
            "train_seconds": train_seconds,
            "tokens_per_second": completion_tokens / (rollout_seconds + train_seconds),
            "note": explain(metrics),
        }
        job.log_samples(sample_rows(groups, num_samples=config.samples_per_step, step=job.steps_before + step + 1))
        job.log_step(step, metrics)
        job.after_step(config, step=step, optimizer=optimizer, state={"problem_cursor": stream.cursor})


def missing_prompts(groups: Sequence[RolloutGroup], config: GRPOConfig) -> int:
    """How many prompts to sample next: those of the step, then replacements of flat groups within the budget."""
    budget = config.prompts_per_step + round(config.refill_budget * config.prompts_per_step)
    num_teaching = sum(any(advantages_of(group, config)) for group in groups)
    return min(config.prompts_per_step - num_teaching, budget - len(groups))


def training_sequences(groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[TrainingSequence]:
    """Completions with their advantages; groups without a gradient and completions without a score left out."""
    sequences = []
    for group in groups:
        advantages = advantages_of(group, config)
        if any(advantages):
            sequences += [
                TrainingSequence(
                    group.prompt_ids,
                    r.completion.token_ids,
                    advantage,
                    r.completion.logprobs,
                    is_sampled=r.completion.is_sampled,
                )
                for r, advantage in zip(group.rollouts, advantages, strict=True)
                if not _is_masked(r, config)
            ]
    return sequences


def advantages_of(group: RolloutGroup, config: GRPOConfig) -> list[float]:
    """One advantage per rollout of a group; all 0 when it teaches nothing, masked rollouts included."""
    rewards = [math.nan if _is_masked(r, config) else r.score.reward for r in group.rollouts]
    advantages: list[float] = group_advantages(torch.tensor([rewards]), scale=config.advantage_scale)[0].tolist()
    return advantages


def _is_masked(rollout: Rollout, config: GRPOConfig) -> bool:
    is_truncated = rollout.completion.finish_reason is FinishReason.LENGTH
    return not rollout.score.outcome.is_judged or (is_truncated and config.truncated == "mask")


def accumulate_gradients(
    model: Transformer,
    sequences: Sequence[TrainingSequence],
    *,
    config: GRPOConfig,
    reference: Transformer | None = None,
) -> dict[str, float]:
    """Backpropagate the mean loss per trained token; returns it with its metrics.

    The one normaliser is the number of trained tokens of the whole update, so that gradients depend neither on the
    split into micro-batches nor on padding (there is none).
    """
    loss_of = LOSSES[config.loss]
    num_tokens = sum(s.num_trained for s in sequences)
    totals = dict.fromkeys(("loss", "entropy", "kl", "clip_low_fraction", "clip_high_fraction", "sampler_gap"), 0.0)
    for micro_batch in split_by_tokens(sequences, max_tokens=config.micro_batch_tokens):
        batch = pack(micro_batch)
        logprobs_M, entropy_M = token_logprobs(model, batch, temperature=config.temperature)
        # On policy the old policy is this one: the ratio is exactly 1, and its gradient is that of the log-probability.
        old_logprobs_M = batch.sampled_logprobs_M if config.updates_per_step > 1 else logprobs_M.detach()
        policy = loss_of(
            logprobs_M,
            old_logprobs_M=old_logprobs_M,
            advantages_M=batch.advantages_M,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        loss = policy.loss
        if reference is not None:
            with torch.no_grad():
                reference_logprobs_M = token_logprobs(reference, batch, temperature=config.temperature).logprobs_M
            kl_M = kl_penalty(
                logprobs_M,
                reference_logprobs_M=reference_logprobs_M,
                old_logprobs_M=old_logprobs_M,
                estimator=config.kl_estimator,
            )
            loss = loss + config.kl_coef * kl_M.sum()
            totals["kl"] += kl_M.sum().item() / num_tokens
        (loss / num_tokens).backward()
        totals["loss"] += loss.item() / num_tokens
        totals["entropy"] += entropy_M.sum().item() / num_tokens
        totals["clip_low_fraction"] += policy.num_clipped_low / num_tokens
        totals["clip_high_fraction"] += policy.num_clipped_high / num_tokens
        gap_M = logprobs_M.detach().exp() - batch.sampled_logprobs_M.exp()
        totals["sampler_gap"] += gap_M.abs().sum().item() / num_tokens
    return totals


@torch.no_grad()
def with_old_logprobs(
    model: Transformer, sequences: Sequence[TrainingSequence], config: GRPOConfig
) -> list[TrainingSequence]:
    """The sequences with log-probabilities of the policy before the step's first update.

    Computed by the trainer's own forward pass, so that the first update's ratio is 1 and not the engine's rounding.
    """
    updated = []
    for micro_batch in split_by_tokens(sequences, max_tokens=config.micro_batch_tokens):
        batch = pack(micro_batch)
        logprobs_M = token_logprobs(model, batch, temperature=config.temperature).logprobs_M
        per_sequence = logprobs_M.split([s.num_trained for s in micro_batch])
        updated += [
            s.with_sampled_logprobs(logprobs.tolist()) for s, logprobs in zip(micro_batch, per_sequence, strict=True)
        ]
    return updated


def thinking_tokens(groups: Sequence[RolloutGroup], chat: ChatFormat) -> list[int]:
    """Tokens of every completion's thinking."""
    return [len(chat.encode(r.completion.reasoning)) for group in groups for r in group.rollouts]


def merge(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the updates of a step; a step without any has no gradient and no loss."""
    names = ("loss", "grad_norm", "entropy", "kl", "clip_low_fraction", "clip_high_fraction", "sampler_gap")
    merged = {name: statistics.fmean(u[name] for u in updates) if updates else 0.0 for name in names}
    if not updates:
        merged["entropy"] = math.nan
    return merged | {"is_skipped": any(u["is_skipped"] for u in updates)}
