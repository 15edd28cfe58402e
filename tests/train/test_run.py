"""Run folders: atomic files, checkpoints that are complete or absent, and what is said when one is not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aha.errors import AhaError, DataError
from aha.models import Transformer
from aha.train import run as run_module
from aha.train.optimizer import Optimizer
from aha.train.run import Run, list_checkpoints, new_run_folder, write_text_atomically

MakeModel = Callable[..., Transformer]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def trained(model: Transformer) -> Optimizer:
    """An optimiser that has made a step, so that it has moments."""
    optimizer = Optimizer(model)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step(learning_rate=0.01)
    return optimizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoint_gives_back_weights_moments_state_and_logs(run: Run, make_model: MakeModel, dtype: str) -> None:
    model = make_model(dtype=dtype)
    optimizer = trained(model)
    run.append("metrics.jsonl", [{"step": 1}, {"step": 2}])
    run.save_checkpoint(model, optimizer, step=2, state={"stage_index": 0, "problem_cursor": 64})
    run.append("metrics.jsonl", [{"step": 3}])
    run.append("samples.jsonl", [{"step": 3}])

    other = make_model(dtype=dtype, seed=5)
    other_optimizer, version = Optimizer(other), other.weight_version
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    run.restore(checkpoint, other, other_optimizer)
    assert (checkpoint.step, checkpoint.state) == (2, {"stage_index": 0, "problem_cursor": 64})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert other.weight_version > version, "the engine must not go on with copies of other weights"
    restored = other_optimizer.state_tensors()
    assert optimizer.state_tensors().keys() == restored.keys()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in optimizer.state_tensors().items())
    # What was logged after the checkpoint will be logged again.
    assert (run.folder / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert (run.folder / "samples.jsonl").read_text() == ""


def test_last_two_checkpoints_are_kept_also_past_a_million_steps(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    optimizer = trained(model)
    for step in (2, 20, 999_999, 1_000_000):
        run.save_checkpoint(model, optimizer, step=step, state={})
    (run.folder / "checkpoints" / "reference_0").mkdir()
    assert [path.name for path in list_checkpoints(run.folder)] == ["step_999999", "step_1000000"]
    newest = run.newest_checkpoint()
    assert newest is not None
    assert newest.step == 1_000_000


def test_run_without_checkpoint_has_none(run: Run) -> None:
    assert run.newest_checkpoint() is None


def test_unfinished_checkpoint_of_a_killed_process_is_cleared_away(run: Run, make_model: MakeModel) -> None:
    run.save_checkpoint(make_model(), trained(make_model()), step=2, state={})
    torn = run.folder / "checkpoints" / ".step_000004.4711"
    torn.mkdir()
    (torn / "state.json").write_text("{")
    newest = run.newest_checkpoint()
    assert newest is not None
    assert newest.step == 2
    assert not torn.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_checkpoint_is_named_with_the_way_out(run: Run, make_model: MakeModel, name: str, damage: str) -> None:
    model = make_model()
    path = run.save_checkpoint(model, trained(model), step=4, state={}) / name
    os.truncate(path, path.stat().st_size // 2) if damage == "truncate" else path.unlink()
    with pytest.raises(DataError, match=r"step_000004 cannot be read .*; delete it to resume from the one before"):
        checkpoint = run.newest_checkpoint()
        assert checkpoint is not None
        run.restore(checkpoint, make_model(), Optimizer(make_model()))


def test_checkpoint_of_another_version_is_refused(run: Run, make_model: MakeModel) -> None:
    path = run.save_checkpoint(make_model(), trained(make_model()), step=4, state={}) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(DataError, match="has format 99, this version of aha resumes 1"):
        run.newest_checkpoint()


@pytest.mark.slow
def test_kill_while_a_checkpoint_is_written_leaves_the_one_before(run: Run, make_model: MakeModel) -> None:
    """Another process is killed between the files of its second checkpoint."""
    program = f"""
import os, signal, sys
from pathlib import Path
from aha.models import load_model
from aha.train import run as run_module
from aha.train.optimizer import Optimizer
model = load_model(Path({str(run.folder / "base")!r}), dtype="float32", device="cpu")
run, optimizer = run_module.Run(Path({str(run.folder)!r})), Optimizer(model)
run.save_checkpoint(model, optimizer, step=1, state={{"ok": True}})
run_module.save_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run.save_checkpoint(model, optimizer, step=2, state={{}})
"""
    make_model().save(run.folder / "base")
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".step_000002") for path in (run.folder / "checkpoints").iterdir())
    newest = run.newest_checkpoint()
    assert newest is not None
    assert (newest.step, newest.state) == (1, {"ok": True})
    run.restore(newest, make_model(), Optimizer(make_model()))


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["save_file", "_sync"])
def test_full_disk_leaves_the_checkpoint_before_and_says_what_to_do(
    run: Run, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    model = make_model()
    optimizer = trained(model)
    run.save_checkpoint(model, optimizer, step=2, state={})
    monkeypatch.setattr(run_module, call, full)
    with pytest.raises(AhaError, match=r"cannot write .*step_000004: No space left on device; .*--resume"):
        run.save_checkpoint(model, optimizer, step=4, state={})
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step_000002"]


def test_full_disk_keeps_the_old_text_of_a_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_json("run.json", {"status": "running"})
    monkeypatch.setattr(run_module, "_sync", full)
    with pytest.raises(DataError, match=r"cannot write .*run.json: No space left on device"):
        run.write_json("run.json", {"status": "finished"})
    assert json.loads((run.folder / "run.json").read_text()) == {"status": "running"}
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


def test_full_disk_at_a_log_line_is_one_line_for_the_user(run: Run) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, the Linux device that is always full")
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        run.append("metrics.jsonl", [{"step": 1}])


def test_log_keeps_text_that_utf8_cannot(run: Run) -> None:
    run.append("samples.jsonl", [{"text": "a\udc80é\n"}])
    assert json.loads((run.folder / "samples.jsonl").read_text(encoding="utf-8")) == {"text": "a\udc80é\n"}


def test_second_run_of_a_name_gets_a_number(tmp_path: Path) -> None:
    names = [new_run_folder(tmp_path / "runs", "countdown").name for _ in range(3)]
    assert names == ["countdown", "countdown-2", "countdown-3"]


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the run folder .*; choose another with --out"):
        new_run_folder(tmp_path / "file", "countdown")


def test_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text_atomically(path, "one")
    write_text_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]
