"""What models there are, and what each takes: the table of `aha models`, from configurations alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from aha import hub
from aha.catalogue.entry import Entry, find_entry, list_entries, published_format
from aha.catalogue.free_memory import FreeMemory, find_free_memory
from aha.catalogue.table import describe, table
from aha.errors import ConfigError, ModelError

__all__ = [
    "Entry",
    "FreeMemory",
    "describe",
    "find_entry",
    "find_free_memory",
    "list_entries",
    "published_format",
    "run_models",
    "table",
]


def run_models(words: list[str], *, form: Literal["text", "json"]) -> str:
    """What `aha models WORDS` prints: all models, those that the words name, one in detail, or a fetched folder.

    Raises:
        AhaError: nothing of that name, an unsupported family, a fetch that failed.
    """
    if words[:1] == ["fetch"]:
        if len(words) != 2:
            raise ConfigError(f"{' '.join(words)!r} names {len(words) - 1} models; write aha models fetch NAME")
        return str(hub.fetch(words[1]))
    here = find_free_memory()
    found, is_one = _find(words)
    if form == "json":
        shown = [entry.to_dict(here) for entry in found]
        return json.dumps(shown[0] if is_one else shown)
    width = shutil.get_terminal_size((200, 24)).columns  # a pipe or a file has no width and gets all
    return describe(found[0], here=here, width=width) if is_one else table(found, here=here, width=width)


def _find(words: list[str]) -> tuple[list[Entry], bool]:
    """The entries, and whether exactly one was named."""
    name = " ".join(words)
    is_path = bool(words) and _is_path(name)
    found = [] if is_path else list_entries(name)
    rows = [entry for entry in found if entry.name.lower() == name.lower()]
    if rows and name not in hub.BUILT_IN:
        return rows, True  # as the table writes it, which is no id: DeepSeek-R1, Qwen2.5-7B (-Instruct)
    if not is_path and (not words or (found and not any(name in (entry.name, *entry.ids) for entry in found))):
        return found, False
    try:
        return [find_entry(name)], True
    except ModelError as error:
        hint = "; or words such as qwen or llama 8b, which list what matches; or aha models fetch NAME"
        raise ModelError(f"{error}{hint if 'unknown model ' in str(error) else ''}") from None


def _is_path(name: str) -> bool:
    """Whether a folder or file is meant and not a word: a folder that merely has the name of a family hides nothing."""
    path = Path(os.path.expanduser(name))
    if not os.path.exists(path):
        return False
    return os.sep in name or name in (".", "..") or path.is_file() or hub.is_model(path)
