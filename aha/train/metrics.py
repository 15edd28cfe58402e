"""What a step's rollouts say: one row of metrics.jsonl, and the samples kept beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from aha.chat import ChatFormat
from aha.types import FinishReason, Outcome, Rollout, RolloutGroup


def rollout_metrics(groups: Sequence[RolloutGroup], *, num_thinking_tokens: Sequence[int]) -> dict[str, Any]:
    """Rewards, lengths and shares of a step; fractions are of 1.

    Args:
        num_thinking_tokens: tokens before the end of thinking, one number per rollout in order.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    judged = [r for r in rollouts if r.score.outcome.is_judged]
    rewards = [r.score.reward for r in judged]
    lengths = [r.completion.num_tokens for r in rollouts]
    finished = [r.completion.num_tokens for r in rollouts if r.completion.finish_reason is FinishReason.STOP]
    return {
        "reward_mean": _mean(rewards),
        "reward_std": statistics.pstdev(rewards) if rewards else 0.0,
        **reward_parts(judged),
        "group_reward_std": _mean([statistics.pstdev(values) for g in groups if (values := _judged_rewards(g))]),
        "pass_at_1": _mean([r.score.is_correct for r in judged]),
        "mean_tokens": _mean(lengths),
        "shortest_tokens": min(lengths, default=0),
        "longest_tokens": max(lengths, default=0),
        # NaN, and so null in the log: a mean of none would read as very short.
        "mean_finished_tokens": _mean(finished) if finished else math.nan,
        "shortest_finished_tokens": min(finished, default=math.nan),
        "longest_finished_tokens": max(finished, default=math.nan),
        "mean_thinking_tokens": _mean(num_thinking_tokens),
        "truncated_fraction": _mean([r.completion.finish_reason is FinishReason.LENGTH for r in rollouts]),
        "parse_failure_fraction": _mean([r.score.outcome is Outcome.PARSE_FAILURE for r in rollouts]),
        "error_fraction": _mean([r.score.outcome is Outcome.ERROR for r in rollouts]),
        "timeout_fraction": _mean([r.score.outcome is Outcome.TIMEOUT for r in rollouts]),
        "teaching_fraction": _mean([not group.is_flat for group in groups]),
        "all_right_fraction": _mean([all(r.score.is_correct for r in g.rollouts) for g in groups]),
        "all_wrong_fraction": _mean([not any(r.score.is_correct for r in g.rollouts) for g in groups]),
        "num_groups": len(groups),
        "num_rollouts": len(rollouts),
        "mean_turns": _mean([len(r.completion.turns) or 1 for r in rollouts]),
        "mean_observation_tokens": _mean([r.completion.num_observed_tokens for r in rollouts]),
        # What a task showed between turns was read and not written, as a prompt is. An endpoint counts by itself.
        "prompt_tokens": sum(len(group.prompt_ids) for group in groups)
        + sum(r.completion.num_observed_tokens for r in rollouts)
        + sum(r.completion.usage.prompt_tokens for r in rollouts if r.completion.usage),
        "completion_tokens": sum(r.completion.num_tokens for r in rollouts),
    }


def reward_parts(judged: Sequence[Rollout]) -> dict[str, float]:
    """Mean and standard deviation of each reward that the tasks' rewards were made of, by its name."""
    names = {name: None for r in judged for name in r.score.parts}
    values = {name: [r.score.parts[name] for r in judged if name in r.score.parts] for name in names}
    means = {f"reward_{name}_mean": _mean(of_name) for name, of_name in values.items()}
    return means | {f"reward_{name}_std": statistics.pstdev(of_name) for name, of_name in values.items()}


def _judged_rewards(group: RolloutGroup) -> list[float]:
    return [r.score.reward for r in group.rollouts if r.score.outcome.is_judged]


def thinking_tokens(groups: Sequence[RolloutGroup], chat: ChatFormat) -> list[int]:
    """Tokens of every completion's thinking."""
    # At most what was drawn: a model that draws bytes which are no text is read as U+FFFD, whose encoding is longer.
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    return [min(len(chat.encode(c.reasoning)), len(c.token_ids)) for c in completions]


def sample_rows(groups: Sequence[RolloutGroup], *, num_samples: int, step: int) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: of the first groups, one completion each, a right one where there is one."""
    rows = []
    for group in groups[:num_samples]:
        rollout = max(group.rollouts, key=lambda r: r.score.reward)
        rows.append({"step": step, **sample_row(group, rollout)})
    return rows


def sample_row(group: RolloutGroup, rollout: Rollout) -> dict[str, Any]:
    """One completion with its problem and score, as plain JSON values."""
    completion, score = rollout.completion, rollout.score
    return {
        "problem_id": group.problem.problem_id,
        "prompt": group.problem.prompt,
        "gold": group.problem.answer,
        "text": completion.text,
        "reasoning": completion.reasoning,
        "answer": completion.answer,
        "reward": score.reward,
        "is_correct": score.is_correct,
        "note": score.note,
        **({"reward_parts": dict(score.parts)} if score.parts else {}),
        "finish_reason": str(completion.finish_reason),
        "num_tokens": completion.num_tokens,
        **({"turns": [asdict(turn) for turn in completion.turns]} if completion.turns else {}),
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
