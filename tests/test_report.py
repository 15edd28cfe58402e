"""report.html: what it says, that it needs nothing else, and that no text or half-written file can break it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from aha.cost import Bill, BillPhase, Gain, machine_price
from aha.errors import DataError
from aha.evaluate import compare, evaluate, load_result
from aha.report import write
from aha.report.plot import Bar, Line, Point, forest_plot, line_chart, nice_ticks, thin
from aha.report.words import duration, quantity, shorten, usd
from aha.tasks import get_task
from aha.types import Completion, FinishReason, Message, SamplingParams

NUM_STEPS = 40
HOSTILE = (
    "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\ud800 ‮4+4 שלום {{ 7*7 }} &amp;"
)


def guesser(share_right: float, *, num_lines: int) -> Any:
    """A respond whose answers are right for a share of the problems: scored by the real task, not by us."""
    generator = random.Random(share_right)
    golds = {
        p.prompt: p.answer for p, _ in zip(get_task("countdown").problems("test", seed=0), range(400), strict=False)
    }

    def respond(conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        return [
            [answer(conversation[-1].content) for _ in range(sampling.num_samples)] for conversation in conversations
        ]

    def answer(prompt: str) -> Completion:
        gold = golds[prompt]
        lines = [f"{i + 20}-{i}={20}: 17+4=21 17*4=68 17-4=13?" for i in range(generator.randrange(1, 2 * num_lines))]
        reasoning, said = "\n".join(lines), gold if generator.random() < share_right else "1+1"
        tokens = tuple(range(len(reasoning) // 2 + len(said)))
        text = f"<think>{reasoning}</think>{said}"
        return Completion(tokens, tuple(-0.1 for _ in tokens), FinishReason.STOP, text, reasoning, said)

    return respond


def step_rows() -> Iterator[dict[str, Any]]:
    generator = random.Random(7)
    for step in range(1, NUM_STEPS + 1):
        done = step / NUM_STEPS
        right = 0.37 + 0.3 * done**0.6 + generator.gauss(0, 0.02)
        yield {
            "kind": "step",
            "step": step,
            "time_seconds": 7.2 * step,
            "learning_rate": 2e-4,
            "loss": generator.gauss(0, 0.02),
            "reward_mean": right * 1.1,
            "reward_std": 0.45,
            "pass_at_1": right,
            "mean_tokens": 66 + 40 * done + generator.gauss(0, 2),
            "mean_thinking_tokens": 52 + 38 * done + generator.gauss(0, 2),
            "truncated_fraction": 0.02,
            "parse_failure_fraction": 0.01,
            "error_fraction": 0.0,
            "teaching_fraction": 0.8 - 0.2 * done,
            "all_right_fraction": 0.1 + 0.25 * done,
            "all_wrong_fraction": 0.1 - 0.05 * done,
            "entropy": 0.9 - 0.4 * done + generator.gauss(0, 0.01),
            "kl": 0.0,
            "grad_norm": 0.5,
            "clip_low_fraction": 0.0,
            "clip_high_fraction": 0.0,
            "num_groups": 32,
            "num_rollouts": 512,
            "prompt_tokens": 6_000,
            "completion_tokens": 40_000,
            "trained_tokens": 30_000,
            "rollout_seconds": 5.0,
            "train_seconds": 2.2,
            "tokens_per_second": 7_800 + generator.gauss(0, 300),
            "cost_usd": 0.00016 * step,
            "is_skipped": False,
            "note": "every group was all right or all wrong: no advantage differs from 0"
            if step in (11, 12, 30)
            else "",
        }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a training run leaves it."""
    return make_run(tmp_path_factory.mktemp("runs") / "countdown")


