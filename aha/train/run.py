"""A run: one folder of plain files, checkpoints written atomically, resumed exactly."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aha import hub
from aha.chat import ChatFormat
from aha.errors import DataError, ModelError
from aha.models import DType, Transformer, load_model, merge
from aha.train.adapter import load_adapter, save_weights
from aha.train.optimizer import Optimizer

FORMAT_VERSION = 1
"""Raised when a run folder of an older version can no longer be resumed."""
_CHECKPOINT = re.compile(r"step_(\d{6,})")


class Checkpoint(NamedTuple):
    """What a stopped run needs to go on as if nothing had happened."""

    step: int
    """Steps that are finished."""
    state: dict[str, Any]
    """The job's own JSON state: stage, cursor, the bill so far."""
    jsonl_bytes: dict[str, int]
    """How long each log was: what a killed run appended after that is cut off, and written again."""


@dataclass(frozen=True)
class Run:
    """A run folder that this process writes.

    Every draw of a run is a function of (seed, step, index), so a checkpoint holds no generator state: the weights,
    the optimiser's moments, the cursor into the problems and the totals are all there is.
    """

    folder: Path

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def data_folder(self, stage_name: str) -> Path:
        """Where a stage puts the dataset that it collects."""
        return self.folder / "data" / stage_name

    def find_data(self, name: str) -> Path:
        """What a recipe's `data` names: an earlier stage of this run, or else a path."""
        folder = self.data_folder(name)
        return folder if folder.exists() else Path(name)

    @property
    def logs(self) -> list[Path]:
        """Files that are only appended to: a resumed run cuts them back to its checkpoint."""
        return sorted([*self.folder.glob("*.jsonl"), *self.folder.glob("data/*/*.jsonl")])

    @property
    def ledger_id(self) -> str:
        """The run's name in the ledger: its folder as it was given."""
        return str(self.folder)

    @property
    def uid(self) -> str:
        """What tells the run from every other in the ledger, as long as its folder lives; a new one without run.json.

        A copy of the folder is another run, and gets another one: its place is part of it.
        """
        place = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:12]
        try:
            known = str(json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["run_uid"])
        except (OSError, ValueError, KeyError, TypeError):
            known = ""
        return known if known.endswith(f"-{place}") else f"{secrets.token_hex(10)}-{place}"

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        write_text_atomically(self.folder / name, text)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file atomically."""
        write_text_atomically(self.folder / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows to a JSONL file and have them on disk before returning."""
        path = self.folder / name
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _writing(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def save_checkpoint(
        self,
        model: Transformer,
        optimizer: Optimizer | None,
        *,
        step: int,
        state: dict[str, Any],
        chat: ChatFormat | None = None,
    ) -> Path:
        """Write checkpoints/step_N, complete or not at all, and drop all but the last two.

        Args:
            optimizer: None for a stage that has none.
            chat: saved beside the weights, so that the checkpoint is a model that can be talked to; None leaves it out.

        Raises:
            AhaError: the disk or the permissions refuse it; the checkpoints before it are left as they were.
        """
        final = self.folder / "checkpoints" / f"step_{step:06d}"
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        # JSONL files are appended after the step they tell of: their sizes now are where a resumed run cuts them.
        sizes = {str(p.relative_to(self.folder)): p.stat().st_size for p in self.logs}
        content = {"format": FORMAT_VERSION, "step": step, "jsonl_bytes": sizes, "state": state}
        try:
            with _writing(final):
                temporary.mkdir(parents=True)
                save_weights(model, temporary)
                if chat is not None:
                    chat.save(temporary)
                state_tensors = optimizer.state_tensors() if optimizer is not None else {}
                tensors = {name: tensor.detach().contiguous() for name, tensor in state_tensors.items()}
                save_file(tensors, temporary / "optimizer.safetensors")
                (temporary / "state.json").write_text(json.dumps(content), encoding="utf-8")
                for path in (*temporary.iterdir(), temporary):
                    _sync(path)
                if final.exists():
                    shutil.rmtree(final)
                os.rename(temporary, final)
                _sync(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in list_checkpoints(self.folder)[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest_checkpoint(self) -> Checkpoint | None:
        """Where the run was stopped, or None when nothing was saved yet.

        Raises:
            DataError: a checkpoint of another version, or one that cannot be read.
        """
        for path in self.folder.glob("checkpoints/.step_*"):  # what a killed process was writing
            shutil.rmtree(path, ignore_errors=True)
        saved = list_checkpoints(self.folder)
        if not saved:
            return None
        newest = saved[-1]
        try:
            state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
            if state["format"] != FORMAT_VERSION:
                raise DataError(f"{newest} has format {state['format']}, this version of aha resumes {FORMAT_VERSION}")
            return Checkpoint(int(state["step"]), dict(state["state"]), dict(state["jsonl_bytes"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{newest} cannot be read ({error}); delete it to resume from the one before") from None

    def restore(self, checkpoint: Checkpoint, model: Transformer, optimizer: Optimizer | None) -> None:
        """Load a checkpoint into the model and optimiser, and cut the JSONL files back to it.

        Raises:
            DataError: the checkpoint cannot be read.
        """
        folder = self.folder / "checkpoints" / f"step_{checkpoint.step:06d}"
        try:
            tensors = load_file(folder / "optimizer.safetensors")
            load_parameters(model, folder)
        except (OSError, SafetensorError, ModelError) as error:
            raise DataError(f"{folder} cannot be read ({error}); delete it to resume from the one before") from None
        if optimizer is not None:
            optimizer.load_state_tensors(tensors)
        for path in self.logs:
            kept = checkpoint.jsonl_bytes.get(str(path.relative_to(self.folder)), 0)
            os.truncate(path, min(path.stat().st_size, kept))

    def clear_logs(self) -> None:
        """Empty the logs of a run that starts over."""
        for path in self.logs:
            path.unlink()


def load_parameters(model: Transformer, folder: Path) -> None:
    """Copy the weights of a folder into a model of the same shape; with LoRA, those of its adapter."""
    if model.lora is not None:
        load_adapter(model, folder)
        return
    dtype: DType = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    other = load_model(folder, dtype=dtype, device="cpu", resolve=hub.resolve)
    if other.lora is not None:
        merge(other)  # as where the run began with that adapter
    # Buffers too: the selection biases of experts are moved by training and are no parameters.
    loaded = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data.copy_(loaded[name].data)
    model.weight_version += 1


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = {p: _CHECKPOINT.fullmatch(p.name) for p in (folder / "checkpoints").glob("step_*")}
    return sorted((p for p, match in found.items() if match), key=lambda p: int(p.name.removeprefix("step_")))


def new_run_folder(parent: Path, name: str) -> Path:
    """runs/NAME, or runs/NAME-2, … when it is taken: a run never overwrites another."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"cannot make the run folder {folder}: {reason}; choose another with --out") from None
        else:
            return folder


def write_text_atomically(path: Path, text: str) -> None:
    """A file is the old text or the new one, never a part.

    Raises:
        DataError: the disk or the permissions refuse it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that refuses is the user's to mend, and costs only what came after the last checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot write {path}: {reason}; mend that, then go on with --resume") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_run(status: str, *, run_uid: str) -> dict[str, Any]:
    """The content of run.json: where the run stands, and on what it ran."""
    return {
        "format": FORMAT_VERSION,
        "run_uid": run_uid,
        "aha_version": metadata.version("aha"),
        "torch_version": torch.__version__,
        "status": status,
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
