"""Models are found by what people call them; where not, the nearest known one is named."""

from __future__ import annotations

import pytest

from aha.errors import ModelError
from aha.estimate.shape import find_shape


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Kimi-K2", "moonshotai/Kimi-K2"),
        ("DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3"),
        ("lama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_a_name_that_is_nearly_one_is_refused_with_the_model_that_is_meant(typed: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"unknown model '{typed}'; did you mean '{meant}"):
        find_shape(typed)


def test_a_name_like_no_other_is_refused_as_before() -> None:
    with pytest.raises(ModelError, match="unknown model 'qqqqqqqqqq'"):
        find_shape("qqqqqqqqqq")
