"""Why a step taught nothing, in words a user can act on."""

from __future__ import annotations

from collections.abc import Mapping

MAX_SAMPLER_GAP = 0.02
"""Mean difference in probability that is more than rounding: bfloat16 alone stays under 0.005."""


def explain(metrics: Mapping[str, float]) -> str:
    """What stands in the way of learning in this step; "" when nothing does.

    Args:
        metrics: a step's row of metrics.jsonl.
    """
    if metrics["error_fraction"] > 0.5:
        return "the verifier failed on most completions: nothing was learned; run aha tasks NAME to check it"
    if metrics["teaching_fraction"] == 0:
        return _explain_flat(metrics)
    if metrics.get("is_skipped"):
        return "the gradient was not finite: the step was skipped and its batch dumped; try a lower learning_rate"
    if metrics["truncated_fraction"] > 0.5:
        share = f"{100 * metrics['truncated_fraction']:.0f} % of completions ran out of tokens"
        return f"{share}: raise max_tokens, or lengths are collapsing into rambling"
    if metrics["entropy"] < 0.01:
        return "entropy is below 0.01 nats: the policy has nearly stopped exploring; lower learning_rate"
    if metrics.get("sampler_gap", 0.0) > MAX_SAMPLER_GAP:
        gap = f"the sampler's probabilities are {metrics['sampler_gap']:.3f} off the trainer's on average"
        return f"{gap}: set importance_cap=2, or dtype=float32"
    return ""


def _explain_flat(metrics: Mapping[str, float]) -> str:
    if metrics["all_right_fraction"] == 1:
        return "every completion was right: no gradient; take a harder task or stop here"
    if metrics["truncated_fraction"] > 0.9:
        return "every completion was cut off before its answer: no gradient; raise max_tokens"
    if metrics["parse_failure_fraction"] > 0.9:
        return "no completion had a readable answer: no gradient; start with an sft stage (cold start)"
    if metrics["all_wrong_fraction"] == 1:
        return "every completion was wrong: no gradient; take an easier task, a cold start or a larger group_size"
    return "all completions of each prompt got the same reward: no gradient; raise group_size"
