"""`aha cost page`: one set of numbers in drawing, table and CSV; nothing from elsewhere; nothing hostile."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import string
import sys
import tomllib
from datetime import date
from html.parser import HTMLParser
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from aha import cli
from aha.errors import DataError
from aha.estimate.charts import Box, text_width
from aha.estimate.page import CostPage, make_page
from aha.estimate.page.picture import raw
from aha.estimate.page.spread import end_of, spread_over_time
from aha.estimate.page.words import LANGUAGES, Words, digits, dollars, price_text, tick_dollars, times
from aha.evaluate import EvalResult
from aha.report.words import visible

DAY = date(2025, 3, 1)
"""Every source of the book vouches for it, whatever is added later."""
EN = Words("en")
HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m {{7*7}} =cmd|'/c calc'!A1"
GUIDE = Path(__file__).parents[2] / "docs" / "cost_page.md"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No prices of whoever runs the tests."""
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def result(name: str, **fields: Any) -> EvalResult:
    values: dict[str, Any] = {
        "name": name, "manifest": {"model": name, "task": "countdown"}, "num_problems": 500, "num_completions": 500,
        "pass_at_1": 0.89, "interval_low": 0.86, "interval_high": 0.92, "pass_at_k": {1: 0.89}, "cons_at_k": 0.89,
        "truncated_fraction": 0.0, "parse_failure_fraction": 0.0, "error_fraction": 0.0, "mean_tokens": 75.0,
        "mean_thinking_tokens": 67.0, "completion_tokens": 37_500, "wall_seconds": 60.0,
        "problem_scores": {"0": (1, 1)}, "cost_usd": 0.00133, "usd_per_solved": 0.00133 / 445,
    }  # fmt: skip
    return EvalResult(**{**values, **fields})


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two evaluations, one by a model whose name is an attack."""
    folders = []
    for index, (name, usd) in enumerate(((HOSTILE, 3e-6), ("runs/tiny", 1e-5))):
        folder = tmp_path_factory.mktemp(f"scores{index}")
        (folder / "eval.json").write_text(result(name, usd_per_solved=usd, pass_at_1=0.5 + index / 4).to_json())
        folders.append(str(folder))
    return folders


class Reader(HTMLParser):
    """Sections with their headings, tables and CSV links; every attribute and tag on the way."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.sections: dict[str, dict[str, Any]] = {}
        self._section: dict[str, Any] = {}
        self._stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self._stack.append(tag)
        if tag == "meta" and named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""
        self.links += [value or "" for key, value in attrs if key in ("href", "src", "xlink:href", "action")]
        assert not [key for key, _ in attrs if key.startswith("on") or key == "style"]
        if tag == "section":
            self._section = {"title": "", "svgs": 0, "head": [], "rows": [], "csv": ""}
            self.sections[named["id"] or ""] = self._section
        if not self.sections:
            return
        if tag == "svg":
            self._section["svgs"] += 1
            assert named["role"] == "img"
            assert named["aria-label"]
        elif tag == "a" and "download" in named:
            self._section["csv"] = unquote((named["href"] or "").partition(",")[2])
        elif tag == "tr":
            self._section["rows"].append([])
        elif tag in ("th", "td"):
            self._section["rows"][-1].append("")
        elif tag == "data":
            self._section["rows"][-1][-1] = float(named["value"] or "")

    def handle_endtag(self, tag: str) -> None:
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._section:
            return
        if "h2" in self._stack:
            self._section["title"] += data
        row = self._section["rows"][-1] if self._section["rows"] else []
        if {"td", "th"} & set(self._stack) and isinstance(row[-1], str):
            row[-1] += data


def read(page: CostPage) -> Reader:
    reader = Reader()
    reader.feed(page.to_html())
    return reader


@pytest.fixture(scope="module", params=LANGUAGES)
def page(request: pytest.FixtureRequest, evaluations: list[str]) -> CostPage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHA_HOME", "/nowhere")
        return make_page(evaluations, day=DAY, language=request.param)


def test_page_has_every_picture_on_a_day_with_prices_of_both_kinds(page: CostPage) -> None:
    assert not page.gaps
    assert [picture.key for picture in page.pictures] == [
        "price_spread", "price_history", "cost_quality", "cost_solved", "breakeven_load", "breakeven_utilisation",
        "breakeven_months", "training_phases", "training_bill",
    ]  # fmt: skip


