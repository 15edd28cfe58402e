"""What is written appears whole, and never in the place of something that is no file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aha.cost.files import write_atomic
from aha.errors import DataError


def test_pipe_or_device_is_refused_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "cost.html"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"cannot write .*cost\.html: it is there and is no file; choose another name"):
        write_atomic(pipe, text="x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_older_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bill.json"
    write_atomic(path, text="long, and older")
    write_atomic(path, text="new")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(path.parent.iterdir()) == [path]
