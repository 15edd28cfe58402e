"""A model, written for other tools and proven equal to its source before anyone is told that it is there."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from aha import hub
from aha.chat import ChatFormat
from aha.errors import ConfigError, ModelError
from aha.export.card import Form as CardForm
from aha.export.card import write_card
from aha.export.proof import Proof
from aha.export.provenance import read_provenance, title_of
from aha.models import Form, Transformer, hash_weights, load_model, save_adapter, without_adapter
from aha.models.checkpoint import merged_tensors, stored_tensors
from aha.models.fp8_files import is_converted, is_ragged
from aha.models.parity import compare_models
from aha.types import Message

DTypeName = Literal["float32", "bfloat16"]
MAX_PROBABILITY_DIFFERENCE: dict[str, float] = {"float32": 1e-5, "bfloat16": 0.005}
"""Mean difference of the likeliest token's probability that merging an adapter may make, by dtype."""
MAX_BY_FP8_FORM: dict[Form, float] = {"fp8": 0.1, "fp8_ue8m0": 0.1}
"""The same for each form of FP8, against the model in float32: SmolLM2-135M moves by 0.047, the built-in by 0.02."""
MAX_BY_GGUF_KIND = {"f32": 1e-5, "bf16": 0.005, "f16": 0.005, "q8_0": 0.02}
"""The same for each type of gguf file, against the model in float32."""
_RAGGED = (
    "note: some matrices have a side that is no multiple of 128. The format allows it, but transformers 5 reads such a "
    "folder on a GPU only, and vLLM not across several GPUs."
)
PROBES = (
    "What is 12 + 30?",
    "Write one sentence about the sea.",
    "def fibonacci(n):",
    "Zähle drei Städte auf, ¿y cuáles son sus ríos? 日本",
)
"""What the source and its copy are both asked."""


