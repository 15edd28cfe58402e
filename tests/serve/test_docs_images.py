"""docs/images.md does what it says: its commands run, its programs too, and its numbers are those of the code."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aha import cli, images
from aha.images import choose_grid
from aha.serve import pictures

GUIDE = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.fixture(autouse=True)
def _workplace(vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the model and the pictures that the guide speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "internvl").symlink_to(vision_folder)
    colours = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    Image.fromarray(colours).save("f.png")
    Image.fromarray(colours.swapaxes(0, 1)).save("g.jpg")


def test_every_block_is_tested_here() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    assert (len(COMMANDS), len(PROGRAMS)) == (2, 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_guide_works(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--max-tokens", "4"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code


def test_program_over_http_works(seer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = PROGRAMS[0].replace("http://127.0.0.1:8000", seer.url).replace('"internvl"', '"babble"')
    (tmp_path / "program.py").write_text(program)
    runpy.run_path("program.py")
    assert capsys.readouterr().out.strip()


def test_program_in_python_works(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAMS[1])
    runpy.run_path("program.py")


def test_numbers_of_the_guide_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) x (\d+) \| (\d+)(?: \+ 1)? \| ([\d,]+) \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 3
    for width, height, num_tiles, num_tokens in rows:
        columns, lines = choose_grid(int(width), int(height), tile_size=448)
        assert columns * lines == int(num_tiles)
        assert 256 * (columns * lines + (columns * lines > 1)) == int(num_tokens.replace(",", ""))
    assert f"{images.MAX_FILE_BYTES // 2**20} MiB; a request" in GUIDE
    assert f"{pictures.MAX_PICTURE_BODY_BYTES // 2**20} MiB in all" in GUIDE
    assert f"{images.MAX_PIXELS // 10**6} million" in GUIDE
    assert f"| pictures in a request | {pictures.MAX_PICTURES}," in GUIDE
    assert "PNG, JPEG, WebP, GIF, BMP".upper() == ", ".join(images.FORMATS)