def make_run(folder: Path) -> Path:
    sampling = SamplingParams(temperature=1.0, max_tokens=256)
    for name, share, num_lines in (("before", 0.36, 4), ("after", 0.68, 7)):
        evaluate(
            "countdown",
            guesser(share, num_lines=num_lines),
            num_problems=300,
            sampling=sampling,
            out=folder / "eval",
            name=name,
            template="aha-tiny 3f2a",
            count_tokens=lambda text: len(text) // 2,
        )
    before, after = load_result(folder / "eval/before.json"), load_result(folder / "eval/after.json")
    change = compare(before, after)
    gain = Gain(
        before=before.pass_at_1,
        after=after.pass_at_1,
        interval_low=change.interval_low,
        interval_high=change.interval_high,
    )
    phases = (
        BillPhase(name="evaluation before", seconds=9.4, prompt_tokens=4_000, completion_tokens=20_000),
        BillPhase(name="pre-flight", seconds=4.1, prompt_tokens=800, completion_tokens=30_000),
        BillPhase(
            name="grpo", seconds=288, prompt_tokens=240_000, completion_tokens=1_600_000, trained_tokens=1_200_000
        ),
        BillPhase(name="evaluation after", seconds=11.2, prompt_tokens=4_000, completion_tokens=31_000),
    )
    Bill(phases=phases, price=machine_price("cpu-2core-hour", on=date(2026, 6, 1)), gain=gain).write(
        folder / "bill.json"
    )
    steps = list(step_rows())
    evals = [
        {"kind": "eval", "step": step, "pass_at_1": p, "interval_low": p - 0.055, "interval_high": p + 0.053}
        for step, p in ((0, before.pass_at_1), (20, 0.59), (40, after.pass_at_1))
    ]
    write_lines(folder / "metrics.jsonl", [evals[0], *steps[:20], evals[1], *steps[20:], evals[2]])
    problems = list(islice(get_task("countdown").problems("train", seed=0), 4))
    samples = [
        {
            "step": step["step"],
            "problem_id": problem.problem_id,
            "prompt": problem.prompt,
            "gold": problem.answer,
            "text": "81-23=58: 17+4=21?</think>" + problem.answer,
            "reasoning": "81-23=58: 17+4=21 17*4=68 17-4=13?\n" * 3,
            "answer": problem.answer if i % 2 else "2*3",
            "reward": float(i % 2),
            "is_correct": bool(i % 2),
            "note": "right" if i % 2 else "uses 2, 3",
            "finish_reason": "stop",
            "num_tokens": 88,
        }
        for step in steps
        for i, problem in enumerate(problems)
    ]
    write_lines(folder / "samples.jsonl", samples)
    rows = [("blind search, 1 try", 0.10, 1), ("blind search, 8 tries", 0.54, 8), ("blind search, 16 tries", 0.75, 16)]
    rows.append(("blind search, 10 tries as the model", 0.59, 10))
    baselines = {
        "rows": [{"name": name, "pass_rate": rate, "tries": tries} for name, rate, tries in rows],
        "model_tries": 9.4,
        "equal_tries_pass_rate": 0.59,
        "beats_blind_search": True,
    }
    write_json(folder / "baselines.json", baselines)
    preflight = {
        "can_learn": True,
        "verdict": "It can learn: 71 % of groups have both better and worse answers.",
        "pass_at_1": 0.364,
        "truncated_fraction": 0.021,
        "parse_failure_fraction": 0.013,
        "teaching_fraction": 0.714,
    }
    write_json(folder / "preflight.json", preflight)
    machine = {"cpu": "2 cores, x86_64", "memory_bytes": 8_000_000_000, "torch": "2.13.0", "num_threads": 2}
    write_json(folder / "run.json", {"aha_version": "0.1.0", "format": 1, "status": "finished", "machine": machine})
    (folder / "recipe.toml").write_text(
        '# GRPO on countdown\nmodel = "tiny"\ntask = "countdown"\nsteps = 40\nlearning_rate = 2e-4\n'
    )
    return folder


