"""`aha cost serve`: argument parsing only."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EPILOG = (
    "Examples: aha cost serve DeepSeek-R1 --gpu h200 · "
    "aha cost serve --measured --run 'serve tiny' · aha cost serve --published"
)


def serve(
    model: Annotated[str, typer.Argument(help="A hub id, a built-in name, a folder or a config.json.")] = "",
    gpu: Annotated[str, typer.Option(help="h100, h200, h800, a100, …: aha/estimate/hardware.toml.")] = "",
    gpus: Annotated[int, typer.Option(help="Of one replica; 0 takes the cheapest number.")] = 0,
    layout: Annotated[
        Literal["auto", "tensor", "expert"], typer.Option(help="Matrices cut over the GPUs, or experts spread.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "bfloat16", "float8", "int8"],
        typer.Option(help="Of the weights; auto: as the model is published, where the GPU can."),
    ] = "auto",
    cache_precision: Annotated[Literal["bfloat16", "float8"], typer.Option(help="Of keys and values.")] = "bfloat16",
    batch: Annotated[int, typer.Option(help="Conversations together; 0: as many as fit.")] = 0,
    user_speed: Annotated[float, typer.Option(help="Fewest tokens/s a user is to get; 0: however few.")] = 0.0,
    input_tokens: Annotated[int, typer.Option(help="Of a prompt, cached ones included.")] = 2048,
    output_tokens: Annotated[int, typer.Option(help="Of an answer, its thinking included.")] = 1024,
    context: Annotated[int, typer.Option(help="Mean tokens while answering; 0: prompt and half the answer.")] = 0,
    cache_hits: Annotated[float, typer.Option(help="Share of prompt tokens in the prefix cache.")] = 0.0,
    accepted: Annotated[float, typer.Option(help="Share of drafted tokens accepted; 0 drafts none.")] = 0.0,
    price: Annotated[str, typer.Option(help="Of a GPU hour: a name or id of the price book, or dollars.")] = "",
    overhead: Annotated[float, typer.Option(help="Over that price; 0: 1.35 predicted, 1 measured.")] = 0.0,
    tokens_per_second: Annotated[
        str, typer.Option(metavar="PROMPT/ANSWER", help="Your own rates, instead of predicted ones.")
    ] = "",
    compare: Annotated[list[str] | None, typer.Option(metavar="NAME", help="APIs to show; else the newest.")] = None,
    on: Annotated[str, typer.Option(metavar="DATE", help="Day or moment of the prices; else now.")] = "",
    assume: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set an assumption.")] = None,
    measured: Annotated[bool, typer.Option("--measured", help="From the ledger's requests.")] = False,
    run: Annotated[
        str, typer.Option(metavar="SERVER", help="Which server's, for --measured, e.g. 'serve tiny'; else all.")
    ] = "",
    since: Annotated[str, typer.Option(metavar="MOMENT", help="Requests from then on, for --measured.")] = "",
    until: Annotated[str, typer.Option(metavar="MOMENT", help="Requests before then, for --measured.")] = "",
    published: Annotated[bool, typer.Option("--published", help="DeepSeek's inference day, recomputed.")] = False,
    check: Annotated[bool, typer.Option("--check", help="The roofline against published throughputs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """What a million tokens costs on GPUs of your own: predicted, measured, or as published."""
    from aha.errors import ConfigError
    from aha.estimate.serving.command import Mode, ServingQuestion, run_serving

    flags: dict[Mode, bool] = {"measured": measured, "published": published, "check": check}
    modes = [mode for mode, is_asked in flags.items() if is_asked]
    if len(modes) > 1:
        raise ConfigError(f"choose one of {', '.join(f'--{mode}' for mode in modes)}")
    idle = [option for option, text in {"--run": run, "--since": since, "--until": until}.items() if text]
    if idle and not measured:
        raise ConfigError(f"{idle[0]} chooses among the ledger's requests: add --measured, or leave it out")
    question = ServingQuestion(
        mode=modes[0] if modes else "predicted",
        model=model,
        gpu=gpu,
        num_gpus=gpus,
        layout=layout,
        precision=precision,
        cache=cache_precision,
        batch=batch,
        user_tokens_per_second=user_speed,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        context_tokens=context,
        cache_hits=cache_hits,
        accepted=accepted,
        price=price,
        overhead=overhead,
        on=on,
        compare=tuple(compare or ()),
        assume=tuple(assume or ()),
        tokens_per_second=tokens_per_second,
        server=run,
        since=since,
        until=until,
    )
    print(run_serving(question, form="json" if as_json else "text"))
