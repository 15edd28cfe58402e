"""The command line: argument parsing only. What a verb does lies in the room it names.

Exit codes: 0 done · 1 a bug of ours, with its traceback · 2 something the user can mend, in one line · 130 Ctrl-C.
Everything heavy is imported inside its verb, so that `aha --help` is instant.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import json
import os
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aha.cli import cost
from aha.errors import AhaError, ConfigError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}

app = typer.Typer(
    help="Teach an open-weight model to reason at your task, see what it cost, serve it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cost.app, name="cost")

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run, a built-in name, or a hub id.")]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:N".')]
SpeculateOption = Annotated[
    Literal["auto", "off", "always"],
    typer.Option(help="Let a model with multi-token prediction draft; auto: while it is faster."),
]
QuantizeOption = Annotated[
    Literal["none", "int8"], typer.Option(help="int8: a lone conversation is faster on a CPU, and a little less exact.")
]
ThinkingOption = Annotated[
    Literal["default", "on", "off"], typer.Option(help="For models whose chat template has a switch for it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of one answer, its thinking included.")]


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a crash.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="aha", standalone_mode=False)
    except AhaError as error:
        code = _refuse(str(error))
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "aha")
        code = _refuse(f"{error.format_message().replace(': Value error, ', ': ')} (see {command} --help)")
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of a pipe has gone, e.g. `aha tasks countdown | head -1`. Python must not flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        code = _refuse(f"{error.strerror}: {error.filename or 'while writing'}")
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> int:
    print(f"aha: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"aha {metadata.version('aha')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: aha train countdown steps=20 --out runs/quick")
def train(
    source: Annotated[str, typer.Argument(metavar="RECIPE|TASK|DATA.jsonl|TASK.py", help="What to train on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Knobs of the recipe; stage.NAME.key=value.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; else runs/NAME, or the next free runs/NAME-2.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run where it was stopped.")] = False,
    device: Annotated[str, typer.Option(help='The same as the override device=…: "cpu", "cuda", "cuda:N".')] = "",
    verify: Annotated[
        str, typer.Option(metavar="KIND", help="How DATA.jsonl is judged: number, exact, choice, …")
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the report on this machine while the run goes on.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --watch; 0 takes a free one.")] = 8080,
    track: Annotated[
        list[str] | None, typer.Option(metavar="SINK", help="tensorboard or wandb: metrics go there too.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take: memory, time, dollars.")] = False,
    knobs: Annotated[
        bool, typer.Option("--knobs", help="Print the recipe with every knob explained, and stop.")
    ] = False,
) -> None:
    """Teach a model a task whose answers can be verified.

    Shows a live table, and ends with pass@1 before and after and the bill.
    """
    from aha import config
    from aha.train import train as train_source
    from aha.train.console import Console
    from aha.train.dry_run import dry_run as describe_needs
    from aha.train.source import KINDS, read_source

    if verify:
        source = _with_verifier(source, verify)
    overrides = [*(overrides or ()), *([f"device={device}"] if device else ())]
    if knobs:
        plan = read_source(source, overrides=overrides)
        stages = zip(plan.recipe.stages, plan.configs, strict=True)
        tables = tuple(config.stage_table(built, name=stage.name, kind=stage.kind) for stage, built in stages)
        print(config.dump_recipe(config.Recipe(plan.recipe.name, tables), documented=KINDS), end="")
        return
    if dry_run:
        print(describe_needs(source, overrides=overrides))
        return
    with Console("quiet" if quiet else "auto") as console:
        train_source(
            source,
            overrides=overrides,
            out=out,
            resume=resume,
            console=console,
            track=track or (),
            watch_port=port if watch else None,
        )


def _with_verifier(source: str, kind: str) -> str:
    path, colon, _ = source.partition(":")
    if not path.endswith((".jsonl", ".csv")):
        raise ConfigError(f"--verify {kind} says how a data file is judged, but {source!r} is not .jsonl or .csv")
    return f"{source}{',' if colon else ':'}verify={kind}"


@app.command(name="eval", epilog="Example: aha eval runs/countdown --task countdown --problems 500 --k 4 --out scores")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="A folder, a run, a built-in name, a hub id, or openai:MODEL@URL."),
    ],
    task: Annotated[
        str, typer.Option(metavar="TASK", help='"NAME", "NAME:key=value,…" or "data.jsonl:verify=number".')
    ] = "",
    compare: Annotated[
        bool, typer.Option("--compare", help="Set finished evaluations side by side: folders of --out, runs, files.")
    ] = False,
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems to ask.")] = 500,
    protocol: Annotated[
        str, typer.Option(help="default, or r1: 0.6, 0.95, 32768 tokens, k 64. Options below win.")
    ] = "default",
    k: Annotated[int | None, typer.Option("--k", min=1, help="Answers per problem, for pass@k and cons@k.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; 1 is off.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one answer, its thinking included.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the problems and the draws.")] = 0,
    device: Device = "auto",
    thinking: ThinkingOption = "default",
    price: Annotated[
        str, typer.Option(help="In the price book, or dollars: an hour; of an endpoint IN/OUT per million tokens.")
    ] = "",
    budget_usd: Annotated[float | None, typer.Option(help="Of an endpoint: most that may be spent.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Of an endpoint: requests at a time.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder for eval.json and eval.jsonl; the same call again goes on after a kill.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure pass@1, pass@k and cons@k with intervals, here or at an endpoint; compare what was measured."""
    from aha.terminal import evaluation

    form: Literal["text", "json"] = "json" if as_json else "text"
    if compare:
        print(evaluation.run_comparison(models, form=form))
        return
    if len(models) > 1:
        raise ConfigError(
            f"eval asks one model at a time, got {len(models)}; --compare sets finished ones side by side"
        )
    options = evaluation.EvalOptions(
        model=models[0],
        task=task,
        num_problems=problems,
        protocol=protocol,
        num_samples=k,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        thinking=thinking,
        price=price,
        budget_usd=budget_usd,
        concurrency=concurrency,
        out=out,
    )
    print(evaluation.run_evaluation(options, form=form))


