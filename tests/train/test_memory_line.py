"""The line about memory that every run begins with, and what a dry run says about LoRA."""

from __future__ import annotations

import re

import pytest

from aha.models.known import known_config
from aha.train.dry_run import dry_run, memory_line
from aha.train.grpo_config import GRPOConfig
from aha.train.sft import SFTConfig

SMOLLM2 = known_config("HuggingFaceTB/SmolLM2-135M-Instruct")


def peaks(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) GiB", line)]


def test_line_of_a_lora_run_compares_it_with_full_fine_tuning() -> None:
    config = SFTConfig(task="countdown", model="tiny", lora_rank=16, eval_problems=8, max_tokens=64)
    line = memory_line([config], model=SMOLLM2, dtype="bfloat16", is_cpu=True)
    with_lora, without, four_bit = peaks(line)
    assert with_lora < 0.5 * without
    assert "4.88 M parameters are trained" in line
    assert "4-bit base weights (QLoRA) would save 0.1 GiB more, but are not supported" in line
    assert four_bit == pytest.approx(106_168_320 * (2 - 0.516) / 2**30, abs=0.06)


def test_line_of_a_full_run_says_what_lora_would_take() -> None:
    config = GRPOConfig(task="countdown", model="tiny", eval_problems=8, max_tokens=64)
    line = memory_line([config], model=SMOLLM2, dtype="bfloat16", is_cpu=True)
    without, with_lora = peaks(line)
    assert line.startswith("memory: about ")
    assert "with lora_rank=16" in line
    assert with_lora < without
    scratch = SFTConfig(task="countdown", model="scratch", architecture="tiny")
    assert "lora" not in memory_line([scratch], model=SMOLLM2, dtype="float32", is_cpu=True)


def test_stage_with_the_largest_peak_decides() -> None:
    small = SFTConfig(task="countdown", model="tiny", eval_problems=8, max_tokens=64, micro_batch_tokens=512)
    large = SFTConfig(task="countdown", model="tiny", eval_problems=8, max_tokens=64, micro_batch_tokens=8192)
    lines = [memory_line(c, model=SMOLLM2, dtype="bfloat16", is_cpu=True) for c in ([small], [large], [small, large])]
    assert peaks(lines[0])[0] < peaks(lines[1])[0] == peaks(lines[2])[0]


def test_dry_run_lists_the_adapters_and_no_masters_of_the_base() -> None:
    text = dry_run("countdown", overrides=["lora_rank=8", "price=h100-hour"])
    assert "LoRA adapters (" in text
    assert "head's gradient" not in text
    assert "LoRA" not in dry_run("countdown", overrides=["price=h100-hour"])
