"""The job that the stages of a run work on: its model and engine, its log, its clock and its checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from aha.chat import ChatFormat
from aha.cost.bill import Bill, BillPhase
from aha.cost.energy import EnergyMeter
from aha.cost.prices import MachinePrice
from aha.engine import Engine
from aha.evaluate import EvalResult, Progress, conversation, evaluate, select_problems
from aha.models import Transformer, frozen_twin
from aha.tasks import get_task
from aha.train.adapter import save_weights
from aha.train.balance import ExpertLoad, move_biases
from aha.train.batches import TrainingSequence
from aha.train.console import Console
from aha.train.optimizer import Optimizer
from aha.train.rollouts import respond_with
from aha.train.run import Run, load_parameters
from aha.train.sinks import Sinks
from aha.train.stage import StageConfig, stage_seed
from aha.types import SamplingParams

EVAL_SEED = 0
"""Chooses the held-out problems: the same ones in every run, so that runs can be compared."""


OF_THE_RUN = ("evaluation before", "evaluation after", "pre-flight")
"""Phases that belong to no stage."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was honoured: the checkpoint is written."""


@dataclass
class Job:
    """State that outlives a stage. All of it is in the checkpoint, or follows from the recipe."""

    run: Run
    model: Transformer
    chat: ChatFormat
    engine: Engine
    console: Console
    price: MachinePrice
    phases: dict[str, BillPhase] = field(default_factory=dict)
    stage_index: int = 0
    stage_name: str = ""
    num_stages: int = 1
    steps_before: int = 0
    """Steps of the recipe's earlier stages: metrics and checkpoints count through."""
    evaluated: Mapping[str, int] = field(default_factory=dict)
    """Task of each stage → how many of its held-out problems the run may be measured on: no dataset may have them."""
    measured: StageConfig | None = None
    """What every evaluation of the run asks: the first stage, so that they make one curve. None: the stage's own."""
    energy: EnergyMeter = field(default_factory=EnergyMeter)
    """Of the machine; what it cannot read is not on the bill."""
    sinks: Sinks | None = None
    """Where metrics go besides metrics.jsonl."""
    is_interrupted: bool = False
    """Set by the signal handler; the step in hand is finished and saved first."""

    def charge(
        self,
        phase: str,
        *,
        seconds: float,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        trained_tokens: int = 0,
    ) -> None:
        """Add time and tokens to a phase of the bill."""
        known, energy_mj = self._phase(phase), self.energy.take_mj(seconds)
        self.phases[known.label] = dataclasses.replace(
            known,
            seconds=known.seconds + seconds,
            prompt_tokens=known.prompt_tokens + prompt_tokens,
            completion_tokens=known.completion_tokens + completion_tokens,
            trained_tokens=known.trained_tokens + trained_tokens,
            energy_mj=None if energy_mj is None or known.energy_mj is None else known.energy_mj + energy_mj,
        )

    def charge_endpoint(
        self, price_id: str, *, model: str, spent_nano_usd: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Put an endpoint's answers on the bill.

        Args:
            model: that answers there.
            spent_nano_usd: all that its client has spent, and not what came new: a client's journal also knows what a
                killed process paid.
        """
        known = self._phase("teacher's endpoint")
        self.phases[known.label] = dataclasses.replace(
            known,
            endpoint_nano_usd=spent_nano_usd,
            endpoint_price_id=price_id,
            endpoint_model=model,
            prompt_tokens=known.prompt_tokens + prompt_tokens,
            completion_tokens=known.completion_tokens + completion_tokens,
        )

    def _phase(self, name: str) -> BillPhase:
        """A phase so far. Where a run has several stages, each has its own, but for what belongs to the whole run."""
        is_of_the_run = self.num_stages == 1 or name in OF_THE_RUN
        stage = "" if is_of_the_run else self.stage_name
        empty = BillPhase(name=name, seconds=0.0, stage=stage, energy_mj=0 if self.energy.is_readable else None)
        return self.phases.get(empty.label, empty)

    def seed(self, config: StageConfig) -> int:
        """What the draws of the stage follow from."""
        return stage_seed(config.seed, self.stage_index)

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """What the model computes in, as a recipe spells it."""
        return "bfloat16" if self.model.dtype == torch.bfloat16 else "float32"

    @property
    def bill(self) -> Bill:
        return Bill(phases=tuple(self.phases.values()), price=self.price)

    def log_step(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a step's metrics to metrics.jsonl and show them. `step` counts from 0 within the stage."""
        bill = self.bill
        row = {
            "kind": "step",
            "step": self.steps_before + step + 1,
            "time_seconds": bill.wall_seconds,
            **metrics,
            "cost_usd": bill.cost_usd,
        }
        self._log(_without_nan(row))
        self.console.row(row)

    def _log(self, row: dict[str, Any]) -> None:
        self.run.append("metrics.jsonl", [row])
        if self.sinks is not None:
            self.sinks.log(row)

    def log_samples(self, rows: list[dict[str, Any]]) -> None:
        """Append completions to samples.jsonl."""
        self.run.append("samples.jsonl", rows)

    def dump_skipped(self, step: int, sequences: Sequence[TrainingSequence]) -> None:
        """Keep the batch of a step that was skipped because its gradient was not finite."""
        rows = [dataclasses.asdict(sequence) for sequence in sequences]
        self.run.write_json(f"skipped/step_{self.steps_before + step + 1:06d}.json", {"sequences": rows})

    def evaluate(self, config: StageConfig, name: str) -> EvalResult:
        """Evaluate the model as it is, on the same held-out problems each time, and charge it to the bill.

        Raises:
            Interrupted: Ctrl-C was pressed in an evaluation before or after a stage: all steps taken are saved.
        """
        sampling = SamplingParams(
            temperature=config.eval_temperature, top_p=config.eval_top_p, max_tokens=config.max_tokens
        )
        started = time.perf_counter()
        with self.console.progress(f"evaluating {name}", total=config.eval_problems) as advance:
            num_shown = 0

            def on_progress(progress: Progress) -> None:
                nonlocal num_shown
                advance(progress.num_done - num_shown)
                num_shown = progress.num_done
                if self.is_interrupted and not name.startswith("step_"):
                    raise Interrupted

            result = evaluate(
                config.task,
                respond_with(self.engine, self.chat),
                num_problems=config.eval_problems,
                sampling=sampling,
                seed=EVAL_SEED,
                out=self.run.folder / "eval",
                name=name,
                template=self.chat.folder.name,
                count_tokens=lambda text: len(self.chat.encode(text)),
                on_progress=on_progress,
            )
        phase = f"evaluation {name}" if name in ("before", "after") else "evaluation during training"
        self.charge(
            phase,
            seconds=time.perf_counter() - started,
            prompt_tokens=self._prompt_tokens(config),
            completion_tokens=result.completion_tokens,
        )
        return result

    def _prompt_tokens(self, config: StageConfig) -> int:
        """Of all held-out problems, each once; what a task shows in later turns is not among them."""
        task = get_task(config.task)
        problems = select_problems(task, num_problems=config.eval_problems, seed=EVAL_SEED)
        return sum(len(self.chat.render(conversation(task, problem=problem))) for problem in problems)

    def log_evaluation(self, step: int, result: EvalResult) -> None:
        """Append an evaluation after `step` steps of the run to metrics.jsonl and show it."""
        names = ("pass_at_1", "interval_low", "interval_high", "mean_tokens", "mean_thinking_tokens")
        row = {"kind": "eval", "step": step, **{name: getattr(result, name) for name in names}}
        self._log(row)
        self.console.row(row)

    def log_stage(self, *, kind: str, num_steps: int, result: EvalResult | None) -> None:
        """Append a finished stage to metrics.jsonl: what it took, and the held-out pass@1 that it ended with."""
        mine = tuple(p for p in self.phases.values() if self.num_stages == 1 or p.stage == self.stage_name)
        bill = Bill(phases=mine, price=self.price)
        measured = ("pass_at_1", "interval_low", "interval_high", "mean_tokens")
        billed = ("wall_seconds", "completion_tokens", "trained_tokens", "cost_usd")
        row = {
            "kind": "stage",
            "step": self.steps_before + num_steps,
            "stage": self.stage_name,
            "stage_kind": kind,
            "num_steps": num_steps,
            **{name: getattr(result, name) if result else None for name in measured},
            **{name: getattr(bill, name) for name in billed},
        }
        self._log(row)

    def begin_stage(self, config: StageConfig, *, load_base: Callable[[Transformer], None]) -> None:
        """Make the model what the stage begins with, and keep what the one before left where it is to teach."""
        if config.teacher_is_previous:
            save_weights(self.model, self.teacher_folder(self.stage_index))
            self.chat.save(self.teacher_folder(self.stage_index))
        if config.start == "base" and self.stage_index > 0:
            load_base(self.model)

    def teacher_folder(self, stage_index: int) -> Path:
        """Where a stage keeps the model before it, when that is its teacher."""
        return self.run.folder / "checkpoints" / f"teacher_{stage_index}"

    def step_if_finite(
        self,
        optimizer: Optimizer,
        *,
        learning_rate: float,
        grad_norm: float,
        load: ExpertLoad | None = None,
        balance_speed: float = 0.0,
    ) -> bool:
        """Take the optimiser's step unless the gradient is not finite; says whether it was taken.

        Args:
            load: what the experts were given in this step.
            balance_speed: how far it moves their selection biases.
        """
        if not math.isfinite(grad_norm):
            optimizer.zero_grad()
            return False
        optimizer.step(learning_rate=learning_rate)
        if load is not None and balance_speed:
            move_biases(self.model, load, speed=balance_speed)
        return True

    def reference_folder(self, stage_index: int) -> Path:
        """Where a stage with a KL term keeps the model that it began with."""
        return self.run.folder / "checkpoints" / f"reference_{stage_index}"

    def load_reference(self, *, first_step: int) -> Transformer:
        """A frozen copy of the model as the stage began: what the KL term measures from, also after a resume."""
        folder = self.reference_folder(self.stage_index)
        if first_step == 0:
            save_weights(self.model, folder)
        # With LoRA only the adapters are copied: the base is the same tensors.
        reference = frozen_twin(self.model) if self.model.lora is not None else copy.deepcopy(self.model)
        load_parameters(reference, folder)
        return reference.requires_grad_(False)

    def after_step(
        self, config: StageConfig, *, step: int, optimizer: Optimizer | None, state: dict[str, Any] | None = None
    ) -> None:
        """Evaluate and save when it is time to.

        Raises:
            Interrupted: Ctrl-C was pressed; everything up to this step is saved.
        """
        done = step + 1
        measured = self.measured or config
        is_due = config.eval_every and done % config.eval_every == 0 and done < config.num_steps
        if is_due and measured.eval_problems:
            number = self.steps_before + done
            self.log_evaluation(number, self.evaluate(measured, f"step_{number:06d}"))
        if self.is_interrupted or done % config.checkpoint_every == 0 or done == config.num_steps:
            self.save(done, optimizer=optimizer, state=state or {})
        if self.is_interrupted:
            raise Interrupted

    def save(self, steps_done: int, *, optimizer: Optimizer | None, state: dict[str, Any]) -> None:
        """Write a checkpoint of the stage after `steps_done` of its steps."""
        saved = {
            "stage_index": self.stage_index,
            "stage_step": steps_done,
            "phases": [dataclasses.asdict(phase) for phase in self.phases.values()],
            **state,
        }
        number = self.steps_before + steps_done
        self.run.save_checkpoint(self.model, optimizer, step=number, state=saved, chat=self.chat)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a metric that does not exist is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
