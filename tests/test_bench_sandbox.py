"""The measurement of the sandbox runs and says what it measured."""

from __future__ import annotations

import json

import pytest

from aha.errors import SandboxError
from aha.sandbox import require
from bench import sandbox


def test_every_backend_has_a_row_of_positive_figures(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        require()
    except SandboxError as error:
        pytest.skip(str(error))
    assert sandbox.main(["--runs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["backend"] for row in found["rows"]} <= {"bubblewrap", "native"}
    for row in found["rows"]:
        assert row["runs_per_second"] > 0
        assert row["judged_ms"] > row["bare_ms"] > 0