class Page(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def render(folder: Path) -> Page:
    return Page(write(folder).read_text(encoding="utf-8"))


def test_report_gives_before_and_after_the_baselines_and_the_bill(finished: Path) -> None:
    page = render(finished)
    after = load_result(finished / "eval/after.json")
    for expected in (
        f"{100 * after.pass_at_1:.1f} %",
        f"{100 * after.interval_low:.1f}–{100 * after.interval_high:.1f} %",
        "The model beats blind search at equal tries",
        "blind search, 16 tries",
        "In 5 min 13 s and for $0.0069, pass@1 on 300 held-out problems rose from",
        "for each percentage point gained",
        "openai-o1@2025-01-01",
        "cpu-2core-hour@2025-01-01",
        "Three problems, before and after",
        "36 of the 160 in samples.jsonl",
        "It can learn: 71 % of groups have both better and worse answers.",
        'model = "tiny"',
        "step 11–12",
        "aha-tiny 3f2a",
    ):
        assert expected in page.text, expected


def test_report_needs_nothing_outside_itself(finished: Path) -> None:
    page = render(finished)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    html = (finished / "report.html").read_text()
    assert "url(" not in html
    assert "@import" not in html
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_report_draws_every_curve(finished: Path) -> None:
    page = render(finished)
    labels = {value for name, value in page.attributes if name == "aria-label"}
    names = ("pass@1 before", "pass@1 on", "reward", "length", "groups", "entropy", "speed")
    assert len(labels) == len(names)
    assert all(any(label.startswith(name) for label in labels) for name in names)
    assert "nan" not in " ".join(value for name, value in page.attributes if name in ("points", "cx", "cy", "y1"))


def test_report_does_not_contain_the_machine_path(finished: Path) -> None:
    write(finished)
    assert str(finished.parent) not in (finished / "report.html").read_text()


def test_writing_twice_gives_the_same_bytes(finished: Path) -> None:
    first = write(finished).read_bytes()
    assert write(finished).read_bytes() == first


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a <b> run")
    row = {"step": 1, "prompt": HOSTILE, "gold": HOSTILE, "text": HOSTILE, "reasoning": HOSTILE, "answer": HOSTILE}
    write_lines(folder / "samples.jsonl", [{**row, "note": HOSTILE, "reward": 1.0, "is_correct": True}])
    for name in ("before", "after"):
        lines = [{"problem_id": "p", "prompt": HOSTILE, "gold": HOSTILE, "samples": [{**row, "note": HOSTILE}]}]
        write_lines(folder / f"eval/{name}.jsonl", lines)
    write_json(folder / "preflight.json", {HOSTILE: HOSTILE})
    (folder / "recipe.toml").write_text("# </pre><script>alert(3)</script>\n" + 'task = "</title><script>"\n')
    write_lines(folder / "metrics.jsonl", [{"kind": "step", "step": 1, "note": HOSTILE, "reward_mean": 1.0}])
    page = render(folder)
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "⟨U+202E⟩4+4" in page.text
    assert "␀␛[31m\ufffd" in page.text
    assert "שלום" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", (folder / "report.html").read_text())


def test_ten_megabytes_of_digits_are_cut_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    digits = "9" * 10_000_000
    write_lines(folder / "metrics.jsonl", [{"kind": "step", "step": 1, "reward_mean": 0.0}])
    write_lines(folder / "samples.jsonl", [{"step": 1, "prompt": "p", "text": digits, "reasoning": digits}])
    page = render(folder)
    assert "[… 9,997,000 characters left out here …]" in page.text
    assert (folder / "report.html").stat().st_size < 60_000


def test_interrupted_run_says_so_and_shows_what_there_is(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    text = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(text[:8]) + text[8][:40])
    (folder / "samples.jsonl").write_text('{"step": 1, "prompt": "3 7 8 > 2')
    write_json(folder / "run.json", {"format": 1, "status": "interrupted"})
    page = render(folder)
    assert "This run was interrupted" in page.text
    assert "The last step on record is 7." in page.text
    assert "Not shown" not in page.text, "a last line without its end is no damage"
    assert "The bill" not in page.text
    assert "In 50 s" in page.text


def test_damaged_files_are_named_and_the_rest_is_shown(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    (folder / "eval").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "reward_mean": NaN}\nrubbish\n[1]\n')
    (folder / "eval/after.json").write_text("{}")
    (folder / "bill.json").write_text("[")
    (folder / "baselines.json").write_text('{"rows": 3, "model_tries": "many"}')
    (folder / "recipe.toml").write_bytes(b"task = \xff\n")
    page = render(folder)
    for expected in ("metrics.jsonl has 2 lines", "not an evaluation of format 1", "bill.json cannot", "recipe.toml"):
        assert expected in page.text


@pytest.mark.parametrize("bill", [{}, {"phases": 3}, {"phases": [{}], "machine_price": {}}, {"cost_usd": "free"}])
def test_bill_without_its_parts_is_left_out(tmp_path: Path, bill: dict[str, Any]) -> None:
    write_json(tmp_path / "bill.json", bill)
    write_json(tmp_path / "run.json", {"status": "finished"})
    assert "The bill" not in render(tmp_path).text


def test_supervised_run_shows_its_loss(tmp_path: Path) -> None:
    rows = [
        {"kind": "step", "step": i, "loss": 3.0 / i, "tokens_per_second": 900.0, "time_seconds": i} for i in (1, 2, 3)
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    labels = {value for name, value in render(tmp_path).attributes if name == "aria-label"}
    assert labels == {"loss of the supervised steps", "speed, tokens a second"}


def test_gain_that_may_be_chance_is_called_so(finished: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"status": "finished"})
    before = load_result(finished / "eval/before.json")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/before.json").write_text(before.to_json())
    (tmp_path / "eval/after.json").write_text(replace(before, name="after").to_json())
    assert "so it may be chance" in render(tmp_path).text


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_folder_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"no run folder at|is not a run folder"):
        write(tmp_path / name)


def test_run_of_another_format_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"format": 2})
    with pytest.raises(DataError, match="has run format 2, this version of aha reads 1"):
        write(tmp_path)


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1, {}],
    [{}],
    {},
    {"a": [None]},
]


