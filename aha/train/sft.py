"""Supervised fine-tuning on a task's worked examples: the cold start, and the making of a base from nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

from aha.chat import ChatFormat
from aha.errors import ConfigError
from aha.evaluate import conversation
from aha.models import Transformer
from aha.tasks import get_task
from aha.tasks.base import Demonstration, HasDemonstrations, Task
from aha.train.batches import TrainingSequence, pack, split_by_tokens
from aha.train.job import Job
from aha.train.logprobs import token_logprobs
from aha.train.optimizer import Optimizer
from aha.train.stage import StageConfig, derive_seed, scheduled_learning_rate
from aha.types import Turn


@dataclass(frozen=True, kw_only=True)
class SFTConfig(StageConfig):
    """Supervised training on a task's demonstrations."""

    examples_per_step: int = 32
    """Demonstrations in each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.examples_per_step < 1:
            raise ConfigError(f"examples_per_step must be at least 1, got {self.examples_per_step}")


def train(config: SFTConfig, job: Job, *, optimizer: Optimizer, first_step: int = 0) -> None:
    """Run the stage from `first_step` to its end.

    Raises:
        ConfigError: if the task has no demonstrations.
    """
    task = get_task(config.task)
    if not isinstance(task, HasDemonstrations):
        raise ConfigError(f"task {task.name!r} has no demonstrations to imitate; use a grpo stage, or a task with them")
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        sequences = draw_examples(task, job.chat, num_examples=config.examples_per_step, seed=config.seed, step=step)
        loss = accumulate_gradients(job.model, sequences, micro_batch_tokens=config.micro_batch_tokens)
        grad_norm = optimizer.clip_grad_norm(config.max_grad_norm)
        learning_rate = scheduled_learning_rate(config, step=step)
        is_skipped = not job.step_if_finite(optimizer, learning_rate=learning_rate, grad_norm=grad_norm)
        if is_skipped:
            job.dump_skipped(step, sequences)
        num_tokens = sum(s.num_trained for s in sequences)
        seconds = time.perf_counter() - started
        job.charge("supervised training", seconds=seconds, trained_tokens=num_tokens)
        job.log_step(
            step,
            {
                "learning_rate": learning_rate,
                "loss": loss,
                "grad_norm": grad_norm,
                "trained_tokens": num_tokens,
                "tokens_per_second": num_tokens / seconds,
                "is_skipped": is_skipped,
            },
        )
        job.after_step(config, step=step, optimizer=optimizer)


def draw_examples(task: Task, chat: ChatFormat, *, num_examples: int, seed: int, step: int) -> list[TrainingSequence]:
    """The demonstrations of one step, as tokens: a function of (seed, step) alone."""
    assert isinstance(task, HasDemonstrations)
    demonstrations = task.demonstrations(seed=derive_seed(seed, "demonstrations", step))
    return [encode_demonstration(task, chat, d) for d in islice(demonstrations, num_examples)]


def encode_demonstration(task: Task, chat: ChatFormat, demonstration: Demonstration) -> TrainingSequence:
    """Prompt and completion of a demonstration, the completion exactly as the model should sample it.

    With turns: as an episode's tokens would be, trained on what the model should write in every turn.
    """
    prompt_ids = chat.render(conversation(task, problem=demonstration.problem))
    token_ids: list[int] = []
    is_sampled: list[bool] = []
    last = Turn(demonstration.reasoning, demonstration.answer)
    for turn in (*demonstration.turns, last):
        starts_in_thinking = chat.starts_in_thinking([*prompt_ids, *token_ids])
        written = chat.encode_completion(
            reasoning=turn.reasoning, answer=turn.answer, starts_in_thinking=starts_in_thinking
        )
        shown = chat.continuation(turn.observation, last_token_id=written[-1]) if turn.observation else []
        token_ids += [*written, *shown]
        is_sampled += [True] * len(written) + [False] * len(shown)
    mask = () if all(is_sampled) else tuple(is_sampled)
    return TrainingSequence(tuple(prompt_ids), tuple(token_ids), is_sampled=mask)


def accumulate_gradients(model: Transformer, sequences: list[TrainingSequence], *, micro_batch_tokens: int) -> float:
    """Backpropagate the mean loss per completion token over all sequences; returns it.

    The one normaliser is the step's token count, so that the split into micro-batches does not show.
    """
    num_targets = sum(s.num_trained for s in sequences)
    total = 0.0
    for micro_batch in split_by_tokens(sequences, max_tokens=micro_batch_tokens):
        loss = -token_logprobs(model, pack(micro_batch)).logprobs_M.sum() / num_targets
        loss.backward()
        total += loss.item()
    return total
