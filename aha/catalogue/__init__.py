"""What models there are, and what each takes: the table of `aha models`, from configurations alone."""

from __future__ import annotations

import json
from typing import Literal

from aha import hub
from aha.catalogue.entry import Entry, find_entry, list_entries
from aha.catalogue.free_memory import FreeMemory, find_free_memory
from aha.catalogue.table import describe, table
from aha.errors import ConfigError, ModelError

__all__ = ["Entry", "FreeMemory", "describe", "find_entry", "find_free_memory", "list_entries", "run_models", "table"]


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
    return describe(found[0], here=here) if is_one else table(found, here=here)


def _find(words: list[str]) -> tuple[list[Entry], bool]:
    """The entries, and whether exactly one was named."""
    found = list_entries(" ".join(words))
    named = [entry for entry in found if words == [entry.name] or (len(words) == 1 and words[0] in entry.ids)]
    if not words or (found and not named):
        return found, False
    try:
        return [find_entry(" ".join(words))], True
    except ModelError as error:
        hint = "; or words such as qwen or llama 8b, which list what matches; or aha models fetch NAME"
        raise ModelError(f"{error}{hint if 'unknown model ' in str(error) else ''}") from None
