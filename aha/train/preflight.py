"""Before any training: sample, score, and say whether the run can learn, and what to do when it cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aha.chat import ChatFormat
from aha.engine import Engine
from aha.tasks.base import Task
from aha.train.metrics import rollout_metrics
from aha.train.rollouts import ProblemStream, collect
from aha.train.stage import derive_seed
from aha.types import SamplingParams

MIN_TEACHING_FRACTION = 0.1
"""Share of mixed groups below which most of the sampling is wasted; prime-rl's and verifiers' rule of thumb."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a small sample says about a run. Fractions are of 1."""

    num_prompts: int
    group_size: int
    pass_at_1: float
    pass_at_group: float
    """Share of prompts with at least one right completion."""
    teaching_fraction: float
    """Share of groups with different rewards."""
    truncated_fraction: float
    parse_failure_fraction: float
    error_fraction: float
    mean_tokens: float
    can_learn: bool
    verdict: str
    """One or two sentences for the user."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> str:
        """The numbers and the verdict, for a terminal."""
        return (
            f"pre-flight, {self.num_prompts} prompts x {self.group_size}: pass@1 {100 * self.pass_at_1:.0f} %, "
            f"pass@{self.group_size} {100 * self.pass_at_group:.0f} %, groups that teach "
            f"{100 * self.teaching_fraction:.0f} %, truncated {100 * self.truncated_fraction:.0f} %, no answer "
            f"{100 * self.parse_failure_fraction:.0f} %, {self.mean_tokens:.0f} tokens\n{self.verdict}"
        )


def run_preflight(
    task: Task, *, chat: ChatFormat, engine: Engine, sampling: SamplingParams, num_prompts: int, seed: int
) -> Preflight:
    """Sample `num_prompts` groups of training problems and judge whether GRPO can learn from such groups."""
    problems = ProblemStream(task, seed=derive_seed(seed, "preflight problems")).take(num_prompts)
    groups = collect(
        problems, task=task, chat=chat, engine=engine, sampling=sampling, seed=derive_seed(seed, "preflight")
    )
    metrics = rollout_metrics(groups, num_thinking_tokens=())
    can_learn, verdict = judge(metrics, max_tokens=sampling.max_tokens, group_size=sampling.num_samples)
    names = ("pass_at_1", "teaching_fraction", "truncated_fraction", "parse_failure_fraction", "error_fraction")
    return Preflight(
        num_prompts=num_prompts,
        group_size=sampling.num_samples,
        pass_at_group=1.0 - metrics["all_wrong_fraction"],
        mean_tokens=metrics["mean_tokens"],
        can_learn=can_learn,
        verdict=verdict,
        **{name: metrics[name] for name in names},
    )


def judge(metrics: dict[str, Any], *, max_tokens: int, group_size: int) -> tuple[bool, str]:
    """Whether groups like these can teach, and the verdict in words."""
    teaching = metrics["teaching_fraction"]
    if metrics["error_fraction"] > 0.5:
        return False, "It cannot learn: the verifier fails on most completions. Run aha tasks NAME to check the task."
    if teaching >= MIN_TEACHING_FRACTION:
        warning = ""
        if metrics["truncated_fraction"] > 0.3:
            warning = f" But many completions run out of max_tokens={max_tokens}: raise it if you can."
        return True, f"It can learn: {100 * teaching:.0f} % of groups have both better and worse answers.{warning}"
    start = "It can hardly learn" if teaching > 0 else "It cannot learn"
    if metrics["truncated_fraction"] > 0.5:
        reason = f"most completions are cut off at max_tokens={max_tokens}. Raise max_tokens."
    elif metrics["all_right_fraction"] > 0.5:
        reason = "the model already solves nearly every problem. Take a harder task."
    elif metrics["parse_failure_fraction"] > 0.5:
        reason = "hardly any completion has a readable answer. Begin with a cold start: an sft stage before grpo."
    else:
        reason = (
            f"hardly any of {group_size} tries is right. Take an easier task, begin with a cold start (an sft stage), "
            "or raise group_size."
        )
    return teaching > 0, f"{start}: {reason}"
