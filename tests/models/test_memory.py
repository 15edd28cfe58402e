"""How much memory loading and saving take at their peak, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWANCE_MB = 300
"""Beside the model and its largest tensor; Python and torch are in it."""
BUILD = """
from aha.models import ExpertsShape, LatentAttentionShape, ModelConfig, build_model
config = ModelConfig(
    model_type="deepseek_v3", vocab_size=20_000, hidden_size=1024, intermediate_size=4096, num_layers=6, num_heads=8,
    num_kv_heads=8, head_dim=96, max_position_embeddings=64, rope_interleaved=True,
    mla=LatentAttentionShape(
        q_lora_rank=256, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
    ),
    experts=ExpertsShape(
        num_experts=32, num_experts_per_token=2, intermediate_size=512, num_shared_experts=1, scoring="sigmoid",
        has_selection_bias=True, first_layer=1,
    ),
)
model = build_model(config, dtype="bfloat16", device="cpu")
for values in (*model.parameters(), *model.buffers()):
    values.data.fill_(0.01)
"""
SAVE = BUILD + "model.save(folder)"
SHARDED = BUILD + "from aha.models import shards; shards.MAX_SHARD_BYTES = 60 * 10**6; model.save(folder)"
LOAD = """
from aha.models import load_model
model = load_model(folder, dtype=dtype, device="cpu")
"""
REPORT = """
import json, pathlib, re
from aha.models.checkpoint import stored_tensors
sizes = [values.numel() * values.element_size() for _, values in stored_tensors(model)]
# Not ru_maxrss: that begins with the peak of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"peak": peak, "model": sum(sizes), "largest": max(sizes)}))
"""


def excess_mb(program: str, *, folder: Path, dtype: str = "bfloat16") -> float:
    """Peak memory of a process beyond its model and the model's largest tensor."""
    settings = f"folder, dtype = {str(folder)!r}, {dtype!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", settings + program + REPORT], capture_output=True, text=True, check=True, timeout=300
    )
    sizes = json.loads(done.stdout)
    assert sizes["model"] > 400e6
    print(f"{sizes} -> {(sizes['peak'] - sizes['model'] - sizes['largest']) / 1e6:.0f} MB beyond")
    return float(sizes["peak"] - sizes["model"] - sizes["largest"]) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("save", [SAVE, SHARDED], ids=["whole", "sharded"])
def test_loading_and_saving_take_the_model_and_one_tensor(save: str, tmp_path: Path) -> None:
    saving_mb = excess_mb(save, folder=tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (save is SHARDED)
    loading_mb = excess_mb(LOAD, folder=tmp_path)
    converting_mb = excess_mb(LOAD, folder=tmp_path, dtype="float32")
    assert max(saving_mb, loading_mb, converting_mb) < ALLOWANCE_MB
