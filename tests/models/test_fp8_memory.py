"""Reading a folder in FP8 needs the model's memory, its largest tensor's, and little more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aha.models import ModelConfig, build_model, save_model

MiB = 1 << 20
WIDE = ModelConfig(
    model_type="llama",
    vocab_size=64,
    hidden_size=4096,
    intermediate_size=16_384,
    num_layers=2,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=64,
)
"""Matrices of 67 million numbers: in float32, as which a whole one could be dequantised, 268 MB."""
PROGRAM = """
import sys, threading, time
from pathlib import Path
from aha.models import load_model
# Of memory that is the process's own: pages of the mapped file are given back when somebody needs them.
def own_bytes():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

before, peak, is_done = own_bytes(), 0, False
def watch():
    global peak
    while not is_done:
        peak = max(peak, own_bytes())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
model = load_model(sys.argv[1], dtype="bfloat16", device="cpu")
is_done = True
thread.join()
print(peak - before, 2 * model.num_parameters())
"""


@pytest.mark.slow
def test_dequantising_needs_little_more_than_the_model(tmp_path: Path) -> None:
    model = build_model(WIDE, dtype="bfloat16", device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    save_model(model, folder=tmp_path, form="fp8")
    del model
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=600
    )
    peak_bytes, model_bytes = map(int, done.stdout.split())
    largest_bytes = 2 * WIDE.intermediate_size * WIDE.hidden_size
    assert peak_bytes <= model_bytes + largest_bytes + 300 * MiB
