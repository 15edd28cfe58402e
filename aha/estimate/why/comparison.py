"""Algorithms against scale, in dollars: what each choice of a model saves, and what the same dollars buy without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aha.cost.prices import MachinePrice
from aha.errors import ConfigError
from aha.estimate.hardware import GPU
from aha.estimate.serving import ServingPrediction
from aha.estimate.shape import Shape
from aha.estimate.training import TrainingBill, TrainingRun, bill_training
from aha.estimate.why.choices import Bill, Choice, Precision, Side, choices_of, undo_all
from aha.estimate.why.published import ACCEPTANCE, CONTEXT_TOKENS, FLAT_SHARE, TRAINER_SHARE, USER_SPEED, V3_CONTEXT
from aha.estimate.why.serving import Service, cheapest, output_usd

FAST = 2.5
"""How much faster than the others the reader of "fast output" is written to: 50 tokens a second instead of 20."""

MAX_DOUBLINGS = 12
"""Of the GPUs, for a variant that does not fit on those that the model is trained on."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What everything is computed at; each field is an option and named in the output."""

    gpu: GPU
    price: MachinePrice
    """Of one GPU for an hour."""
    tokens: float
    """Of pre-training."""
    num_gpus: int
    """Of pre-training."""
    sequence_tokens: int = V3_CONTEXT
    acceptance: float = ACCEPTANCE.value
    """Share of drafts that are right."""
    context_tokens: int = round(CONTEXT_TOKENS.value)
    """Cached tokens of a sequence that is being written, on average."""
    tokens_per_second: float = USER_SPEED.value
    """Least speed of a reader."""
    trainer_share: float = TRAINER_SHARE.value
    """Of the hours of reinforcement learning, what is not sampling."""
    flat_share: float = FLAT_SHARE.value
    """Of the groups, those of equal reward."""
    found: dict[tuple[Side, Bill], float] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Dollars of sides that were asked for before: layouts and replicas are searched for each of them once."""

    def __post_init__(self) -> None:
        for name in ("acceptance", "trainer_share", "flat_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share from 0 to 1, got {getattr(self, name):g}")
        if not self.price.nano_usd_per_hour:
            raise ConfigError(f"an hour of {self.gpu.title} at $0 leaves nothing to compare; give --price")
        for name in ("tokens", "num_gpus", "context_tokens", "tokens_per_second", "sequence_tokens"):
            if not 0 < getattr(self, name) < 1e30:
                raise ConfigError(f"{name} must be above 0 and finite, got {getattr(self, name):g}")

    @property
    def best_precision(self) -> Precision:
        return "float8" if "float8" in self.gpu.teraflops else "bfloat16"

    def training_usd(self, side: Side) -> float:
        """Of the whole pre-training; on twice the GPUs, and twice again, where a variant does not fit on these.

        Raises:
            ConfigError: it does not fit on thousands of times as many.
        """
        return self.cost_usd(side, "training")

    def _bill(self, side: Side) -> TrainingBill:
        run = TrainingRun(
            tokens=self.tokens, gpu=self.gpu, num_gpus=self.num_gpus, sequence_tokens=self.sequence_tokens,
            precision=side.precision,
        )  # fmt: skip
        problems = []
        for _ in range(MAX_DOUBLINGS):
            try:
                return bill_training(side.config, run=run, price=self.price)
            except ConfigError as error:
                problems.append(error)
                run = replace(run, num_gpus=2 * run.num_gpus)
        raise problems[0]

    def service(self, *, faster: float = 1.0) -> Service:
        return Service(
            gpu=self.gpu, price=self.price, context_tokens=self.context_tokens,
            tokens_per_second=self.tokens_per_second * faster,
        )  # fmt: skip

    def serving(self, side: Side, *, faster: float = 1.0) -> ServingPrediction:
        """Writing, with drafts where the model has them and they pay, as a server would."""
        service = self.service(faster=faster)
        shares = [0.0, self.acceptance] if side.config.num_mtp_layers and self.acceptance else [0.0]
        ways = [cheapest(side.config, precision=side.precision, service=service, accepted=share) for share in shares]
        return min(ways, key=output_usd)

    def cost_usd(self, side: Side, bill: Bill) -> float:
        """Of the whole training, or of a million output tokens."""
        if (side, bill) not in self.found:
            if bill == "training":
                dollars = self._bill(side).cost_usd
            else:
                dollars = output_usd(self.serving(side, faster=FAST if bill == "fast output" else 1.0))
            self.found[side, bill] = dollars
        return self.found[side, bill]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One choice on one bill."""

    choice: str
    title: str
    instead_of: str
    bill: Bill
    without_usd: float
    with_usd: float
    in_return: str
    source: str

    @property
    def saved_usd(self) -> float:
        return self.without_usd - self.with_usd

    @property
    def ratio(self) -> float:
        """How many times as dear it is without."""
        return self.without_usd / self.with_usd

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/why.md and stay."""
        return {
            "choice": self.choice, "title": self.title, "instead_of": self.instead_of, "bill": self.bill,
            "without_usd": self.without_usd, "with_usd": self.with_usd, "saved_usd": self.saved_usd,
            "ratio": self.ratio, "in_return": self.in_return, "source": self.source,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Step:
    """One choice taken up on the way from the naive model to this one."""

    choice: str
    title: str
    before_usd: float
    after_usd: float
    alone_usd: float
    """What the choice saves when the model has all the others already."""

    @property
    def saved_usd(self) -> float:
        return self.before_usd - self.after_usd


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The way from the naive model to this one, on one bill; the steps add up to the difference."""

    bill: Bill
    naive_usd: float
    steps: tuple[Step, ...]

    @property
    def final_usd(self) -> float:
        return self.steps[-1].after_usd if self.steps else self.naive_usd

    @property
    def saved_usd(self) -> float:
        return self.naive_usd - self.final_usd

    @property
    def alone_usd(self) -> float:
        """The sum of what the choices save one by one. Not `saved_usd`: each works on what the others left."""
        return sum(step.alone_usd for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        return {
            "bill": self.bill, "naive_usd": self.naive_usd, "final_usd": self.final_usd, "saved_usd": self.saved_usd,
            "sum_of_separate_savings_usd": self.alone_usd,
            "steps": [
                {"choice": s.choice, "before_usd": s.before_usd, "after_usd": s.after_usd, "saved_usd": s.saved_usd,
                 "saved_alone_usd": s.alone_usd}
                for s in self.steps
            ],
        }  # fmt: skip


def choice_rows(side: Side, choices: Sequence[Choice], *, setting: Setting) -> Iterator[Row]:
    """Every choice undone alone, on each of its bills."""
    made: dict[Bill, float] = {}
    for choice in choices:
        for bill in choice.bills:
            if bill not in made:
                made[bill] = setting.cost_usd(side, bill)
            yield Row(
                choice=choice.key, title=choice.title, instead_of=choice.instead_of, bill=bill,
                without_usd=setting.cost_usd(choice.undo(side), bill), with_usd=made[bill],
                in_return=choice.in_return, source=choice.source,
            )  # fmt: skip


def walk(side: Side, choices: Sequence[Choice], bill: Bill, *, setting: Setting) -> Chain:
    """The bill of the model with no choice made, then with one more at a time, in their order."""
    chain = [choice for choice in choices if choice.in_chain]
    sides = [undo_all(side, chain[made:]) for made in range(len(chain) + 1)]
    dollars = [setting.cost_usd(one, bill) for one in sides]
    steps = tuple(
        Step(
            choice=choice.key, title=choice.title, before_usd=before, after_usd=after,
            alone_usd=setting.cost_usd(choice.undo(side), bill) - dollars[-1],
        )
        for choice, before, after in zip(chain, dollars, dollars[1:], strict=False)
    )  # fmt: skip
    return Chain(bill=bill, naive_usd=dollars[0], steps=steps)


def sides_of(shape: Shape, *, setting: Setting) -> tuple[Side, list[Choice]]:
    """The model as the setting trains it, and what it has chosen."""
    side = Side(config=shape.config, precision=setting.best_precision)
    return side, choices_of(side, gpu=setting.gpu)
