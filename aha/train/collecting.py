"""Collecting a dataset: a teacher answers training prompts, a verifier and R1's filters decide what is kept.

Shared by the rejection stage, whose teacher is the policy itself, and by distillation from another model.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aha.errors import ConfigError, DataError, unknown_name
from aha.evaluate import select_problems
from aha.tasks import Mixture, get_task
from aha.tasks.base import Task
from aha.tasks.language import Language
from aha.train.dataset import FILE, Example, describe_dataset, read_examples
from aha.train.filters import FILTERS, Contamination, FilterLimits, first_objection
from aha.train.job import EVAL_SEED, Job
from aha.train.metrics import rollout_metrics, sample_rows, thinking_tokens
from aha.train.rollouts import ProblemStream
from aha.train.stage import StageConfig, derive_seed
from aha.train.teacher import Teacher
from aha.types import FinishReason, Rollout, RolloutGroup, SamplingParams

MAX_SKIPPED_PROMPTS = 50
"""Prompts looked at for each one wanted before a stage gives up on finding any that is not held out."""
NUM_HELD_OUT = 2000
"""Held-out problems of each task that training prompts are compared with, where the evaluation asks fewer."""


@dataclass(frozen=True, kw_only=True)
class CollectingConfig(StageConfig):
    """Best of n by the verifier, then filters."""

    prompts_per_step: int = 64
    """Training prompts answered in each step."""
    num_samples: int = 4
    """Answers sampled for each prompt (n); right ones are candidates."""
    keep_per_prompt: int = 1
    """Most answers kept of one prompt."""
    choose: Literal["shortest", "first"] = "shortest"
    """Which of the right answers are kept: the shortest, or the first ones sampled (an unbiased choice)."""
    temperature: float = 1.0
    """Of the sampling."""
    top_p: float = 1.0
    """Nucleus of the sampling; 1 is off."""
    filters: tuple[str, ...] = ("code", "language", "paragraph", "repetition")
    """Names in FILTERS that a kept answer must pass; R1's are the first three."""
    language: Language = "en"
    """Code of the language that the thinking should be in, for the language filter."""
    min_language_share: float = 0.9
    """Share of the thinking's words in that language below which the language filter drops an answer."""
    max_paragraph_chars: int = 2000
    """Longest paragraph of the thinking that the paragraph filter lets through."""
    decontaminate_words: int = 13
    """Prompts that share so many words in a row with a held-out problem are left out; 0 compares whole prompts only."""
    samples_per_step: int = 2
    """Completions of each step that samples.jsonl keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(
            prompts_per_step=1, num_samples=1, keep_per_prompt=1, decontaminate_words=0, samples_per_step=0
        )
        self._check_rules(
            ("temperature", 0 <= self.temperature <= 10, "between 0 and 10"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_language_share", 0 <= self.min_language_share <= 1, "between 0 and 1"),
            ("max_paragraph_chars", self.max_paragraph_chars >= 1, "at least 1"),
        )
        for name in self.filters:
            if name not in FILTERS:
                raise ConfigError(unknown_name("filter", name, FILTERS))


def _held_out(task: Task, *, num_problems: int) -> Iterator[list[str]]:
    """The held-out prompts of a task, of each part of a mixture by itself; none of a task that holds nothing out."""
    for part in task.parts if isinstance(task, Mixture) else (task,):
        with contextlib.suppress(DataError):  # nothing held out; an evaluation of it has said so before
            yield [p.prompt for p in select_problems(part, num_problems=num_problems, seed=EVAL_SEED)]


@dataclass
class Collector:
    """Collects one stage's dataset into data/NAME of the run, a step at a time.

    All that it remembers lies in the dataset itself, in metrics.jsonl and in the cursor, so a resumed stage goes on
    as if nothing had happened.
    """

    config: CollectingConfig
    job: Job
    teacher: Teacher
    cursor: int = 0
    """Training problems taken so far."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Answers and prompts left out, by reason."""
    _seen: set[str] = field(default_factory=set)

    @classmethod
    def resumed(
        cls, config: CollectingConfig, job: Job, *, teacher: Teacher, state: dict[str, Any] | None
    ) -> Collector:
        """One that goes on where a checkpoint's `state` left off; None begins."""
        known = state or {}
        cursor, dropped = known.get("problem_cursor", 0), Counter[str](known.get("dropped", {}))
        return cls(config, job, teacher, cursor=cursor, dropped=dropped)

    def __post_init__(self) -> None:
        config = self.config
        self.name = self.job.stage_name
        self.task: Task = get_task(config.task)
        self.stream = ProblemStream(self.task, seed=self.job.seed(config), cursor=self.cursor)
        asked = {**self.job.evaluated, self.task.name: config.eval_problems}
        self.contaminations = [
            Contamination(prompts, num_words=config.decontaminate_words)
            for spec, num_problems in asked.items()
            for prompts in _held_out(get_task(spec), num_problems=max(NUM_HELD_OUT, num_problems))
        ]
        self.limits = FilterLimits(
            language=config.language,
            min_language_share=config.min_language_share,
            max_paragraph_chars=config.max_paragraph_chars,
        )
        if self.path.exists() and self.path.stat().st_size:
            self._seen = {example.text for example in read_examples(self.path)}

    @property
    def path(self) -> Path:
        return self.job.run.data_folder(self.name) / FILE

    @property
    def num_examples(self) -> int:
        return len(self._seen)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps for `resumed`."""
        return {"problem_cursor": self.stream.cursor, "dropped": dict(self.dropped)}

    def step(self, step: int) -> None:
        """Ask one step's prompts, keep what is good, log it. `step` counts from 0 within the stage."""
        config, job = self.config, self.job
        started = time.perf_counter()
        sampling = SamplingParams(
            num_samples=config.num_samples,
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            seed=derive_seed(config.seed, "collect", job.stage_index, step),
        )
        problems = list(self._clean_problems())
        groups = self.teacher.answer(problems, task=self.task, sampling=sampling)
        kept = [example for group in groups for example in self._keep(group)]
        job.run.append(f"data/{self.name}/{FILE}", [example.to_row() for example in kept])
        seconds = time.perf_counter() - started
        metrics = rollout_metrics(groups, num_thinking_tokens=thinking_tokens(groups, job.chat))
        self.teacher.charge(job, seconds=seconds, metrics=metrics)
        metrics |= {
            "num_kept": len(kept),
            "num_examples": self.num_examples,
            "tokens_per_second": metrics["completion_tokens"] / seconds,
        }
        job.log_samples(sample_rows(groups, num_samples=config.samples_per_step, step=job.steps_before + step + 1))
        job.log_step(step, metrics)

    def _clean_problems(self) -> Iterator[Any]:
        """The step's prompts; those of held-out problems are left out before they cost anything."""
        config, num_found = self.config, 0
        for _ in range(MAX_SKIPPED_PROMPTS * config.prompts_per_step):
            problem = self.stream.take(1)[0]
            if any(contamination.reaches(problem.prompt) for contamination in self.contaminations):
                self.dropped["prompt is held out"] += 1
                continue
            yield problem
            num_found += 1
            if num_found == config.prompts_per_step:
                return
        raise ConfigError(
            f"stage {self.name!r}: nearly every training prompt of {self.task.name} shares "
            f"{config.decontaminate_words} words in a row with a held-out one; raise decontaminate_words, "
            "or set it to 0 to compare whole prompts"
        )

    def _keep(self, group: RolloutGroup) -> Iterator[Example]:
        """The best answers of a prompt that are right, pass the filters and are new."""
        candidates = [rollout for rollout in group.rollouts if self._is_good(rollout)]
        if self.config.choose == "shortest":
            candidates.sort(key=lambda rollout: rollout.completion.num_tokens)
        num_kept = 0
        for rollout in candidates:
            example = self._example(group, rollout)
            if num_kept == self.config.keep_per_prompt:
                self.dropped["prompt has enough answers"] += 1
            elif example.text in self._seen:
                self.dropped["duplicate"] += 1
            else:
                self._seen.add(example.text)
                num_kept += 1
                yield example

    def _is_good(self, rollout: Rollout) -> bool:
        completion, score = rollout.completion, rollout.score
        reason = ""
        if not score.outcome.is_judged:
            reason = "verifier failed"
        elif completion.finish_reason is not FinishReason.STOP:
            reason = "cut off"
        elif not score.is_correct:
            reason = "wrong"
        elif objection := first_objection(completion, names=self.config.filters, limits=self.limits):
            reason = f"filter: {objection}"
        if reason:
            self.dropped[reason] += 1
        return not reason

    def _example(self, group: RolloutGroup, rollout: Rollout) -> Example:
        problem, completion = group.problem, rollout.completion
        last = completion.turns[-1] if completion.turns else completion
        return Example(
            prompt=problem.prompt,
            reasoning=last.reasoning,
            answer=last.answer,
            system=problem.system or self.task.system_prompt,
            problem_id=problem.problem_id,
            task=self.task.name,
            source=self.teacher.name,
            num_tokens=completion.num_tokens,
            turns=completion.turns[:-1],
        )

    def finish(self) -> None:
        """Write the dataset's card.

        Raises:
            ConfigError: nothing was kept, so that a stage that trains on it could not begin.
        """
        if not self._seen:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.dropped.most_common(3)) or "none came"
            raise ConfigError(
                f"stage {self.name!r} kept no answer at all ({reasons}); more samples, or a better teacher"
            )
        config = self.config
        facts = {
            "examples": self.num_examples,
            "task": self.task.name,
            "teacher": self.teacher.name,
            "answers a prompt": config.num_samples,
            "kept a prompt": f"at most {config.keep_per_prompt}, the {config.choose}",
            "temperature, top-p": f"{config.temperature}, {config.top_p}",
            "filters": ", ".join(config.filters) or "none",
            "decontamination": f"equal prompts, and runs of {config.decontaminate_words or 'no'} words",
        }
        card = describe_dataset(self.name, facts=facts, dropped=self.dropped, licence=self.teacher.terms)
        self.job.run.write_text(f"data/{self.name}/README.md", card)
        self.job.console.say(f"{self.name}: {self.num_examples} examples in {self.path.parent}")
