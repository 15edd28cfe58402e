"""Everything that `aha cost why` says, as one thing: to print and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from aha.estimate.shape import Shape
from aha.estimate.why.answer import Answer, answer, paragraph
from aha.estimate.why.check import Check, checks
from aha.estimate.why.choices import count_text
from aha.estimate.why.comparison import FAST, Chain, Row, Setting, choice_rows, sides_of, walk
from aha.estimate.why.measured import measured_table
from aha.estimate.why.published import (
    CHINCHILLA_SOURCE,
    DISTILLED_EPOCHS,
    DISTILLED_SAMPLES,
    FLAT_SHARE,
    R1_RL_HOURS,
    R1_ZERO_HOURS,
    TRAINER_SHARE,
)
from aha.estimate.why.rl import rl_rows
from aha.estimate.why.serving import NODES
from aha.estimate.why.text import chain_chart, checks_table, returns_list, rows_table, wrapped

ORDER = """\
change: taken up in this order. alone: taken up last, when the model has all the others. The two
differ, and so do their sums, because each choice works on what the others left: FP8 halves the
operations that experts spare, and no expert helps while full heads fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Why:
    """A model's choices in dollars."""

    shape: Shape
    setting: Setting
    rows: tuple[Row, ...]
    training: Chain
    output: Chain
    answer: Answer
    checks: tuple[Check, ...]
    measured: dict[str, Any] | None = None
    """What bench.why kept, where its file was given."""

    @property
    def text(self) -> str:
        """The answer in words."""
        return paragraph(
            self.answer, name=short_name(self.shape), rows=self.rows, output=self.output, setting=self.setting
        )

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/why.md and stay."""
        return {
            "model": self.shape.name,
            "model_source": self.shape.source,
            "gpu": self.setting.gpu.name,
            "price_id": self.setting.price.price_id,
            "usd_per_gpu_hour": self.setting.price.usd_per_hour,
            "tokens": self.setting.tokens,
            "num_gpus": self.setting.num_gpus,
            "gpu_hours": self.answer.budget_usd / self.setting.price.usd_per_hour,
            "cost_usd": self.answer.budget_usd,
            "rows": [row.to_dict() for row in self.rows],
            "chains": [self.training.to_dict(), self.output.to_dict()],
            "answer": {**self.answer.to_dict(), "text": self.text},
            "published": [check.to_dict() for check in self.checks],
            "assumptions": assumptions(self.setting),
            "measured": self.measured,
        }


def explain(shape: Shape, *, setting: Setting, measured: dict[str, Any] | None = None) -> Why:
    """Compute everything.

    Raises:
        ConfigError: a variant of the model does not fit any replica, or the setting is impossible.
    """
    side, choices = sides_of(shape, setting=setting)
    return Why(
        shape=shape,
        setting=setting,
        rows=(*choice_rows(side, choices, setting=setting), *rl_rows(shape.config, setting=setting)),
        training=walk(side, choices, "training", setting=setting),
        output=walk(side, choices, "output", setting=setting),
        answer=answer(shape, side=side, choices=choices, setting=setting),
        checks=tuple(checks(setting)),
        measured=measured,
    )


def short_name(shape: Shape) -> str:
    """Without its owner."""
    return shape.name.rpartition("/")[2]


def assumptions(setting: Setting) -> list[str]:
    """Every one, with where it comes from and the option that sets it."""
    most = NODES[-1] * setting.gpu.gpus_per_node
    speed, fast = setting.tokens_per_second, FAST * setting.tokens_per_second
    return [
        f"price: ${setting.price.usd_per_hour:g} an hour of an {setting.gpu.title} ({setting.price.price_id}); --price",
        (
            f"pre-training: {count_text(setting.tokens)} tokens, {setting.num_gpus} GPUs, sequences of "
            f"{setting.sequence_tokens}, terms as in aha cost train; a variant that does not fit takes more; "
            "--tokens, --nodes"
        ),
        (
            f"writing: {speed:g} tokens/s for each reader, {fast:g} for the fast; {setting.context_tokens} cached "
            "tokens (DeepSeek's inference day); --speed, --context"
        ),
        (
            f"writing: on 1 to {most} GPUs, whichever is cheapest, all of its time, nothing on top of the GPUs' "
            "price; roofline and shares as in aha cost serve; cache in bfloat16; drafts only where they pay"
        ),
        f"drafts: {setting.acceptance:.0%} right (DeepSeek-V3 report §5.4.3); --acceptance",
        "dense variants keep layers, attention and vocabulary; only their feed-forward is as wide as it takes",
        (
            f"RL: R1-Zero's {R1_ZERO_HOURS.value:,.0f} and R1's {R1_RL_HOURS.value:,.0f} H800 hours (Nature "
            "supplement), scaled by operations a token, at this price"
        ),
        f"RL: {setting.trainer_share:.0%} of the hours train; {TRAINER_SHARE.source}; --trainer-share",
        f"RL: {setting.flat_share:.0%} of the groups are flat; {FLAT_SHARE.source}; --flat-share",
        (
            f"student: {DISTILLED_SAMPLES.value:,.0f} samples x {DISTILLED_EPOCHS.value:g} epochs and writing them "
            "once, rejected ones not counted; RL as long as R1-Zero's"
        ),
        f"loss: {CHINCHILLA_SOURCE}; a sparse model is as good as a dense one of the geometric mean of its counts",
    ]


def render(why: Why, *, form: Literal["text", "json"]) -> str:
    """What the command prints."""
    if form == "json":
        return json.dumps(why.to_dict())
    setting = why.setting
    title = "Measured on small models here; ratio: to the side that the model has chosen\n"
    measured = [] if why.measured is None else [title + measured_table(why.measured)]
    parts = [
        f"Algorithms against scale: {short_name(why.shape)}, {count_text(setting.tokens)} tokens, {setting.gpu.title}",
        rows_table(why.rows),
        "From the naive way to this model: pre-training, dollars\n" + chain_chart(why.training, naive="naive"),
        "From the naive way to this model: dollars for a million output tokens\n"
        + chain_chart(why.output, naive="naive"),
        ORDER,
        "For the same dollars, a bigger model or a better algorithm?\n" + wrapped(why.text),
        "What each costs in return\n" + returns_list(why.rows),
        "The same arithmetic beside published figures\n" + checks_table(why.checks),
        *measured,
        "Assumptions\n" + "\n".join(wrapped(f"- {line}", indent="  ") for line in assumptions(setting)),
    ]
    return "\n\n".join(parts)
