"""The live report: on this machine only, and as the run stands now."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from aha.errors import ConfigError
from aha.report import serve_live


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "status": "running"}))
    return tmp_path


def test_page_shows_the_run_as_it_stands_and_asks_to_be_loaded_again(folder: Path) -> None:
    with serve_live(folder, port=0) as address:
        assert address.startswith("http://127.0.0.1:")
        first = httpx.get(address)
        assert (first.status_code, first.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert 'http-equiv="refresh" content="5"' in first.text
        row = {"kind": "step", "step": 7, "reward_mean": 0.5, "time_seconds": 1.0, "cost_usd": 0.0}
        # A line that is still being written may not spoil the page.
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"kind": "st')
        page = httpx.get(address).text
        assert "7 steps" in page
        assert "This run is going on; the page renews itself. The last step on record is 7." in page
        (folder / "run.json").write_text(json.dumps({"format": 1, "status": "finished"}))
        assert 'http-equiv="refresh"' not in httpx.get(address).text
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def test_nothing_else_is_served_and_nobody_else(folder: Path) -> None:
    with serve_live(folder, port=0) as address:
        assert httpx.get(address + "recipe.toml").status_code == 404
        assert httpx.get(address + "../metrics.jsonl").status_code == 404
        assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 403
        assert httpx.post(address).status_code == 501


def test_folder_without_a_run_yet_says_so(tmp_path: Path) -> None:
    with serve_live(tmp_path / "none", port=0) as address:
        answer = httpx.get(address)
        assert answer.status_code == 503
        assert "not yet" in answer.text


def test_port_in_use_is_refused_with_the_fix(folder: Path) -> None:
    with serve_live(folder, port=0) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"), serve_live(folder, port=port):
            pass


def test_page_of_a_run_that_is_just_beginning_asks_to_be_loaded_again(tmp_path: Path) -> None:
    with serve_live(tmp_path / "none", port=0) as address:
        assert httpx.get(address).headers["refresh"] == "5"


def test_reader_that_goes_away_says_nothing_on_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_pipe(*_: object, **__: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("aha.report.live.render", break_pipe)
    with serve_live(folder, port=0) as address, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(address)
    assert capfd.readouterr().err == ""


def test_log_that_is_taken_away_meanwhile_breaks_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("aha.report.live.read_folder", vanish)
    with serve_live(folder, port=0) as address:
        assert httpx.get(address).status_code == 503