def export(name: str, *, to: Literal["hf", "gguf"], out: Path, kind: str = "auto", keeps_adapter: bool = False) -> str:
    """Write a model as a folder for other tools; returns what was written and how it was proven, for people.

    Args:
        name: a MODEL as every verb takes it, or a .gguf file.
        to: "hf" is a Hugging Face folder, "gguf" a file for llama.cpp and its kin.
        out: folder to make; it must be new or empty.
        kind: how matrices are stored; "auto" is as the model has them. A gguf file: see GGUF_KINDS; a Hugging Face
            folder: "fp8" or "fp8_ue8m0", as DeepSeek-V3 and V3.1 are published.
        keeps_adapter: a LoRA run's adapter alone, in PEFT's layout, instead of the merged model.

    Raises:
        AhaError: no such model, a folder in use, or a copy that is not equal; nothing is left behind then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name a new one")
    if keeps_adapter and to == "gguf":
        raise ConfigError("--adapter keeps PEFT's layout, which is --to hf; a gguf file holds the merged model")
    is_fp8 = kind in MAX_BY_FP8_FORM
    if to == "hf" and not (is_fp8 or kind == "auto"):
        choices = ", ".join(MAX_BY_FP8_FORM)
        raise ConfigError(
            f"--type {kind} is for --to gguf; a Hugging Face folder keeps the model's dtype, or: {choices}"
        )
    if is_fp8 and (to == "gguf" or keeps_adapter):
        raise ConfigError(f"--type {kind} is for --to hf and a whole model")
    # Under another name until it is proven: a killed export leaves nothing that looks like a model.
    work = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    read = work.with_name(f"{work.name}.read")
    try:
        source = _read_gguf(Path(name), read) if name.endswith(".gguf") and Path(name).is_file() else hub.resolve(name)
        if to == "gguf":
            said = _export_gguf(name, source, work, kind=kind)
        else:
            said = _export_adapter(name, source, work) if keeps_adapter else _export_hf(name, source, work, kind=kind)
        os.rename(work, out)  # onto an empty folder, or none
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(read, ignore_errors=True)
    return said.replace(str(work), str(out))


def _read_gguf(path: Path, folder: Path) -> Path:
    """A GGUF file as a folder, which the copy is then proven equal to."""
    from aha.models.gguf import convert_gguf  # here, so that other exports do not wait for it

    origin = f"the file `{path.name}`"
    convert_gguf(path, folder=folder, base_model=path.stem, origin=origin, dtype="auto")
    return folder


def _export_hf(name: str, source: Path, out: Path, *, kind: str) -> str:
    model, chat = load_as_stored(source), ChatFormat.load(source)
    prompts = probe_prompts(chat, window=model.config.max_position_embeddings)
    if kind in MAX_BY_FP8_FORM:
        proof = write_fp8(model, out, form=kind, prompts=prompts)
        said = [_RAGGED] if any(is_ragged(name, view.shape) for name, view in stored_tensors(model)) else []
    else:
        proof, said = write_copy(model, out, prompts=prompts), []
    chat.save(out)
    form: CardForm = "fp8" if kind in MAX_BY_FP8_FORM else "hf"
    write_card(out, name=name, source=source, form=form, proof=proof.describe(), sha256=proof.sha256)
    return "\n".join([f"{out}: {proof.describe()}", *said])


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
    words = f"(sha256 {sha256[:12]}…), read back: {parity.describe()}"
    with (out / "adapter_model.safetensors").open("rb") as file:
        own_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    base = model.lora.base.folder
    write_card(
        out, name=name, source=source, form="adapter", proof=f"adapter for {base.name} {words}", sha256=own_sha256
    )
    return f"{out}: adapter for {base} {words}"


def _export_gguf(name: str, source: Path, out: Path, *, kind: str) -> str:
    from aha.models.gguf import convert_gguf
    from aha.models.gguf_writer import write_gguf

    chosen = ("bf16" if stored_dtype(source) == "bfloat16" else "f32") if kind == "auto" else kind
    # float32 holds what every file says exactly, so that only the type of the gguf file rounds.
    model, chat = load_model(source, dtype="float32", device="cpu", resolve=hub.resolve), ChatFormat.load(source)
    if model.config.vision is not None:
        raise ModelError(f"{name} sees pictures, and a gguf file would hold its language model alone; use --to hf")
    out.mkdir(parents=True, exist_ok=True)
    title = title_of(name)
    path = out / f"{title}-{chosen}.gguf"
    licence = read_provenance(name, source=source).licence
    write_gguf(model, path, tokenizer_folder=chat.folder, kind=chosen, name=title, licence=licence)
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
    write_card(out, name=name, source=source, form="gguf", proof=proof.describe(), sha256=sha256)
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
    except (OSError, ValueError, AttributeError, RecursionError):
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
    written = load_model(folder, dtype=dtype, device=str(model.device))
    parity = compare_models(model, written, prompts=prompts)
    _compare_tensors(model, written, folder=folder)
    if parity.max_logit_difference != 0:
        raise ModelError(f"the copy in {folder} is not equal to its source: {parity.describe()}")
    return Proof(dtype=dtype, bound=0.0, parity=parity, adapter_effect=None, sha256=hash_weights(folder))


def _compare_tensors(
    model: Transformer,
    written: Transformer,
    *,
    folder: Path,
    dtype: DTypeName | None = None,
    is_close: Callable[[str, Tensor, Tensor], bool] = lambda name, found, wanted: torch.equal(found, wanted),
) -> None:
    """Whether every tensor came back: the probes are text, and reach no eye, no draft and no idle expert.

    Args:
        dtype: what the tensors were rounded to; None: nothing.

    Raises:
        ModelError: naming the first tensor that did not.
    """
    found = dict(stored_tensors(written))
    for name, values in merged_tensors(model):
        wanted = values
        if dtype is not None and not name.endswith("e_score_correction_bias"):
            wanted = values.to(getattr(torch, dtype))
        if not is_close(name, found[name].float(), wanted.float()):
            raise ModelError(f"the copy in {folder} is not equal to its source: tensor {name!r} differs")


def _is_within_fp8(name: str, found: Tensor, wanted: Tensor) -> bool:
    """e4m3 keeps three bits behind the first, so that no rounding is as much as 1/16 of the largest value."""
    if not is_converted(name, wanted.shape):
        return torch.equal(found, wanted)
    return bool((found - wanted).abs().max() <= wanted.abs().max() / 16)


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
            _compare_tensors(model, merged, folder=folder, dtype=dtype)
            sha256 = hash_weights(folder)
            return Proof(dtype=dtype, bound=bound, parity=parity, adapter_effect=effect, sha256=sha256)
    raise ModelError(f"the merged model is not equal to base and adapter: {parity.describe()} (allowed: {bound:g})")


def write_fp8(model: Transformer, folder: Path, *, form: Form, prompts: Sequence[Sequence[int]]) -> Proof:
    """Write a model with its layers' matrices in FP8, read it back, and measure what the rounding did.

    Both are computed in float32, where that rounding is all there is to be seen.

    Raises:
        ModelError: it moved the probabilities too far.
    """
    model.save(folder, form=form)
    bound = MAX_BY_FP8_FORM[form]
    written = load_model(folder, dtype="float32", device=str(model.device))
    parity = compare_models(copy.deepcopy(model).float(), written, prompts=prompts)
    if parity.mean_probability_difference > bound:
        raise ModelError(f"in {form} the model is not equal to its source: {parity.describe()} (allowed: {bound:g})")
    _compare_tensors(model, written, folder=folder, is_close=_is_within_fp8)
    return Proof(dtype=form, bound=bound, parity=parity, adapter_effect=None, sha256=hash_weights(folder))
