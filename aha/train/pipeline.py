"""The whole of a run: load, look before training, evaluate, train stage by stage, evaluate, save, bill, report."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from aha import hub, report
from aha.chat import ChatFormat
from aha.config import Recipe, dump_recipe, stage_table
from aha.cost.bill import Bill, BillPhase, Gain
from aha.cost.ledger import Ledger, LedgerError
from aha.cost.prices import machine_price
from aha.engine import Engine
from aha.errors import AhaError, ConfigError, DataError
from aha.evaluate import compare, conversation, load_result, select_problems
from aha.export.card import write_run_card
from aha.models import Transformer, build_model, load_model
from aha.models.devices import device_words
from aha.tasks import Mixture, PythonTask, Split, Table, Task, get_task
from aha.tasks.rewards import with_rewards
from aha.train.adapter import begin_lora, prepare_stage
from aha.train.console import Console
from aha.train.distill import DistillConfig
from aha.train.dry_run import memory_line
from aha.train.grpo_config import GRPOConfig
from aha.train.job import EVAL_SEED, Interrupted, Job
from aha.train.optimizer import Optimizer
from aha.train.outcome import save_trained_model
from aha.train.preflight import run_preflight
from aha.train.run import Checkpoint, Run, describe_run, load_parameters, new_run_folder
from aha.train.scratch import architecture_config, tokenizer_folder
from aha.train.session import finishing_step_on_ctrl_c, locked, shown_live, tracked
from aha.train.sinks import check_sinks
from aha.train.source import Plan, find_resumable, read_run, read_source
from aha.train.stage import StageConfig, TrainingConfig, derive_seed
from aha.train.stages import STAGES
from aha.train.summary import measure_baselines, summarise
from aha.train.teacher import check_teacher
from aha.types import Problem, SamplingParams

RUNS = Path("runs")
SPLITS: tuple[Split, ...] = ("train", "test")
MAX_CHECKED_PROMPTS = 1000
MAX_TEMPLATE_TOKENS = 512
"""What a chat template and a system prompt add to a prompt, generously."""


def train(
    source: str | Path,
    *,
    overrides: Sequence[str] | dict[str, object] = (),
    out: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
    track: Sequence[str] = (),
    watch_port: int | None = None,
) -> Path:
    """Train a recipe, a task or a data file; returns the run's folder.

    Args:
        source: a recipe's file or name, a task's spec, or a data file; with `resume` also a run folder.
        overrides: "key=value" strings, or a dict.
        out: the run's folder; None takes runs/NAME, or the next free runs/NAME-2.
        resume: go on from the newest checkpoint of the run.
        console: where to show the run; None shows nothing.
        track: names of SINKS that get the metrics too.
        watch_port: serves the report on this machine while the run goes on; 0 takes a free port, None serves nothing.

    Raises:
        AhaError: anything that the user can put right.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    texts = [f"{k}={v}" for k, v in overrides.items()] if isinstance(overrides, dict) else list(overrides)
    check_sinks(track)
    if watch_port is not None:
        report.check_port(watch_port)
    folder: Path | None = None
    if resume:
        folder = find_resumable(str(source), out=out, parent=RUNS)
        plan = read_run(folder, overrides=texts)
    else:
        plan = read_source(str(source), overrides=texts)
    # Before there is a folder: an unknown model, teacher or price leaves nothing behind.
    model, chat = _open_model(plan.configs[0])
    price = machine_price(plan.configs[0].price, on=datetime.now(UTC).date())
    _check_lengths(plan, chat=chat, window=model.config.max_position_embeddings)
    _check_teachers(plan, chat=chat)
    folder = folder or _make_folder(plan, out)
    with locked(folder):
        job = Job(
            run=Run(folder),
            model=model,
            chat=chat,
            engine=Engine(model, decode=chat.decode, stop_token_ids=chat.stop_token_ids),
            console=console or Console("quiet"),
            price=price,
            num_stages=len(plan.configs),
            measured=plan.configs[0],
            evaluated={config.task: config.eval_problems for config in plan.configs},
        )
        with shown_live(job, watch_port=watch_port), tracked(plan, job, track):
            _run(plan, job, resume=resume)
    return folder


def _check_teachers(plan: Plan, *, chat: ChatFormat) -> None:
    for stage, config in zip(plan.recipe.stages, plan.configs, strict=True):
        if isinstance(config, DistillConfig):
            try:
                check_teacher(config, chat=chat)
            except AhaError as error:
                raise ConfigError(
                    f'{stage.origin}: teacher={config.teacher!r}: {error}; or "previous", what the stage before left'
                ) from None


def _check_lengths(plan: Plan, *, chat: ChatFormat, window: int) -> None:
    """Refuse a task of the user's own with a prompt that does not fit the model's window, before the run meets it.

    Raises:
        DataError: naming the prompt.
    """
    tasks = [get_task(spec) for spec in {config.task: None for config in plan.configs}]
    own = [part for task in tasks for part in _parts(task) if isinstance(part, Table | PythonTask)]
    for task, problem in [(t, p) for t in own for split in SPLITS for p in _checked_problems(t, split)]:
        # A token is at least a byte, so most prompts need no tokenizer.
        is_short = len(problem.prompt.encode()) < window - MAX_TEMPLATE_TOKENS
        if not is_short and (count := len(chat.render(conversation(task, problem=problem)))) >= window:
            raise DataError(
                f"{task.name}: the prompt {problem.prompt[:40]!r} has {count} tokens, the model's window is {window} "
                "and must hold an answer too; shorten or remove it"
            )


def _parts(task: Task) -> tuple[Task, ...]:
    return task.parts if isinstance(task, Mixture) else (task,)


