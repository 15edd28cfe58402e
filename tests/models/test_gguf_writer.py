"""GGUF files that we write: read back by our reader and by transformers' own, with the same logits and tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from aha.errors import ModelError
from aha.models import Llama3Rope, ModelConfig, Transformer, attach_lora, build_model, load_model
from aha.models.config import ExpertsShape, LatentAttentionShape, YarnRope
from aha.models.gguf import convert_gguf
from aha.models.gguf_tokenizer import SPLITTERS, assemble_tokenizer
from aha.models.gguf_writer import GGUF_KINDS, read_vocabulary, write_gguf
from aha.models.lora import adapters
from aha.models.tokenizer import build_tokenizer, save_tokenizer

VOCAB_SIZE = build_tokenizer().get_vocab_size() + 5  # some ids that no token has, as padded models have them
IDS_BT = torch.randint(0, VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(1))
MOST = {"f32": 1e-5, "bf16": 0.05, "f16": 0.01, "q8_0": 0.15}


FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe"]
EXPERTS = ExpertsShape(
    num_experts=6, num_experts_per_token=2, intermediate_size=48, scoring="softmax", has_selection_bias=False
)
LLAMA3 = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
MLA = LatentAttentionShape(q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
YARN = YarnRope(factor=4.0, original_max_position_embeddings=32)


def make_model(family: str = "llama", **fields: Any) -> Transformer:
    defaults: dict[str, Any] = {
        "model_type": family, "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "max_position_embeddings": 128, "rope_theta": 5000.0,
        "tie_word_embeddings": family != "qwen3", "has_qkv_bias": family == "qwen2", "has_qk_norm": family == "qwen3",
        "eos_token_ids": (4,), "bos_token_id": 1, "initializer_range": 0.1, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    if family == "qwen2":
        defaults["head_dim"] = 16  # llama.cpp has no other for it
    if family == "qwen3_moe":
        defaults |= {"has_qk_norm": True, "experts": EXPERTS}
    model = build_model(ModelConfig(**(defaults | fields)), dtype="float32", device="cpu")
    model.initialise(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms of 1 and biases of 0 would hide that they were mixed up
                parameter += torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator)
            assert name
    return model


def back(path: Path, folder: Path) -> Transformer:
    convert_gguf(path, folder=folder, base_model="someone/mini", origin="a test", dtype="float32")
    return load_model(folder, dtype="float32", device="cpu")


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS_BT)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("kind", sorted(GGUF_KINDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_written_file_reads_back_as_the_model(tmp_path: Path, tokenizer_folder: Path, family: str, kind: str) -> None:
    model, path = make_model(family), tmp_path / "m.gguf"
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind=kind, name="mini")
    again = back(path, tmp_path / "back")
    difference = (logits(again).softmax(-1) - logits(model).softmax(-1)).abs().max()
    assert difference < MOST[kind]
    if kind == "f32":
        assert torch.equal(logits(again), logits(model))
    for field in ("num_layers", "head_dim", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "eos_token_ids",
                  "bos_token_id", "has_qkv_bias", "has_qk_norm", "max_position_embeddings"):  # fmt: skip
        assert getattr(again.config, field) == getattr(model.config, field), field


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_same_weights(tmp_path: Path, tokenizer_folder: Path, family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model, path = make_model(family), tmp_path / "m.gguf"
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f32", name="mini")
    model.save(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "hf")).float()
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
    missing, unexpected = theirs.load_state_dict(read, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(IDS_BT).logits, logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"rope_scaling": 2.0}),
        ("llama", {"rope_scaling": LLAMA3}),
        ("llama", {"has_qkv_bias": True, "has_output_bias": True}),
        ("llama", {"has_mlp_bias": True, "tie_word_embeddings": False}),
        ("qwen2", {"rope_scaling": YARN}),
        ("qwen3", {"rope_scaling": YARN, "tie_word_embeddings": True}),
        ("qwen3_moe", {"rope_scaling": 4.0}),
    ],
)
def test_scaled_positions_and_biases_read_back_as_they_were(
    tmp_path: Path, tokenizer_folder: Path, family: str, fields: dict[str, Any]
) -> None:
    model, path = make_model(family, **fields), tmp_path / "m.gguf"
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f32", name="mini")
    again = back(path, tmp_path / "back")
    assert again.config == replace(model.config, initializer_range=0.02), "which GGUF has no word for"
    assert torch.equal(logits(again), logits(model))


def test_rows_that_blocks_do_not_fit_are_stored_as_f16(tmp_path: Path, tokenizer_folder: Path) -> None:
    model, path = make_model(intermediate_size=40), tmp_path / "m.gguf"
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="q8_0", name="mini")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_adapters_are_merged_into_the_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    model, path = make_model(), tmp_path / "m.gguf"
    before = logits(model)
    attach_lora(model, rank=4, alpha=8.0)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.fill_(0.02)
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f32", name="mini")
    found = logits(back(path, tmp_path / "back"))
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 0.05


@pytest.mark.parametrize("splitter", sorted(SPLITTERS.keys() - {"default"}))
def test_way_of_cutting_words_is_found_by_trying(tmp_path: Path, splitter: str) -> None:
    # Merges that show where a text was cut: between digits, after spaces, around letters.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["1 2", "3 4", "12 34", "4 5", "6 7", "67 8", "Ġ t", "Ġ ,", "e y", "' t", "' re", "r e", "ĠĠ Ġ", "Ġ Ġ"]
    merges = ["r e", *[m for m in merges if m != "r e"]]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|end|>"]
    tokenizer = assemble_tokenizer(tokens, types=[1] * (len(tokens) - 1) + [3], merges=merges, splitter=splitter)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = read_vocabulary(tmp_path, size=len(tokens), eos_ids=(len(tokens) - 1,))
    again = assemble_tokenizer(found.tokens, types=found.types, merges=found.merges, splitter=found.splitter)
    texts = ["1234567 12345", "they're here, the 12 34", "a  b   c", "x\n\n y"]
    assert [again.encode(text).ids for text in texts] == [tokenizer.encode(text).ids for text in texts]
    assert found.special_ids["eos"] == len(tokens) - 1


def test_tokenizers_that_gguf_has_no_words_for_are_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    def error() -> str:
        with pytest.raises(ModelError) as caught:
            write_gguf(make_model(), tmp_path / "m.gguf", tokenizer_folder=tokenizer_folder, kind="f32", name="m")
        assert not (tmp_path / "m.gguf").exists()
        return str(caught.value)

    path = tokenizer_folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    # Two digits at a time: no model is known to do so.
    pairs = pre_tokenizers.Split(Regex("[0-9]{1,2}"), behavior="isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pairs, words])
    tokenizer.save(str(path))
    assert "cuts text into words in a way that gguf export has no name for" in error()
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"decoder": None}))
    assert "is not a byte-level BPE" in error()
    save_tokenizer(tokenizer_folder)
    with pytest.raises(ModelError, match="the model knows 100"):
        read_vocabulary(tokenizer_folder, size=100, eos_ids=())


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("qwen2", {"rope_scaling": LLAMA3}, "llama.cpp has no llama3 rotary scaling for qwen2"),
        ("qwen3", {"rope_scaling": replace(YARN, attention_factor=1.5)}, "not the plain one that llama.cpp computes"),
        ("qwen3", {"rope_scaling": replace(YARN, beta_fast=16.0)}, "not the plain one that llama.cpp computes"),
        ("qwen3", {"has_qkv_bias": True}, "biases are not those of a plain qwen3"),
        ("llama", {"has_qkv_bias": True}, "biases on some of the attention's projections only"),
        ("qwen2", {"head_dim": 32}, "qwen2 has heads of hidden_size / num_heads channels, these have 32"),
        ("qwen3_moe", {"experts": replace(EXPERTS, renormalises=False)}, "divides their weights by their sum"),
        ("qwen3_moe", {"experts": replace(EXPERTS, dense_layers=(0,))}, "has experts in every layer"),
        ("deepseek_v3", {"num_kv_heads": 4, "mla": MLA},
         "deepseek_v3 is not among the families that are written: llama, qwen2, qwen3, qwen3_moe; export it"),
    ],
)  # fmt: skip
def test_models_that_gguf_would_change_are_refused(
    tmp_path: Path, tokenizer_folder: Path, family: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        write_gguf(
            make_model(family, **fields), tmp_path / "m.gguf", tokenizer_folder=tokenizer_folder, kind="f32", name="m"
        )
    assert "--to hf" in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()


def test_values_that_a_type_cannot_hold_are_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    model, path = make_model(), tmp_path / "m.gguf"
    with torch.no_grad():
        model.embed_tokens[3, 3] = 7e4
    with pytest.raises(ModelError, match="'token_embd.weight' holds values beyond f16's largest, 65504; choose --type"):
        write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f16", name="m")
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="q8_0", name="m")


def test_every_end_of_a_turn_and_the_start_of_a_text_are_kept(tmp_path: Path, tokenizer_folder: Path) -> None:
    model, path = make_model(eos_token_ids=(4, 2)), tmp_path / "m.gguf"
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    tokenizer.save(str(tokenizer_folder / "tokenizer.json"))
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f32", name="m")
    assert back(path, tmp_path / "back").config.eos_token_ids == (4, 2)
    again = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert again.encode("12 a").ids == tokenizer.encode("12 a").ids
    assert again.get_vocab() == tokenizer.get_vocab(), "what only fills the vocabulary up is no token"


def test_unknown_type_lists_the_choices(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(ModelError, match="unknown gguf type 'q4_k'.* choose from: bf16, f16, f32, q8_0"):
        write_gguf(make_model(), tmp_path / "m.gguf", tokenizer_folder=tokenizer_folder, kind="q4_k", name="m")


def test_values_of_the_file_are_the_models_own(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Rows of queries are reordered for llama.cpp's rotation of neighbours; nothing else moves."""
    model, path = make_model(), tmp_path / "m.gguf"
    write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f32", name="mini")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    q = model.layers[0].attention.qkv_proj.weight[:128].detach().numpy()
    # Head 1's pair (channel 3, channel 3 + 16) lies side by side as its rows 6 and 7.
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight"][32 + 6], q[32 + 3])
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight"][32 + 7], q[32 + 3 + 16])
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_down.weight"], model.layers[1].feed_forward.down_proj.weight.detach().numpy()
    )
