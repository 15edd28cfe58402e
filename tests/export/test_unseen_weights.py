"""What no probe reaches is compared too: drafts, their experts, and the eye."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from aha.errors import ModelError
from aha.export import write_copy, write_fp8
from aha.models import ExpertsShape, LatentAttentionShape, ModelConfig, Transformer, build_model, load_model
from aha.models.shards import ShardedWriter

PROMPTS = [[1, 2, 3]]


def drafting_model() -> Transformer:
    experts = ExpertsShape(
        num_experts=6, num_experts_per_token=1, intermediate_size=8, scoring="sigmoid", has_selection_bias=True
    )
    mla = LatentAttentionShape(q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4)
    config = ModelConfig(
        model_type="deepseek_v3", vocab_size=20, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8, max_position_embeddings=32, rope_interleaved=True, mla=mla, experts=experts,
        num_mtp_layers=1,
    )  # fmt: skip
    model = build_model(config, device="cpu", dtype="float32")
    model.initialise(seed=0)
    return model


def spoil(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let tensors of this name be written upside down."""
    real = ShardedWriter.write

    def write(self: ShardedWriter, name: str, values: Tensor) -> None:
        real(self, name, values.flip(0) if name.endswith(part) else values)

    monkeypatch.setattr(ShardedWriter, "write", write)


@pytest.mark.parametrize("part", ["layers.1.eh_proj.weight", "layers.1.mlp.experts.3.up_proj.weight"])
def test_copy_with_another_draft_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = drafting_model()
    assert write_copy(model, tmp_path / "good", prompts=PROMPTS).parity.max_logit_difference == 0
    assert write_fp8(model, tmp_path / "good8", form="fp8_ue8m0", prompts=PROMPTS).dtype == "fp8_ue8m0"
    spoil(monkeypatch, part)
    with pytest.raises(ModelError, match=f"tensor 'model.{part}' differs"):
        write_copy(model, tmp_path / "bad", prompts=PROMPTS)
    with pytest.raises(ModelError, match=f"tensor 'model.{part}' differs"):
        write_fp8(model, tmp_path / "bad8", form="fp8", prompts=PROMPTS)


def test_copy_with_another_eye_is_refused(vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(vision_folder, dtype="float32", device="cpu")
    write_copy(model, tmp_path / "good", prompts=PROMPTS)
    spoil(monkeypatch, "vision_tower.encoder.layer.1.mlp.fc1.weight")
    with pytest.raises(ModelError, match=r"tensor 'vision_tower.encoder.layer.1.mlp.fc1.weight' differs"):
        write_copy(model, tmp_path / "bad", prompts=PROMPTS)
