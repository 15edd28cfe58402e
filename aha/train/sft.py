"""Supervised fine-tuning: a cold start on a task's worked examples, or on the data that an earlier stage collected."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aha.chat import ChatFormat
from aha.errors import ConfigError, DataError
from aha.evaluate import conversation
from aha.models import Transformer
from aha.tasks import get_task
from aha.tasks.base import Demonstration, HasDemonstrations, Task
from aha.train.balance import ExpertLoad, load_metrics
from aha.train.batches import TrainingSequence, split_by_tokens
from aha.train.dataset import Example, read_examples
from aha.train.job import Job
from aha.train.optimizer import Optimizer
from aha.train.stage import TrainingConfig, derive_seed, scheduled_balance_speed, scheduled_learning_rate
from aha.train.supervised import SupervisedLosses, mean_losses, supervised_losses, wanted_losses
from aha.types import Message, Turn


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TrainingConfig):
    """What every stage has that imitates worked answers."""

    examples_per_step: int = 32
    """Worked answers in each step."""
    mtp_weight: float = 0.3
    """Weight of multi-token prediction (lambda), for models that have modules of it; 0 leaves those as they are.
    DeepSeek-V3 (report §4.2) had 0.3 for its first 10T tokens, then 0.1."""
    balance_loss_coef: float = 1e-4
    """Weight of the sequence-wise balance loss (alpha), for experts with a selection bias; 0 leaves it out. The
    default is the report's (§4.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(examples_per_step=1, mtp_weight=0, balance_loss_coef=0)


@dataclass(frozen=True, kw_only=True)
class SFTConfig(SupervisedConfig):
    """Supervised training on a task's demonstrations, or on datasets."""

    data: tuple[str, ...] = ()
    """What to imitate: names of earlier stages that collected data, dataset folders or JSONL files. Without any, the
    demonstrations of the task."""
    demonstration_share: float = 0.0
    """Share of each step's examples that are the task's demonstrations, beside `data`: R1 mixes other data in too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_rules(("demonstration_share", 0 <= self.demonstration_share < 1, "at least 0 and below 1"))
        if self.demonstration_share and not self.data:
            raise ConfigError("demonstration_share mixes demonstrations into data; name the data, or leave it at 0")


def train(
    config: SFTConfig,
    job: Job,
    *,
    optimizer: Optimizer | None,
    first_step: int = 0,
    state: dict[str, Any] | None = None,
) -> None:
    """Run the stage from `first_step` to its end.

    Raises:
        ConfigError: there is no data and the task has no demonstrations.
        DataError: a dataset that cannot be used.
    """
    source = ExampleSource(config, job)
    imitate(config, job, source=source, optimizer=optimizer, first_step=first_step)


def imitate(
    config: SupervisedConfig,
    job: Job,
    *,
    source: ExampleSource,
    optimizer: Optimizer | None,
    first_step: int,
    steps_before: int = 0,
    state: dict[str, Any] | None = None,
) -> None:
    """Supervised steps from `first_step` to the end of the stage.

    Args:
        first_step: counted from 0 without `steps_before`.
        steps_before: steps of the same stage that came before the supervised ones.
        state: what each checkpoint keeps.
    """
    assert optimizer is not None, "a stage that trains has an optimiser"
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        sequences = source.draw(step)
        load = ExpertLoad()
        losses = accumulate_gradients(
            job.model,
            sequences,
            micro_batch_tokens=config.micro_batch_tokens,
            mtp_weight=config.mtp_weight,
            balance_loss_coef=config.balance_loss_coef,
            load=load,
        )
        grad_norm = optimizer.clip_grad_norm(config.max_grad_norm)
        learning_rate = scheduled_learning_rate(config, step=step)
        is_skipped = not job.step_if_finite(
            optimizer,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            load=load,
            balance_speed=scheduled_balance_speed(config, step=step),
        )
        if is_skipped:
            job.dump_skipped(steps_before + step, sequences)
        num_tokens = sum(s.num_trained for s in sequences)
        seconds = time.perf_counter() - started
        job.charge("supervised training", seconds=seconds, trained_tokens=num_tokens)
        job.log_step(
            steps_before + step,
            {
                "learning_rate": learning_rate,
                **losses,
                **load_metrics([load]),
                "grad_norm": grad_norm,
                "trained_tokens": num_tokens,
                "tokens_per_second": num_tokens / seconds,
                "is_skipped": is_skipped,
            },
        )
        job.after_step(config, step=steps_before + step, optimizer=optimizer, state=state)


class ExampleSource:
    """The worked answers of each step, as tokens: a function of (seed, step) alone.

    Data is gone through in a new order in each pass; demonstrations are drawn anew in each step.
    """

    def __init__(self, config: SupervisedConfig, job: Job, *, data: Sequence[str] | None = None) -> None:
        self._config = config
        self._seed = job.seed(config)
        self._chat = job.chat
        self._task = get_task(config.task)
        names = getattr(config, "data", ()) if data is None else data
        share = getattr(config, "demonstration_share", 0.0)
        self._num_demonstrations = round(share * config.examples_per_step) if names else config.examples_per_step
        if self._num_demonstrations:
            _check_demonstrations(self._task)
        examples = [e for name in names for e in read_examples(job.run.find_data(name))]
        window = job.model.config.max_position_embeddings
        encoded = [encode_example(job.chat, example) for example in examples]
        self._sequences = [sequence for sequence in encoded if sequence.num_tokens <= window]
        if num_long := len(encoded) - len(self._sequences):
            job.console.say(f"{num_long} of {len(encoded)} examples are longer than the model's window: left out")
        self._epoch, self._order = -1, list[int]()
        if names and not self._sequences:
            raise DataError(f"no example of {', '.join(names)} fits the model's window of {window} tokens")

    def draw(self, step: int) -> list[TrainingSequence]:
        """The examples of one step."""
        config = self._config
        num_data = config.examples_per_step - self._num_demonstrations
        drawn = [self._sequence_at(step * num_data + i) for i in range(num_data)]
        if self._num_demonstrations:
            drawn += draw_examples(
                self._task, self._chat, num_examples=self._num_demonstrations, seed=self._seed, step=step
            )
        return drawn

    def _sequence_at(self, number: int) -> TrainingSequence:
        epoch, position = divmod(number, len(self._sequences))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._sequences)))
            random.Random(derive_seed(self._seed, "examples", epoch)).shuffle(self._order)
        return self._sequences[self._order[position]]


def draw_examples(task: Task, chat: ChatFormat, *, num_examples: int, seed: int, step: int) -> list[TrainingSequence]:
    """The demonstrations of one step, as tokens: a function of (seed, step) alone."""
    assert isinstance(task, HasDemonstrations)
    demonstrations = task.demonstrations(seed=derive_seed(seed, "demonstrations", step))
    return [encode_demonstration(task, chat, d) for d in islice(demonstrations, num_examples)]


def encode_demonstration(task: Task, chat: ChatFormat, demonstration: Demonstration) -> TrainingSequence:
    """Prompt and completion of a demonstration, the completion exactly as the model should sample it."""
    messages = conversation(task, problem=demonstration.problem)
    last = Turn(demonstration.reasoning, demonstration.answer)
    return _encode(chat, messages, turns=(*demonstration.turns, last))


def encode_example(chat: ChatFormat, example: Example) -> TrainingSequence:
    """The same for a row of a dataset."""
    system = [Message("system", example.system)] if example.system else []
    messages = [*system, Message("user", example.prompt)]
    return _encode(chat, messages, turns=(*example.turns, Turn(example.reasoning, example.answer)))


def _encode(chat: ChatFormat, messages: list[Message], *, turns: Sequence[Turn]) -> TrainingSequence:
    """As an episode's tokens would be, trained on what the model should write in every turn."""
    prompt_ids = chat.render(messages)
    token_ids: list[int] = []
    is_sampled: list[bool] = []
    for turn in turns:
        starts_in_thinking = chat.starts_in_thinking([*prompt_ids, *token_ids])
        written = chat.encode_completion(
            reasoning=turn.reasoning, answer=turn.answer, starts_in_thinking=starts_in_thinking
        )
        shown = chat.continuation(turn.observation, last_token_id=written[-1]) if turn.observation else []
        token_ids += [*written, *shown]
        is_sampled += [True] * len(written) + [False] * len(shown)
    mask = () if all(is_sampled) else tuple(is_sampled)
    return TrainingSequence(tuple(prompt_ids), tuple(token_ids), is_sampled=mask)


