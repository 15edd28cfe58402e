"""Full matches of regular expressions.

Python's `re` backtracks without a time limit and holds the interpreter while it does, so neither a thread nor a signal
handler of a server can stop it. In the main thread of a worker process it looks for signals while it matches.
"""

from __future__ import annotations

import re
from typing import Any


def answer(question: Any) -> dict[str, Any]:
    """Whether the whole of `text` matches `pattern` (Python syntax); "invalid" says why the pattern is none."""
    try:
        return {"is_match": re.fullmatch(question["pattern"], question["text"]) is not None, "invalid": ""}
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        return {"is_match": False, "invalid": str(error) or type(error).__name__}
