"""The page: what is said, in which order. `page.html` says how it looks; every text goes through its escaping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

from aha.cost.files import write_atomic
from aha.errors import DataError
from aha.evaluate import Difference, EvalResult, compare
from aha.report import words
from aha.report.figures import draw_figures
from aha.report.folder import Answer, Row, RunFolder, number, read_folder, text_of
from aha.report.plot import Bar, forest_plot

MAX_ANSWER_CHARS = 3_000
MAX_RECIPE_CHARS = 20_000
MAX_NOTES = 20


def write(run_folder: Path) -> Path:
    """Write report.html into a run folder, replacing an older one as a whole; returns its path.

    Raises:
        DataError: not a run folder, one of another version, or one that cannot be written to.
    """
    path = run_folder / "report.html"
    write_atomic(path, text=render(read_folder(run_folder)))
    return path


def render(found: RunFolder, *, refresh_seconds: int = 0) -> str:
    """The report as one HTML text without references to anything outside itself.

    Args:
        refresh_seconds: how often a browser should ask for it again; 0 never.
    """
    difference = _difference(found)
    page = _template().render(
        css=Markup(resources.files("aha.report").joinpath("page.css").read_text(encoding="utf-8")),
        refresh_seconds=refresh_seconds,
        found=found,
        name=found.path.resolve().name,
        subtitle=_subtitle(found),
        status=_status(found, is_live=refresh_seconds > 0),
        summary=_summary(found, difference),
        verdict=_blind_verdict(found),
        forest=_forest(found),
        difference=difference,
        comparison=_comparison(found),
        stages=_stages(found),
        figures=draw_figures(found),
        notes=_notes(found),
        bill=_bill(found),
        advice=[value for value in found.preflight.values() if isinstance(value, str) and value],
        preflight=list(words.listing({key: v for key, v in found.preflight.items() if not isinstance(v, str)})),
        protocol=list(words.listing(_manifest(found))),
        machine=list(words.listing(found.run)),
        recipe=words.shorten(found.recipe_text, max_chars=MAX_RECIPE_CHARS),
    )
    return words.visible(page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("aha.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": words.percent,
        "points": words.points,
        "usd": words.usd,
        "duration": words.duration,
        "count": words.count,
        "quantity": words.quantity,
        "text": lambda text: words.shorten(str(text), max_chars=MAX_ANSWER_CHARS),
        "thinking": _thinking,
    }
    return environment.get_template("page.html")


def _difference(found: RunFolder) -> Difference | None:
    """The paired gain; None when the two evaluations did not ask the same."""
    if found.before is None or found.after is None:
        return None
    try:
        return compare(found.before, found.after)
    except DataError as error:
        found.complaints.append(str(error))
        return None


def _subtitle(found: RunFolder) -> str:
    stages = found.recipe.get("stage")  # a text in a recipe of one stage, whose settings stand beside it
    first = stages[0] if isinstance(stages, list) and stages and isinstance(stages[0], dict) else found.recipe
    model = text_of(first, "model")
    facts = [f"{text_of(first, 'architecture')} from scratch" if model == "scratch" else model, text_of(first, "task")]
    if found.steps:
        facts.append(f"{number(found.steps[-1], 'step') or 0:.0f} steps")
    return " · ".join(fact for fact in facts if fact)


def _status(found: RunFolder, *, is_live: bool) -> str:
    """What to know before believing the rest; "" for a finished run."""
    status = text_of(found.run, "status")
    last = f" The last step on record is {number(found.steps[-1], 'step'):.0f}." if found.steps else ""
    if status == "interrupted":
        return f"This run was interrupted; “aha train … --resume” continues it.{last}"
    if status == "running" and is_live:
        return f"This run is going on; the page renews itself.{last}"
    if status == "running":
        return f"This run was not finished when the report was written.{last}"
    return ""


def _summary(found: RunFolder, difference: Difference | None) -> str:
    """The run in one sentence or two."""
    means = _means(found)
    if found.before is None or found.after is None:
        alone = found.after or found.before
        score = f"pass@1 is {words.percent(alone.pass_at_1)} on {alone.num_problems} held-out problems" if alone else ""
        told = f"{score}, {means}" if score and means else score or means
        return f"{told[:1].upper()}{told[1:]}." if told else ""
    before, after = words.percent(found.before.pass_at_1), words.percent(found.after.pass_at_1)
    moved = "rose" if found.after.pass_at_1 > found.before.pass_at_1 else "went"
    text = f"pass@1 on {found.after.num_problems} held-out problems {moved} from {before} to {after}"
    if difference:
        low, high = words.points(difference.interval_low), words.points(difference.interval_high)
        doubt = "" if difference.is_certain else ", so it may be chance"
        text += f", {words.points(difference.pass_at_1)} points (95 % interval {low} to {high}{doubt})"
    return f"{means}, {text}." if means else f"{text}."


def _means(found: RunFolder) -> str:
    """The time and the money it took: all of it from the bill, or so far from the last step."""
    last = found.steps[-1] if found.steps else {}
    seconds, cost = number(found.bill, "wall_seconds"), number(found.bill, "cost_usd")
    if seconds is None or cost is None:
        seconds, cost = number(last, "time_seconds"), number(last, "cost_usd")
    time_text = f"in {words.duration(seconds)}" if seconds is not None else ""
    cost_text = f"for {words.usd(cost)}" if cost is not None else ""
    text = " and ".join(part for part in (time_text, cost_text) if part)
    return text[:1].upper() + text[1:]


def _blind_verdict(found: RunFolder) -> str:
    tries = number(found.baselines, "model_tries")
    rate = number(found.baselines, "equal_tries_pass_rate")
    beats = found.baselines.get("beats_blind_search")
    if rate is None or tries is None or not isinstance(beats, bool):
        return ""
    claim = "The model beats blind search" if beats else "The model does not beat blind search"
    return (
        f"{claim} at equal tries: its thinking makes {tries:.1f} tries a problem on average, "
        f"and random search with at least as many solves {words.percent(rate)}."
    )


def _forest(found: RunFolder) -> Markup:
    bars = [
        Bar(label=label, value=result.pass_at_1, low=result.interval_low, high=result.interval_high, style=style)
        for label, result, style in (("before", found.before, "second"), ("after", found.after, "main"))
        if result
    ]
    for row in _objects(found.baselines, "rows"):
        rate = number(row, "pass_rate")
        if rate is not None:
            bars.append(Bar(label=text_of(row, "name")[:50], value=rate, low=rate, high=rate, style="third"))
    return forest_plot("pass@1 before and after, and blind search", bars=bars, show=words.percent)


def _comparison(found: RunFolder) -> list[tuple[str, list[str]]]:
    """Rows of the before/after table: name, and one cell for each evaluation there is."""
    results = [result for result in (found.before, found.after) if result]
    if not results:
        return []

    def row(name: str, cell: Callable[[EvalResult], str]) -> tuple[str, list[str]]:
        return name, [cell(result) for result in results]

    table = [
        row("pass@1", lambda r: words.percent(r.pass_at_1)),
        row("95 % interval", lambda r: f"{100 * r.interval_low:.1f}–{100 * r.interval_high:.1f}\N{NO-BREAK SPACE}%"),
    ]
    table += [(f"pass@{k}", [_pass_at(result, k) for result in results]) for k in _ks(results)]
    if any(result.manifest.get("num_samples", 1) > 1 for result in results):
        table.append(row("majority vote", lambda r: words.percent(r.cons_at_k)))
    return [
        *table,
        row("tokens an answer", lambda r: f"{r.mean_tokens:.0f}"),
        row("of them thinking", lambda r: "–" if r.mean_thinking_tokens is None else f"{r.mean_thinking_tokens:.0f}"),
        row("cut off", lambda r: words.percent(r.truncated_fraction)),
        row("unreadable", lambda r: words.percent(r.parse_failure_fraction)),
        row("verifier errors", lambda r: words.percent(r.error_fraction)),
        row("verifier timeouts", lambda r: words.percent(r.timeout_fraction)),
    ]


def _stages(found: RunFolder) -> list[Row]:
    """What each stage of a recipe of several did; a stage that leaves the weights alone has no score of its own."""
    keys = ("num_steps", "wall_seconds", "completion_tokens", "trained_tokens", "cost_usd")
    rows = [row for row in found.stages if all(number(row, key) is not None for key in keys)]
    scores = ("pass_at_1", "interval_low", "interval_high")
    shown = [{**row, **{key: number(row, key) for key in scores}} for row in rows]
    return shown if len(shown) > 1 else []


def _ks(results: Sequence[EvalResult]) -> list[int]:
    return sorted({k for result in results for k in result.pass_at_k} - {1})


def _pass_at(result: EvalResult, k: int) -> str:
    return words.percent(result.pass_at_k[k]) if k in result.pass_at_k else "–"


def _notes(found: RunFolder) -> list[tuple[str, str]]:
    """(step or range of steps, what the watchdog said)."""
    notes: list[tuple[float, float, str]] = []
    previous = ""
    for row in found.steps:
        text, step = text_of(row, "note"), number(row, "step") or 0.0
        if text and text == previous:
            notes[-1] = (notes[-1][0], step, text)
        elif text:
            notes.append((step, step, text))
        previous = text
    shown = [(f"{a:.0f}" if a == b else f"{a:.0f}–{b:.0f}", text) for a, b, text in notes[:MAX_NOTES]]
    return shown + ([("…", f"{len(notes) - MAX_NOTES} more in metrics.jsonl")] if len(notes) > MAX_NOTES else [])


def _bill(found: RunFolder) -> Row:
    """The parts of bill.json that the page shows, or {} when the file lacks any of them."""
    bill = found.bill
    phases = _objects(bill, "phases")
    keys = ("wall_seconds", "prompt_tokens", "completion_tokens", "trained_tokens", "cost_usd")
    api_keys = ("cost_usd", "usd_per_million_input_tokens", "usd_per_million_output_tokens")
    machine = bill.get("machine_price")
    apis = _objects(bill, "api_comparison")
    if any(number(row, key) is None for row in [bill, *phases] for key in keys) or not isinstance(machine, dict):
        return {}
    return {
        "total": bill,
        "phases": phases,
        "machine": machine,
        "apis": [row for row in apis if all(number(row, key) is not None for key in api_keys)],
        "usd_per_point": number(bill, "usd_per_point"),
        "reason": text_of(bill, "usd_per_point_reason"),
    }


def _objects(row: Row, key: str) -> list[Row]:
    """The JSON objects of a list; [] when it is no list."""
    value = row.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _manifest(found: RunFolder) -> Row:
    result = found.after or found.before
    return result.manifest if result else {}


def _thinking(answer: Answer) -> str:
    """The thinking; for an answer that never came to an end of it, the whole text."""
    return words.shorten(answer.reasoning or ("" if answer.answer else answer.text), max_chars=MAX_ANSWER_CHARS)
