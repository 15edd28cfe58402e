"""What `aha cost train` is asked, as text, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from aha.cost.prices import MachinePrice, machine_names, machine_price
from aha.errors import ConfigError, unknown_name
from aha.estimate.hardware import GPU, find_gpu, gpus
from aha.estimate.shape import Shape, find_shape
from aha.estimate.training.amounts import parse_amount
from aha.estimate.training.assumptions import Assumptions, with_settings
from aha.estimate.training.bill import UNPRICED, TrainingBill, TrainingRun, bill_training
from aha.estimate.training.layout import Layout
from aha.estimate.training.plan import Plan, fewest_gpus, plan_gpus, show_plans
from aha.estimate.training.public_runs_table import check_to_list, show_check
from aha.estimate.training.table import show_bill

Form = Literal["text", "json"]
MAX_OVERHEAD = 100


@dataclass(frozen=True, kw_only=True)
class TrainingQuestion:
    """As given on a command line or in a form; "" and 0 are left out."""

    model: str
    tokens: str = ""
    steps: str = ""
    batch: str = ""
    """Sequences."""
    sequence_tokens: int = 4096
    gpus: tuple[str, ...] = ()
    num_gpus: int = 0
    num_nodes: int = 0
    deadline_days: float = 0
    precision: Literal["auto", "bfloat16", "float8"] = "auto"
    """auto: float8 for a model that is published so, on a GPU that multiplies it."""
    layout: str = ""
    price: str = ""
    overhead: float = 1.0
    settings: tuple[str, ...] = ()

    @property
    def batch_tokens(self) -> float:
        return parse_amount(self.batch, field="--batch") * self.sequence_tokens if self.batch else 0.0

    @property
    def num_tokens(self) -> float:
        """Raises ConfigError where they are not given, or twice."""
        if bool(self.tokens) == bool(self.steps):
            raise ConfigError("say how long to train: --tokens 300B, or --steps 1000 --batch 64 (sequences a step)")
        if self.tokens:
            return parse_amount(self.tokens, field="--tokens")
        if not self.batch:
            raise ConfigError("--steps needs --batch, the sequences of a step")
        return parse_amount(self.steps, field="--steps") * self.batch_tokens


def answer_check(*, form: Form) -> str:
    """Public runs next to their estimates."""
    return json.dumps(check_to_list(), indent=1) if form == "json" else show_check()


def answer(question: TrainingQuestion, *, form: Form) -> str:
    """One bill in full where one GPU is named, else a table of GPUs.

    Raises:
        ConfigError, ModelError: something that cannot be answered; says what, and what would do.
    """
    if not question.model:
        raise ConfigError("say which model: aha cost train MODEL --tokens 300B --gpu h100 (or --check for public runs)")
    if question.num_gpus and question.num_nodes:
        raise ConfigError("give --gpus or --nodes, not both")
    if question.deadline_days and (question.num_gpus or question.num_nodes):
        raise ConfigError("--deadline finds how many GPUs it takes: leave --gpus and --nodes out")
    if not 1 <= question.overhead <= MAX_OVERHEAD:
        raise ConfigError(
            f"--overhead is a factor from 1 to {MAX_OVERHEAD} on the price of an hour, got {question.overhead:g}"
        )
    assert question.num_tokens > 0  # asked for once, before every GPU of a table says that it is missing
    shape = find_shape(question.model)
    for name in question.gpus:
        find_gpu(name)
    if len(question.gpus) == 1:
        bill = bill_question(question, shape=shape, gpu=find_gpu(question.gpus[0]))
        return json.dumps(bill.to_dict(), indent=1) if form == "json" else show_bill(bill, name=shape.name)
    chosen = [find_gpu(name) for name in question.gpus] or list(gpus().values())
    plans = plan_gpus(chosen, bill=lambda gpu: bill_question(question, shape=shape, gpu=gpu))
    if form == "json":
        return json.dumps([_to_dict(plan) for plan in plans], indent=1)
    return show_plans(plans, name=shape.name)


def _to_dict(plan: Plan) -> dict[str, object]:
    return {"gpu": plan.gpu.name, "why": plan.why} if plan.bill is None else plan.bill.to_dict()


def bill_question(question: TrainingQuestion, *, shape: Shape, gpu: GPU) -> TrainingBill:
    """The bill of a question on one kind of GPU: on as many as are given, else on the fewest that will do."""
    num_gpus = question.num_gpus or question.num_nodes * gpu.gpus_per_node
    run = TrainingRun(
        tokens=question.num_tokens,
        gpu=gpu,
        num_gpus=num_gpus or 1,
        sequence_tokens=question.sequence_tokens,
        precision=shape.natural_format(gpu) if question.precision == "auto" else question.precision,
        batch_tokens=question.batch_tokens,
        layout=parse_layout(question.layout) if question.layout else "fastest",
        assumptions=with_settings(Assumptions(), list(question.settings)),
    )
    price = find_price(gpu, name=question.price)
    if isinstance(run.layout, Layout) and not num_gpus:
        run = replace(run, num_gpus=run.layout.num_gpus)
    elif not num_gpus:
        return fewest_gpus(
            shape.config,
            run=run,
            price=price,
            overhead=question.overhead,
            deadline_days=question.deadline_days,
        )
    return bill_training(shape.config, run=run, price=price, overhead=question.overhead)


def find_price(gpu: GPU, *, name: str) -> MachinePrice:
    """Today's price of a GPU hour: one that is named or given in dollars, else the GPU's own, else UNPRICED."""
    if name:
        return machine_price(name, on=date.today())
    if gpu.price not in machine_names():
        return UNPRICED
    return machine_price(gpu.price, on=date.today())


def parse_layout(text: str) -> Layout:
    """ "tensor=8,pipeline=16,schedule=dualpipe" as a Layout. Raises ConfigError naming the choices."""
    known = {name: type(value) for name, value in vars(Layout()).items()}
    words = {"schedule": ("1f1b", "zb1p", "dualpipe"), "recomputation": ("none", "selective", "full")}
    chosen: dict[str, object] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise ConfigError(unknown_name("part of a layout", name, known))
        if name in words and value not in words[name]:
            raise ConfigError(unknown_name(name, value, words[name]))
        if name not in words and not value.isdecimal():
            raise ConfigError(f"--layout {name} needs a whole number, got {value[:40]!r}")
        chosen[name] = value if name in words else int(value)
    if chosen.get("zero", 1) not in (1, 2, 3):
        raise ConfigError(f"zero is 1, 2 or 3, got {chosen['zero']}")
    return Layout(**chosen)  # type: ignore[arg-type]
