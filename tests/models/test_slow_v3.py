"""Our DeepSeek-V3 and the reference's beside the report's equations, and what goes wrong when one of them is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from aha.models import load_model

from .reference import SPARSE_CASES, TOLERANCE, draw_tokens, make_reference, reference_logits, worst_difference
from .slow_v3 import Mistake, SlowV3

NUM_TOKENS = 37
"""More than twice the window before YaRN."""
MTP_MISTAKES = {"embedding_second", "hidden_before_norm"}


def slow_model(folder: Path, *, mistake: Mistake | None = None) -> SlowV3:
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return SlowV3(load_file(folder / "model.safetensors"), raw, mistake=mistake)


@pytest.mark.parametrize("case", ["v3_yarn", "v3_kimi", "v3_moonlight", "v3_tied_biases", "v3_half_split_rope"])
def test_model_equals_the_equations_written_as_loops(case: str, tmp_path: Path) -> None:
    assert case in SPARSE_CASES
    reference = make_reference(case, seed=7)
    reference.save_pretrained(tmp_path)
    token_ids_1T = draw_tokens(1, NUM_TOKENS, seed=7)
    slow_TV = slow_model(tmp_path).logits(token_ids_1T[0].tolist())
    ours_TV = load_model(tmp_path, dtype="float32", device="cpu")(token_ids_1T)[0]
    assert worst_difference(ours_TV.double(), slow_TV) < TOLERANCE
    assert worst_difference(reference_logits(reference, token_ids_1T)[0].double(), slow_TV) < TOLERANCE


@pytest.fixture(scope="module")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A checkpoint with everything that can be got wrong, and the reference's logits."""
    folder = tmp_path_factory.mktemp("v3")
    # rms_norm_eps of 1e-6 as in V3 itself; the latents are small, so that their eps weighs as it does in large models.
    reference = make_reference("v3_yarn", seed=8)
    with torch.no_grad():
        for layer in reference.model.layers:
            layer.self_attn.kv_a_proj_with_mqa.weight.mul_(0.3)
    reference.save_pretrained(folder)
    return folder, reference_logits(reference, draw_tokens(1, NUM_TOKENS))[0].double()


@pytest.mark.parametrize("mistake", [None, *(m for m in get_args(Mistake) if m not in MTP_MISTAKES)])
def test_tolerance_tells_every_known_mistake_from_the_report(
    mistake: Mistake | None, reference_folder: tuple[Path, Tensor]
) -> None:
    folder, expected_TV = reference_folder
    found_TV = slow_model(folder, mistake=mistake).logits(draw_tokens(1, NUM_TOKENS)[0].tolist())
    difference = worst_difference(found_TV, expected_TV)
    assert difference < TOLERANCE if mistake is None else difference > 3 * TOLERANCE
