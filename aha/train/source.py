"""What `aha train` is asked to do: a recipe, a task or a data file becomes a recipe of checked stages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aha import hub
from aha.config import Recipe, StageTable, build, load_recipe, override, recipe_paths
from aha.errors import AhaError, ConfigError, DataError
from aha.tasks import TASKS, PythonTask, get_task
from aha.tasks.mixture import split_mixture
from aha.tasks.selfcheck import check_gold
from aha.train.run import FORMAT_VERSION
from aha.train.sft import SFTConfig, check_data
from aha.train.stage import StageConfig
from aha.train.stages import STAGES

KINDS: Mapping[str, type[StageConfig]] = {kind: stage.config for kind, stage in STAGES.items()}
OF_THE_RUN = ("model", "architecture", "dtype", "device", "price", "lora_rank", "lora_alpha", "lora_targets")
"""What the first stage decides for the whole run: later stages train what the one before left."""
FIXED_BY_THE_START = ("task", "model", "architecture", "dtype", "seed", "max_tokens", "eval_problems",
                      "eval_temperature", "eval_top_p", "lora_rank", "lora_alpha", "lora_targets", "method",
                      "collect_steps")  # fmt: skip
"""What a resumed run cannot change: its checkpoint or its evaluation before training would not fit any more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe whose every value has been checked."""

    recipe: Recipe
    configs: tuple[StageConfig, ...]
    note: str = ""
    """What was chosen for the user, and why."""


def read_source(source: str, *, overrides: Sequence[str]) -> Plan:
    """Find and check what to train.

    Args:
        source: a recipe's file or name, a task's spec, or a data file.

    Raises:
        AhaError: nothing of that name, or a value that cannot be used.
    """
    note = ""
    known = recipe_paths()
    if source.endswith(".toml"):
        recipe = load_recipe(Path(source), kinds=KINDS, overrides=overrides)
    elif source in known:
        recipe = load_recipe(known[source], kinds=KINDS, overrides=overrides)
    else:
        recipe, note = _recipe_for_task(source, overrides=overrides, recipes=sorted(known))
    return check(recipe, note=note)


def check(recipe: Recipe, *, note: str = "") -> Plan:
    """Build every stage's config, so that a mistake in the last stage is found before the first one runs."""
    first = build(recipe.stages[0], KINDS[recipe.stages[0].kind])
    of_the_run = {key: getattr(first, key) for key in OF_THE_RUN}
    configs: list[StageConfig] = []
    collected: list[str] = []
    for stage in recipe.stages:
        config = build(stage, KINDS[stage.kind])
        for key, value in of_the_run.items():
            if key in stage.values and getattr(config, key) != value:
                raise ConfigError(
                    f"{stage.origin}: {key} is decided by the first stage ({value!r}), this one cannot change it to "
                    f"{getattr(config, key)!r}"
                )
        if config.teacher_is_previous and not configs:
            raise ConfigError(f'{stage.origin}: teacher = "previous" needs a stage before it')
        if isinstance(config, SFTConfig):
            try:
                check_data(config, collected=collected)
            except AhaError as error:
                raise ConfigError(f"{stage.origin}: {error}") from None
        if STAGES[stage.kind].collects:
            collected.append(stage.name)
        configs.append(replace(config, **of_the_run))
        task = get_task(config.task)
        if isinstance(task, PythonTask):  # a data file has checked its own
            check_gold(task)
    return Plan(recipe=recipe, configs=tuple(configs), note=note)


def read_run(folder: Path, *, overrides: Sequence[str]) -> Plan:
    """The recipe of an unfinished run, as `--resume` goes on with it.

    Raises:
        AhaError: not a run, one of another version, a finished one, or an override that a resumed run cannot take.
    """
    run = _read_run_file(folder)
    if run.get("format") != FORMAT_VERSION:
        raise DataError(
            f"{folder} has format {run.get('format')!r}, this version of aha resumes {FORMAT_VERSION}; "
            "resume it with the version that began it, or start anew with another --out"
        )
    if run.get("status") == "finished":
        raise DataError(f"{folder} is finished; to train its model further, start a run with model={folder}")
    started = check(load_recipe(folder / "recipe.toml", kinds=KINDS))
    plan = check(load_recipe(folder / "recipe.toml", kinds=KINDS, overrides=overrides))
    for old, new in zip(started.configs, plan.configs, strict=True):
        for key in FIXED_BY_THE_START:
            began, now = getattr(old, key, None), getattr(new, key, None)
            if began != now:
                raise ConfigError(
                    f"{folder} began with {key}={began}, which a resumed run cannot change to {now}; leave it out, or "
                    "start another run"
                )
    return replace(plan, note=_changed_machine(run))


