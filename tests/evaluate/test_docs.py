"""docs/evaluation.md: its example runs, and it names every key that a script may find."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from aha.evaluate import PROTOCOLS, Entry, EvalResult, compare_all, load_result

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_example_runs_and_every_key_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/evaluation.md", "exec"), {})  # noqa: S102
    result = load_result(tmp_path / "scores/eval.json")
    entry = Entry(label="tiny", result=result)
    comparison = json.loads(compare_all([entry, entry]).to_json())
    sample = json.loads((tmp_path / "scores/eval.jsonl").read_text().split("\n")[0])["samples"][0]
    keys = {field.name for field in fields(EvalResult)} | result.manifest.keys() | sample.keys()
    keys |= comparison.keys() | comparison["pairs"][0].keys()
    missing = sorted(key for key in keys if f"`{key}`" not in PAGE and f"`{key} " not in PAGE)
    assert not missing


def test_protocols_are_documented() -> None:
    for name, protocol in PROTOCOLS.items():
        numbers = (protocol.temperature, protocol.top_p, f"{protocol.max_tokens:,}", protocol.num_samples)
        assert f"| `{name}` | {' | '.join(map(str, numbers))} |" in PAGE
