"""Experts' load: counted once, evened out by the selection bias and by the sequence-wise loss."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aha.models import ExpertsShape, Routing, Transformer
from aha.models.experts import Gate
from aha.train import grpo, sft
from aha.train.balance import (
    ExpertLoad,
    RoutedLayer,
    document_means,
    gates_of,
    load_metrics,
    move_biases,
    sequence_balance_loss,
)
from aha.train.batches import TrainingSequence, pack
from aha.train.grpo_config import GRPOConfig
from aha.train.job import Job
from aha.train.logprobs import packed_states
from aha.train.optimizer import Optimizer
from aha.train.sft import SFTConfig, accumulate_gradients
from aha.train.stage import scheduled_balance_speed

MakeModel = Callable[..., Transformer]


def routing(experts: list[list[int]], *, num_experts: int = 4) -> Routing:
    chosen_Nk = torch.tensor(experts)
    return Routing(chosen_Nk, torch.ones(chosen_Nk.shape), torch.full((len(experts), num_experts), 0.5))


def sequences(*, num: int = 9, seed: int = 0) -> list[TrainingSequence]:
    """Odd lengths; some prompts in common, some wholly, some in part; one with turns."""
    rng = random.Random(seed)
    found: list[TrainingSequence] = []
    for index in range(num):
        prompt = found[-1].prompt_ids if index % 3 == 1 else (1, 20, *(rng.randrange(300) for _ in range(index % 5)))
        completion = tuple(rng.randrange(300) for _ in range(rng.randrange(1, 9)))
        mask = tuple(place % 3 != 1 for place in range(len(completion))) if index % 4 == 2 else ()
        found.append(TrainingSequence(prompt, completion, is_sampled=mask))
    return found


def biases(model: Transformer) -> list[list[float]]:
    return [gate.selection_bias.tolist() for gate in gates_of(model)]


def test_bias_moves_by_gamma_against_the_load_and_stays_at_the_mean(make_v3: MakeModel) -> None:
    model = make_v3(num_layers=2, num_mtp_layers=1)
    (first, of_mtp), version = list(gates_of(model)), model.weight_version
    first.selection_bias.copy_(torch.arange(8) / 8)
    before_mtp = of_mtp.selection_bias.clone()
    load = ExpertLoad()
    # Two micro-batches: loads 3 2 2 2 2 2 2 1 of 16, mean 2.
    load.add([routing([[0, 1], [0, 2], [0, 3], [4, 5]], num_experts=8).expert_load()])
    load.add([routing([[6, 7], [1, 2], [3, 4], [5, 6]], num_experts=8).expert_load()])
    assert load.loads[0].tolist() == [3, 2, 2, 2, 2, 2, 2, 1]
    move_biases(model, load, speed=0.01)
    expected = torch.arange(8) / 8 + torch.tensor([-0.01, 0, 0, 0, 0, 0, 0, 0.01])
    torch.testing.assert_close(first.selection_bias, expected)
    assert first.selection_bias.dtype == torch.float32
    assert torch.equal(of_mtp.selection_bias, before_mtp), "a module that was not trained has no load"
    assert model.weight_version == version, "the optimiser's step raises it for both"


def test_load_of_a_step_does_not_depend_on_its_split_into_micro_batches(make_v3: MakeModel) -> None:
    """Prompts that sequences share are computed once in one micro-batch, and once each in several."""
    model = make_v3()
    assert model.config.experts is not None
    sharing = [TrainingSequence((8, 9, 10, 11), (20 + i, 30, 31)) for i in range(5)]
    loads = []
    for micro_batch_tokens in (1, 1000):
        load = ExpertLoad()
        accumulate_gradients(model, sharing, micro_batch_tokens=micro_batch_tokens, mtp_weight=0.3, load=load)
        loads.append(load.loads)
    assert all(torch.equal(split_E, whole_E) for split_E, whole_E in zip(*loads, strict=True))
    assert int(loads[0][0].sum()) == 5 * 7 * model.config.experts.num_experts_per_token


def test_softmax_experts_are_counted_and_not_balanced(make_v3: MakeModel) -> None:
    """Qwen3-MoE has no selection bias."""
    experts = ExpertsShape(
        num_experts=6, num_experts_per_token=2, intermediate_size=16, scoring="softmax", has_selection_bias=False
    )
    model = make_v3(
        model_type="qwen3_moe", mla=None, rope_interleaved=False, head_dim=8, num_kv_heads=2, experts=experts,
        num_mtp_layers=0, has_qk_norm=True,
    )  # fmt: skip
    load = ExpertLoad()
    losses = accumulate_gradients(model, sequences(), micro_batch_tokens=50, balance_loss_coef=0.5, load=load)
    assert losses.keys() == {"loss"}
    assert load_metrics([load])["expert_load_cv"] > 0
    assert not list(model.buffers())
    move_biases(model, load, speed=0.1)
    assert not list(model.buffers())


def test_speed_stops_after_its_share_of_the_steps_and_with_lora() -> None:
    config = SFTConfig(task="countdown", steps=10, balance_speed=0.25, balance_until=0.7)
    speeds = [scheduled_balance_speed(config, step=step) for step in range(10)]
    assert speeds == [0.25] * 7 + [0.0] * 3
    assert scheduled_balance_speed(replace(config, balance_until=0.0), step=0) == 0.0
    assert scheduled_balance_speed(replace(config, lora_rank=4), step=0) == 0.0
    assert scheduled_balance_speed(GRPOConfig(task="countdown"), step=0) == 0.0, "held in RL unless asked for"


def test_metrics_of_a_load_are_those_of_hand_counts() -> None:
    load = ExpertLoad()
    load.add([routing([[0, 1], [0, 1]]).expert_load(), routing([[0, 1], [2, 3]]).expert_load()])
    load.add([routing([[0, 2]]).expert_load(), routing([[0, 3]]).expert_load()])
    # Loads 3 2 1 0 (mean 1.5, deviation sqrt(1.25)) and 2 1 1 2 (deviation 0.5).
    found = load_metrics([load])
    worst, other = math.sqrt(1.25) / 1.5, 0.5 / 1.5
    assert found["expert_load_cv"] == pytest.approx((worst + other) / 2)
    assert found["expert_load_cv_worst"] == pytest.approx(worst)
    assert found["expert_max_violation"] == pytest.approx(3 / 1.5 - 1)
    assert found["unused_experts"] == 1


def slow_balance(scores: list[list[float]], *, num_chosen: int) -> float:
    """Equations 17 to 20 for one sequence and layer, in plain loops and without alpha."""
    length, num_experts = len(scores), len(scores[0])
    total = 0.0
    for i in range(num_experts):
        num_largest = sum(row[i] >= sorted(row, reverse=True)[num_chosen - 1] for row in scores)
        f = num_experts / (num_chosen * length) * num_largest
        p = sum(row[i] / sum(row) for row in scores) / length
        total += f * p
    return total


def test_sequence_balance_loss_equals_the_slow_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3, 4, 5]), torch.tensor([6])]
    layers = [
        RoutedLayer(
            Routing(torch.zeros(7, 2, dtype=torch.long), torch.ones(7, 2), torch.rand(7, 6, generator=generator)),
            document_means(rows, num_rows=7),
        )
        for _ in range(2)
    ]
    expected = sum(
        slow_balance(layer.routing.scores_NE[of_document].tolist(), num_chosen=2)
        for layer in layers
        for of_document in rows
    )
    assert sequence_balance_loss(layers, num_experts_per_token=2).item() == pytest.approx(expected, rel=1e-5)


def test_sequence_balance_loss_is_one_for_an_even_document() -> None:
    even = Routing(torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1), torch.eye(4) + 0.1)
    layer = RoutedLayer(even, document_means([torch.arange(4)], num_rows=4))
    assert sequence_balance_loss([layer], num_experts_per_token=1).item() == pytest.approx(1.0)
    one = RoutedLayer(even, document_means([torch.tensor([0])], num_rows=4))
    assert sequence_balance_loss([one], num_experts_per_token=1).item() > 3.0


def gradients(model: Transformer) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_balance_loss_does_not_depend_on_micro_batches(make_v3: MakeModel) -> None:
    model = make_v3()
    results = []
    for max_tokens in (10_000, 30, 1):
        losses = accumulate_gradients(
            model, sequences(), micro_batch_tokens=max_tokens, mtp_weight=0.3, balance_loss_coef=0.5
        )
        results.append((losses, gradients(model)))
    (whole, of_whole), *others = results
    assert whole["balance_loss"] > 1.0
    for losses, found in others:
        assert losses == pytest.approx(whole, rel=1e-5)
        for name, gradient in of_whole.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_gradient_of_the_balance_loss_is_that_of_each_document_alone(make_v3: MakeModel) -> None:
    model = make_v3(num_mtp_layers=0)
    chosen = sequences(num=5)
    batch = pack(chosen)
    routings: list[Routing] = []
    packed_states(model, batch, routings=routings)
    means_BN = document_means(batch.rows, num_rows=len(batch.token_ids_N))
    sequence_balance_loss([RoutedLayer(r, means_BN) for r in routings], num_experts_per_token=2).backward()
    found = gradients(model)
    total = 0.0
    for sequence in chosen:
        alone: list[Routing] = []
        packed_states(model, pack([sequence]), routings=alone)
        for each in alone:
            scores_TE = each.scores_NE
            largest = scores_TE >= scores_TE.topk(2, dim=-1).values[:, -1:]
            f_E = largest.float().mean(dim=0) * (8 / 2)
            total = total + (f_E * (scores_TE / scores_TE.sum(dim=-1, keepdim=True)).mean(dim=0)).sum()
    assert isinstance(total, Tensor)
    total.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_what_is_recomputed_is_counted_once(make_v3: MakeModel) -> None:
    model = make_v3()
    found = []
    for activations in ("keep", "recompute"):
        model.activations = activations
        load = ExpertLoad()
        losses = accumulate_gradients(
            model, sequences(), micro_batch_tokens=40, mtp_weight=0.3, balance_loss_coef=0.1, load=load
        )
        found.append((losses, [each.tolist() for each in load.loads], gradients(model)))
    (losses, loads, of_kept), (losses_again, loads_again, of_recomputed) = found
    assert loads == loads_again
    assert losses == losses_again
    assert len(loads) == 4, "two sparse layers and two modules of multi-token prediction"
    assert all(torch.equal(of_recomputed[name], gradient) for name, gradient in of_kept.items())


def skew(job: Job) -> None:
    """All gates prefer the first two experts, whatever they see."""
    for gate in gates_of(job.model):
        gate.selection_bias[:2] += 0.06


@pytest.mark.usefixtures("first_token")
@pytest.mark.parametrize("speed", [0.02, 0.0])
def test_skewed_experts_become_balanced_by_the_bias_and_stay_skewed_without(v3_job: Job, speed: float) -> None:
    skew(v3_job)
    config = SFTConfig(
        task="first_token", steps=25, examples_per_step=24, learning_rate=1e-6, eval_problems=0, balance_speed=speed,
        balance_loss_coef=0.0,
    )  # fmt: skip
    sft.train(config, v3_job, optimizer=Optimizer(v3_job.model))
    rows = [json.loads(line) for line in (v3_job.run.folder / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0]["expert_load_cv"], sum(row["expert_load_cv"] for row in rows[-5:]) / 5
    assert first > 1.0
    assert last < 0.6 * first if speed else last == pytest.approx(first, rel=0.15)


@pytest.mark.usefixtures("first_token")
def test_step_that_is_skipped_moves_no_bias(v3_job: Job) -> None:
    with torch.no_grad():
        v3_job.model.final_norm.fill_(1e38)
    before = biases(v3_job.model)
    config = SFTConfig(task="first_token", steps=1, eval_problems=0, mtp_weight=0.0)
    sft.train(config, v3_job, optimizer=Optimizer(v3_job.model))
    assert biases(v3_job.model) == before


@pytest.mark.usefixtures("first_token")
@pytest.mark.parametrize("speed", [0.0, 0.01])
def test_grpo_holds_the_biases_unless_asked_and_carries_the_modules_along(v3_job: Job, speed: float) -> None:
    before = biases(v3_job.model)
    modules = {name: p.detach().clone() for name, p in v3_job.model.mtp.named_parameters()}
    config = GRPOConfig(
        task="first_token", steps=2, prompts_per_step=3, group_size=6, max_tokens=2, eval_problems=0,
        balance_speed=speed, updates_per_step=2, learning_rate=1e-3,
    )  # fmt: skip
    grpo.train(config, v3_job, optimizer=Optimizer(v3_job.model))
    moved = [a != b for a, b in zip(biases(v3_job.model), before, strict=True)]
    assert moved == [bool(speed)] * 2 + [False] * 2
    assert all(torch.equal(p, modules[name]) for name, p in v3_job.model.mtp.named_parameters())


def test_gates_are_found_in_the_order_of_the_layers(make_v3: MakeModel) -> None:
    model = make_v3()
    routings: list[Routing] = []
    packed_states(model, pack(sequences(num=3)), routings=routings)
    assert len(list(gates_of(model))) == len(routings) + model.config.num_mtp_layers
    assert all(isinstance(gate, Gate) for gate in gates_of(model))