def test_every_picture_has_a_title_a_drawing_for_each_width_a_table_and_a_csv(page: CostPage) -> None:
    sections = read(page).sections
    for picture in page.pictures:
        section = sections[picture.key]
        assert section["title"] == visible(picture.title)
        assert section["svgs"] == 2 * len(picture.drawings) >= 2
        assert len(section["rows"]) == len(picture.rows) + 1
        assert section["csv"].startswith(picture.columns[0].key)


def test_csv_and_table_of_the_page_hold_the_same_numbers(page: CostPage) -> None:
    sections = read(page).sections
    for picture in page.pictures:
        head, *lines = csv.reader(io.StringIO(sections[picture.key]["csv"]))
        assert head == [column.key for column in picture.columns]
        assert len(set(head)) == len(head)
        for cells, line, shown in zip(picture.rows, lines, sections[picture.key]["rows"][1:], strict=True):
            assert len(cells) == len(line) == len(shown)
            for cell, text, on_page in zip(cells, line, shown, strict=True):
                if isinstance(cell, int | float):
                    assert float(text) == float(cell)
                    assert on_page == float(cell) or isinstance(on_page, str)  # a row's name is written, not given


def test_csv_files_are_those_of_the_page(page: CostPage, tmp_path: Path) -> None:
    paths = page.write_csv(tmp_path / "numbers")
    sections = read(page).sections
    assert [path.stem for path in paths] == [picture.key for picture in page.pictures]
    for path in paths:
        assert path.read_bytes().decode() == sections[path.stem]["csv"]


def test_page_needs_nothing_from_elsewhere_and_is_small(page: CostPage) -> None:
    reader, text = read(page), page.to_html()
    assert not {"script", "link", "iframe", "img", "object", "style"} & (set(reader.tags) - {"style"})
    assert all(link.startswith("data:text/csv") for link in reader.links)
    assert "default-src 'none'" in reader.policy
    assert "unsafe" not in reader.policy
    assert "url(" not in text
    assert len(text.encode()) < 500_000


