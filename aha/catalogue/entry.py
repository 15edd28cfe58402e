"""What models there are, and what one takes: parameters, memory, cache, price. Nothing is loaded and nothing executed.

Everything follows from a config.json, so it holds for models that are not known here and for those that cannot be run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aha import hub
from aha.catalogue.free_memory import GIB, FreeMemory
from aha.cost.prices import TokenPrice, moment_words, token_price
from aha.errors import ConfigError, ModelError
from aha.models.config import ModelConfig
from aha.models.config_files import parse_config
from aha.models.counts import (
    ParameterCounts,
    cache_bytes_per_token,
    count_parameters,
    fp8_weight_bytes,
    shared_matrices,
    weight_bytes,
)
from aha.models.json_file import read_json_object
from aha.models.known import KNOWN_CONFIGS, KNOWN_MODELS, KnownModel, find_known

PLANNED_TOKENS = 4096
"""Tokens of the one conversation that has to fit beside the weights."""
_RUNTIME_BYTES = {"RAM": GIB * 3 // 4, "GPU": GIB * 3 // 2}
"""Python and libraries (aha.train.machines)."""
_MAX_PARAMETERS = 10**18
_BUILT_IN_IDS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def planned_tokens(config: ModelConfig) -> int:
    """4,096, or its whole window where that is shorter."""
    return min(PLANNED_TOKENS, config.max_position_embeddings)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model: a row of the table."""

    name: str
    ids: tuple[str, ...]
    """Hugging Face ids that share this shape."""
    group: str
    """Title of the rows that stand together."""
    owner: str
    licence: str
    """Empty where it is not known."""
    verified: str
    """"real weights", "random weights" (equal to transformers' in the tests) or "config only"."""
    model_type: str
    config: ModelConfig | None
    """None: it cannot be read, `note` says why."""
    price: TokenPrice | None
    source: str
    """Where the configuration or the weights come from."""
    published_format: Literal["bfloat16", "float8"] = "bfloat16"
    """Of the weights as they are published, and of the products they are meant for."""
    note: str = ""
    folder: Path | None = None
    """Where it lies on this machine."""
    num_bytes: int | None = None
    """Of that folder, or of what a fetch would take."""

    @property
    def counts(self) -> ParameterCounts | None:
        return None if self.config is None else count_parameters(self.config)

    def needed_bytes(self, here: FreeMemory) -> int:
        """Weights in bfloat16, libraries, and the cache of one conversation of 4,096 tokens.

        On a CPU the engine multiplies with packed copies of what is no expert's, so those matrices lie in memory twice.
        """
        assert self.config is not None
        config, counts = self.config, count_parameters(self.config)
        cache = planned_tokens(config) * cache_bytes_per_token(config)
        needed = weight_bytes(config) + _RUNTIME_BYTES[here.kind] + cache
        if here.kind == "GPU":
            return needed
        return needed + 2 * (shared_matrices(config) + counts.embedding)

    def fits(self, here: FreeMemory) -> bool | None:
        """Whether it can be run in bfloat16 with the memory that is free; None where its size is not known."""
        return None if self.config is None else self.needed_bytes(here) <= here.num_bytes

    def to_dict(self, here: FreeMemory) -> dict[str, Any]:
        """The row for scripts; its keys are described in docs/models.md and stay."""
        config, counts, price = self.config, self.counts, self.price
        return {
            "name": self.name,
            "ids": list(self.ids),
            "family": self.group,
            "model_type": self.model_type,
            "licence": self.licence,
            "verified": self.verified,
            "num_parameters": counts and counts.total,
            "num_active_parameters": counts and counts.active,
            "num_mtp_parameters": counts and counts.mtp,
            "context_tokens": config and config.max_position_embeddings,
            "cache_bytes_per_token": config and cache_bytes_per_token(config),
            "bf16_bytes": config and weight_bytes(config),
            "fp8_bytes": config and fp8_weight_bytes(config),
            "needed_bytes": config and self.needed_bytes(here),
            "fits_here": self.fits(here),
            "here_free_bytes": here.num_bytes,
            "here": here.name,
            "price": price and _price_dict(price),
            "folder": self.folder and str(self.folder),
            "num_bytes": self.num_bytes,
            "source": self.source,
            "note": self.note,
        }