def with_odd_values(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """Some values replaced by other JSON, some missing, as a faulty writer might leave them."""
    odd = {key: generator.choice(ODD_VALUES) for key in row if generator.random() < 0.3}
    return {key: value for key, value in (row | odd).items() if generator.random() > 0.1}


def test_no_odd_value_breaks_the_page(finished: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    steps, folder = list(step_rows())[:4], tmp_path / "odd"
    (folder / "eval").mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    sample = json.loads((finished / "samples.jsonl").read_text().splitlines()[0])
    answered = json.loads((finished / "eval/after.jsonl").read_text().splitlines()[0])
    for _ in range(25):
        write_lines(folder / "metrics.jsonl", [with_odd_values(row, generator) for row in steps])
        write_lines(folder / "samples.jsonl", [with_odd_values(sample, generator) for _ in range(3)])
        for name in ("before", "after"):
            write_lines(folder / f"eval/{name}.jsonl", [with_odd_values(answered, generator) for _ in range(3)])
        for name in ("bill", "baselines", "preflight"):
            row = with_odd_values(json.loads((finished / f"{name}.json").read_text()), generator)
            for key in ("phases", "api_comparison", "rows"):
                if isinstance(row.get(key), list):
                    row[key] = [with_odd_values(part, generator) for part in row[key] if isinstance(part, dict)]
            write_json(folder / f"{name}.json", row)
        page = render(folder)
        assert page.tags.count("main") == 1
        drawn = " ".join(value for name, value in page.attributes if name in ("points", "cx", "cy", "y1"))
        assert not re.search("nan|inf", drawn)


def test_ticks_are_round_and_enclose_the_data() -> None:
    assert nice_ticks(0.0, 1.0, num_ticks=6) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(0.0, 103.0, num_ticks=6) == [0, 25, 50, 75, 100, 125]
    assert nice_ticks(-0.03, 0.02, num_ticks=3) == [-0.05, -0.025, 0.0, 0.025]
    for low, high in ((5.0, 5.0), (0.0, 0.0), (-3.0, -3.0), (1e-9, 2e-9), (0, 1e12)):
        ticks = nice_ticks(low, high, num_ticks=5)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 2 <= len(ticks) <= 9


def test_long_curves_are_thinned_to_means() -> None:
    points = [Point(i, 1.0, 1.0, 1.0) for i in range(10_000)]
    assert len(thin(points)) <= 240
    assert {point.y for point in thin(points)} == {1.0}


def test_charts_of_nothing_are_nothing() -> None:
    assert line_chart("x", lines=[Line(label="a", points=[])], show=quantity) == ""
    assert forest_plot("x", bars=[], show=quantity) == ""


def test_labels_of_charts_are_escaped() -> None:
    bar = Bar(label="<b>", value=0.5, low=0.4, high=0.6, style="main")
    assert "<b>" not in forest_plot("<i>", bars=[bar], show=quantity)


def test_labels_of_equal_curves_do_not_overlap() -> None:
    lines = [Line(label=name, points=[Point(0, 1, 1, 1), Point(1, 1, 1, 1)]) for name in "abcd"]
    chart = line_chart("x", lines=lines, show=quantity)
    places = sorted(float(y) for y in re.findall(r'class="name main"[^>]* y="([0-9.]+)"', chart))
    assert min(b - a for a, b in pairwise(places)) >= 12.9


def test_numbers_are_written_for_readers() -> None:
    assert [usd(x) for x in (0, 0.0069, 0.00021, 0.0123, 1.5, 12_345.678)] == [
        "$0.00",
        "$0.0069",
        "$0.00021",
        "$0.012",
        "$1.50",
        "$12,345.68",
    ]
    assert [duration(x) for x in (0.42, 12, 290, 7_260)] == ["0.4 s", "12 s", "4 min 50 s", "2 h 01 min"]
    assert [quantity(x) for x in (0.123456, 1550, 2_000_000)] == ["0.123", "1.55k", "2M"]


def test_short_text_is_kept_and_long_text_shortened() -> None:
    assert shorten("a\n\tb", max_chars=100) == "a\n\tb"
    assert len(shorten("x" * 1000, max_chars=100)) < 160


def test_recipe_of_several_stages_names_its_model_and_task(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[[stage]]\nname = "cold"\nkind = "sft"\nmodel = "smollm2"\ntask = "arithmetic"\n'
        '[[stage]]\nname = "grpo"\nkind = "grpo"\n'
    )
    assert "smollm2 · arithmetic" in write(tmp_path).read_text(encoding="utf-8")


def test_curve_is_not_drawn_across_the_end_of_a_stage() -> None:
    points = [Point(float(x), 1.0, 1.0, 1.0) for x in (1, 2, 3, 9, 10)]
    whole = line_chart("loss", lines=[Line(label="loss", points=points)], show=str)
    cut = line_chart("loss", lines=[Line(label="loss", points=points, breaks=(3.0, 8.0))], show=str)
    assert (whole.count("<polyline"), cut.count("<polyline")) == (1, 2)
