"""A plan of a run as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from aha.train.machines import GIB
from aha.train.plan import Plan


def describe(plan: Plan) -> str:
    """The plan as a table for a terminal."""
    run, machine, config = plan.run, plan.machine, plan.config
    each = f" x {run.group_size}" if run.is_sampled else ""
    title = (
        f"{run.stage} on {config.model_type} with {plan.num_parameters:,} parameters: {run.steps} steps of "
        f"{run.prompts_per_step}{each} sequences, at most {run.prompt_tokens} + {run.max_tokens} tokens each"
    )
    cost = (
        f"cost  ${plan.cost_usd:.2f} at ${machine.price.usd_per_hour:g} an hour ({machine.price.price_id}), for "
        f"{plan.num_sampled_tokens:,} tokens sampled and {plan.num_trained_tokens:,} trained"
    )
    lines = [title, "", f"memory{'GiB':>42}"]
    remarks = {"always": "", "sampling": "  while sampling", "training": "  while training"}
    lines += [f"  {i.name:<36}{i.num_bytes / GIB:>10.2f}{remarks[i.phase]}" for i in plan.memory]
    verdict = "fits" if plan.fits else "does NOT fit"
    lines.append(f"  {'peak':<36}{plan.peak_bytes / GIB:>10.2f}  {verdict} in {machine.memory_bytes / GIB:.1f} GiB")
    lines += [f"  to make it fit: {words}" for words in plan.advice]
    lines += ["", f"time{'hours':>44}"]
    lines += [f"  {item.name:<36}{item.seconds / 3600:>10.2f}" for item in plan.time]
    lines.append(f"  {'total':<36}{plan.seconds / 3600:>10.2f}")
    lines += ["", cost, "", *_assumptions(plan)]
    return "\n".join(lines)


def describe_total(plans: Sequence[Plan]) -> str:
    """What the stages take together, in a line; a teacher's answers are not among them."""
    hours, cost_usd = sum(plan.seconds for plan in plans) / 3600, sum(plan.cost_usd for plan in plans)
    peak = max(plan.peak_bytes for plan in plans) / GIB
    return f"all {len(plans)} stages: {hours:.2f} hours, ${cost_usd:.2f}, {peak:.2f} GiB at the peak"


def _assumptions(plan: Plan) -> list[str]:
    run, machine = plan.run, plan.machine
    length = f"{run.mean_tokens} tokens on average" if run.mean_tokens else "max_tokens long, so these are upper bounds"
    speed = f"{machine.teraflops:.3g} TFLOP/s in {run.dtype}, {machine.memory_gb_per_second:.4g} GB/s"
    shares = f"training reaches {machine.training_efficiency:.0%} of that, sampling {machine.sampling_efficiency:.0%}"
    return [
        f"assumed  {machine.name}: {speed} ({machine.source})",
        f"         {shares}; {machine.layer_overhead_us:g} us a layer in each decoding step",
        f"         prompts of {run.prompt_tokens} tokens; completions {length}",
        f"         price: {machine.price.source}",
    ]
