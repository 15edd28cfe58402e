"""The races of a small DeepSeek-V3: every side runs and computes the same."""

from __future__ import annotations

from typing import Any

import pytest

from bench import v3
from bench.v3_races import make_model, race_latent, race_sampling, race_training

SHAPE = {"hidden": 16, "layers": 2, "heads": 2, "nope": 4, "rope": 4, "latent": 8, "experts": 4, "chosen": 2,
         "expert_width": 8, "dense_width": 16, "vocab": 31}  # fmt: skip


def job(**settings: Any) -> dict[str, Any]:
    return {"shape": SHAPE, "dtype": "float32", "rounds": 1, "num_documents": 2, "length": 6, "num_sequences": 2,
            "num_tokens": 14} | settings  # fmt: skip


def test_absorbed_and_expanded_decoding_agree() -> None:
    found = race_latent(job(rows=2, length=37, rounds=2))
    assert set(found.details["seconds"]) == {"absorbed", "per-head cache", "expanded each step"}
    assert all(len(seconds) == 2 for seconds in found.details["seconds"].values())


def test_shapes_of_the_races_can_be_built() -> None:
    assert {name: make_model(shape, dtype="bfloat16").num_parameters() for name, shape in v3.SHAPES.items()} == {
        "tiny": 6_305_088,
        "wide": 45_409_280,
    }


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["equal", "completions"])
def test_training_race_tries_every_setting_and_races_the_best(batch: str) -> None:
    found = race_training(job(batch=batch))
    assert len(found.details["trials"]) == len(found.details["seconds"]) == 2


@pytest.mark.slow
def test_sampling_race_compares_the_same_tokens() -> None:
    found = race_sampling(job())
    assert found.details["same_tokens"] == 1.0
    assert len(found.details["trials"]) == 6
