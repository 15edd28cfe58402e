"""Writing a file so that a reader, or a kill, finds the old one or the new one and never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from aha.errors import DataError


@contextmanager
def open_atomic(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file that appears at `path`, complete, when the block ends without an error.

    Folders on the way are made. A failing block leaves `path` as it was and nothing beside it.

    Raises:
        DataError: when the disk or the permissions refuse it, or what stands there is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"cannot write {path}: it is there and is no file; choose another name")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}; free some space or choose another folder") from error


def write_atomic(path: Path, *, text: str) -> None:
    """`text` in a file at `path`, replaced as a whole. Raises DataError as `open_atomic` does."""
    with open_atomic(path) as file:
        file.write(text)
