"""The benchmarks: what they print, how they choose, and that every side runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize
from gguf.quants import dequantize

from aha.models import ModelConfig, build_model
from aha.models.tokenizer import build_tokenizer, save_tokenizer
from aha.types import Completion, FinishReason, Rollout, RolloutGroup, Score
from bench import llama_cpp
from bench.child import Measurement, MeasurementError, run_child, run_command
from bench.gemm import measure_products
from bench.machine import describe_machine
from bench.prompts import equal_prompts
from bench.rewards import Tally, chosen_task
from bench.sweep import pick_fastest
from bench.table import Row, to_json, to_markdown

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one layer with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "random"
    config = ModelConfig(
        model_type="llama", vocab_size=build_tokenizer().get_vocab_size(), hidden_size=32, intermediate_size=48,
        num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, max_position_embeddings=512, eos_token_ids=(4,),
    )  # fmt: skip
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    model.save(folder)
    save_tokenizer(folder)
    return folder


def row(side: str, *figures: float, **fields: Any) -> Row:
    defaults: dict[str, Any] = {"what": "race", "settings": "fast", "unit": "tokens/s"}
    return Row(side=side, figures=figures, **{**defaults, **fields})


def test_table_compares_medians_with_the_first_row() -> None:
    ours, theirs = row("aha", 300.0, 100.0, 200.0, ceiling=400.0, peak_bytes=2**29), row("peer", 50.0, peak_bytes=2**30)
    lines = to_markdown([ours, theirs]).splitlines()
    assert lines[2] == "| race | aha | 200 tokens/s (100 to 300) |  | 0.50 GiB | 50% | fast |"
    assert lines[3] == "| race | peer | 50 tokens/s | 4.00x as fast | 1.00 GiB | – | fast |"
    assert to_json(theirs, ours=ours)["aha_share_of_its_memory"] == 0.5


def test_seconds_are_better_when_fewer() -> None:
    ours, theirs = row("aha", 2.0, unit="s/step", ceiling=0.5), row("peer", 7.0, unit="s/step")
    assert "3.50x as fast" in to_markdown([ours, theirs])
    assert ours.share_of_ceiling == 0.25


def test_table_gives_the_reason_of_a_side_that_was_not_measured() -> None:
    table = to_markdown([row("aha", 10.0), row("peer", problem="it is not installed")])
    assert "| race | peer | – | – | – | – | not measured: it is not installed |" in table


def test_sweep_keeps_the_fastest_value_of_each_axis_and_survives_failures() -> None:
    def measure(settings: Mapping[str, Any]) -> Measurement:
        if settings["dtype"] == "broken":
            raise MeasurementError("no kernel")
        seconds = {"a": 3.0, "b": 2.0}[settings["dtype"]] - settings["threads"] / 10
        return Measurement(seconds=(seconds,), num_tokens=1)

    axes = [("dtype", ("a", "b", "broken")), ("threads", (1, 2))]
    best, trials = pick_fastest({"dtype": "a", "threads": 1}, axes, measure=measure, label="peer")
    assert best == {"dtype": "b", "threads": 2}
    assert [trial.problem for trial in trials] == ["", "", "no kernel", ""]
    _, trials = pick_fastest({"dtype": "a", "threads": 1}, axes, measure=measure, label="peer", max_trials=2)
    assert len(trials) == 2


def test_sweep_fails_with_the_first_reason_when_nothing_can_be_measured() -> None:
    def measure(settings: Mapping[str, Any]) -> Measurement:
        raise MeasurementError(f"no {settings['dtype']}")

    with pytest.raises(MeasurementError, match="no a"):
        pick_fastest({"dtype": "a"}, [("dtype", ("b",))], measure=measure, label="peer")


def test_failed_command_gives_its_last_line() -> None:
    script = "import sys; print('warning', file=sys.stderr); sys.exit('the reason')"
    with pytest.raises(MeasurementError, match="failed: the reason"):
        run_command([sys.executable, "-c", script], num_threads=1, timeout_seconds=60, cwd=ROOT)
    with pytest.raises(MeasurementError, match="signal 9"):
        kill = "import os; os.kill(os.getpid(), 9)"
        run_command([sys.executable, "-c", kill], num_threads=1, timeout_seconds=60, cwd=ROOT)
    with pytest.raises(MeasurementError, match="cannot be started"):
        run_command(["no-such-program"], num_threads=1, timeout_seconds=60, cwd=ROOT)


def test_prompts_are_different_and_of_one_length(model_folder: Path) -> None:
    prompts = equal_prompts(model_folder, num_prompts=8)
    assert len({tuple(ids) for ids in prompts}) == 8
    assert len({len(ids) for ids in prompts}) == 1


def test_made_up_rewards_differ_and_repeat() -> None:
    task = chosen_task({"task": "arithmetic", "reward": "spread"})
    problem = next(task.problems("train", seed=0))
    completions = [Completion((i,), (0.0,), FinishReason.LENGTH) for i in range(64)]
    rewards = [task.score(problem, completion).reward for completion in completions]
    assert len(set(rewards)) == 64
    assert rewards == [task.score(problem, completion).reward for completion in completions]
    assert all(0 <= reward < 1 for reward in rewards)


def test_tally_counts_groups_whose_rewards_differ() -> None:
    problem = next(chosen_task({"task": "arithmetic", "reward": "task"}).problems("train", seed=0))

    def group(*rewards: float) -> RolloutGroup:
        completion = Completion((1, 2), (0.0, 0.0), FinishReason.STOP)
        return RolloutGroup(problem, (7, 8, 9), tuple(Rollout(completion, Score(r, r == 1)) for r in rewards))

    tally = Tally(group_size=2)
    tally.add_groups([group(0.0, 1.0), group(1.0, 1.0)])
    assert tally.summary() == {"teaching_fraction": 0.5, "mean_reward": 0.75, "mean_tokens": 2, "prompt_tokens": 3}
    assert tally.num_tokens == 8


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_ceiling_counts_every_matrix_of_the_model(model_folder: Path, dtype: str) -> None:
    job = {"folder": str(model_folder), "dtype": dtype, "num_rows": 3, "repetitions": 2, "has_head": True}
    found = measure_products(job)
    vocab_size = build_tokenizer().get_vocab_size()
    num_weights = 64 * 32 + 32 * 32 + 96 * 32 + 32 * 48 + vocab_size * 32
    assert found.details["gflops"] * min(found.seconds) == pytest.approx(2 * 3 * num_weights / 1e9)


def test_requantised_file_keeps_everything_but_the_kind_of_its_weights(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    writer = GGUFWriter(source, "llama")
    writer.add_name("mini")
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 3])
    writer.add_context_length(128)
    writer.add_tensor("norm", np.ones(4, dtype=np.float32))
    writer.add_tensor("w", quantize(weight, GGMLQuantizationType.Q4_1), raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    llama_cpp.requantise(source, target=target, kind="Q8_0")
    before, after = GGUFReader(source), GGUFReader(target)
    assert {n: f.contents() for n, f in after.fields.items() if not n.startswith("GGUF.")} == {
        n: f.contents() for n, f in before.fields.items() if not n.startswith("GGUF.")
    }
    norm, w = after.tensors
    assert w.tensor_type == GGMLQuantizationType.Q8_0
    original = dequantize(before.tensors[1].data, GGMLQuantizationType.Q4_1)
    np.testing.assert_allclose(dequantize(w.data, GGMLQuantizationType.Q8_0), original, atol=0.02)
    np.testing.assert_array_equal(norm.data, np.ones(4, dtype=np.float32))


def test_llama_cpp_is_left_out_with_a_reason(tmp_path: Path) -> None:
    assert "none of random" in llama_cpp.missing(tmp_path, folder=tmp_path / "random")
    assert "install" in llama_cpp.missing(tmp_path, folder=tmp_path / "smollm2")


def test_machine_is_described_in_plain_json() -> None:
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"]


@pytest.mark.slow
def test_child_reports_tokens_seconds_and_its_own_memory(model_folder: Path) -> None:
    prompts = equal_prompts(model_folder, num_prompts=2)
    job = {"folder": str(model_folder), "prompts": prompts, "num_tokens": 5, "dtype": "float32", "quantize": "none"}
    found = run_child("bench.rollouts:sample_with_aha", job, num_threads=1, timeout_seconds=300)
    assert found.num_tokens == 10
    assert found.seconds[0] > 0
    assert 50 * 2**20 < found.peak_bytes < 4 * 2**30


@pytest.mark.slow
def test_everything_runs_and_a_peer_that_is_not_there_is_named(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--model", str(model_folder), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [r["side"] for r in rows if "GRPO" in r["what"]] == ["aha", "TRL GRPOTrainer"] * 2
    for found in rows:
        is_measured = found["median"] is not None
        assert is_measured == (not found["problem"])
        if found["side"].startswith(("aha", "transformers")):
            assert is_measured, found["problem"]
    assert "not measured: its GGUF files are of smollm2" in done.stdout
    spread = next(r for r in rows if "every group teaches" in r["what"])
    assert spread["teaching_fraction"] == 1.0


def test_unknown_model_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.__main__ import main

    assert main(["--model", "no-such-model"]) == 2
    assert "unknown model 'no-such-model'" in capsys.readouterr().err
