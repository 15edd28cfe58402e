"""One evaluation from its problems to its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from aha import tasks
from aha.cost.files import open_atomic, write_atomic
from aha.cost.prices import NANO_PER_USD, MachinePrice, TokenPrice
from aha.errors import DataError
from aha.evaluate.asking import Progress, Questions, Respond, conversation, select_problems
from aha.evaluate.protocols import name_protocol
from aha.evaluate.record import Record, open_record
from aha.evaluate.result import EvalResult, Sample, summarise
from aha.tasks.base import Split, Task
from aha.types import Problem, SamplingParams, Usage


@dataclass(frozen=True, kw_only=True)
class Used:
    """What an evaluation has used so far, all its sessions together."""

    uid: str
    """The same in every session of one evaluation that is gone on with."""
    wall_seconds: float
    tokens: Usage
    """An endpoint's as it counted them. Of a model in this process the prompts are not counted."""
    problem_ids: frozenset[str]
    """Those that have an answer."""
    weight_version: int | None
    """None without an answer."""
    is_first_session: bool
    """Whether nothing was used before this process began."""
    spent_before_nano_usd: int
    """What the endpoint's client had spent before the evaluation began."""

    @classmethod
    def of(cls, record: Record) -> Used:
        samples = record.samples.values()
        counted = [sample.usage for sample in samples if sample.usage]
        thinking = sum(sample.num_thinking_tokens or 0 for sample in samples if sample.usage is None)
        return cls(
            uid=record.uid,
            wall_seconds=record.wall_seconds,
            tokens=Usage(
                prompt_tokens=sum(usage.prompt_tokens for usage in counted),
                cached_tokens=sum(usage.cached_tokens for usage in counted),
                completion_tokens=sum((s.usage.completion_tokens if s.usage else s.num_tokens) for s in samples),
                reasoning_tokens=sum(usage.reasoning_tokens for usage in counted) + thinking,
            ),
            problem_ids=frozenset(problem_id for problem_id, _ in record.samples),
            weight_version=next((sample.weight_version for sample in samples), None),
            is_first_session=not record.has_earlier_session,
            spent_before_nano_usd=record.spent_before_nano_usd,
        )


def evaluate(
    task: Task | str,
    respond: Respond,
    *,
    num_problems: int = 500,
    num_samples: int = 1,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    split: Split = "test",
    out: Path | None = None,
    name: str = "eval",
    model: str = "",
    template: str = "",
    extractor: str = "",
    max_tokens_cap: int | None = None,
    price: MachinePrice | TokenPrice | None = None,
    count_tokens: Callable[[str], int] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    on_used: Callable[[Used], None] | None = None,
    spent_before_nano_usd: int = 0,
) -> EvalResult:
    """Ask `num_problems` distinct problems of `task`, score the answers, and keep everything.

    Args:
        task: a task, or the spec of one ("countdown:max_number=50").
        num_samples: completions per problem (k).
        sampling: temperature, top-p and so on; None is R1's evaluation (arXiv:2501.12948v1 §3: 0.6 and 0.95). Its
            num_samples is replaced; its seed, when None, by `seed`, so that results do not depend on batching.
        seed: chooses the problems.
        out: folder for NAME.json (the result) and NAME.jsonl (every output); None writes nothing.
        model: what tells this model from every other, such as a digest of its weights. With it and `out`, a killed
            evaluation is gone on with by the same call, which asks only what is missing.
        template: name or hash of the chat template, for the manifest.
        extractor: what reads the answer out of the text, for the manifest; "" names the task's own `score`.
        max_tokens_cap: what the model's window leaves for an answer where that is less than max_tokens, for the
            manifest.
        price: of the machine that samples, or of the endpoint's tokens, whose completions carry what they cost. None
            leaves the dollars open unless completions carry some.
        count_tokens: length of a text in the model's tokens; gives `mean_thinking_tokens`.
        on_progress: told whenever answers have come.
        on_notice: told, in a line, when answers of an earlier session are taken up.
        on_used: told once, when the asking has ended or was stopped, what the evaluation has used by then.
        spent_before_nano_usd: what the endpoint's client had spent before; kept for sessions to come.

    Raises:
        DataError: no problems in the split, the verifier failed on every completion, `out` cannot be written, or it
            holds the answers of an unfinished evaluation that is not this one.
    """
    asked = tasks.get_task(task) if isinstance(task, str) else task
    problems = select_problems(asked, num_problems=num_problems, seed=seed, split=split)
    sampling = sampling or SamplingParams(temperature=0.6, top_p=0.95)
    sampling = replace(sampling, num_samples=num_samples, seed=seed if sampling.seed is None else sampling.seed)
    manifest = {
        **_describe(asked, problems, sampling),
        "split": split,
        "num_problems_requested": num_problems,
        "problem_seed": seed,
        "model": model,
        "template": template,
        "extractor": extractor or f"{type(asked).__module__}.{type(asked).__qualname__}.score",
        "max_tokens_cap": max_tokens_cap,
        "price": price.price_id if price else "",
    }
    partial = out / f"{name}.jsonl.partial" if out else None
    with open_record(partial, manifest=manifest, spent_before_nano_usd=spent_before_nano_usd) as record:
        questions = Questions(
            asked,
            problems=problems,
            sampling=sampling,
            record=record,
            count_tokens=count_tokens,
            on_progress=on_progress,
        )
        if record.samples and on_notice:
            on_notice(f"going on with {len(record.samples)} of {len(problems) * num_samples} answers from {partial}")
        try:
            questions.ask(respond)
        finally:
            record.stop_clock()
            if on_used:
                on_used(Used.of(record))
        if out:
            with open_atomic(out / f"{name}.jsonl") as file:
                record.write_outputs(file, problems=problems, num_samples=num_samples)
        return _conclude(name, manifest, questions.samples, record=record, price=price, out=out)


