"""docs/export.md does what it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from aha import cli, export
from aha.models.gguf_file import READABLE
from aha.models.gguf_writer import GGUF_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_commands_of_the_page_work_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for command in block.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0, command
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-again", "tiny-gguf", "tiny-hf"]


def test_page_names_the_bounds_and_types_that_hold() -> None:
    bounds = [export.MAX_BY_GGUF_KIND[kind] for kind in ("f32", "f16", "q8_0")]
    assert f"{bounds[0]:g} · {bounds[1]:g} · {bounds[2]:g}".replace("1e-05", "1e-5") in PAGE
    assert all(f"`{kind}`" in PAGE for kind in GGUF_KINDS)
    assert all(kind in PAGE for kind in READABLE if not kind.endswith("_K"))
