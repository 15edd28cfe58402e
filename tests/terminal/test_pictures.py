"""`aha chat --image`: a picture from a file to the model, and one line when it cannot be seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aha import cli
from aha.models import ModelConfig, build_model
from aha.models.tokenizer import save_tokenizer


@pytest.fixture
def png(tmp_path: Path) -> Path:
    colours = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "f.png")
    return tmp_path / "f.png"


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        options = ["--seed", "1", "--max-tokens", "5", "--temperature", "0"]
        monkeypatch.setattr(sys, "argv", ["aha", "chat", *map(str, arguments), *options])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


Chat = Callable[..., tuple[int, str, str]]


def test_chat_sees_its_pictures(chat: Chat, vision_folder: Path, png: Path) -> None:
    code, alone, _ = chat(vision_folder, "what?", "--json")
    assert code == 0
    code, one, _ = chat(vision_folder, "what?", "--json", "--image", png)
    assert code == 0
    code, two, _ = chat(vision_folder, "what?", "--json", "--image", png, "--image", png)
    assert code == 0
    assert len({json.loads(answer)["content"] for answer in (alone, one, two)}) == 3
    code, shown, _ = chat(vision_folder, "what?", "--image", png)
    assert shown.strip() == json.loads(one)["content"].strip()


def test_conversation_keeps_its_picture(
    chat: Chat, vision_folder: Path, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["what?", "and now?"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    code, shown, _ = chat(vision_folder, "--image", png)
    assert (code, shown.count("\n") >= 2) == (0, True)


def test_file_that_is_no_picture_is_one_line(chat: Chat, vision_folder: Path, tmp_path: Path, png: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    code, _, error = chat(vision_folder, "what?", "--image", png, "--image", tmp_path / "notes.txt")
    assert (code, error.count("\n")) == (2, 1)
    assert f"{tmp_path / 'notes.txt'}: the picture is of no known format" in error
    code, _, error = chat(vision_folder, "what?", "--image", tmp_path / "none.png")
    assert (code, "No such file" in error) == (2, True)


def test_text_model_is_named(chat: Chat, tmp_path: Path, png: Path) -> None:
    folder = tmp_path / "reader"
    save_tokenizer(folder)
    config = ModelConfig(
        model_type="llama", vocab_size=1363, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=1,
        num_kv_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    model.save(folder)
    code, _, error = chat(folder, "what?", "--image", png)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{folder} is a model without a vision tower" in error
