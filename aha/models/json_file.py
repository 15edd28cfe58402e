"""JSON objects in files that anyone may have written, and files that are complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aha.errors import ModelError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ModelError: there is no such file, it is no JSON, nested too deeply, or no object.
    """
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is not a regular file; a pipe or a folder cannot be read as one")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def write_json_object(path: Path, value: Mapping[str, Any]) -> None:
    """Put an object in a file's place at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
