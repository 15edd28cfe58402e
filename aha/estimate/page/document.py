"""The page itself: pictures and what had to be left out, as one HTML text and as CSV files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

from aha.cost.files import write_atomic
from aha.errors import DataError
from aha.estimate.page.breakeven import load_picture, months_picture, utilisation_picture
from aha.estimate.page.picture import Gap, Picture, raw, shown
from aha.estimate.page.prices import history_picture, spread_picture
from aha.estimate.page.quality import quality_picture, solved_picture
from aha.estimate.page.training import phases_picture, waterfall_picture
from aha.estimate.page.words import Language, Words
from aha.evaluate import Entry, read_entries
from aha.report.words import visible


@dataclass(frozen=True, kw_only=True)
class CostPage:
    """What a page shows."""

    day: date
    """Prices after it are not on the page."""
    language: Language
    pictures: tuple[Picture, ...]
    gaps: tuple[Gap, ...]

    def to_html(self) -> str:
        """One HTML text without references to anything outside itself, and without scripts."""
        css = _css()
        words = Words(self.language)
        page = _template().render(
            css=Markup(css), policy=_policy(css), words=words, day=words.day(self.day), pictures=self.pictures,
            reasons=self.reasons,
        )  # fmt: skip
        return visible(page)

    def write(self, path: Path) -> None:
        """The page as a file, replaced as a whole. Raises DataError for a folder, or when the disk refuses it."""
        if path.is_dir():
            raise DataError(f"cannot write {path}: it is a folder; give a file such as {path / 'cost.html'}")
        write_atomic(path, text=self.to_html())

    def describe(self, path: Path) -> str:
        """What was written, for a terminal: one line, and one for each picture that is not there."""
        size = f"{path.stat().st_size / 1000:,.0f} kB"
        count = "1 picture" if len(self.pictures) == 1 else f"{len(self.pictures)} pictures"
        lines = [f"{path}: {count}, {size}, prices as of {self.day.isoformat()}"]
        return "\n".join([*lines, *(f"left out: {reason}" for reason in self.reasons)])

    @property
    def reasons(self) -> list[str]:
        """Why pictures are left out, each reason once."""
        return list(dict.fromkeys(gap.reason for gap in self.gaps))

    def write_csv(self, folder: Path) -> list[Path]:
        """One CSV file a picture, each replaced as a whole. Raises DataError when the disk refuses one."""
        paths = [folder / f"{picture.key}.csv" for picture in self.pictures]
        for path, picture in zip(paths, self.pictures, strict=True):
            write_atomic(path, text=visible(picture.csv))
        return paths


def make_page(evaluations: Sequence[str] = (), *, day: date, language: Language = "en") -> CostPage:
    """The page of a day.

    Args:
        evaluations: folders of `aha eval --out`, runs, or files, for dollars a solved task.

    Raises:
        DataError: an evaluation that is not there or cannot be read.
    """
    entries: list[Entry] = read_entries(evaluations)
    words = Words(language)
    made = [
        spread_picture(words, day=day),
        history_picture(words, day=day),
        quality_picture(words, day=day),
        solved_picture(words, entries=entries),
        load_picture(words, day=day),
        utilisation_picture(words, day=day),
        months_picture(words, day=day),
        phases_picture(words, day=day),
        waterfall_picture(words, day=day),
    ]
    return CostPage(
        day=day,
        language=language,
        pictures=tuple(picture for picture in made if isinstance(picture, Picture)),
        gaps=tuple(gap for gap in made if isinstance(gap, Gap)),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("aha.estimate.page", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "raw": raw,
        "shown": lambda cell, column: shown(cell, column=column),
        "is_number": _is_number,
        "csv_link": lambda picture: f"data:text/csv;charset=utf-8,{quote(visible(picture.csv))}",
    }
    return environment.get_template("page.html")


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float)


@cache
def _css() -> str:
    """The style of the training report, and what the charts need on top."""
    parts = [("aha.report", "page.css"), ("aha.estimate.page", "page.css")]
    return "\n".join(resources.files(room).joinpath(name).read_text(encoding="utf-8") for room, name in parts)


def _policy(css: str) -> str:
    """Nothing may be loaded or run; the one style sheet is known by its digest."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
