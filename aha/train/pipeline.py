"""The whole of a run: load, look before training, evaluate, train stage by stage, evaluate, save, bill, report."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aha import hub, report
from aha.chat import ChatFormat
from aha.config import Recipe, dump_recipe, stage_table
from aha.cost.bill import BillPhase, Gain
from aha.cost.ledger import Ledger
from aha.cost.prices import machine_price
from aha.engine import Engine
from aha.errors import AhaError, ConfigError, DataError
from aha.evaluate import compare, conversation, load_result, select_problems
from aha.models import Transformer, build_model, load_model, read_config
from aha.tasks import Split, Table, get_task
from aha.train import grpo, sft
from aha.train.adapter import begin_lora, prepare_stage
from aha.train.card import write_model_card
from aha.train.console import Console
from aha.train.dry_run import memory_line
from aha.train.grpo_config import GRPOConfig
from aha.train.job import EVAL_SEED, Interrupted, Job
from aha.train.optimizer import Optimizer
from aha.train.outcome import save_trained_model
from aha.train.preflight import run_preflight
from aha.train.run import FORMAT_VERSION, Checkpoint, Run, new_run_folder
from aha.train.sft import SFTConfig
from aha.train.source import Plan, find_resumable, read_run, read_source
from aha.train.stage import StageConfig, derive_seed
from aha.train.summary import measure_baselines, summarise
from aha.types import SamplingParams

RUNS = Path("runs")
_LOCK = ".lock"
SPLITS: tuple[Split, ...] = ("train", "test")
MAX_TEMPLATE_TOKENS = 512
"""What a chat template and a system prompt add to a prompt, generously."""


def train(
    source: str | Path,
    *,
    overrides: Sequence[str] | dict[str, object] = (),
    out: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Train a recipe, a task or a data file; returns the run's folder.

    Args:
        source: a recipe's file or name, a task's spec, or a data file; with `resume` also a run folder.
        overrides: "key=value" strings, or a dict.
        out: the run's folder; None takes runs/NAME, or the next free runs/NAME-2.
        resume: go on from the newest checkpoint of the run.
        console: where to show the run; None shows nothing.

    Raises:
        AhaError: anything that the user can put right.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    texts = [f"{k}={v}" for k, v in overrides.items()] if isinstance(overrides, dict) else list(overrides)
    folder: Path | None = None
    if resume:
        folder = find_resumable(str(source), out=out, parent=RUNS)
        plan = read_run(folder, overrides=texts)
    else:
        plan = read_source(str(source), overrides=texts)
    # Before there is a folder: an unknown model or price leaves nothing behind.
    model, chat = _open_model(plan.configs[0])
    price = machine_price(plan.configs[0].price, on=datetime.now(UTC).date())
    _check_lengths(plan, chat=chat, window=model.config.max_position_embeddings)
    folder = folder or _make_folder(plan, out)
    with _locked(folder):
        job = Job(
            run=Run(folder),
            model=model,
            chat=chat,
            engine=Engine(model, decode=chat.decode, stop_token_ids=chat.stop_token_ids),
            console=console or Console("quiet"),
            price=price,
        )
        _run(plan, job, resume=resume)
    return folder


def _check_lengths(plan: Plan, *, chat: ChatFormat, window: int) -> None:
    """Refuse a data file with a prompt that does not fit the model's window, before the run meets it.

    Raises:
        DataError: naming the prompt.
    """
    tasks = [get_task(spec) for spec in {config.task: None for config in plan.configs}]
    tables = [task for task in tasks if isinstance(task, Table)]
    for task, problem in [(t, p) for t in tables for split in SPLITS for p in t.problems(split, seed=0)]:
        # A token is at least a byte, so most prompts need no tokenizer.
        is_short = len(problem.prompt.encode()) < window - MAX_TEMPLATE_TOKENS
        if not is_short and (count := len(chat.render(conversation(task, problem=problem)))) >= window:
            raise DataError(
                f"{task.name}: the prompt {problem.prompt[:40]!r} has {count} tokens, the model's window is {window} "
                "and must hold an answer too; shorten or remove it"
            )


def _make_folder(plan: Plan, out: Path | None) -> Path:
    if out is None:
        return new_run_folder(RUNS, plan.recipe.name)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; --out names the folder of the run")
    # A killed start leaves at most these; a run that got further has a run.json.
    if out.exists() and any(path.name != "recipe.toml" and path.name[0] != "." for path in out.iterdir()):
        raise DataError(f"{out} is not empty; choose another --out, or go on with that run by --resume")
    return new_run_folder(out.parent, out.name) if not out.exists() else out


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process per run folder: two would write over each other's checkpoints."""
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{folder} is being trained by another process; wait for it, or choose another --out"
            ) from None
        yield


