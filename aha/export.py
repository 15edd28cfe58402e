"""A model, written for other tools and proven equal to its source before anyone is told that it is there."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from aha import hub
from aha.chat import ChatFormat
from aha.errors import ConfigError, ModelError
from aha.models import Transformer, hash_weights, load_model, save_adapter, without_adapter
from aha.models.parity import Parity, compare_models
from aha.types import Message

DTypeName = Literal["float32", "bfloat16"]
MAX_PROBABILITY_DIFFERENCE: dict[str, float] = {"float32": 1e-5, "bfloat16": 0.005}
"""Mean difference of the likeliest token's probability that merging an adapter may make, by dtype."""
MAX_BY_GGUF_KIND = {"f32": 1e-5, "bf16": 0.005, "f16": 0.005, "q8_0": 0.02}
"""The same for each type of gguf file, against the model in float32."""
PROBES = (
    "What is 12 + 30?",
    "Write one sentence about the sea.",
    "def fibonacci(n):",
    "Zähle drei Städte auf, ¿y cuáles son sus ríos? 日本",
)
"""What the source and its copy are both asked."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """That a written model is the function that it was written from."""

    dtype: str
    """Of the written weights."""
    bound: float
    """Most that `parity.mean_probability_difference` may be."""
    parity: Parity
    """Source and written model."""
    adapter_effect: Parity | None
    """Source and its base without the adapter, for scale; None where there is no adapter."""
    sha256: str
    """Of the written weights."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Proof:
        """What `to_json` wrote."""
        raw = json.loads(text)
        for name in ("parity", "adapter_effect"):
            raw[name] = None if raw[name] is None else Parity(**raw[name])
        return cls(**raw)

    def describe(self) -> str:
        """One or two sentences for people."""
        if self.adapter_effect is None:
            words = f"written in {self.dtype}, read back and compared with its source: {self.parity.describe()}"
            return f"{words} (allowed: {self.bound:g})" if self.bound else words
        effect = self.adapter_effect
        return (
            f"adapter merged in float32, rounded to {self.dtype}, read back and compared with base and adapter: "
            f"{self.parity.describe()} (allowed: {self.bound:g}). The adapter itself moved that probability by "
            f"{effect.mean_probability_difference:.2g} and left {100 * effect.same_argmax_fraction:.1f} % of the "
            "likeliest tokens as they were"
        )


def export(name: str, *, to: Literal["hf", "gguf"], out: Path, kind: str = "auto", keeps_adapter: bool = False) -> str:
    """Write a model as a folder for other tools; returns what was written and how it was proven, for people.

    Args:
        name: a MODEL as every verb takes it.
        to: "hf" is a Hugging Face folder, "gguf" a file for llama.cpp and its kin.
        out: folder to make; it must be new or empty.
        kind: how a gguf file stores matrices, see GGUF_KINDS; "auto" is what the model is stored in.
        keeps_adapter: a LoRA run's adapter alone, in PEFT's layout, instead of the merged model.

    Raises:
        AhaError: no such model, a folder in use, or a copy that is not equal; nothing is left behind then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name a new one")
    source = hub.resolve(name)
    if keeps_adapter and to == "gguf":
        raise ConfigError("--adapter keeps PEFT's layout, which is --to hf; a gguf file holds the merged model")
    if to == "hf" and kind != "auto":
        raise ConfigError(f"--type {kind} is for --to gguf; a Hugging Face folder keeps the model's own dtype")
    # Under another name until it is proven: a killed export leaves nothing that looks like a model.
    work = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    try:
        if to == "gguf":
            said = _export_gguf(name, source, work, kind=kind)
        else:
            said = _export_adapter(name, source, work) if keeps_adapter else _export_hf(name, source, work)
        os.rename(work, out)  # onto an empty folder, or none
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return said.replace(str(work), str(out))


def _export_hf(name: str, source: Path, out: Path) -> str:
    model, chat = load_as_stored(source), ChatFormat.load(source)
    proof = write_copy(model, out, prompts=probe_prompts(chat, window=model.config.max_position_embeddings))
    chat.save(out)
    write_card(out, name=name, proof=proof)
    return f"{out}: {proof.describe()}"


def _export_adapter(name: str, source: Path, out: Path) -> str:
    adapter = source if (source / "adapter_config.json").is_file() else source.parent / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError(f"{name} is not a LoRA run, so it has no adapter; leave --adapter out")
    model, chat = load_as_stored(adapter), ChatFormat.load(adapter)
    save_adapter(model, out)
    chat.save(out)
    prompts = probe_prompts(chat, window=model.config.max_position_embeddings)
    parity = compare_models(model, load_as_stored(out), prompts=prompts)
    if parity.max_logit_difference != 0:
        raise ModelError(f"the copy in {out} is not equal to {adapter}: {parity.describe()}")
    assert model.lora is not None
    assert model.lora.base is not None
    sha256 = model.lora.base.sha256
    return f"{out}: adapter for {model.lora.base.folder} (sha256 {sha256[:12]}…), read back: {parity.describe()}"


def _export_gguf(name: str, source: Path, out: Path, *, kind: str) -> str:
    from aha.models.gguf import convert_gguf
    from aha.models.gguf_writer import write_gguf

    chosen = ("bf16" if stored_dtype(source) == "bfloat16" else "f32") if kind == "auto" else kind
    # float32 holds what every file says exactly, so that only the type of the gguf file rounds.
    model, chat = load_model(source, dtype="float32", device="cpu", resolve=hub.resolve), ChatFormat.load(source)
    if model.config.vision is not None:
        raise ModelError(f"{name} sees pictures, and a gguf file would hold its language model alone; use --to hf")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{Path(name).name}-{chosen}.gguf"
    write_gguf(model, path, tokenizer_folder=chat.folder, kind=chosen, name=Path(name).name)
    with tempfile.TemporaryDirectory(dir=out) as work:
        reread = Path(work)
        convert_gguf(path, folder=reread, base_model=name, origin="its own export", dtype="float32")
        _check_chat(chat, ChatFormat.load(reread), path=path)
        copy = load_model(reread, dtype="float32", device="cpu")
        prompts = probe_prompts(chat, window=model.config.max_position_embeddings)
        parity = compare_models(model, copy, prompts=prompts)
    bound = MAX_BY_GGUF_KIND[chosen]
    if parity.mean_probability_difference > bound:
        raise ModelError(f"{path.name} is not equal to its source: {parity.describe()} (allowed: {bound:g})")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    proof = Proof(dtype=chosen, bound=bound, parity=parity, adapter_effect=None, sha256=sha256)
    write_card(out, name=name, proof=proof)
    return f"{path}: {proof.describe()}"


def _check_chat(ours: ChatFormat, theirs: ChatFormat, *, path: Path) -> None:
    """Every probe must have the same tokens, as text and as a prompt."""
    for text in PROBES:
        messages = [Message("user", text)]
        if ours.encode(text) != theirs.encode(text) or ours.render(messages) != theirs.render(messages):
            raise ModelError(f"{path.name} has another tokenizer or chat template than its source: {text!r} differs")
    if ours.stop_token_ids[:1] != theirs.stop_token_ids[:1]:
        raise ModelError(f"{path.name} ends its answers with another token than its source")


def load_as_stored(folder: Path) -> Transformer:
    """A model on the CPU in the dtype of its file, so that nothing is rounded on the way."""
    return load_model(folder, dtype=stored_dtype(folder), device="cpu", resolve=hub.resolve)


def stored_dtype(folder: Path) -> DTypeName:
    """bfloat16 if that is what config.json says the weights are; float32 holds everything else exactly."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dtype = raw.get("dtype") or raw.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        dtype = None
    return "bfloat16" if dtype == "bfloat16" else "float32"


