"""`aha export`: what it writes is compared with its source before it says so; what is not equal is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aha import cli, export
from aha.chat import ChatFormat
from aha.errors import ModelError
from aha.models import BaseWeights, Transformer, attach_lora, hash_weights, load_model, save_adapter
from aha.models import checkpoint as checkpoint_module
from aha.models.lora import adapters
from aha.models.parity import Parity
from aha.types import Message

TINY = Path(export.__file__).parents[1] / "models" / "tiny"
IDS_BT = torch.randint(0, 1000, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model is faster on one thread, and far faster when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS_BT)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`aha export ARGUMENTS…` in this process: exit code, and what it said."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["aha", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, said.out + said.err

    return call


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter on the built-in model that has learnt something."""
    model = load_model(TINY, dtype="float32", device="cpu")
    attach_lora(model, rank=4, alpha=8.0, base=BaseWeights(TINY, hash_weights(TINY)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, low_rank in adapters(model):
            low_rank.b.copy_(torch.empty(low_rank.b.shape).normal_(0.0, 0.01, generator=generator))
    save_adapter(model, tmp_path / "adapter")
    ChatFormat.load(TINY).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("default")
def test_hf_export_computes_the_same_bits_here_and_the_same_in_transformers(tmp_path: Path, run: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, said = run("tiny", "--to", "hf", tmp_path / "out")
    assert code == 0
    assert "largest difference of a logit is 0," in said
    source, copy = (load_model(folder, dtype="float32", device="cpu") for folder in (TINY, tmp_path / "out"))
    assert torch.equal(logits(source), logits(copy))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").float().eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS_BT).logits, logits(source), atol=1e-3, rtol=1e-3)
    chat = ChatFormat.load(tmp_path / "out")
    asked = [Message("user", "3 7 8 > 24")]
    conversation = [{"role": "user", "content": "3 7 8 > 24"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert chat.render(asked) == ids
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "largest difference of a logit is 0," in card
    assert hash_weights(tmp_path / "out") in card


def test_adapter_is_merged_and_the_proof_says_how_well(tmp_path: Path, run: Any, adapter: Path) -> None:
    code, said = run(adapter, "--to", "hf", tmp_path / "out")
    assert code == 0
    assert "adapter merged in float32, rounded to float32" in said
    assert "The adapter itself moved that probability by" in said
    adapted, copy = (load_model(folder, dtype="float32", device="cpu") for folder in (adapter, tmp_path / "out"))
    assert copy.lora is None
    torch.testing.assert_close(logits(copy), logits(adapted), atol=1e-3, rtol=1e-3)
    assert (logits(copy) - logits(load_model(TINY, dtype="float32", device="cpu"))).abs().max() > 0.02


def test_adapter_stays_an_adapter_when_asked(tmp_path: Path, run: Any, adapter: Path) -> None:
    code, said = run(adapter, "--to", "hf", "--adapter", tmp_path / "out")
    assert (code, "read back" in said) == (0, True)
    written = [(folder / "adapter_model.safetensors").read_bytes() for folder in (adapter, tmp_path / "out")]
    assert written[0] == written[1]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    code, said = run("tiny", "--to", "hf", "--adapter", tmp_path / "none")
    assert (code, said.count("\n")) == (2, 1)
    assert "is not a LoRA run, so it has no adapter; leave --adapter out" in said
    code, said = run(adapter, "--to", "gguf", "--adapter", tmp_path / "none")
    assert (code, "a gguf file holds the merged model" in said) == (2, True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_gguf_export_is_read_back_and_its_bound_is_stated(tmp_path: Path, run: Any, kind: str) -> None:
    code, said = run("tiny", "--to", "gguf", "--type", kind, tmp_path / "out")
    assert code == 0, said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"tiny-{kind}.gguf", "README.md"}
    assert f"(allowed: {export.MAX_BY_GGUF_KIND[kind]:g})" in said
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"Written in {kind}, read back and compared with its source" in card


def test_copy_that_is_not_equal_is_refused_and_removed(
    tmp_path: Path, run: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = checkpoint_module.merged_tensors

    def wrong(model: Transformer) -> Any:
        for name, values in saved(model):
            yield name, values + 0.3 if name.endswith("o_proj.weight") else values

    monkeypatch.setattr(checkpoint_module, "merged_tensors", wrong)
    for source in ("tiny", adapter):
        code, said = run(source, "--to", "hf", tmp_path / "out")
        assert (code, said.count("\n")) == (2, 1)
        assert "is not equal to" in said
        assert not (tmp_path / "out").exists()


def test_merge_that_lost_the_adapter_is_refused(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure that users of other tools report most: the merged model is the base."""
    monkeypatch.setattr("aha.models.lora.LowRank.delta", lambda self, name: torch.zeros(()))
    model = load_model(adapter, dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="the merged model is not equal to base and adapter"):
        export.write_merged(model, tmp_path / "out", prompts=[[1, 2, 3, 4, 5]])


def test_bfloat16_merge_falls_back_to_float32_when_rounding_moves_too_much(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(adapter, dtype="bfloat16", device="cpu")
    calls: list[str] = []

    def compare(model: Transformer, other: Transformer, *, prompts: Any) -> Parity:
        calls.append(str(other.dtype))
        far = len(calls) == 2  # the first asks what the adapter does, the second is the rounded copy
        return Parity(
            num_positions=1, max_logit_difference=1.0, mean_probability_difference=0.5 if far else 1e-6,
            max_probability_difference=0.5, same_argmax_fraction=1.0, num_continued=1, num_same_continuations=1,
        )  # fmt: skip

    monkeypatch.setattr(export, "compare_models", compare)
    proof = export.write_merged(model, tmp_path / "out", prompts=[[1, 2, 3]])
    assert calls == ["torch.float32"] * 3, "no comparison has the noise of bfloat16 products in it"
    assert proof.dtype == "float32"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    assert export.Proof.from_json(proof.to_json()) == proof


def test_folders_in_use_and_unknown_models_are_refused_in_one_line(tmp_path: Path, run: Any) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for arguments, message in (
        (("tiny", "--to", "hf", tmp_path / "used"), "is not an empty folder; name a new one"),
        (("tinny", "--to", "hf", tmp_path / "new"), "did you mean 'tiny'"),
        (("tiny", "--to", "hf", "--type", "f16", tmp_path / "new"), "--type f16 is for --to gguf"),
        (("tiny", "--to", "onnx", tmp_path / "new"), "'hf'"),
    ):
        code, said = run(*arguments)
        assert (code, said.count("\n")) == (2, 1), said
        assert message in said
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_export_that_is_killed_leaves_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGKILL would: the copy is written, and its proof never comes."""
    seen: list[bool] = []

    def stop(*_: object, **__: object) -> None:
        seen.append((tmp_path / "copy").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr("aha.export.write_card", stop)
    with pytest.raises(KeyboardInterrupt):
        export.export("tiny", to="hf", out=tmp_path / "copy")
    assert seen == [False]
    monkeypatch.undo()
    (tmp_path / "copy").mkdir()
    said = export.export("tiny", to="hf", out=tmp_path / "copy")
    assert str(tmp_path / "copy") in said
    assert ".copy." not in said
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("kind", ["fp8", "fp8_ue8m0"])
def test_fp8_export_says_how_far_the_rounding_moved_it(tmp_path: Path, run: Any, kind: str) -> None:
    code, said = run("tiny", "--to", "hf", "--type", kind, tmp_path / "out")
    assert code == 0
    assert f"written in {kind}, read back and compared with its source" in said
    assert "(allowed: 0.1)" in said
    assert f"Written in {kind}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    copy = load_model(tmp_path / "out", dtype="float32", device="cpu")
    source = load_model(TINY, dtype="float32", device="cpu")
    moved = (logits(copy).softmax(-1) - logits(source).softmax(-1)).abs().max(-1).values.mean()
    assert 0.001 < float(moved) < 0.1
    assert 2 * (tmp_path / "out" / "model.safetensors").stat().st_size < (TINY / "model.safetensors").stat().st_size


def test_fp8_export_that_is_another_function_is_refused(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export.MAX_BY_FP8_FORM, "fp8", 1e-6)
    code, said = run("tiny", "--to", "hf", "--type", "fp8", tmp_path / "out")
    assert code == 2
    assert "in fp8 the model is not equal to its source" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [("--to", "gguf", "--type", "fp8"), ("--to", "hf", "--type", "fp8", "--adapter"), ("--to", "hf", "--type", "q8_0")],
)
def test_type_of_the_other_kind_of_file_is_refused(tmp_path: Path, run: Any, arguments: tuple[str, ...]) -> None:
    code, said = run("tiny", *arguments, tmp_path / "out")
    assert code == 2
    assert "is for --to" in said
