"""Numbers of GPUs and of sequences that divide badly: GPUs idle, steps wait, and the bill says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aha.estimate.hardware import find_gpu
from aha.estimate.shape import find_shape
from aha.estimate.training import UNPRICED, TrainingBill, TrainingRun, bill_training
from aha.estimate.training.bill import usual_batch_tokens
from aha.estimate.training.layout import Layout
from aha.estimate.training.layout_search import usable_counts


def bill(name: str, *, num_gpus: int, gpu: str = "h800", **changes: object) -> TrainingBill:
    shape, device = find_shape(name), find_gpu(gpu)
    run = TrainingRun(tokens=1e12, gpu=device, num_gpus=num_gpus, precision=shape.natural_format(device))
    return bill_training(shape.config, run=replace(run, **changes), price=UNPRICED)  # type: ignore[arg-type]


def idle_share(found: TrainingBill) -> float:
    return sum(term.seconds_per_token for term in found.terms if term.name == "idle GPUs") / found.gpu_seconds_per_token


@pytest.mark.parametrize("num_nodes", [250, 255, 257, 263])
def test_a_node_more_than_divides_well_idles_and_does_not_make_the_run_slower(num_nodes: int) -> None:
    fewer = bill("DeepSeek-V3", num_gpus=8 * (num_nodes // 64 * 64))
    found = bill("DeepSeek-V3", num_gpus=8 * num_nodes)
    assert found.wall_hours <= 1.02 * fewer.wall_hours  # 2 %: a batch of as many sequences a GPU is not quite as large
    assert found.layout.num_gpus <= found.run.num_gpus
    paid = found.step_seconds * found.run.num_gpus
    assert paid == pytest.approx(found.step_gpu_seconds_per_token * found.batch_tokens)


def test_gpus_that_divide_well_never_idle() -> None:
    assert usable_counts(2048) == [2048]
    assert usable_counts(384) == [384]
    assert usable_counts(1) == [1]
    assert usable_counts(2056)[:2] == [2056, 2048]
    assert idle_share(bill("DeepSeek-V3", num_gpus=2048)) == 0
    assert idle_share(bill("DeepSeek-V3", num_gpus=2056)) > 0


def test_a_step_waits_for_the_copies_that_have_a_sequence_more() -> None:
    # 64 copies and 96 sequences: half of the copies have two, and the others wait for as long as one takes.
    layout = Layout(data=64, zero=3, recomputation="full")
    even, uneven = (
        bill("Llama-3.1-8B", gpu="h100", num_gpus=64, layout=layout, batch_tokens=count * 4096) for count in (128, 96)
    )
    waiting = next(term for term in uneven.terms if term.name == "uneven batch")
    assert not any(term.name == "uneven batch" for term in even.terms)
    assert waiting.seconds_per_token / even.step_gpu_seconds_per_token == pytest.approx(1 / 3, rel=0.02)
    # The step is as long as that of two sequences each.
    assert uneven.step_seconds == pytest.approx(even.step_seconds, rel=0.01)


@pytest.mark.parametrize(("num_gpus", "sequence_tokens"), [(1536, 4096), (7, 4096), (1536, 3000), (24, 4096)])
def test_usual_batch_is_whole_sequences_for_every_gpu(num_gpus: int, sequence_tokens: int) -> None:
    run = TrainingRun(tokens=1e12, gpu=find_gpu("h100"), num_gpus=num_gpus, sequence_tokens=sequence_tokens)
    tokens = usual_batch_tokens(find_shape("Llama-3.1-8B").config, run=run)
    assert tokens % (num_gpus * sequence_tokens) == 0
    assert 2**18 < tokens <= 2**24


def test_gpus_are_named_in_any_case() -> None:
    assert find_gpu("H800") is find_gpu("h800")
    assert find_gpu("A100-40GB") is find_gpu("a100-40gb")
