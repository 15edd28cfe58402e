"""Our models against the reference implementation, on tiny random checkpoints it wrote itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from aha.models import ModelConfig, Transformer, load_model, read_config
from aha.models.config import Llama3Rope
from aha.models.rope import rope_frequencies

from .reference import (
    CASES,
    LLAMA3,
    ORIGINAL_WINDOW,
    TOLERANCE,
    apart,
    compute_by_loops,
    draw_tokens,
    make_reference,
    reference_class,
    reference_logits,
    rewrite_as_version_4,
    worst_difference,
)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference_at_every_position(case: str, tmp_path: Path) -> None:
    reference = make_reference(case, seed=0)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    token_ids_BT = draw_tokens(2, 3 * ORIGINAL_WINDOW + 1)
    theirs = reference_logits(reference, token_ids_BT)
    ours = model(token_ids_BT)
    assert float(theirs.std()) > 0.5, "near-uniform logits would agree whatever the model computes"
    assert ours.shape == theirs.shape
    assert worst_difference(ours, theirs) < TOLERANCE
    assert model.num_parameters() == reference.num_parameters()


@pytest.mark.parametrize("case", CASES)
def test_both_config_dialects_read_the_same(case: str, tmp_path: Path) -> None:
    make_reference(case, seed=0).save_pretrained(tmp_path)
    as_version_5 = read_config(tmp_path)
    rewrite_as_version_4(tmp_path)
    assert "rope_parameters" not in (tmp_path / "config.json").read_text()
    assert read_config(tmp_path) == as_version_5
    assert as_version_5.eos_token_ids == (2, 5)


# The reference takes seconds to load some; one of each family is enough for every day.
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if "_" in case else ()) for case in CASES])
def test_our_save_reloads_in_the_reference_with_equal_logits(case: str, tmp_path: Path) -> None:
    make_reference(case, seed=2).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype="float32", device="cpu")
    model.save(tmp_path / "ours")
    reloaded, report = reference_class(case).from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], f"{kind}: {report[kind]}"
    compute_by_loops(reloaded)
    token_ids_BT = draw_tokens(2, 40)
    assert worst_difference(model(token_ids_BT), reference_logits(reloaded.eval(), token_ids_BT)) < TOLERANCE
    assert read_config(tmp_path / "ours") == read_config(tmp_path / "theirs")


@pytest.mark.parametrize(
    "case", ["llama_biases", "llama3_rope", "qwen2_tied", "qwen3_tied", "qwen3_moe", "v3_yarn", "v3_moonlight"]
)
def test_gradients_equal_the_reference(case: str, tmp_path: Path) -> None:
    reference = make_reference(case, seed=3)
    reference.save_pretrained(tmp_path / "reference")
    model = load_model(tmp_path / "reference", dtype="float32", device="cpu")
    token_ids_BT = draw_tokens(2, 33)
    for logits in (reference(token_ids_BT).logits, model(token_ids_BT)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), token_ids_BT[:, 1:].flatten()).backward()
    theirs = {
        file_name: part
        for name, parameter in reference.named_parameters()
        for file_name, part in apart(name, parameter.grad)
    }
    ours = gradients_by_reference_name(model, tmp_path / "gradients")
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        # An expert that no token was given has no gradient, in both.
        assert float((gradient - theirs[name]).norm()) <= 2 * TOLERANCE * float(theirs[name].norm()), name


def gradients_by_reference_name(model: Transformer, folder: Path) -> dict[str, torch.Tensor]:
    """Our fused gradients under the reference's names, by way of our own writer: it splits what we have fused."""
    from safetensors.torch import load_file

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    carrier = Transformer(model.config)
    with torch.no_grad():
        for name, parameter in carrier.named_parameters():
            gradient = gradients[name]
            assert gradient is not None, f"{name} has no gradient"
            parameter.copy_(gradient)
    carrier.save(folder)
    # The gates' biases, which have no gradient, are written too.
    tensors = load_file(folder / "model.safetensors")
    return {name: values for name, values in tensors.items() if not name.endswith("e_score_correction_bias")}


@pytest.mark.parametrize("case", ["llama_tied_eps", "qwen2", "qwen3", "v3_yarn", "qwen3_moe"])
def test_sharded_checkpoint_equals_the_whole(case: str, tmp_path: Path) -> None:
    reference = make_reference(case, seed=4)
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    reference.save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    sharded, whole = (load_model(tmp_path / kind, dtype="float32", device="cpu") for kind in ("sharded", "whole"))
    for (name, a), b in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("case", ["llama", "qwen2_tied", "qwen3", "v3_moonlight", "qwen3_moe"])
