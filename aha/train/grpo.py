"""Group Relative Policy Optimisation: sample groups, score them, push towards what scored above its group."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aha.models import Routing, Transformer
from aha.tasks import get_task
from aha.tasks.rewards import with_rewards
from aha.train.advantages import group_advantages
from aha.train.balance import ExpertLoad, load_metrics
from aha.train.batches import TrainingSequence, pack, split_by_tokens
from aha.train.grpo_config import GRPOConfig
from aha.train.importance import sampler_ratio, truncated_weights
from aha.train.job import Job
from aha.train.kl import kl_penalty
from aha.train.logprobs import token_logprobs
from aha.train.losses import PolicyTokens, UpdateSize, sum_tokens
from aha.train.metrics import rollout_metrics, sample_rows, thinking_tokens
from aha.train.optimizer import Optimizer
from aha.train.rollouts import ProblemStream, collect
from aha.train.speed import speed_metrics
from aha.train.stage import derive_seed, scheduled_balance_speed, scheduled_learning_rate
from aha.train.tally import UpdateTally, merge
from aha.train.watchdog import explain
from aha.types import FinishReason, Rollout, RolloutGroup, SamplingParams


def train(
    config: GRPOConfig, job: Job, *, optimizer: Optimizer, first_step: int = 0, state: dict[str, Any] | None = None
) -> None:
    """Run the stage from `first_step` to its end.

    Source: DeepSeekMath (arXiv:2402.03300); R1 §2.2.1; dropping flat groups as in DAPO (arXiv:2503.14476); the
    losses' own papers stand in aha.train.losses.

    Args:
        state: what the checkpoint kept for this stage: the problems taken so far.
    """
    task = with_rewards(get_task(config.task), config.rewards)
    stream = ProblemStream(task, seed=job.seed(config), cursor=(state or {}).get("problem_cursor", 0))
    sampling = SamplingParams(
        num_samples=config.group_size, temperature=config.temperature, max_tokens=config.max_tokens
    )
    reference = job.load_reference(first_step=first_step) if config.kl_coef else None
    ended = time.perf_counter()
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        other_seconds = started - ended
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
        minibatches = [m for n in range(config.updates_per_step) if (m := sequences[n :: config.updates_per_step])]
        # The first update is on policy.
        minibatches[1:] = [with_old_logprobs(job.model, minibatch, config) for minibatch in minibatches[1:]]
        updates, loads = [], [ExpertLoad() for _ in minibatches]
        for minibatch, load in zip(minibatches, loads, strict=True):
            staleness = job.model.weight_version - oldest_version(groups)
            update = accumulate_gradients(job.model, minibatch, config=config, reference=reference, load=load)
            grad_norm = optimizer.clip_grad_norm(config.max_grad_norm)
            is_taken = job.step_if_finite(
                optimizer,
                learning_rate=learning_rate,
                grad_norm=grad_norm,
                load=load,
                balance_speed=scheduled_balance_speed(config, step=step),
            )
            if not is_taken:
                job.dump_skipped(step, minibatch)
            updates.append({**update, "grad_norm": grad_norm, "staleness": staleness, "is_skipped": not is_taken})
        ended = time.perf_counter()
        train_seconds = ended - started

        metrics = rollout_metrics(groups, num_thinking_tokens=thinking_tokens(groups, job.chat)) | merge(updates)
        metrics["teaching_fraction"] = sum(any(advantages_of(group, config)) for group in groups) / len(groups)
        num_trained = sum(s.num_trained for s in sequences)
        prompt_tokens, completion_tokens = metrics["prompt_tokens"], metrics["completion_tokens"]
        job.charge(
            "sampling", seconds=rollout_seconds, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
        job.charge("training", seconds=train_seconds, trained_tokens=num_trained)
        metrics |= {
            **load_metrics(loads),
            "learning_rate": learning_rate,
            "trained_tokens": num_trained,
            "rollout_seconds": rollout_seconds,
            "scoring_seconds": sum(waits),  # of the rollouts' seconds: what was left to score when sampling had ended
            "train_seconds": train_seconds,
            "other_seconds": other_seconds,
            **speed_metrics(
                job.model,
                minibatches,
                micro_batch_tokens=config.micro_batch_tokens,
                completion_tokens=completion_tokens,
                rollout_seconds=rollout_seconds,
                train_seconds=train_seconds,
            ),
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
    answers = {r.score.is_correct for r in group.rollouts if not _is_masked(r, config)}
    if config.filter_groups == "accuracy" and len(answers) < 2:
        return [0.0] * len(rewards)
    scale = config.chosen_loss.advantage_scale
    advantages: list[float] = group_advantages(torch.tensor([rewards]), scale=scale)[0].tolist()
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
    load: ExpertLoad | None = None,
) -> dict[str, float]:
    """Backpropagate the mean loss of an update; returns it with its metrics.

    The one normaliser is that of all sequences together, so that gradients depend neither on the split into
    micro-batches nor on padding (there is none).

    Args:
        load: where to count what a sparse model's experts were given.
    """
    objective, load = config.chosen_loss, load or ExpertLoad()
    size = UpdateSize(
        num_tokens=sum(s.num_trained for s in sequences),
        num_sequences=len(sequences),
        max_tokens=config.max_tokens,
    )
    normaliser = size.normaliser(objective.aggregation)
    tally, total = UpdateTally(objective, importance_cap=config.importance_cap), 0.0
    for micro_batch in split_by_tokens(sequences, max_tokens=config.micro_batch_tokens):
        batch, routings = pack(micro_batch), list[Routing]()
        logprobs_M, entropy_M = token_logprobs(model, batch, temperature=config.temperature, routings=routings)
        load.add([routing.expert_load(batch.documents_per_row) for routing in routings])
        tokens = policy_tokens(micro_batch, logprobs_M=logprobs_M, advantages_M=batch.advantages_M)
        policy = objective.token_losses(tokens, clip_low=objective.clip_low, clip_high=objective.clip_high)
        losses_M, kl_M = policy.losses_M, torch.zeros_like(entropy_M)
        if config.importance_cap:
            ratio_M = sampler_ratio(tokens.old_logprobs_M, sampled_logprobs_M=batch.sampled_logprobs_M)
            losses_M = losses_M * truncated_weights(ratio_M, cap=config.importance_cap)
        loss = sum_tokens(losses_M, tokens=tokens, aggregation=objective.aggregation)
        if reference is not None:
            with torch.no_grad():
                reference_logprobs_M = token_logprobs(reference, batch, temperature=config.temperature).logprobs_M
            kl_M = kl_penalty(
                logprobs_M,
                reference_logprobs_M=reference_logprobs_M,
                old_logprobs_M=tokens.old_logprobs_M,
                estimator=config.kl_estimator,
            )
            # Averaged as the policy's losses are, and without their importance weights.
            loss = loss + config.kl_coef * sum_tokens(kl_M, tokens=tokens, aggregation=objective.aggregation)
        (loss / normaliser).backward()
        total += loss.item() / normaliser
        tally.add(
            tokens,
            ratio_M=policy.ratio_M,
            sampled_logprobs_M=batch.sampled_logprobs_M,
            entropy_M=entropy_M,
            kl_M=kl_M.detach(),
        )
    return {"loss": total, **tally.metrics()}


def policy_tokens(sequences: Sequence[TrainingSequence], *, logprobs_M: Tensor, advantages_M: Tensor) -> PolicyTokens:
    """The trained tokens of a micro-batch as a loss wants them.

    Where a sequence has no old log-probabilities the old policy is this one: the ratio is exactly 1, and its gradient
    is that of the log-probability.
    """
    lengths = [s.num_trained for s in sequences]
    now = logprobs_M.detach().split(lengths)
    old = [now.new_tensor(s.old_logprobs) if s.old_logprobs else now for s, now in zip(sequences, now, strict=True)]
    return PolicyTokens(
        logprobs_M=logprobs_M, old_logprobs_M=torch.cat(old), advantages_M=advantages_M, lengths=lengths
    )


@torch.no_grad()
def with_old_logprobs(
    model: Transformer, sequences: Sequence[TrainingSequence], config: GRPOConfig
) -> list[TrainingSequence]:
    """The sequences with log-probabilities of the policy before the step's first update.

    Computed by the trainer's own forward pass and in the micro-batches of the update itself, so that the ratio tells
    what the updates before it did, and neither the engine's rounding nor the packing's.
    """
    updated = []
    for micro_batch in split_by_tokens(sequences, max_tokens=config.micro_batch_tokens):
        batch = pack(micro_batch)
        logprobs_M = token_logprobs(model, batch, temperature=config.temperature).logprobs_M
        per_sequence = logprobs_M.split([s.num_trained for s in micro_batch])
        updated += [
            dataclasses.replace(s, old_logprobs=tuple(logprobs.tolist()))
            for s, logprobs in zip(micro_batch, per_sequence, strict=True)
        ]
    return updated


def oldest_version(groups: Sequence[RolloutGroup]) -> int:
    """Version of the weights that drew the step's oldest completion."""
    return min(r.completion.weight_version for group in groups for r in group.rollouts)
