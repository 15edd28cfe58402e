"""Distillation: a student learns from a teacher's answers, or from the teacher's distribution on its own answers.

Sources: R1 (arXiv:2501.12948v1) §2.4, supervised training on a teacher's verified answers; GKD (arXiv:2306.13649) and
its on-policy form, in which the student samples and the teacher says at every token what it would have preferred.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aha.client import ENDPOINT_PREFIX, BudgetExceededError
from aha.errors import ConfigError
from aha.models import Routing, Transformer
from aha.tasks import get_task
from aha.train.balance import ExpertLoad, load_metrics
from aha.train.batches import TrainingSequence, pack, split_by_tokens
from aha.train.collecting import CollectingConfig, Collector
from aha.train.divergence import Divergence, token_divergences
from aha.train.job import Job
from aha.train.metrics import rollout_metrics, sample_rows, thinking_tokens
from aha.train.optimizer import Optimizer
from aha.train.rollouts import ProblemStream, collect
from aha.train.sft import ExampleSource, SupervisedConfig, imitate
from aha.train.stage import derive_seed, scheduled_learning_rate
from aha.train.teacher import LocalTeacher, open_teacher, other_tokenizer
from aha.types import RolloutGroup, SamplingParams


@dataclass(frozen=True, kw_only=True)
class DistillConfig(SupervisedConfig, CollectingConfig):
    """A student learns from a teacher."""

    teacher: str
    """Who teaches: "previous" is the model that the stage before left (the student then has start = "base"); else a
    folder, a run, a built-in name or a Hugging Face id; or "openai:MODEL@BASE_URL", a model behind an endpoint."""
    method: Literal["sequences", "on_policy"] = "sequences"
    """Imitate the teacher's verified answers, or follow its distribution on what the student itself writes."""
    collect_steps: int = 16
    """Batches of prompts that the teacher answers before the student's first step (method = "sequences")."""
    divergence: Divergence = "reverse_kl"
    """What on_policy lowers: reverse_kl seeks the teacher's modes, forward_kl covers them."""
    teacher_price: str = ""
    """What an endpoint's tokens cost: an id of the price book, or "IN/OUT" in dollars per million tokens."""
    budget_usd: float = 0.0
    """Most dollars that an endpoint may cost; never exceeded, also not over a resume."""
    requests_per_minute: int = 0
    """Most requests a minute to an endpoint; 0 leaves it to the endpoint to slow us down."""
    concurrency: int = 8
    """Requests to an endpoint at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(collect_steps=1, requests_per_minute=0, concurrency=1)
        self._check_rules(("budget_usd", self.budget_usd >= 0, "0 or more"))
        if self.teacher_is_previous and self.start != "base":
            raise ConfigError('teacher = "previous" needs start = "base": a model cannot learn from itself')
        if self.is_endpoint and self.method == "on_policy":
            raise ConfigError(
                f'teacher={self.teacher!r}: an endpoint does not show its distribution; use method = "sequences", '
                "or a teacher whose weights are here"
            )
        if self.is_endpoint and not self.budget_usd:
            raise ConfigError(f"teacher={self.teacher!r} costs money: say how much at most, e.g. budget_usd=1.0")
        if self.is_endpoint and not self.teacher_price:
            raise ConfigError(
                f"teacher={self.teacher!r}: a budget cannot be kept without a price; say what its tokens cost, e.g. "
                "teacher_price=0.55/2.19, in dollars per million in and out"
            )
        if self.method == "on_policy" and self.temperature == 0:
            raise ConfigError("on_policy needs temperature above 0, got 0")

    @property
    def teacher_is_previous(self) -> bool:
        return self.teacher == "previous"

    @property
    def is_endpoint(self) -> bool:
        return self.teacher.startswith(ENDPOINT_PREFIX)

    @property
    def num_steps(self) -> int:
        return self.steps + (self.collect_steps if self.method == "sequences" else 0)


def train(
    config: DistillConfig,
    job: Job,
    *,
    optimizer: Optimizer | None,
    first_step: int = 0,
    state: dict[str, Any] | None = None,
) -> None:
    """Run the stage from `first_step` to its end.

    Raises:
        ConfigError: the teacher cannot be used, or nothing of what it said was right.
    """
    if config.method == "on_policy":
        follow(config, job, optimizer=optimizer, first_step=first_step, state=state)
        return
    # Also where the run was stopped right after the last batch: the dataset's card may not be written yet.
    if first_step <= config.collect_steps:
        with open_teacher(config, job) as teacher:
            collector = Collector.resumed(config, job, teacher=teacher, state=state)
            for step in range(first_step, config.collect_steps):
                try:
                    collector.step(step)
                except BudgetExceededError as error:
                    # Requests that gave nothing may have been paid for all the same.
                    teacher.charge(job, seconds=0.0, metrics={"prompt_tokens": 0, "completion_tokens": 0})
                    if not collector.num_examples:
                        raise
                    job.console.say(f"{error}; going on with the {collector.num_examples} examples bought so far")
                    break
                job.after_step(config, step=step, optimizer=optimizer, state=collector.state)
            collector.finish()
    source = ExampleSource(config, job, data=[job.stage_name])
    first_step = max(first_step, config.collect_steps) - config.collect_steps
    imitate(config, job, source=source, optimizer=optimizer, first_step=first_step, steps_before=config.collect_steps)


def follow(
    config: DistillConfig, job: Job, *, optimizer: Optimizer | None, first_step: int, state: dict[str, Any] | None
) -> None:
    """On-policy steps: the student samples, and its divergence from the teacher at every token is lowered.

    As in GRPO, the experts' selection biases and the modules of multi-token prediction stay as they are.
    """
    assert optimizer is not None, "a stage that trains has an optimiser"
    task = get_task(config.task)
    stream = ProblemStream(task, seed=job.seed(config), cursor=(state or {}).get("problem_cursor", 0))
    sampling = SamplingParams(
        num_samples=config.num_samples, temperature=config.temperature, max_tokens=config.max_tokens
    )
    with open_teacher(config, job) as teacher:
        assert isinstance(teacher, LocalTeacher)
        _check_same_vocabulary(job, teacher)
        for step in range(first_step, config.steps):
            started = time.perf_counter()
            seed = derive_seed(config.seed, "step", job.stage_index, step)
            problems = stream.take(config.prompts_per_step)
            groups = collect(problems, task=task, chat=job.chat, engine=job.engine, sampling=sampling, seed=seed)
            metrics = rollout_metrics(groups, num_thinking_tokens=thinking_tokens(groups, job.chat))
            sampled_tokens = {key: metrics[key] for key in ("prompt_tokens", "completion_tokens")}
            job.charge("sampling", seconds=time.perf_counter() - started, **sampled_tokens)
            started_training = time.perf_counter()
            sequences, load = _sequences(groups), ExpertLoad()
            divergence = _accumulate_gradients(job.model, teacher.engine.model, sequences, config=config, load=load)
            grad_norm = optimizer.clip_grad_norm(config.max_grad_norm)
            learning_rate = scheduled_learning_rate(config, step=step)
            is_taken = job.step_if_finite(optimizer, learning_rate=learning_rate, grad_norm=grad_norm)
            if not is_taken:
                job.dump_skipped(step, sequences)
            num_tokens = sum(s.num_trained for s in sequences)
            job.charge("training", seconds=time.perf_counter() - started_training, trained_tokens=num_tokens)
            metrics |= {
                "learning_rate": learning_rate,
                "loss": divergence,
                "divergence": divergence,
                **load_metrics([load]),
                "grad_norm": grad_norm,
                "is_skipped": not is_taken,
                "trained_tokens": num_tokens,
                "tokens_per_second": num_tokens / (time.perf_counter() - started),
            }
            job.log_samples(sample_rows(groups, num_samples=config.samples_per_step, step=job.steps_before + step + 1))
            job.log_step(step, metrics)
            job.after_step(config, step=step, optimizer=optimizer, state={"problem_cursor": stream.cursor})


def _sequences(groups: Sequence[RolloutGroup]) -> list[TrainingSequence]:
    """What the student wrote; what a task showed it is context."""
    return [
        TrainingSequence(group.prompt_ids, r.completion.token_ids, is_sampled=r.completion.is_sampled)
        for group in groups
        for r in group.rollouts
    ]


def _accumulate_gradients(
    student: Transformer,
    teacher: Transformer,
    sequences: Sequence[TrainingSequence],
    *,
    config: DistillConfig,
    load: ExpertLoad,
) -> float:
    """Backpropagate the mean divergence per sampled token; returns it, in nats."""
    num_tokens = sum(s.num_trained for s in sequences)
    total = 0.0
    for micro_batch in split_by_tokens(sequences, max_tokens=config.micro_batch_tokens):
        batch, routings = pack(micro_batch), list[Routing]()
        divergence_M = token_divergences(
            student,
            teacher,
            batch,
            divergence=config.divergence,
            temperature=config.temperature,
            routings=routings,
        )
        load.add([routing.expert_load(batch.documents_per_row) for routing in routings])
        loss = divergence_M.sum() / num_tokens
        loss.backward()
        total += loss.item()
    return total


def _check_same_vocabulary(job: Job, teacher: LocalTeacher) -> None:
    """Raises ConfigError when a token id does not mean the same to both models."""
    is_same_size = job.model.config.vocab_size == teacher.engine.model.config.vocab_size
    if not is_same_size or job.chat.vocabulary != teacher.chat.vocabulary:
        raise ConfigError(other_tokenizer(teacher.name))