def _checked_problems(task: Task, split: Split) -> Iterator[Problem]:
    """All rows of a file; of a program, which may never end, the first ones."""
    problems = task.problems(split, seed=0)
    return problems if isinstance(task, Table) else itertools.islice(problems, MAX_CHECKED_PROMPTS)


def _make_folder(plan: Plan, out: Path | None) -> Path:
    if out is None:
        return new_run_folder(RUNS, plan.recipe.name)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; --out names the folder of the run")
    # A killed start leaves at most these; a run that got further has a run.json.
    if out.exists() and any(path.name != "recipe.toml" and path.name[0] != "." for path in out.iterdir()):
        raise DataError(f"{out} is not empty; choose another --out, or go on with that run by --resume")
    return new_run_folder(out.parent, out.name) if not out.exists() else out


def _run(plan: Plan, job: Job, *, resume: bool) -> None:
    run, console, first = job.run, job.console, plan.configs[0]
    saved = _saved(plan, job) if resume else None
    run.write_text("recipe.toml", dump_recipe(_resolved(plan, job)))
    uid = run.uid
    run.write_json("run.json", describe_run("running", run_uid=uid))
    if plan.note:
        console.say(plan.note)
    console.say(
        f"{run.folder}: {first.task} on {first.model_words} ({job.model.num_parameters() / 1e6:.1f} M parameters, "
        f"{job.dtype}, {job.model.device})"
    )
    is_cpu = job.model.device.type == "cpu"
    console.say(memory_line(plan.configs, model=job.model.config, dtype=job.dtype, is_cpu=is_cpu))
    try:
        with finishing_step_on_ctrl_c(job):
            _train_stages(plan, job, saved=saved)
            _finish(plan, job)
    except (AhaError, KeyboardInterrupt) as error:
        _book(job.bill, job, model=first.model)
        with contextlib.suppress(AhaError):  # a full disk has said so already
            run.write_json("run.json", describe_run("interrupted", run_uid=uid))
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
    model = build_model(architecture_config(config), dtype=config.dtype, device=config.device)
    model.initialise(seed=derive_seed(config.seed, "weights"))
    return model, ChatFormat.load(tokenizer_folder(config))


def _load_base(config: StageConfig, model: Transformer) -> None:
    """Put the weights that the run began with back into the model."""
    if config.model == "scratch":
        model.initialise(seed=derive_seed(config.seed, "weights"))
        model.weight_version += 1
    else:
        load_parameters(model, hub.resolve(config.model))


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
    steps_before = sum(config.num_steps for config in plan.configs[:stage_index])
    if steps_before + saved.state["stage_step"] != saved.step:
        name = plan.recipe.stages[stage_index].name
        raise ConfigError(f"the stages before {name!r} are finished; their steps cannot change any more")
    _check_resumable(plan, job, saved)
    phases = [BillPhase(**phase) for phase in saved.state["phases"]]
    job.phases = {phase.label: phase for phase in phases}
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
    if config.num_steps < steps_taken:
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
        job.stage_index, job.stage_name = index, stage.name
        job.steps_before = sum(c.num_steps for c in plan.configs[:index])
        if index < first_stage:
            continue
        is_resumed = saved is not None and index == first_stage
        if not is_resumed:
            job.begin_stage(config, load_base=partial(_load_base, plan.configs[0]))
        prepare_stage(job.model, config)
        optimizer = None
        if isinstance(config, TrainingConfig):
            optimizer = Optimizer(job.model, weight_decay=config.weight_decay)
        first_step, state = 0, {}
        if saved is not None and is_resumed:
            first_step, state = int(saved.state["stage_step"]), saved.state
            job.run.restore(saved, job.model, optimizer)
        last_step = job.steps_before + config.num_steps
        job.console.begin(f"stage {index + 1} of {len(plan.configs)}: {stage.name}", last_step=last_step)
        STAGES[stage.kind].train(config, job, optimizer=optimizer, first_step=first_step, state=state)
        if optimizer is not None:
            optimizer.close()
        if index < len(plan.configs) - 1:
            # Every stage is measured on the first one's problems, so that its row can be compared with the others'.
            is_measured = optimizer is not None and plan.configs[0].eval_problems
            result = job.evaluate(plan.configs[0], f"after_{stage.name}") if is_measured else None
            if result is not None:
                job.log_evaluation(last_step, result)
            job.log_stage(kind=stage.kind, num_steps=config.num_steps, result=result)


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
        with_rewards(get_task(config.task), config.rewards),
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
        job.log_evaluation(job.steps_before + last.num_steps, after)
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
    job.log_stage(kind=plan.recipe.stages[-1].kind, num_steps=last.num_steps, result=after)
    bill = replace(job.bill, gain=gain)
    bill.write(run.folder / "bill.json")
    write_run_card(run.folder)
    _book(bill, job, model=first.model)
    run.write_json("run.json", describe_run("finished", run_uid=run.uid))
    report.write(run.folder)
    job.console.summary(summarise(run.folder, bill=bill))


def _book(bill: Bill, job: Job, *, model: str) -> None:
    """Enter the bill into the ledger. A ledger that fails is said, and costs the run nothing.

    A run that was stopped, or killed between this and the mark "finished", comes here again: what it booked then is
    amended to what the bill says now, so the ledger always holds the run once, at its bill.
    """
    rows = bill.ledger_rows(job.run.ledger_id, run_uid=job.run.uid, model=model, device=device_words(job.model.device))
    try:
        with Ledger.open(on_failure="memory") as ledger:
            ledger.record_many(rows, on_difference="amend")
            if ledger.warning:
                job.console.say(ledger.warning)
    except LedgerError as error:
        job.console.say(f"{error}. This run is left out of the ledger")
