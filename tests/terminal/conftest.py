"""A random model with the built-in tokenizer: its answers are noise, its plumbing is real."""

from __future__ import annotations

from pathlib import Path

import pytest

from aha.models import ModelConfig, build_model
from aha.models.tokenizer import build_tokenizer, save_tokenizer


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In Hugging Face layout, with a window of 256 tokens."""
    folder = tmp_path_factory.mktemp("models") / "noise"
    save_tokenizer(folder)
    end_id = build_tokenizer().token_to_id("<|end|>")
    config = ModelConfig(
        model_type="llama", vocab_size=build_tokenizer().get_vocab_size(), hidden_size=16, intermediate_size=32,
        num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, max_position_embeddings=256, eos_token_ids=(end_id,),
    )  # fmt: skip
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    model.save(folder)
    return folder
