"""The Python of docs/endpoints.md runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.client.conftest import LiveEndpoint

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_page_runs(live: LiveEndpoint, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "endpoints.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("https://api.deepseek.com/v1", live.base_url)
    env = {"PYTHONPATH": str(ROOT), "AHA_ENDPOINT_KEY": "sk-doc-0123456789"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["7", "7.23e-05"], done.stderr
    assert live.headers[0]["authorization"] == "Bearer sk-doc-0123456789"
    assert (tmp_path / "runs" / "teacher.jsonl").exists()