def list_entries(words: str = "") -> list[Entry]:
    """What is on this machine, then every known model; with words, those whose name or family has all of them."""
    local = [_local_entry(name) for name in dict.fromkeys([*hub.BUILT_IN, *_cached_names()])]
    wanted = words.lower().split()
    local = [e for e in local if all(word in " ".join((e.name, *e.ids, e.model_type)).lower() for word in wanted)]
    return [*local, *(_known_entry(model) for model in (find_known(words) if wanted else KNOWN_MODELS))]


def find_entry(name: str) -> Entry:
    """One model: a built-in name, a known id, a folder, a config.json, a run, or a Hugging Face id.

    Of a model on Hugging Face only config.json is downloaded. A configuration that asks for code is shown for planning;
    the code is not fetched.

    Raises:
        ModelError: nothing of that name, a family that is not supported, or a configuration that cannot be read.
    """
    if name in hub.BUILT_IN and not os.path.isdir(name):
        return _local_entry(name)
    if name in KNOWN_CONFIGS and not os.path.isdir(name):
        model = next(m for m in KNOWN_MODELS if name in m.configs)
        raw = model.configs[name]
        config, _ = _parse(raw, source=name)
        return replace(_known_entry(model), name=name, config=config, published_format=published_format(raw))
    is_config = os.path.isfile(name) and not name.endswith(".gguf")  # a gguf file gets hub's word on it
    path = Path(name) if is_config else hub.resolve(name, wants="config") / "config.json"
    return _file_entry(path, name=name)


def _file_entry(path: Path, *, name: str) -> Entry:
    base = ""
    if not path.is_file() and (path.parent / "adapter_config.json").is_file():
        base = str(read_json_object(path.parent / "adapter_config.json").get("base_model_name_or_path"))
        path = hub.resolve(base, wants="config") / "config.json"
    raw = read_json_object(path)
    config, note = _parse(raw, source=str(path))
    folder = path.parent
    weights = sorted(folder.glob("*.safetensors"))
    return Entry(
        name=name,
        ids=(),
        group="given",
        owner="",
        licence=_licence(folder),
        # What its class has been held against; these very weights have not been.
        verified="config only" if _refusals(raw) else "random weights",
        model_type=str(raw.get("model_type")),
        config=config,
        price=None,
        source=str(path),
        published_format=published_format(raw),
        note="; ".join(filter(None, (f"an adapter beside {base}" if base else "", note))),
        folder=folder if weights else None,
        num_bytes=sum(p.stat().st_size for p in weights) if weights else None,
    )


def _refusals(raw: Mapping[str, Any]) -> list[str]:
    """Why a folder with this configuration is not loaded, though its shape is known."""
    reasons = []
    if raw.get("auto_map"):
        why = "config.json names code (auto_map), which is not executed: shown for planning"
        reasons.append(f"{why}; delete the key in a copy to load it")
    if raw.get("quantization_config") and _quantised_as(raw) != "fp8":
        reasons.append(f"its weights are quantised ({_quantised_as(raw)}), which aha does not load")
    return reasons