def test_policy_knows_the_style_sheet_by_its_digest(page: CostPage) -> None:
    import base64
    import hashlib

    (css,) = re.findall("<style>(.*?)</style>", page.to_html(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in read(page).policy


def test_hostile_model_name_is_text_in_page_and_csv(page: CostPage) -> None:
    text = page.to_html()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "onerror=alert(2)&gt;" in text
    (link,) = [link for link in read(page).links if "cost_solved" in link or "%3C/title%3E" in link]
    assert "\x1b" not in unquote(link)


def test_text_that_begins_like_a_formula_is_no_formula_in_the_csv() -> None:
    assert raw("=1+1") == "'=1+1"
    assert raw("deepseek-r1") == "deepseek-r1"
    assert raw(-1.5) == "-1.5"
    assert raw(None) == ""


TEXT = re.compile(r'<text class="([^"]*)" x="([-\d.]+)" y="([-\d.]+)">(.*?)</text>')
SIZE = re.compile(r'viewBox="0 0 (\d+) (\d+)"')


def text_boxes(svg: str) -> list[tuple[str, Box]]:
    boxes = []
    for style, x_text, y_text, text in TEXT.findall(svg):
        x, y, width = float(x_text), float(y_text), text_width(re.sub("&[^;]*;", "x", text))
        left = x - width if "end" in style.split() else x - width / 2 if "middle" in style.split() else x
        boxes.append((text, Box(left, y - 9.0, left + width, y + 2.0)))
    return boxes


@pytest.mark.parametrize("day", [DAY, date(2025, 8, 1), date(2026, 11, 25)], ids=str)
def test_no_text_covers_another_or_is_cut_off_and_the_page_is_small(day: date, evaluations: list[str]) -> None:
    for language in LANGUAGES:
        page = make_page(evaluations, day=day, language=language)
        assert len(page.to_html().encode()) < 500_000
        for picture in page.pictures:
            for svg in (svg for drawing in picture.drawings for svg in (str(drawing.desk), str(drawing.phone))):
                boxes = text_boxes(svg)
                (width, height) = map(float, SIZE.findall(svg)[0])
                for (one, a), (other, b) in combinations(boxes, 2):
                    assert not a.overlaps(b), f"{picture.key}: {one!r} and {other!r}"
                for text, box in boxes:
                    assert box.left >= -1, f"{picture.key}: {text!r}"
                    assert box.right <= width + 1, f"{picture.key}: {text!r}"
                    assert 0 <= box.top < box.bottom <= height + 2, f"{picture.key}: {text!r}"


def test_last_day_of_the_calendar_has_an_end() -> None:
    assert spread_over_time(until=date.max)[0].start.date() < end_of(date.max).date() == date.max


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_of_a_day_before_every_price_says_what_is_missing(language: Any) -> None:
    page = make_page(day=date(2001, 1, 1), language=language)
    assert not page.pictures
    text = page.to_html()
    assert all(gap.reason for gap in page.gaps)
    assert 'id="left_out"' in text
    assert "{" not in re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)


def test_both_languages_have_the_same_sentences_with_the_same_gaps() -> None:
    text = resources.files("aha.estimate.page").joinpath("words.toml").read_text(encoding="utf-8")
    en, ja = (tomllib.loads(text)[language] for language in LANGUAGES)
    assert en.keys() == ja.keys()

    def gaps(sentence: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}

    assert {key: gaps(sentence) for key, sentence in en.items()} == {key: gaps(text) for key, text in ja.items()}


def test_words_do_not_read_gaps_in_what_fills_them() -> None:
    assert "{day}" in EN("no_training", reason="{day}{0.__class__}")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (price_text(2.19), "$2.19"),
        (price_text(60.0), "$60.00"),
        (price_text(0.003625), "$0.003625"),
        (price_text(600.0), "$600"),
        (dollars(5_576_000), "$5.58\N{NO-BREAK SPACE}M"),
        (dollars(999_700), "$1.00\N{NO-BREAK SPACE}M"),
        (dollars(294_000), "$294\N{NO-BREAK SPACE}K"),
        (dollars(0.0042), "$0.0042"),
        (digits(0.0), "0"),
        (digits(123_456.0), "123,456"),
        (times(27.397), "27.4×"),
        (times(0.8333), "0.83×"),
        (tick_dollars(0.02), "$0.02"),
        (tick_dollars(1e-6), "$0.000001"),
        (tick_dollars(20_000), "$20 K"),
        (Words("ja").day(date(2025, 1, 31)), "2025年1月31日"),
        (EN.day(date(2025, 1, 31)), "31 January 2025"),
    ],
)
def test_numbers_are_written_for_readers(shown: str, expected: str) -> None:
    assert shown == expected


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_command_writes_page_and_csv_and_says_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("aha cost page --on 2025-03-01 --csv numbers --lang ja", monkeypatch) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "cost.html").read_text().startswith("<!DOCTYPE html>")
    assert '<html lang="ja">' in (tmp_path / "cost.html").read_text()
    assert len(list((tmp_path / "numbers").iterdir())) == 8
    assert out.startswith("cost.html: 8 pictures")
    assert "left out:" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--out .", "cannot write"),
        ("--out taken/cost.html", "cannot write"),
        ("--csv taken", "cannot write"),
        ("no/such/run", "no evaluation at 'no/such/run'"),
        ("--on 2025-02-30", "2025-02-30"),
        ("--lang fr", "fr"),
    ],
)
def test_bad_argument_is_one_line(
    arguments: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert run(f"aha cost page {arguments}", monkeypatch) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cost.html"
    path.write_text("old")
    page = make_page(day=DAY)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="No space left"):
        page.write(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["cost.html"]


@pytest.mark.slow
def test_commands_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "countdown"
    folder.mkdir(parents=True)
    (folder / "after.json").write_text(json.dumps(json.loads(result("tiny").to_json())))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("aha ")]
    assert len(commands) >= 3
    for command in commands:
        assert run(command, monkeypatch) == 0, command


def test_keys_of_every_csv_are_in_the_guide(page: CostPage) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for picture in page.pictures:
        assert f"`{picture.key}`" in text
        keys = [column.key for column in picture.columns if "@" not in column.key]
        assert [key for key in keys if f"`{key}`" not in text] == []
