"""aha.models loads its names at their first use: none is missing, and a wrong one says what there is."""

from __future__ import annotations

import pytest

from aha import models


@pytest.mark.parametrize("name", models.__all__)
def test_public_name_can_be_had(name: str) -> None:
    assert getattr(models, name) is not None


def test_every_name_has_a_home_and_unknown_ones_are_refused() -> None:
    assert set(models._HOMES) == set(models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load'; it has: ARCHITECTURES"):
        models.load  # noqa: B018