@app.command(epilog='Example: aha chat runs/countdown "3 7 8 > 24"')
def chat(
    model: ModelName,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Without it, a conversation.")] = None,
    system: Annotated[str, typer.Option(help="Instructions that stand before the conversation.")] = "",
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture for a model that sees; may be given several times.")
    ] = None,
    temperature: Temperature = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1 is off.")] = 0.95,
    max_tokens: MaxTokens = 512,
    seed: Annotated[int | None, typer.Option(help="Makes the answer repeatable.")] = None,
    device: Device = "auto",
    quantize: QuantizeOption = "none",
    thinking: ThinkingOption = "default",
    speculate: SpeculateOption = "auto",
    stats: Annotated[bool, typer.Option("--stats", help="Say how fast each answer was, on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Talk to a model: its thinking, dimmed, then its answer."""
    from aha import terminal
    from aha.types import Message, SamplingParams

    sampling = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    if as_json and prompt is None:
        raise ConfigError("--json answers one PROMPT; give it, e.g. aha chat MODEL 'What is 2 + 3?' --json")
    # "auto" follows the clock, and so does the rounding: an answer that should repeat is drawn without.
    speculation = "off" if speculate == "auto" and seed is not None else speculate
    opened = terminal.open_model(model, device=device, quantize=quantize, thinking=thinking, speculation=speculation)
    shown: Literal["hidden", "shown"] = "shown" if stats else "hidden"
    before = [Message("system", system)] if system else []
    pictures = terminal.read_pictures(opened, image or [])
    if prompt is None:
        terminal.converse(opened, before, sampling=sampling, pictures=pictures, stats=shown)
        return
    messages = [*before, Message("user", prompt, pictures=pictures)]
    if as_json:
        answer = terminal.answer(opened, messages, sampling=sampling)
        print(json.dumps({"reasoning_content": answer.reasoning_content, "content": answer.content}))
    else:
        terminal.ask(opened, messages, sampling=sampling, stats=shown)


@app.command(epilog="Example: aha serve runs/countdown --port 8000")
def serve(
    model: ModelName,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default only this machine reaches.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="AHA_API_KEY", help="What callers must send; empty asks nothing.")
    ] = "",
    device: Device = "auto",
    price: Annotated[
        str, typer.Option(help="Of this machine for an hour: in the price book, or dollars.")
    ] = "cpu-2core-hour",
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="API", help="Whose charge is told beside each answer's cost; may be given several times."),
    ] = None,
    speculate: SpeculateOption = "auto",
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    from aha.serve import run

    run(
        model,
        host=host,
        port=port,
        api_key=api_key,
        device=device,
        price=price,
        apis=compare or (),
        speculation=speculate,
    )