def _conclude(
    name: str,
    manifest: dict[str, Any],
    samples: Mapping[str, Sequence[Sample]],
    *,
    record: Record,
    price: MachinePrice | TokenPrice | None,
    out: Path | None,
) -> EvalResult:
    """The result, written; then the record is not needed any more."""
    versions = {sample.weight_version for group in samples.values() for sample in group}
    assert len(versions) == 1, f"the weights changed during the evaluation: versions {sorted(versions)}"
    manifest = {**manifest, "weight_version": versions.pop()}
    seconds = record.wall_seconds
    cost_usd = _cost_usd(samples, price=price, wall_seconds=seconds)
    try:
        result = summarise(name, manifest, samples, wall_seconds=seconds, cost_usd=cost_usd)
    except DataError:
        record.remove()  # else the same call would fail again without asking anything
        raise
    if out:
        write_atomic(out / f"{name}.json", text=result.to_json())
    record.remove()
    return result


def _describe(task: Task, problems: Sequence[Problem], sampling: SamplingParams) -> dict[str, Any]:
    """The part of the manifest that says what is asked, and how."""
    # Named one by one: a field that a message gains must not make finished evaluations look like others.
    asked = [
        [
            {"role": m.role, "content": m.content, "reasoning_content": m.reasoning_content}
            for m in conversation(task, problem=p)
        ]
        + [p.problem_id, p.answer]
        for p in problems
    ]
    drawn = asdict(sampling)
    del drawn["first_sample"]
    return {
        "task": task.name,
        "num_problems": len(problems),
        "problems_sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "protocol": name_protocol(sampling),
        **drawn,
        "stop": list(sampling.stop),
        "aha_version": metadata.version("aha"),
    }


def _cost_usd(
    samples: Mapping[str, Sequence[Sample]], *, price: MachinePrice | TokenPrice | None, wall_seconds: float
) -> float | None:
    if isinstance(price, MachinePrice):
        return price.cost_nano_usd(round(wall_seconds * 1000)) / NANO_PER_USD
    charged = sum(sample.cost_nano_usd for group in samples.values() for sample in group)
    # 0 may be a price; without one it is not known.
    return charged / NANO_PER_USD if charged or price is not None else None
