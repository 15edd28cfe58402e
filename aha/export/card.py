"""The model card: README.md beside a model, whose first lines are Hugging Face's metadata.

A run's own model and an exported one have the same card: what it came from and under which licence, how it was trained
and on what, what it scored, what it cost, and the proof that it is what it was written from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCardData

from aha.cost.files import write_atomic
from aha.errors import DataError
from aha.export.proof import Proof
from aha.export.provenance import Provenance, find_run, read_provenance

Form = Literal["run", "hf", "fp8", "gguf", "adapter"]
"""A run's model/, or one of the forms of an export."""
# How Hugging Face's model page files a copy under its base: https://huggingface.co/docs/hub/model-cards#specifying-a-base-model
_RELATION = {"run": "finetune", "hf": "finetune", "fp8": "quantized", "gguf": "quantized", "adapter": "adapter"}
_LIBRARY = {"run": "transformers", "hf": "transformers", "fp8": "transformers", "adapter": "peft"}


def write_run_card(run_folder: Path) -> None:
    """Write model/README.md of a finished run from the files of its folder; again gives the same."""
    provenance = read_provenance(str(run_folder), source=run_folder / "model")
    proof = _merge_proof(run_folder)
    if proof:
        proof += " The adapter alone lies beside this folder as `adapter/`."
    _write(run_folder / "model", title=run_folder.name, provenance=provenance, form="run", proof=proof)


def write_card(folder: Path, *, name: str, source: Path, form: Form, proof: str, sha256: str) -> None:
    """Write README.md beside an exported model.

    Args:
        name: the MODEL that was exported, as the user named it.
        source: the folder that it led to.
        proof: what was measured, in words.
        sha256: of the written weights.
    """
    text = f"{_sentence(proof)}\n\nsha256 of the {'file' if form == 'gguf' else 'weights'}: `{sha256}`."
    provenance = read_provenance(name, source=source)
    run = find_run(source)
    if run is not None and source.name == "model" and (merged := _merge_proof(run)):
        text = f"{merged}\n\n{text}"
    _write(folder, title=(run or Path(name)).name, provenance=provenance, form=form, proof=text)


def _write(folder: Path, *, title: str, provenance: Provenance, form: Form, proof: str) -> None:
    parts = [_front_matter(provenance, form=form), f"# {title}", _introduction(provenance, form=form)]
    parts += [f"## {heading}\n\n{text}" for heading, text in provenance.sections.items()]
    if proof:
        parts.append(f"## Proof\n\n{proof}")
    write_atomic(folder / "README.md", text="\n\n".join(parts) + "\n")


def _front_matter(provenance: Provenance, *, form: Form) -> str:
    """Hugging Face's metadata: only ids that exist there, only what is known.

    Scores stay out of `model-index`: it wants a dataset of the Hub, and our tasks draw their problems themselves.
    """
    others: dict[str, Any] = {"license_name": provenance.licence_name, "license_link": provenance.licence_link}
    if provenance.base_models and (form != "hf" or provenance.is_trained):
        others["base_model_relation"] = _RELATION[form]
    tags = ["aha", *provenance.tags, *(["gguf"] if form == "gguf" else [])]
    values = {
        "license": provenance.licence,
        **others,
        "base_model": list(provenance.base_models),
        "datasets": list(provenance.datasets),
        "language": list(provenance.languages),
        "library_name": _LIBRARY.get(form, ""),
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(tags)),
    }
    data = ModelCardData(**{key: value for key, value in values.items() if value})
    return f"---\n{data.to_yaml().strip()}\n---"


def _introduction(provenance: Provenance, *, form: Form) -> str:
    name = Path(provenance.name).name if Path(provenance.name).is_absolute() else provenance.name
    what = {
        "run": "Trained by `aha train`.",
        "hf": f"Written by `aha export {name} --to hf`, for transformers, vLLM and SGLang.",
        "fp8": f"Written by `aha export {name} --to hf` with its layers' matrices in FP8, as DeepSeek-V3 is published.",
        "gguf": f"Written by `aha export {name} --to gguf`, for llama.cpp, Ollama and their kin.",
        "adapter": f"Written by `aha export {name} --to hf --adapter`, for PEFT; it needs its base.",
    }[form]
    return f"{what}\n\n- Base model: {provenance.base}\n- Licence: {provenance.licence_words}"


def _merge_proof(run_folder: Path) -> str:
    """How the run's adapter was merged; "" for a run without one."""
    path = run_folder / "merge.json"
    try:
        return _sentence(Proof.from_json(path.read_text(encoding="utf-8")).describe()) if path.exists() else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}") from None


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:].rstrip('.')}."