def _changed_machine(run: Mapping[str, Any]) -> str:
    """What stands between a resumed run and the bits of an uninterrupted one; "" when nothing does."""
    began = (run.get("machine", {}).get("num_threads"), run.get("torch_version"))
    now = (torch.get_num_threads(), torch.__version__)
    if began == now:
        return ""
    return (
        f"began with {began[0]} threads and torch {began[1]}, goes on with {now[0]} and torch {now[1]}: "
        "the results will not be the same to the last bit"
    )


def _recipe_for_task(spec: str, *, overrides: Sequence[str], recipes: Sequence[str]) -> tuple[Recipe, str]:
    """One GRPO stage on a task or data file, with the model that suits it."""
    try:
        task = get_task(spec)
    except AhaError as error:
        is_name = spec.isidentifier() and spec not in TASKS
        raise ConfigError(f"{error} (recipes: {', '.join(recipes)})" if is_name else str(error)) from None
    values: dict[str, object] = {"task": spec}
    lines = list(getattr(task, "notices", ()))
    if not any(text.partition("=")[0].strip() == "model" for text in overrides):
        values["model"], reason = _choose_model(spec)
        lines.append(reason)
        if values["model"] == "smollm2":
            # Settings of recipes/arithmetic_smollm2.toml, where they were measured.
            values |= {"prompts_per_step": 8, "group_size": 8, "learning_rate": 2e-6, "eval_problems": 100}
    recipe = Recipe(_run_name(spec), (StageTable("grpo", "grpo", values, spec),))
    return override(recipe, overrides, kinds=KINDS), "\n".join(lines)


def _run_name(source: str) -> str:
    """The name of a run: the task's or the file's, of a mixture all of them, without weights and options."""
    parts = split_mixture(source) or [(1, source)]
    return "+".join(Path(spec.partition(":")[0]).stem for _, spec in parts)


def _choose_model(spec: str) -> tuple[str, str]:
    """The model for a task that names none, and why."""
    if spec.partition(":")[0] == "countdown":
        return "tiny", "model: tiny, the built-in base that was trained on countdown (choose another with model=…)"
    try:
        hub.resolve("smollm2")
    except AhaError:
        raise ConfigError(
            f"{spec} is in words, which the built-in model cannot read; run: aha models fetch smollm2 (90 MB), "
            "or choose a model with model=…"
        ) from None
    return "smollm2", "model: smollm2, the smallest model here that reads text (choose another with model=…)"


def find_resumable(source: str, *, out: Path | None, parent: Path) -> Path:
    """The folder that --resume means: the one given, or the newest unfinished run of that name.

    Raises:
        DataError: no such run.
    """
    if out is not None or os.path.isdir(source):
        return out or Path(source)
    name = _run_name(source)
    candidates = [p for p in parent.glob(f"{name}*") if p.name == name or p.name.removeprefix(f"{name}-").isdigit()]
    runs = [p for p in candidates if (p / "run.json").exists()]
    unfinished = [p for p in runs if _read_run_file(p).get("status") != "finished"]
    if not unfinished:
        raise DataError(f"no unfinished run of {name!r} in {parent}; start one without --resume, or name it with --out")
    return max(unfinished, key=lambda p: (p / "run.json").stat().st_mtime)


def _read_run_file(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is not a run folder (it has no run.json); start it without --resume") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); start anew with another --out") from None
    if not isinstance(run, dict):
        raise DataError(f"{path} does not describe a run; start anew with another --out")
    return run
