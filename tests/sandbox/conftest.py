"""Every test of the sandbox runs on both backends; a backend that cannot be used here skips with its reason."""

from __future__ import annotations

import pytest

from aha.errors import SandboxError
from aha.sandbox import BACKENDS, Sandbox, require


@pytest.fixture(params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return require(backends=(request.param,))
    except SandboxError as error:
        pytest.skip(str(error))