@app.command(epilog="Example: aha export runs/countdown --to hf countdown-model")
def export(
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; new or empty.")],
    to: Annotated[Literal["hf", "gguf"], typer.Option("--to", help="A Hugging Face folder, or llama.cpp's file.")],
    kind: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0", "fp8", "fp8_ue8m0"],
        typer.Option("--type", help="How matrices are stored: fp8 is for hf, the others for gguf."),
    ] = "auto",
    adapter: Annotated[bool, typer.Option("--adapter", help="A LoRA run's adapter alone, for PEFT.")] = False,
) -> None:
    """Write a model for other tools, read it back, and say how equal it is to its source."""
    from aha.export import export as write

    print(write(model, to=to, out=out, kind=kind, keeps_adapter=adapter))


@app.command(epilog="Example: aha models deepseek; aha models path/to/config.json; aha models fetch smollm2")
def models(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD...|MODEL|config.json|fetch NAME]", help="Which ones; without it, all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List models with their sizes, memory, licence and price, show one in detail, or fetch one."""
    from aha.catalogue import run_models

    print(run_models(words or [], form="json" if as_json else "text"))


@app.command(epilog="Example: aha tasks countdown:max_number=50, or aha tasks task.py")
def tasks(
    spec: Annotated[str, typer.Argument(metavar="[TASK]", help="Show samples of one; without it, list them.")] = "",
    samples: Annotated[int, typer.Option("--samples", min=1, help="How many problems to show.")] = 3,
    seed: Annotated[int, typer.Option(help="Chooses the problems.")] = 0,
    as_json: Json = False,
) -> None:
    """List the tasks, or show problems and worked examples of one and check it: exit code 2 when it can be fooled."""
    from aha.tasks import TASKS, HasDemonstrations, get_task
    from aha.tasks.selfcheck import sample_split, self_check

    if not spec:
        lines = {name: (inspect.getdoc(make) or "").partition("\n")[0] for name, make in sorted(TASKS.items())}
        width = max(map(len, lines))
        text = "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())
        own = 'your own: "data.jsonl:verify=number", "task.py", or several: "countdown + task.py"; see docs/tasks.md'
        print(json.dumps(lines, indent=1) if as_json else f"{text}\n{own}")
        return
    task = get_task(spec)
    problems = [asdict(problem) for problem in itertools.islice(task.problems(sample_split(task), seed=seed), samples)]
    shown: dict[str, Any] = {"name": task.name, "system_prompt": task.system_prompt, "problems": problems}
    shown["notices"] = list(getattr(task, "notices", ()))
    if isinstance(task, HasDemonstrations):
        shown["demonstrations"] = [asdict(d) for d in itertools.islice(task.demonstrations(seed=seed), samples)]
    if not as_json:  # before the check, which runs code and may take a while
        print(_describe_task(shown), flush=True)
        if sys.stdout.isatty():
            print("\nchecking the verifier …", end="\r", flush=True)
    checked = self_check(task, seed=seed)
    shown["self_check"] = checked.to_dict()
    print(json.dumps(shown, indent=1, ensure_ascii=False) if as_json else f"\n{checked.lines()}")
    checked.refuse_if_failing()


def _describe_task(shown: dict[str, Any]) -> str:
    lines = [shown["name"], *filter(None, [shown["system_prompt"]]), *(f"notice   {text}" for text in shown["notices"])]
    for problem in shown["problems"]:
        lines += ["", f"problem  {problem['prompt']}", f"answer   {problem['answer']}"]
    for worked in shown.get("demonstrations", ()):
        lines += ["", f"worked   {worked['problem']['prompt']}"]
        lines += [f"turn     {turn['answer']} is told {turn['observation']['text']}" for turn in worked["turns"]]
        lines += [f"think    {worked['reasoning']}", f"answer   {worked['answer']}"]
    return "\n".join(lines)
