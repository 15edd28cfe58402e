"""The model card of a trained model: what it came from, how, and what it scored."""

from __future__ import annotations

from pathlib import Path

from aha.cost.bill import Bill
from aha.evaluate import EvalResult
from aha.export import Proof
from aha.train.run import write_text_atomically
from aha.train.source import Plan


def write_model_card(
    folder: Path, *, plan: Plan, before: EvalResult | None, after: EvalResult | None, bill: Bill
) -> None:
    """Write model/README.md of a run."""
    first = plan.configs[0]
    stages = ", then ".join(
        f"{stage.kind} ({config.num_steps} steps)"
        for stage, config in zip(plan.recipe.stages, plan.configs, strict=True)
    )
    lines = [
        "---",
        "library_name: aha",
        f"base_model: {first.model}",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"Trained by `aha train` from `{first.model}` on the task `{first.task}`: {stages}.",
        "",
        "| evaluation | pass@1 | 95 % interval | problems | tokens |",
        "|---|---|---|---|---|",
    ]
    for name, result in (("before", before), ("after", after)):
        if result is not None:
            interval = f"{100 * result.interval_low:.1f} to {100 * result.interval_high:.1f} %"
            lines.append(
                f"| {name} | {100 * result.pass_at_1:.1f} % | {interval} | {result.num_problems} held out "
                f"| {result.mean_tokens:.0f} |"
            )
    proof = folder / "merge.json"
    if proof.exists():
        words = Proof.from_json(proof.read_text(encoding="utf-8")).describe()
        lines += ["", f"{words[0].upper()}{words[1:]}. The adapter alone lies beside this folder as `adapter/`."]
    protocol = f"temperature {first.eval_temperature}, top-p {first.eval_top_p}, at most {first.max_tokens} tokens"
    lines += [
        "",
        f"Sampled at {protocol}.",
        f"The run took {bill.wall_seconds:.0f} s and ${bill.cost_usd:.4f} at the price `{bill.price.price_id}`.",
        "The recipe lies beside this folder as `recipe.toml`. The licence of the base model applies.",
        "",
    ]
    write_text_atomically(folder / "model" / "README.md", "\n".join(lines))