def probe_prompts(chat: ChatFormat, *, window: int) -> list[list[int]]:
    """PROBES as prompts of a model, cut to its window."""
    return [chat.render([Message("user", text)])[: max(1, window // 2)] for text in PROBES]


def write_copy(model: Transformer, folder: Path, *, prompts: Sequence[Sequence[int]]) -> Proof:
    """Write a model and read it back: a plain one must compute the same bits, a merged one nearly.

    Raises:
        ModelError: it does not.
    """
    if model.lora is not None:
        return write_merged(model, folder, prompts=prompts)
    model.save(folder)
    dtype: DTypeName = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    parity = compare_models(model, load_model(folder, dtype=dtype, device=str(model.device)), prompts=prompts)
    if parity.max_logit_difference != 0:
        raise ModelError(f"the copy in {folder} is not equal to its source: {parity.describe()}")
    return Proof(dtype=dtype, bound=0.0, parity=parity, adapter_effect=None, sha256=hash_weights(folder))


def write_merged(model: Transformer, folder: Path, *, prompts: Sequence[Sequence[int]]) -> Proof:
    """Write the model that base and adapter make together, and prove it equal by reading it back.

    Both are computed in float32, where only the rounding of the merged weights is left to be seen: two bfloat16
    computations of one function differ by as much (SmolLM2-135M: 0.008, docs/LOG.md). The merged weights are rounded
    to the model's dtype; where that moves its probabilities too far, they are written in float32 instead.

    Raises:
        ModelError: the merged model differs even then.
    """
    assert model.lora is not None
    source = copy.deepcopy(model).float()
    effect = compare_models(source, without_adapter(source), prompts=prompts)
    choices: tuple[DTypeName, ...] = ("bfloat16" if model.dtype == torch.bfloat16 else "float32", "float32")
    for dtype in dict.fromkeys(choices):
        bound = MAX_PROBABILITY_DIFFERENCE[dtype]
        model.save(folder, dtype=dtype)
        merged = load_model(folder, dtype="float32", device=str(model.device))
        parity = compare_models(source, merged, prompts=prompts)
        if parity.mean_probability_difference <= bound:
            sha256 = hash_weights(folder)
            return Proof(dtype=dtype, bound=bound, parity=parity, adapter_effect=effect, sha256=sha256)
    raise ModelError(f"the merged model is not equal to base and adapter: {parity.describe()} (allowed: {bound:g})")


def write_card(folder: Path, *, name: str, proof: Proof) -> None:
    """Write README.md beside an exported model: what it is, and the proof."""
    words = proof.describe()
    lines = ["---", f"base_model: {name}", "pipeline_tag: text-generation", "---", "", f"# {folder.name}", ""]
    lines += [f"Written by `aha export {name}`. {words[0].upper()}{words[1:]}.", ""]
    lines += [f"sha256 of the weights: `{proof.sha256}`. The licence of the source applies.", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
