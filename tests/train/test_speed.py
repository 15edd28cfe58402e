"""Operations of an update, counted by hand on a model whose sizes are round."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aha.models import Transformer
from aha.train.batches import TrainingSequence
from aha.train.machines import peak_teraflops
from aha.train.speed import active_body_parameters, peak_memory_bytes, speed_metrics, training_flops

from .conftest import VOCAB_SIZE

MakeModel = Callable[..., Transformer]


def test_operations_are_six_a_parameter_and_token_and_twelve_a_visible_key(make_model: MakeModel) -> None:
    model = make_model(vocab_size=100, hidden_size=8, intermediate_size=10, num_layers=1, num_heads=2, head_dim=4)
    # Queries, keys, values and output 4 x 8 x 8 (2 key heads of 4), the feed-forward 3 x 8 x 10.
    body, head = 4 * 64 + 240, 800
    sequences = [TrainingSequence((1, 2, 3), (4, 5)), TrainingSequence((1, 2, 3), (6, 7, 8))]
    attention = 12 * 8 * (5 * 5 + 6 * 6) / 2
    # Together the prompt is computed once: 8 tokens; apart it is computed twice: 11.
    assert training_flops(model, sequences, micro_batch_tokens=100) == 6 * (8 * body + 5 * head) + attention
    assert training_flops(model, sequences, micro_batch_tokens=1) == 6 * (11 * body + 5 * head) + attention


def test_operations_of_a_sparse_model_are_those_of_the_experts_that_a_token_meets(make_v3: MakeModel) -> None:
    model = make_v3()
    # MLA: queries 32 x 20 and 20 x 4 x 12, latent and rotated key 32 x 20, keys and values 16 x 4 x 18, output 40 x 32.
    attention = 32 * 20 + 20 * 48 + 32 * 20 + 16 * 72 + 40 * 32
    # The first layer is dense; of the others a gate, the shared expert and 2 of 8.
    sparse = 8 * 32 + (1 + 2) * 3 * 32 * 16
    body = 3 * attention + 3 * 32 * 48 + 2 * sparse
    assert active_body_parameters(model) == body
    head = VOCAB_SIZE * 32
    products = 6 * 3 * 4 * (12 + 10) * 5**2 / 2
    sequences = [TrainingSequence((1, 2, 3), (4, 5))]
    assert training_flops(model, sequences, micro_batch_tokens=100) == 6 * (5 * body + 2 * head) + products


def test_rates_are_tokens_by_the_seconds_of_their_phase(make_model: MakeModel) -> None:
    model = make_model()
    update = [TrainingSequence((1, 2), (3, 4, 5))]
    found = speed_metrics(
        model, [update, update], micro_batch_tokens=10, completion_tokens=30, rollout_seconds=2.0, train_seconds=3.0
    )
    assert found["tokens_per_second"] == pytest.approx(6.0)
    assert found["rollout_tokens_per_second"] == pytest.approx(15.0)
    assert found["train_tokens_per_second"] == pytest.approx(2.0)
    flops = 2 * training_flops(model, update, micro_batch_tokens=10)
    peak = peak_teraflops(torch.device("cpu"), dtype="float32")
    assert found["mfu"] == pytest.approx(flops / 3.0 / (peak * 1e12))


def test_peak_of_this_processor_is_measured_once() -> None:
    first = peak_teraflops(torch.device("cpu"), dtype="float32")
    assert 1e-3 < first < 1e3
    assert peak_teraflops(torch.device("cpu"), dtype="float32") == first


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [("NVIDIA H100 80GB HBM3", "bfloat16", 989.5), ("NVIDIA H200", "float32", 67.0), ("NVIDIA A10G", "bfloat16", None)],
)
def test_peak_of_a_gpu_is_that_of_its_data_sheet(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak_teraflops(torch.device("cuda:0"), dtype=dtype)  # type: ignore[arg-type]
    assert found == peak if peak is not None else found != found


def test_peak_memory_is_that_of_this_process() -> None:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(1024 * int(kib), rel=0.05)
