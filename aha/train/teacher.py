"""Who answers the prompts of a dataset: the policy itself, another model in this process, or one behind an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from aha import hub
from aha.chat import ChatFormat
from aha.client import BudgetExceededError, Client, EndpointError, parse_endpoint, terms_notice
from aha.engine import Engine
from aha.errors import ConfigError
from aha.evaluate import conversation
from aha.models import is_adapter_folder, load_model, read_config
from aha.models.shards import weight_files
from aha.tasks.base import Task
from aha.tasks.turns import answer_problems
from aha.train.job import Job
from aha.train.rollouts import collect
from aha.types import Completion, Problem, Rollout, RolloutGroup, SamplingParams

if TYPE_CHECKING:
    from aha.train.distill import DistillConfig

TIMEOUT_SECONDS = 120.0
SLOWEST_TOKENS_PER_SECOND = 10.0
"""Below this an endpoint counts as stalled."""
NUM_THREADS = 16
"""Prompts under way where they are asked one by one; the client keeps the recipe's own limits."""
REFUSALS_OF_ONE_PROMPT = (400, 413, 422)
"""Answers that tell of the prompt (a filter, its length) and not of the endpoint: that prompt is left out."""


class Teacher(Protocol):
    """Answers problems, several times each."""

    @property
    def name(self) -> str:
        """For a dataset's card and its rows."""

    @property
    def terms(self) -> str:
        """What the teacher's licence says about training on its answers; "" when nothing is known."""

    def answer(self, problems: Sequence[Problem], *, task: Task, sampling: SamplingParams) -> list[RolloutGroup]:
        """Scored answers of each problem, `num_samples` each."""

    def charge(self, job: Job, *, seconds: float, metrics: Mapping[str, Any]) -> None:
        """Put what the answers cost on the job's bill."""


@dataclass(frozen=True)
class LocalTeacher:
    """A model in this process."""

    engine: Engine
    chat: ChatFormat
    name: str
    terms: str = ""

    def answer(self, problems: Sequence[Problem], *, task: Task, sampling: SamplingParams) -> list[RolloutGroup]:
        assert sampling.seed is not None
        return collect(problems, task=task, chat=self.chat, engine=self.engine, sampling=sampling, seed=sampling.seed)

    def charge(self, job: Job, *, seconds: float, metrics: Mapping[str, Any]) -> None:
        prompt_tokens, completion_tokens = metrics["prompt_tokens"], metrics["completion_tokens"]
        job.charge("sampling", seconds=seconds, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


@dataclass(frozen=True)
class EndpointTeacher:
    """A model behind an OpenAI-compatible endpoint; its client keeps the budget and every paid reply."""

    client: Client

    @property
    def name(self) -> str:
        return f"{self.client.endpoint.model} at {self.client.endpoint.base_url}"

    @property
    def terms(self) -> str:
        return terms_notice(self.client.endpoint)

    def answer(self, problems: Sequence[Problem], *, task: Task, sampling: SamplingParams) -> list[RolloutGroup]:
        # An endpoint draws as it likes: a seed on the wire would only make equal requests look different.
        asked = dataclasses.replace(sampling, seed=None)
        try:
            completions_PG = self._ask(problems, task=task, sampling=asked)
        except (BudgetExceededError, EndpointError) as error:
            if isinstance(error, EndpointError) and error.status not in REFUSALS_OF_ONE_PROMPT:
                raise
            # What was paid for lies in the journal: asked one by one, it is answered again at no cost.
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                ask = partial(self._ask_one_by_one, task=task, sampling=asked)
                completions_PG = list(pool.map(ask, problems))
            if not any(completions_PG):
                raise
        return [
            RolloutGroup(problem, (), tuple(Rollout(c, task.score(problem, c)) for c in completions))
            for problem, completions in zip(problems, completions_PG, strict=True)
            if completions
        ]

    def _ask(self, problems: Sequence[Problem], *, task: Task, sampling: SamplingParams) -> list[list[Completion]]:
        conversations = [conversation(task, problem=problem) for problem in problems]
        return answer_problems(task, problems, conversations, self.client.respond, sampling)

    def _ask_one_by_one(self, problem: Problem, *, task: Task, sampling: SamplingParams) -> list[Completion]:
        """The answers to a problem that can be had, and paid for."""
        completions: list[Completion] = []
        for index in range(sampling.num_samples):
            alone = dataclasses.replace(sampling, num_samples=1, first_sample=index)
            try:
                completions += self._ask([problem], task=task, sampling=alone)[0]
            except BudgetExceededError:
                continue  # a later one may be in the journal
            except EndpointError as error:
                if error.status not in REFUSALS_OF_ONE_PROMPT:
                    raise
        return completions

    def charge(self, job: Job, *, seconds: float, metrics: Mapping[str, Any]) -> None:
        job.charge("waiting for the teacher", seconds=seconds)
        job.charge_endpoint(
            price.price_id if (price := self.client.endpoint.price) else "",
            model=self.client.endpoint.model,
            spent_nano_usd=self.client.spent_nano_usd,
            prompt_tokens=metrics["prompt_tokens"],
            completion_tokens=metrics["completion_tokens"],
        )


def check_teacher(config: DistillConfig, *, chat: ChatFormat) -> None:
    """Refuse, before the first stage runs, a teacher that a later one could not use.

    Args:
        chat: the student's.

    Raises:
        AhaError: no such model or endpoint, one without weights, or for on_policy one with another tokenizer.
    """
    if config.is_endpoint:
        parse_endpoint(config.teacher, price=config.teacher_price)
    elif not config.teacher_is_previous:
        folder = hub.resolve(config.teacher)
        if not is_adapter_folder(folder):
            read_config(folder)
            weight_files(folder)
        theirs = ChatFormat.load(folder)
        if config.method == "on_policy" and theirs.vocabulary != chat.vocabulary:
            raise ConfigError(other_tokenizer(config.teacher))


def other_tokenizer(name: str) -> str:
    """Why a teacher's distribution cannot be followed."""
    return (
        f"{name} has another tokenizer than the student, so their distributions cannot be compared; "
        'use method = "sequences"'
    )


@contextmanager
def open_teacher(config: DistillConfig, job: Job) -> Iterator[Teacher]:
    """The teacher that a stage names, for as long as it is needed.

    Raises:
        AhaError: no such model or endpoint, or an endpoint without a key, a price or a budget.
    """
    if config.is_endpoint:
        endpoint = parse_endpoint(config.teacher, price=config.teacher_price)
        if notice := terms_notice(endpoint):
            job.console.say(notice)
        journal = job.run.data_folder(job.stage_name) / "replies.journal"
        with Client(
            endpoint,
            timeout_seconds=TIMEOUT_SECONDS + config.max_tokens / SLOWEST_TOKENS_PER_SECOND,
            budget_usd=config.budget_usd,
            requests_per_minute=config.requests_per_minute,
            max_concurrency=config.concurrency,
            journal=journal,
            on_notice=job.console.say,
        ) as client:
            yield EndpointTeacher(client)
        return
    folder = job.teacher_folder(job.stage_index) if config.teacher_is_previous else hub.resolve(config.teacher)
    model = load_model(folder, dtype=job.dtype, device=str(job.model.device), resolve=hub.resolve)
    model.requires_grad_(False)
    chat = ChatFormat.load(folder)
    engine = Engine(model, decode=chat.decode, stop_token_ids=chat.stop_token_ids)
    name = "the model before this stage" if config.teacher_is_previous else config.teacher
    yield LocalTeacher(engine, chat, name=name)
