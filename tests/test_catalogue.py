"""`aha models`: the table, one model in detail, JSON for scripts, and configurations that nobody should trust."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aha import catalogue, cli, hub
from aha.catalogue import FreeMemory, find_entry, list_entries, run_models
from aha.errors import AhaError, ConfigError, ModelError
from aha.models.known import KNOWN_CONFIGS, KNOWN_MODELS

KEYS = {
    "name", "ids", "family", "model_type", "licence", "verified", "num_parameters", "num_active_parameters",
    "num_mtp_parameters", "context_tokens", "cache_bytes_per_token", "bf16_bytes", "fp8_bytes", "needed_bytes",
    "fits_here", "here_free_bytes", "here", "price", "folder", "num_bytes", "source", "note",
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "find_free_memory", lambda: memory(64))


def memory(gigabytes: float, kind: str = "RAM") -> FreeMemory:
    return FreeMemory(kind=kind, name="a machine", num_bytes=int(gigabytes * 10**9))  # type: ignore[arg-type]


def write_config(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(LLAMA | changes), encoding="utf-8")
    return path


def test_table_has_every_known_model_and_fits_a_terminal() -> None:
    text = run_models([], form="text")
    for name in ["tiny", "smollm2", *(model.name for model in KNOWN_MODELS)]:
        assert f"  {name}  " in text, name
    assert all(len(line) <= 120 for line in text.splitlines())
    row = next(line for line in text.splitlines() if line.startswith("  DeepSeek-R1 "))
    assert row.split()[1:] == ["671.0B", "37.6B", "70.3", "1365.3", "684.9", "no", "random", "mit", "0.55/2.19"]
    assert "from 2025-01-20 to 2025-09-05T16:00Z [primary]" in text, "a price has its dates and its source"


def test_words_list_what_matches() -> None:
    names = [entry.name for entry in list_entries("qwen2.5 math")]
    assert names == ["Qwen2.5-Math-1.5B (-Instruct)", "Qwen2.5-Math-7B (-Instruct)", "Qwen2.5-Math-72B (-Instruct)"]
    assert "Qwen2.5-Math-7B" in run_models(["MATH", "7b"], form="text")
    assert next(entry.name for entry in list_entries("smollm2")) == "smollm2"


def test_name_as_the_table_writes_it_shows_one_model_in_any_case() -> None:
    assert run_models(["deepseek-r1"], form="text").startswith("model           DeepSeek-R1\n")
    assert json.loads(run_models(["Qwen3-8B", "(-Base)"], form="json"))["model_type"] == "qwen3"


def test_folder_called_like_a_family_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "qwen").mkdir()
    assert "Qwen3-8B" in run_models(["qwen"], form="text")


def test_table_and_detail_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["DeepSeek-R1"], ["tiny"]):
        assert max(len(line) for line in run_models(words, form="text").splitlines()) <= 80


def test_json_has_the_documented_keys_and_units() -> None:
    listed = json.loads(run_models([], form="json"))
    assert all(entry.keys() == KEYS for entry in listed)
    documented = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in documented for key in KEYS)
    r1 = json.loads(run_models(["deepseek-ai/DeepSeek-R1"], form="json"))
    assert r1["num_parameters"] == 671_026_404_352
    assert r1["cache_bytes_per_token"] == 61 * 576 * 2
    assert r1["price"]["usd_per_million_output"] == 2.19
    assert r1["price"]["effective_from"] == "2025-01-20"
    qwen = json.loads(run_models(["Qwen/Qwen2.5-7B-Instruct"], form="json"))
    assert (qwen["price"], qwen["context_tokens"]) == (None, 32_768)


@pytest.mark.parametrize("name", KNOWN_CONFIGS)
def test_every_known_id_is_shown_in_detail(name: str) -> None:
    text = run_models([name], form="text")
    assert text.startswith(f"model           {name}\n")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "fits here" in text


def test_model_fits_when_weights_cache_and_libraries_do() -> None:
    entry = find_entry("meta-llama/Llama-3.1-8B")
    # 16.06 GB of weights, 0.54 GB of cache for 4,096 tokens, 1.6 GB of libraries; on a CPU the packed copies too.
    assert entry.needed_bytes(memory(0, "GPU")) == pytest.approx(16.06e9 + 0.537e9 + 1.61e9, rel=0.001)
    assert entry.fits(memory(18.3, "GPU"))
    assert not entry.fits(memory(18.1, "GPU"))
    assert not entry.fits(memory(18.3, "RAM"))
    assert entry.fits(memory(33.0, "RAM"))


def test_built_in_models_say_where_they_lie_or_how_to_get_them() -> None:
    tiny, smollm2 = list_entries()[:2]
    assert tiny.folder is not None
    assert tiny.counts is not None
    assert 900_000 < tiny.counts.total < 1_100_000
    assert smollm2.folder is None
    assert smollm2.counts is not None
    assert smollm2.counts.total == 134_515_008
    assert smollm2.note == "not here yet: aha models fetch smollm2"


def test_any_configuration_is_shown_by_folder_or_by_file(tmp_path: Path) -> None:
    path = write_config(tmp_path / "own" / "config.json", num_key_value_heads=2, max_position_embeddings=512)
    (path.parent / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n", encoding="utf-8")
    for name in (str(path), str(path.parent), "own"):
        entry = find_entry(name)
        assert entry.counts is not None
        assert entry.counts.total == 2 * 128 * 64 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64
        assert entry.licence == "bsd-3-clause"
    assert "cache           256 bytes a token in bf16" in run_models([str(path)], form="text")


def test_run_is_shown_by_its_model(tmp_path: Path) -> None:
    write_config(tmp_path / "runs" / "mine" / "model" / "config.json")
    assert "parameters" in run_models(["mine"], form="text")


def test_adapter_is_shown_as_the_base_it_lies_beside(tmp_path: Path) -> None:
    write_config(tmp_path / "base" / "config.json")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}', encoding="utf-8")
    entry = find_entry("lora")
    assert entry.note == "an adapter beside base"
    assert entry.model_type == "llama"


def test_configuration_with_code_is_shown_for_planning_and_the_code_is_named(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "config.json", auto_map={"AutoModel": "x.Y"}, quantization_config={"quant_method": "fp8"}
    )
    entry = find_entry(str(path))
    note = entry.note
    assert entry.verified == "config only", "it is not loaded as it stands"
    assert "auto_map), which is not executed" in note
    assert "FP8 in blocks" in note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_oss"}, "unknown model_type 'gpt_oss'.*deepseek_v3.*internvl.*qwen3_moe"),
        ({"model_type": ["llama"]}, "unknown model_type"),
        ({"num_hidden_layers": 10**9}, "at most 10000 layers"),
        ({"hidden_size": 10**12, "head_dim": 4}, "are no model's"),
        ({"vocab_size": 10**9, "hidden_size": 10**9, "head_dim": 4, "intermediate_size": 10**9}, "are no model's"),
        ({"hidden_size": "64"}, "must be a whole number"),
        ({"num_attention_heads": 0}, "at least 1"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "unknown rope_type"),
    ],
)
def test_configuration_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_config(tmp_path / "config.json", **changes)
    started = time.perf_counter()
    with pytest.raises(ModelError, match=message) as caught:
        run_models([str(path)], form="text")
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800".encode("utf-8", "surrogatepass"), "[" * 100_000])
def test_file_that_is_no_configuration_is_one_clear_line(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=r"config\.json"):
        run_models([str(path)], form="text")


def test_gguf_file_is_sent_to_export(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x80")
    with pytest.raises(ModelError, match=r"m\.gguf is a file; make a folder of it: aha export m\.gguf --to hf DIR"):
        run_models(["m.gguf"], form="text")


def test_quantisation_that_is_not_read_is_said_to_be_for_planning_only(tmp_path: Path) -> None:
    path = write_config(tmp_path / "config.json", quantization_config={"quant_method": "awq"})
    entry = find_entry(str(path))
    assert (entry.verified, entry.note) == ("config only", "its weights are quantised (awq), which aha does not load")
    fp8 = write_config(tmp_path / "fp8" / "config.json", quantization_config={"quant_method": "fp8"})
    assert find_entry(str(fp8)).verified == "random weights"


def test_broken_model_in_the_cache_does_not_hide_the_others() -> None:
    broken = hub.models_folder() / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{", encoding="utf-8")
    entry = next(entry for entry in list_entries() if entry.name == "broken")
    assert "cannot be read" in entry.note
    assert "broken" in run_models([], form="text")
    assert json.loads(run_models([], form="json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fetch"], "names 0 models; write aha models fetch NAME"),
        (["fetch", "a", "b"], "names 2 models"),
        (["fetch", "smolm2"], "did you mean 'smollm2'"),
        (["remove"], "unknown model 'remove'.*aha models fetch NAME"),
        (["qwen", "9000b"], "unknown model 'qwen 9000b'.*words such as qwen"),
        (["nobody/nothing"], "no folder"),
        (["."], "neither a model folder"),
        (["gone/config.json"], "gone/config.json is not there"),
    ],
)
def test_what_is_not_there_is_refused_with_what_to_type(words: list[str], message: str) -> None:
    with pytest.raises(AhaError, match=message) as caught:
        run_models(words, form="text")
    assert isinstance(caught.value, ConfigError | ModelError)


def test_table_appears_without_torch_and_at_once() -> None:
    code = "import sys, aha.catalogue as c; c.run_models([], form='text'); sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0
    assert time.perf_counter() - started < 5, "half a second on an idle machine; the rest is room for a busy one"


def test_guide_does_what_it_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    commands = re.search(r"^```bash\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    program = re.search(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert commands
    assert program
    for line in commands[1].splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0, line
    Path("guide.py").write_text(program[1], encoding="utf-8")
    runpy.run_path("guide.py")
    total, active = map(int, capsys.readouterr().out.split()[-2:])
    assert 0 < active < total