def _run(plan: Plan, job: Job, *, resume: bool) -> None:
    run, console, first = job.run, job.console, plan.configs[0]
    saved = _saved(plan, job) if resume else None
    run.write_text("recipe.toml", dump_recipe(_resolved(plan, job)))
    run.write_json("run.json", _describe_run("running"))
    if plan.note:
        console.say(plan.note)
    console.say(
        f"{run.folder}: {first.task} on {first.model} ({job.model.num_parameters() / 1e6:.1f} M parameters, "
        f"{job.dtype}, {job.model.device})"
    )
    is_cpu = job.model.device.type == "cpu"
    console.say(memory_line(plan.configs, model=job.model.config, dtype=job.dtype, is_cpu=is_cpu))
    try:
        with _finish_step_on_ctrl_c(job):
            _train_stages(plan, job, saved=saved)
            _finish(plan, job)
    except (AhaError, KeyboardInterrupt) as error:
        with contextlib.suppress(AhaError):  # a full disk has said so already
            run.write_json("run.json", _describe_run("interrupted"))
        if isinstance(error, Interrupted):
            report.write(run.folder)
            console.say(f"stopped and saved; go on with: aha train {run.folder} --resume")
        raise


def _resolved(plan: Plan, job: Job) -> Recipe:
    """The recipe with every default written out, and the dtype that "auto" meant here."""
    tables = [
        stage_table(replace(config, dtype=job.dtype), name=stage.name, kind=stage.kind)
        for config, stage in zip(plan.configs, plan.recipe.stages, strict=True)
    ]
    return replace(plan.recipe, stages=tuple(tables))


def _open_model(config: StageConfig) -> tuple[Transformer, ChatFormat]:
    """The model to start from, and how to talk to it."""
    if config.model != "scratch":
        folder = hub.resolve(config.model)
        model = load_model(folder, dtype=config.dtype, device=config.device, resolve=hub.resolve)
        begin_lora(model, config, folder=folder)
        return model, ChatFormat.load(folder)
    if not config.architecture:
        raise ConfigError('model = "scratch" needs architecture = a folder with config.json and tokenizer.json')
    folder = hub.resolve(config.architecture)
    model = build_model(read_config(folder), dtype=config.dtype, device=config.device)
    model.initialise(seed=derive_seed(config.seed, "weights"))
    return model, ChatFormat.load(folder)


def _saved(plan: Plan, job: Job) -> Checkpoint | None:
    """The checkpoint to go on from, with its bill taken over; None begins again with empty logs.

    Raises:
        ConfigError: the plan has other steps than the run for a stage that is finished.
    """
    saved = job.run.newest_checkpoint()
    if saved is None:
        job.run.clear_logs()
        return None
    stage_index = saved.state["stage_index"]
    steps_before = sum(config.steps for config in plan.configs[:stage_index])
    if steps_before + saved.state["stage_step"] != saved.step:
        name = plan.recipe.stages[stage_index].name
        raise ConfigError(f"the stages before {name!r} are finished; their steps cannot change any more")
    _check_resumable(plan, job, saved)
    job.phases = {p["name"]: BillPhase(**p) for p in saved.state["phases"]}
    job.console.say(f"resuming after step {saved.step}")
    return saved


def _check_resumable(plan: Plan, job: Job, saved: Checkpoint) -> None:
    """Refuse at once what the end of the run would refuse hours later.

    Raises:
        ConfigError: an override that the steps already taken do not fit.
        DataError: the task's held-out problems are others than those of the evaluation before training.
    """
    stage_index, steps_taken = saved.state["stage_index"], saved.state["stage_step"]
    config, folder = plan.configs[stage_index], job.run.folder
    if config.steps < steps_taken:
        raise ConfigError(f"{folder} has taken {steps_taken} steps of this stage; steps={config.steps} is too few")
    needs_reference = isinstance(config, GRPOConfig) and config.kl_coef > 0 and steps_taken > 0
    if needs_reference and not job.reference_folder(stage_index).exists():
        raise ConfigError(f"{folder} began this stage with kl_coef=0 and kept no reference model; leave kl_coef at 0")
    first, before = plan.configs[0], folder / "eval" / "before.json"
    if first.eval_problems and before.exists():
        asked = select_problems(get_task(first.task), num_problems=first.eval_problems, seed=EVAL_SEED)
        if {problem.problem_id for problem in asked} != load_result(before).problem_scores.keys():
            raise DataError(
                f"the held-out problems of {first.task} have changed since {folder} began, so its end could not be "
                "compared with its start; restore them, or start anew with another --out"
            )


