"""For the same dollars, a bigger model or a better algorithm? Figures first, then one paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aha.estimate.shape import Shape
from aha.estimate.why.choices import Choice, Side, count_text, undo_all
from aha.estimate.why.comparison import Chain, Row, Setting
from aha.estimate.why.scaling import Split, best_split, deepseek_split, dense_equivalent, least_product, loss
from aha.estimate.why.text import dollars
from aha.models.counts import count_parameters


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the dollars of a pre-training buy with its algorithms and without."""

    budget_usd: float
    """What pre-training the model takes."""
    naive_usd: float
    """What as many parameters and tokens take without its choices."""
    naive_tokens: float
    """That the budget brings through a naive model of as many parameters."""
    naive_parameters: float
    """That the budget brings through as many tokens, dense, with full heads, in bfloat16."""
    best_parameters: float
    best_tokens: float
    """The split of the naive budget with the least loss under the law."""
    deepseek_parameters: float
    deepseek_tokens: float
    """The same operations split by DeepSeek's law."""
    naive_loss: float
    model_loss: float
    """Under the law, with the model taken as a dense one of `equivalent_parameters`."""
    equivalent_parameters: float
    worth: float
    """By how much the naive way would have to spend more to reach `model_loss`."""
    worth_if_active: float
    worth_if_total: float
    """The same with the model as good as a dense one of its active, or of its total parameters."""

    @property
    def naive_equal_usd(self) -> float:
        """What the naive way pays for the same loss."""
        return self.worth * self.budget_usd

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "naive_equal_usd": self.naive_equal_usd}


def answer(shape: Shape, *, side: Side, choices: Sequence[Choice], setting: Setting) -> Answer:
    """Find the figures."""
    naive = undo_all(side, [choice for choice in choices if choice.in_chain])
    counts = count_parameters(shape.config)
    budget, naive_usd = setting.training_usd(side), setting.training_usd(naive)
    # Parameters and tokens are traded one for one, at what one of each costs the naive model: C = 6 N D.
    product = counts.total * setting.tokens * budget / naive_usd
    best, own = best_split(product), deepseek_split(product)
    equivalent = dense_equivalent(total=counts.total, active=counts.active)
    worth, worth_if_active, worth_if_total = (
        least_product(loss(count, tokens=setting.tokens)) / product
        for count in (equivalent, counts.active, counts.total)
    )
    return Answer(
        budget_usd=budget, naive_usd=naive_usd, naive_tokens=setting.tokens * budget / naive_usd,
        naive_parameters=product / setting.tokens, best_parameters=best.num_parameters, best_tokens=best.tokens,
        deepseek_parameters=own.num_parameters, deepseek_tokens=own.tokens, naive_loss=best.loss,
        model_loss=Split(num_parameters=equivalent, tokens=setting.tokens).loss, equivalent_parameters=equivalent,
        worth=worth, worth_if_active=worth_if_active, worth_if_total=worth_if_total,
    )  # fmt: skip


NAIVE = {
    "experts_against_total": "dense",
    "attention_against_full_heads": "full heads",
    "float8": "bf16",
    "multi_token_prediction": "one token",
}
"""What the naive model has in the place of each choice."""


def _span(found: Answer) -> str:
    """How much of the worth is the assumption of how good a sparse model is."""
    if found.worth_if_active == found.worth_if_total:
        return ""
    active, total = found.worth_if_active, found.worth_if_total
    lost = ", a loss" if active < 1 else ""
    return f" ({total:.1f}x if it is as good as its total parameters, {active:.1f}x{lost}, if only as its active ones)"


def paragraph(found: Answer, *, name: str, rows: Sequence[Row], output: Chain, setting: Setting) -> str:
    """The answer in words, and its limits."""
    rl = [row for row in rows if row.bill == "rl"]
    saved = 1 - rl[-1].with_usd / rl[0].without_usd
    student = next(row for row in rows if row.bill == "student")
    if found.naive_usd <= found.budget_usd * 1.001:
        return (
            f"{name} has no choice here that this bill tells from the naive way: its dollars went into size and tokens."
        )
    without = ", ".join(NAIVE[step.choice] for step in output.steps)
    verdict = "A better algorithm" if found.worth > 1 else "A bigger model"
    text = (
        f"{verdict}. {dollars(found.budget_usd)} pre-trains {name} on {count_text(setting.tokens)} tokens. The naive "
        f"way ({without}) pays {dollars(found.naive_usd)} for as much; the same dollars bring only "
        f"{count_text(found.naive_tokens)} tokens through as many parameters, or {count_text(found.naive_parameters)} "
        f"parameters through as many tokens. Their best use is {count_text(found.best_parameters)} on "
        f"{count_text(found.best_tokens)}, with a loss of {found.naive_loss:.3f} under Chinchilla's law; {name}, taken "
        f"to be as good as a dense {count_text(found.equivalent_parameters)}, has {found.model_loss:.3f}, for which "
        f"the naive way pays {dollars(found.naive_equal_usd)}: the algorithms are worth {found.worth:.1f}x compute"
        f"{_span(found)}. Written tokens cost {dollars(output.final_usd)} a million instead of "
        f"{dollars(output.naive_usd)}. After pre-training, algorithms save {saved:.0%} of R1's RL, and "
        f"{1 - student.with_usd / student.without_usd:.0%} of what makes a 32B reason. A bigger budget buys more of "
        "the better model, once there is one."
    )
    limits = (
        "Limits: the law is fitted to dense models of up to 16B and extrapolated, its losses are no model's own, and "
        "its best split ignores serving; the algorithms' research, failed runs and engineers are in no bill."
    )
    return f"{text}\n{limits}"