def _quantised_as(raw: Mapping[str, Any]) -> str:
    quantised = raw.get("quantization_config")
    return str(quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?")[:40]


def published_format(raw: Mapping[str, Any]) -> Literal["bfloat16", "float8"]:
    """Of the weights that a config.json describes: FP8 in blocks, as DeepSeek publishes, or bfloat16."""
    return "float8" if _quantised_as(raw) == "fp8" else "bfloat16"


def _parse(raw: Mapping[str, Any], *, source: str) -> tuple[ModelConfig, str]:
    """The shape, and what stands in the way of running it."""
    notes = _refusals(raw)
    if raw.get("quantization_config") and _quantised_as(raw) == "fp8":
        notes.append("its weights are FP8 in blocks, which are read into the model's dtype")
    plain = {key: value for key, value in raw.items() if key not in ("auto_map", "quantization_config")}
    config = parse_config(plain, source=source)
    sizes = [value for value in vars(config).values() if isinstance(value, int)]
    if max(sizes) > 10**9:
        raise ModelError(f"{source}: {config.num_layers:,} layers of width {config.hidden_size:,} are no model's")
    if count_parameters(config).held > _MAX_PARAMETERS:
        raise ModelError(f"{source}: more than {_MAX_PARAMETERS:.0e} parameters are no model's")
    return config, "; ".join(notes)


def _known_entry(model: KnownModel) -> Entry:
    model_id, raw = next(iter(model.configs.items()))
    return Entry(
        name=model.name,
        ids=tuple(model.configs),
        group=model.family,
        owner=model.owner,
        licence=model.licence,
        verified=model.verified,
        model_type=str(raw["model_type"]),
        config=parse_config(raw, source=model_id),
        price=_price(model.price_id) if model.price_id else None,
        source=model.source,
        note=model.note,
    )


def _price(price_id: str) -> TokenPrice:
    """Today's price of that name; where none is known, the recorded one, with its dates: what it was sold for."""
    try:
        return token_price(price_id.partition("@")[0], on=datetime.now(UTC))
    except ConfigError:
        return token_price(price_id, on=datetime.now(UTC))


def _cached_names() -> list[str]:
    return sorted(path.name for path in hub.models_folder().glob("[!.]*") if hub.is_model(path))


def _local_entry(name: str) -> Entry:
    """A built-in or fetched model; one that cannot be read is listed with the reason."""
    known = hub.BUILT_IN.get(name, hub.BuiltIn(repository=name))
    folder = hub.built_in_folder(name)
    is_here = hub.is_model(folder)
    model_id = _BUILT_IN_IDS.get(name, "")
    config, model_type, note = None, "", "" if is_here else f"not here yet: aha models fetch {name}"
    try:
        raw = read_json_object(folder / "config.json") if is_here else KNOWN_CONFIGS[model_id]
        model_type = str(raw.get("model_type"))
        config, note = _parse(raw, source=name)[0], note
    except ModelError as error:
        note = str(error)
    files = [path for path in folder.iterdir() if path.is_file()] if is_here else []
    return Entry(
        name=name,
        ids=(model_id,) if model_id else (),
        group="on this machine",
        owner="",
        licence=_licence(folder) or known.licence,
        verified="real weights" if name in hub.BUILT_IN else "random weights",
        model_type=model_type,
        config=config,
        price=None,
        source=_origin(folder, known),
        note=note,
        folder=folder if is_here else None,
        num_bytes=sum(path.stat().st_size for path in files) if is_here else known.num_bytes,
    )


def _origin(folder: Path, known: hub.BuiltIn) -> str:
    """Where a fetched model came from, in words."""
    if (folder / hub.SOURCE_FILE).is_file():
        return str(read_json_object(folder / hub.SOURCE_FILE).get("source"))
    return f"https://huggingface.co/{known.repository}" if known.repository else "inside this package"


def _licence(folder: Path) -> str:
    """What the model card says, if there is one."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^license:\s*(\S+)", text, re.MULTILINE)
    return found[1][:40] if found else ""


def _price_dict(price: TokenPrice) -> dict[str, Any]:
    return {
        "price_id": price.price_id,
        "usd_per_million_input": price.pico_usd_per_input_token / 10**6,
        "usd_per_million_cached": price.pico_usd_per_cached_token / 10**6,
        "usd_per_million_output": price.pico_usd_per_output_token / 10**6,
        "effective_from": moment_words(price.effective_from),
        "effective_to": price.effective_to and moment_words(price.effective_to),
        "source": price.source,
        "source_date": price.source_date.isoformat(),
        "confidence": price.confidence,
    }
