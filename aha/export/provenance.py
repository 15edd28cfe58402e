"""Where a model comes from: its base and licence, how it was trained, what it scored and what that cost.

Read from the files of its run (recipe.toml, eval/, bill.json), or from the card of a plain model folder. Both are other
people's data: what is unreadable is an error in one line, and what is not known is said to be unknown.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from aha import hub
from aha.errors import AhaError, DataError
from aha.evaluate import EvalResult, load_result

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# https://huggingface.co/docs/hub/repositories-licenses: lower-case ids such as apache-2.0, llama3.1, other, unknown.
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"(\w+):[ \t]*([^\n{}]*?)[ \t]*")
_LIST_ITEM = re.compile(r"[ ]{0,2}-[ \t]+([^:\n{}]+?)[ \t]*")
_BASE_LINE = re.compile(r"^- Base model: (.+)$", re.MULTILINE)
_MAX_CARD = 200_000
"""Characters of a card that are read."""
_CARRIED = ("Training", "Scores", "Cost")
"""Sections of our own cards that go along when a copy is copied again."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a card says of a model besides the proof."""

    name: str
    """As the user named it."""
    base: str
    """The base model, in Markdown."""
    base_models: tuple[str, ...] = ()
    """Ids on Hugging Face, if it lies there."""
    licence: str = "unknown"
    """Hugging Face's id of it."""
    licence_name: str = ""
    licence_link: str = ""
    """What `other` is."""
    licence_words: str
    """In Markdown."""
    datasets: tuple[str, ...] = ()
    """Ids on Hugging Face, as the base's card names them."""
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    is_trained: bool = False
    """Whether it was trained here."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Heading -> Markdown, in order."""


def read_provenance(name: str, *, source: Path) -> Provenance:
    """What is known of the model in `source`, which the user calls `name`.

    Raises:
        DataError: a file of the run cannot be read.
    """
    run = find_run(source)
    if run is not None:
        return _of_run(name, run)
    card = read_card(source)
    origin = _origin(name, card)
    carried = dict(_sections(card.text)) if "aha" in card.metadata.get("tags", []) else {}
    tags = [tag for tag in card.metadata.get("tags", []) if tag not in ("aha", "gguf")] if carried else []
    if carried and (base := _BASE_LINE.search(card.text)):
        origin["base"] = base[1]
    return Provenance(name=name, tags=tuple(tags), is_trained=bool(carried), sections=carried, **origin)


def find_run(source: Path) -> Path | None:
    """The run that a model folder belongs to: its model/, its adapter/, or a checkpoint."""
    for folder in source.absolute().parents[:3]:
        if (folder / "recipe.toml").is_file() and (folder / "run.json").is_file():
            return folder
    return None


@dataclass(frozen=True, kw_only=True)
class Card:
    """A README.md that lies beside a model."""

    metadata: Mapping[str, list[str]]
    text: str


def read_card(folder: Path) -> Card:
    """A model folder's card; an absent or unreadable one says nothing."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_CARD)
    except OSError:
        return Card(metadata={}, text="")
    found = _FRONT_MATTER.match(text)
    return Card(metadata=_read_front_matter(found[1]) if found else {}, text=text)


def _read_front_matter(text: str) -> dict[str, list[str]]:
    """The keys whose value is a word or a list of words, in any of YAML's spellings; what is nested is left out."""
    values: dict[str, list[str]] = {}
    key = ""
    for line in text.splitlines():
        if item := _LIST_ITEM.fullmatch(line):
            values.setdefault(key, []).append(item[1].strip("'\""))
        elif pair := _KEY.fullmatch(line):
            key, value = pair[1], pair[2]
            words = value[1:-1].split(",") if value.startswith("[") else [value]
            values[key] = [word for raw in words if (word := raw.strip().strip("'\""))]
        else:
            key = ""  # indented: of a nested key
    return values


