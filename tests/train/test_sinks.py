"""Metrics elsewhere: TensorBoard's files read back, W&B's three calls, and sinks that fail."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from aha.errors import ConfigError
from aha.train import train
from aha.train.sinks import check_sinks, open_sinks
from tests.train.conftest import FirstToken, rows


def read_events(folder: Path) -> Iterator[tuple[int, str, float]]:
    """(step, tag, value) of every scalar, from the records themselves: length, checksum, data, checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(recipe: Path, first_token: FirstToken, tmp_path: Path) -> None:
    folder = train(recipe, out=tmp_path / "out", track=["tensorboard"])
    events = {(step, tag): value for step, tag, value in read_events(folder / "tensorboard")}
    for row in rows(folder, "step"):
        assert events[row["step"], "reward_mean"] == pytest.approx(row["reward_mean"])
        assert events[row["step"], "cost_usd"] == pytest.approx(row["cost_usd"])
    first = rows(folder, "eval")[0]
    assert events[0, "eval/pass_at_1"] == pytest.approx(first["pass_at_1"])
    assert not any(tag.endswith("note") for _, tag in events)


class Recorder(ModuleType):
    """Stands for the module wandb: its network is what a test must not use."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[Any, ...]] = []
        self.fails = fails

    def init(self, **arguments: Any) -> None:
        self.calls.append(("init", arguments))

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        if self.fails:
            raise OSError("no route to host")
        self.calls.append(("log", step, numbers))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_wandb_gets_its_three_calls(
    recipe: Path, first_token: FirstToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(recipe, out=tmp_path / "out", track=["wandb"])
    assert wandb.calls[0][0] == "init"
    assert wandb.calls[0][1]["config"]["grpo"]["task"] == "first_token"
    assert [call[1] for call in wandb.calls if call[0] == "log" and "reward_mean" in call[2]] == [1, 2, 3]
    assert wandb.calls[-1] == ("finish",)


def test_sink_that_fails_is_dropped_with_a_word_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Recorder(fails=True))
    said: list[str] = []
    sinks = open_sinks(["wandb"], tmp_path, config={}, first_step=0, say=said.append)
    for step in (1, 2):
        sinks.log({"kind": "step", "step": step, "loss": 1.0})
    sinks.close()
    assert len(said) == 1
    assert "--track wandb failed and is dropped" in said[0]
    assert "no route to host" in said[0]


def test_missing_library_and_unknown_sink_are_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"--track wandb needs wandb or trackio; run: pip install 'aha\[wandb\]'"):
        check_sinks(["wandb"])
    with pytest.raises(ConfigError, match="unknown sink 'tensorbord'; did you mean 'tensorboard'"):
        check_sinks(["tensorbord"])


def test_run_has_the_same_id_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text hashes differ from process to process; after a kill the curves must go on under the same id."""
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    open_sinks(["wandb"], Path("/runs/a"), config={}, first_step=0, say=print)
    open_sinks(["wandb"], Path("/runs/b"), config={}, first_step=0, say=print)
    ids = [arguments["id"] for _, arguments in wandb.calls]
    assert ids == ["a-704e1951", "b-96e31d82"]


def test_sink_that_cannot_be_opened_is_dropped_with_a_word_too(
    recipe: Path, first_token: FirstToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(Recorder):
        def init(self, **arguments: Any) -> None:
            raise OSError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", Closed())
    folder = train(recipe, out=tmp_path / "out", track=["wandb", "tensorboard"])
    assert len(rows(folder, "step")) == 3
    assert list((folder / "tensorboard").iterdir())
