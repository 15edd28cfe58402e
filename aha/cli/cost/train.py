"""`aha cost train`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EPILOG = "Example: aha cost train DeepSeek-V3 --tokens 14.8T --gpu h800 --nodes 256"


def train(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A hub id or its last part, a folder, or a config.json.")
    ] = "",
    tokens: Annotated[str, typer.Option(help="Training tokens in all, such as 14.8T, 300B or 1e9.")] = "",
    steps: Annotated[str, typer.Option(help="In the place of --tokens: steps of --batch sequences.")] = "",
    batch: Annotated[str, typer.Option(help="Sequences of a step; left out, as many as is usual.")] = "",
    sequence: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 4096,
    gpu: Annotated[
        list[str] | None, typer.Option(help="GPU to train on, such as h800; several, or none, give a table.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="How many GPUs; left out, the fewest that fit.")] = 0,
    nodes: Annotated[int, typer.Option(min=0, help="Or how many nodes of GPUs.")] = 0,
    deadline: Annotated[float, typer.Option(min=0, help="Days: finds how many GPUs it takes.")] = 0,
    precision: Annotated[
        Literal["auto", "bfloat16", "float8"],
        typer.Option(help="Number format of the matrix products; auto: as the model is published, where the GPU can."),
    ] = "auto",
    layout: Annotated[
        str,
        typer.Option(help='Parallel layout, such as "tensor=8,pipeline=16,data=64"; left out, the fastest that fits.'),
    ] = "",
    price: Annotated[str, typer.Option(help="Price of a GPU hour: a name in the price book, or dollars.")] = "",
    overhead: Annotated[
        float, typer.Option(help="Factor on that price for storage, network, people; 1.35 is common.")
    ] = 1.0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="An assumption, NAME=NUMBER; repeatable.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Print public runs next to their estimates instead.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """What training a model takes: hours, dollars, energy, memory, each term shown; or which GPUs, and how many.

    RL on this machine is planned by `aha train RECIPE --dry-run`.
    """
    from aha.estimate.training.question import TrainingQuestion, answer, answer_check

    if check:
        print(answer_check(form="json" if json_ else "text"))
        return
    question = TrainingQuestion(
        model=model,
        tokens=tokens,
        steps=steps,
        batch=batch,
        sequence_tokens=sequence,
        gpus=tuple(gpu or ()),
        num_gpus=gpus,
        num_nodes=nodes,
        deadline_days=deadline,
        precision=precision,
        layout=layout,
        price=price,
        overhead=overhead,
        settings=tuple(set_ or ()),
    )
    print(answer(question, form="json" if json_ else "text"))