def _of_run(name: str, run: Path) -> Provenance:
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        stages = recipe["stage"] if isinstance(recipe.get("stage"), list) else [{**recipe, "kind": recipe["stage"]}]
        sections = {"Training": _describe_training(stages)}
        if scores := _describe_scores(run / "eval"):
            sections["Scores"] = scores
        if (run / "bill.json").is_file():
            sections["Cost"] = _describe_bill(json.loads((run / "bill.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{run} is not a run whose files can be read: {error!r}") from None
    base = str(stages[0].get("model", ""))
    if base == "scratch":
        origin: dict[str, Any] = {"base": "none, trained from scratch", "licence_words": "its maker has named none"}
    else:
        origin = _origin(base, _card_of(base))
    tags = dict.fromkeys(str(stage["kind"]) for stage in stages)
    return Provenance(name=name, tags=tuple(tags), is_trained=True, sections=sections, **origin)


def _card_of(name: str) -> Card:
    """The card of a model by its name, as far as it lies on this machine; nothing is downloaded for it."""
    if name not in hub.BUILT_IN and _HUB_ID.fullmatch(name) and not Path(name).is_dir():
        cached = try_to_load_from_cache(name, "README.md")
        return read_card(Path(cached).parent) if isinstance(cached, str) else Card(metadata={}, text="")
    try:
        return read_card(hub.resolve(name))
    except AhaError:  # gone, or on another machine
        return Card(metadata={}, text="")


def _origin(name: str, card: Card) -> dict[str, Any]:
    """Base and licence of what is made from the model `name`, which has this card."""
    metadata = card.metadata
    known = hub.BUILT_IN.get(name)
    if known is not None:
        ids, licence = [known.repository] if known.repository else [], known.licence
    elif _HUB_ID.fullmatch(name) and not Path(name).is_dir():
        ids, licence = [name], _licence_id(_word(metadata, "license"))
    else:  # a folder is on no hub: the nearest that is there is what its card names
        ids, licence = metadata.get("base_model", []), _licence_id(_word(metadata, "license"))
    ids = [model_id for model_id in ids if _HUB_ID.fullmatch(model_id)]
    is_inside = known is not None and not known.repository
    shown = [f"[{model_id}](https://huggingface.co/{model_id})" for model_id in ids]
    base = ", ".join(shown) or (f"{_code(name)}, which comes with aha" if is_inside else _code(name))
    words = f"{licence}, the base model's" if licence != "unknown" else "unknown: the base model's card names none"
    other = {f"licence_{key}": _word(metadata, f"license_{key}") for key in ("name", "link")}
    return {
        "base": base,
        "base_models": tuple(ids),
        "licence": licence,
        "licence_words": words,
        **(other if licence == "other" else {}),
        "datasets": tuple(word for word in metadata.get("datasets", []) if _HUB_ID.fullmatch(word)),
        "languages": tuple(metadata.get("language", [])),
    }


def _licence_id(text: str) -> str:
    return text.lower() if _LICENCE_ID.fullmatch(text.lower()) else "unknown"


def _word(metadata: Mapping[str, list[str]], key: str) -> str:
    return next(iter(metadata.get(key, [])), "")


def _sections(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        if heading.strip() in _CARRIED:
            yield heading.strip(), body.strip()


def _describe_training(stages: list[dict[str, Any]]) -> str:
    """A line for each stage, with its data."""
    lines: list[str] = []
    for stage in stages:
        adapter = f", LoRA of rank {stage['lora_rank']}" if stage.get("lora_rank") else ""
        name = "" if stage.get("name", stage["kind"]) == stage["kind"] else f" {_code(stage['name'])}"
        data = stage.get("data") or ""
        sources = [_code(item) for item in (data if isinstance(data, list) else [data]) if item]
        shown = f", on {', '.join(sources)}" if sources else f", on problems of the task {_code(stage['task'])}"
        teacher = f", taught by {_code(stage['teacher'])}" if stage.get("teacher") else ""
        steps = f"{stage['steps']} step" + ("" if stage["steps"] == 1 else "s")
        lines.append(f"{len(lines) + 1}. {stage['kind']}{name}: {steps}{adapter}{shown}{teacher}")
    return "\n".join(lines)


def _describe_scores(folder: Path) -> str:
    """Before and after on the same held-out problems, as far as the run was evaluated."""
    results = [load_result(path) for name in ("before", "after") if (path := folder / f"{name}.json").is_file()]
    if not results:
        return ""
    lines = ["| evaluation | pass@1 | 95 % interval | problems | tokens |", "|---|---|---|---|---|"]
    lines += [_score_row(result) for result in results]
    manifest = results[-1].manifest
    protocol = f"temperature {manifest['temperature']}, top-p {manifest['top_p']}, at most {manifest['max_tokens']}"
    lines += ["", f"Held-out problems of {_code(manifest['task'])}, sampled at {protocol} tokens."]
    return "\n".join(lines)


def _score_row(result: EvalResult) -> str:
    interval = f"{100 * result.interval_low:.1f} to {100 * result.interval_high:.1f} %"
    numbers = f"{100 * result.pass_at_1:.1f} % | {interval} | {result.num_problems} | {result.mean_tokens:.0f}"
    return f"| {_code(result.name)} | {numbers} |"


def _describe_bill(bill: dict[str, Any]) -> str:
    price = bill["machine_price"]
    sampled, trained = int(bill["completion_tokens"]), int(bill["trained_tokens"])
    hourly = f"{_code(price['price_id'])}, {_dollars(price['usd_per_hour'])} an hour"
    took = f"The run took {float(bill['wall_seconds']):,.0f} s and {_dollars(bill['cost_usd'])} at the price {hourly}"
    text = f"{took}: {sampled:,} tokens sampled, {trained:,} trained."
    for other in bill["api_comparison"][:1]:
        text += (
            f" The sampled tokens alone would have cost {_dollars(other['cost_usd'])} at {_code(other['price_id'])}."
        )
    return text


def _dollars(value: object) -> str:
    """A cent and more to the cent, less in two significant digits."""
    amount = float(str(value))
    return f"${amount:,.2f}" if amount >= 0.01 or amount == 0 else f"${float(f'{amount:.2g}'):.10f}".rstrip("0")


def _code(value: object) -> str:
    """Text of a file as Markdown code, which it cannot end; of a path its name, since the rest is nobody's business."""
    text = Path(str(value)).name if Path(str(value)).is_absolute() else str(value)
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