def accumulate_gradients(
    model: Transformer,
    sequences: list[TrainingSequence],
    *,
    micro_batch_tokens: int,
    mtp_weight: float = 0.0,
    balance_loss_coef: float = 0.0,
    load: ExpertLoad | None = None,
) -> dict[str, float]:
    """Backpropagate the mean loss per completion token over all sequences; returns its parts.

    The one normaliser is the step's token count, so that the split into micro-batches does not show.

    Args:
        mtp_weight: lambda of the report's equation 25: lambda / D times the sum of the modules' losses is added.
        balance_loss_coef: alpha of its equation 17: times the mean over the sequences it is added.
        load: where to count what the experts were given.

    Returns:
        "loss", of the next token alone; "mtp_loss", nats a token that a module predicted; "balance_loss", without
        its weight, the mean over sequences and layers. The last two where there is such a thing.
    """
    wanted = wanted_losses(model, mtp_weight=mtp_weight, balance_loss_coef=balance_loss_coef)
    num_targets = sum(s.num_trained for s in sequences)
    found: list[SupervisedLosses] = []
    for micro_batch in split_by_tokens(sequences, max_tokens=micro_batch_tokens):
        losses = supervised_losses(model, micro_batch, wanted=wanted)
        wanted.weigh(losses, num_targets=num_targets, num_sequences=len(sequences)).backward()
        found.append(losses.detached())
        if load is not None:
            load.add(losses.loads)
    return mean_losses(found, num_targets=num_targets)


def _check_demonstrations(task: Task) -> None:
    if not isinstance(task, HasDemonstrations):
        raise ConfigError(
            f"task {task.name!r} has no demonstrations to imitate; use a grpo stage, give the stage data, or take a "
            "task with them"
        )


def check_data(config: SFTConfig, *, collected: Sequence[str]) -> None:
    """Refuse, before the run begins, data that no earlier stage makes and that cannot be read, or that is missing.

    Args:
        collected: names of the earlier stages that collect.

    Raises:
        ConfigError: no such data, or a task without demonstrations where those are wanted.
        DataError: a file that cannot be used.
    """
    if not config.data or config.demonstration_share:
        _check_demonstrations(get_task(config.task))
    for name in config.data:
        if name in collected:
            continue
        if Path(name).exists():
            read_examples(Path(name))
        else:
            stages = ", ".join(collected) or "none"
            raise ConfigError(
                f"data {name!r} is neither an earlier stage that collects ({stages}) nor a dataset folder or JSONL file"
            )