def _train_stages(plan: Plan, job: Job, *, saved: Checkpoint | None) -> None:
    """Every stage that is not finished yet, the one that was stopped from its checkpoint."""
    if saved is None:
        _look_before(plan, job)
    first_stage = saved.state["stage_index"] if saved is not None else 0
    for index, (stage, config) in enumerate(zip(plan.recipe.stages, plan.configs, strict=True)):
        job.stage_index = index
        job.steps_before = sum(c.steps for c in plan.configs[:index])
        if index < first_stage:
            continue
        prepare_stage(job.model, config)
        optimizer = Optimizer(job.model, weight_decay=config.weight_decay)
        first_step, state = 0, {}
        if saved is not None and index == first_stage:
            first_step, state = int(saved.state["stage_step"]), saved.state
            job.run.restore(saved, job.model, optimizer)
        last_step = job.steps_before + config.steps
        job.console.begin(f"stage {index + 1} of {len(plan.configs)}: {stage.name}", last_step=last_step)
        if isinstance(config, GRPOConfig):
            grpo.train(config, job, optimizer=optimizer, first_step=first_step, state=state)
        else:
            assert isinstance(config, SFTConfig)
            sft.train(config, job, optimizer=optimizer, first_step=first_step)
        optimizer.close()
        if config.eval_problems and index < len(plan.configs) - 1:
            job.log_evaluation(last_step, job.evaluate(config, f"after_{stage.name}"))


def _look_before(plan: Plan, job: Job) -> None:
    """Evaluate the untouched model, and say whether a GRPO stage that comes first can learn."""
    config = plan.configs[0]
    if config.eval_problems:
        job.log_evaluation(0, job.evaluate(config, "before"))
    if not isinstance(config, GRPOConfig) or not config.preflight_prompts:
        return
    started = time.perf_counter()
    sampling = SamplingParams(
        num_samples=config.group_size, temperature=config.temperature, max_tokens=config.max_tokens
    )
    found = run_preflight(
        get_task(config.task),
        chat=job.chat,
        engine=job.engine,
        sampling=sampling,
        num_prompts=config.preflight_prompts,
        seed=config.seed,
    )
    job.charge("pre-flight", seconds=time.perf_counter() - started)
    job.run.write_json("preflight.json", found.to_dict())
    job.console.say(found.lines())
    if not found.can_learn:
        raise ConfigError(f"{found.verdict} (preflight_prompts=0 trains all the same)")


def _finish(plan: Plan, job: Job) -> None:
    """Evaluate, save the model with its card, write bill and report, and say what came of it."""
    first, last = plan.configs[0], plan.configs[-1]
    run = job.run
    # First of all: whatever comes next may fail, and the model is what the time was spent on.
    save_trained_model(job, first)
    before = after = None
    gain = None
    if first.eval_problems:
        before = load_result(run.folder / "eval" / "before.json")
        after = job.evaluate(first, "after")
        job.log_evaluation(job.steps_before + last.steps, after)
        change = compare(before, after)
        gain = Gain(
            before=before.pass_at_1,
            after=after.pass_at_1,
            interval_low=change.interval_low,
            interval_high=change.interval_high,
        )
        task = get_task(first.task)
        problems = select_problems(task, num_problems=first.eval_problems, seed=EVAL_SEED)
        baselines = measure_baselines(task, outputs=run.folder / "eval" / "after.jsonl", problems=problems, after=after)
        if baselines:
            run.write_json("baselines.json", baselines)
    bill = replace(job.bill, gain=gain)
    bill.write(run.folder / "bill.json")
    write_model_card(run.folder, plan=plan, before=before, after=after, bill=bill)
    with Ledger.open(on_failure="memory") as ledger:
        ledger.record_all(bill.ledger_rows(run.ledger_id))
        if ledger.warning:
            job.console.say(ledger.warning)
    run.write_json("run.json", _describe_run("finished"))
    report.write(run.folder)
    job.console.summary(summarise(run.folder, bill=bill))


def _describe_run(status: str) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "aha_version": metadata.version("aha"),
        "torch_version": torch.__version__,
        "status": status,
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@contextlib.contextmanager
def _finish_step_on_ctrl_c(job: Job) -> Iterator[None]:
    """The first Ctrl-C lets the step in hand finish and be saved; the second one stops at once."""

    def on_signal(number: int, frame: object) -> None:
        if job.is_interrupted:
            raise KeyboardInterrupt
        job.is_interrupted = True
        job.console.say("stopping after this step; press Ctrl-C again to stop at once")

    try:
        previous = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not the main thread: there Ctrl-C is somebody else's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