def test_bfloat16_weights_survive_a_round_trip_bit_for_bit(case: str, tmp_path: Path) -> None:
    reference = make_reference(case, seed=5).to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    model.save(tmp_path / "ours")
    reloaded = reference_class(case).from_pretrained(tmp_path / "ours")
    assert reloaded.dtype == torch.bfloat16, "config.json names the dtype of the file"
    theirs = dict(reference.named_parameters())
    for name, parameter in reloaded.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("case", ["llama", "qwen3", "qwen3_moe", "v3_yarn"])
def test_bfloat16_is_as_close_to_float32_as_the_reference_is(case: str, tmp_path: Path) -> None:
    reference = make_reference(case, seed=6).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    token_ids_BT = draw_tokens(4, 40)
    exact = load_model(tmp_path, dtype="float32", device="cpu")(token_ids_BT).detach()
    ours = load_model(tmp_path, dtype="bfloat16", device="cpu")(token_ids_BT).detach().float()
    theirs = reference_logits(reference, token_ids_BT).float()
    assert float((ours - exact).norm()) < 1.25 * float((theirs - exact).norm())


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-5},
        {"rope_theta": 501.0},
        {"rope_scaling": None},
        {"rope_scaling": Llama3Rope(**{k: v for k, v in {**LLAMA3, "factor": 4.01}.items() if k != "rope_type"})},
    ],
    ids=["eps", "theta", "no_scaling", "factor"],
)
def test_tolerance_tells_a_wrong_setting_from_a_right_one(change: dict[str, Any], tmp_path: Path) -> None:
    reference = make_reference("llama3_rope", seed=0)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    token_ids_BT = draw_tokens(2, 3 * ORIGINAL_WINDOW + 1)
    theirs = reference_logits(reference, token_ids_BT)
    assert worst_difference(model(token_ids_BT), theirs) < TOLERANCE
    wrong = Transformer(dataclasses.replace(model.config, **change))
    wrong.load_state_dict(model.state_dict())
    assert worst_difference(wrong(token_ids_BT), theirs) > 3 * TOLERANCE


def test_interleaved_rotation_fails_the_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_reference("qwen2", seed=0)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    token_ids_BT = draw_tokens(1, 20)

    def interleaved(x_NHC: torch.Tensor, cos_N1C: torch.Tensor, sin_N1C: torch.Tensor) -> torch.Tensor:
        half = cos_N1C.shape[-1] // 2
        cos, sin = cos_N1C[..., :half], sin_N1C[..., half:]
        even, odd = x_NHC[..., ::2], x_NHC[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    monkeypatch.setattr("aha.models.grouped_query.rotate", interleaved)
    assert worst_difference(model(token_ids_BT), reference_logits(reference, token_ids_BT)) > 100 * TOLERANCE


def test_published_llama3_stretching_equals_the_reference_far_beyond_the_first_window() -> None:
    published = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = ModelConfig(
        model_type="llama", vocab_size=8, hidden_size=2048, intermediate_size=8, num_layers=1, num_heads=32,
        num_kv_heads=8, head_dim=64, max_position_embeddings=131_072, rope_theta=500_000.0,
        rope_scaling=Llama3Rope(original_max_position_embeddings=8192, **published),
    )  # fmt: skip
    reference = transformers.LlamaConfig(
        hidden_size=2048,
        num_attention_heads=32,
        max_position_embeddings=131_072,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500_000.0, "original_max_position_embeddings": 8192, **published
        },
    )  # fmt: skip
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(reference)
    assert torch.equal(rope_frequencies(config), rotary.inv_freq)
    model = Transformer(config)
    positions_N = torch.tensor([0, 1, 8191, 8192, 8193, 40_000, 131_071])
    cos_N1C, sin_N1C = model.rope_tables.at(positions_N, dtype=torch.float32)
    cos_BTC, sin_BTC = rotary(torch.zeros(1), positions_N.unsqueeze(0))
    torch.testing.assert_close(cos_N1C[:, 0], cos_BTC[0], atol=1e-6, rtol=0)
    # Ours carries the sign of rotate_half in its first half.
    torch.testing.assert_close(sin_N1C[:, 0, 32:], sin_BTC[0, :, 32:], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin_N1C[:, 0, :32], -sin_BTC[0, :, :32], atol=1e-6, rtol=0)
