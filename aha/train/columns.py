"""The numbers of a step that the console shows, and how each is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Column(NamedTuple):
    """One number of a step: its title in the table, its words on a plain line."""

    title: str
    width: int
    show: Callable[[Mapping[str, object]], str]
    words: str
    """With {} for the number, e.g. "pass@1 {}"."""


def number_of(row: Mapping[str, object], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) else float("nan")


def shows(name: str, spec: str, *, scale: float = 1.0) -> Callable[[Mapping[str, object]], str]:
    """A column's formatter; a number that the row does not have is a dash."""

    def show(row: Mapping[str, object]) -> str:
        value = number_of(row, name)
        return "-" if value != value else format(value * scale, spec)

    return show


def clock(seconds: float) -> str:
    if seconds != seconds:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}"


def short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


REWARD_COLUMNS = (
    Column("reward", 6, shows("reward_mean", ".3f"), "reward {}"),
    Column("pass@1", 7, shows("pass_at_1", ".1f", scale=100), "pass@1 {} %"),
    Column("thinking", 8, shows("mean_thinking_tokens", ".0f"), "thinking {} tokens"),
    Column("entropy", 7, shows("entropy", ".3f"), "entropy {}"),
    Column("teaching", 8, shows("teaching_fraction", ".0%"), "teaching groups {}"),
)
MORE_REWARD_COLUMNS = (
    Column("cut off", 7, shows("truncated_fraction", ".0%"), "cut off {}"),
    Column("grad norm", 9, shows("grad_norm", ".3f"), "grad norm {}"),
)
COLLECTING_COLUMNS = (
    Column("pass@1", 7, shows("pass_at_1", ".1f", scale=100), "pass@1 {} %"),
    Column("tokens", 7, shows("mean_tokens", ".0f"), "{} tokens an answer"),
    Column("kept", 6, shows("num_kept", ".0f"), "kept {}"),
    Column("examples", 8, shows("num_examples", ".0f"), "{} examples"),
)
FOLLOWING_COLUMNS = (
    Column("KL", 8, shows("divergence", ".4f"), "divergence {} nats a token"),
    Column("pass@1", 7, shows("pass_at_1", ".1f", scale=100), "pass@1 {} %"),
    Column("tokens", 7, shows("mean_tokens", ".0f"), "{} tokens an answer"),
    Column("grad norm", 9, shows("grad_norm", ".3f"), "grad norm {}"),
)
LOSS_COLUMNS = (
    Column("loss", 8, shows("loss", ".4f"), "loss {}"),
    Column("learning rate", 13, shows("learning_rate", ".2e"), "learning rate {}"),
    Column("grad norm", 9, shows("grad_norm", ".3f"), "grad norm {}"),
)
SPARSE_COLUMNS = {
    "mtp_loss": Column("mtp loss", 8, shows("mtp_loss", ".4f"), "mtp loss {}"),
    "expert_load_cv": Column("load cv", 7, shows("expert_load_cv", ".2f"), "load cv {}"),
}
"""What supervised steps of sparse models show besides, by the key that their rows then have."""
COST_COLUMNS = (
    Column("tok/s", 6, shows("tokens_per_second", ".0f"), "{} tok/s"),
    Column("cost $", 7, shows("cost_usd", ".4f"), "${}"),
    Column("time", 5, lambda row: clock(number_of(row, "time_seconds")), "{}"),
)
