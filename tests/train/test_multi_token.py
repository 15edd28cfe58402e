"""Multi-token prediction in training: each document for itself, against a slow formula."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aha.models import Transformer
from aha.models.attention import PackedAttention
from aha.models.mtp import MultiTokenPrediction
from aha.train import sft
from aha.train.batches import TrainingSequence, pack
from aha.train.job import Job
from aha.train.logprobs import packed_states
from aha.train.multi_token import mtp_predictions
from aha.train.optimizer import Optimizer
from aha.train.sft import SFTConfig, accumulate_gradients
from tests.train.test_balance import gradients, sequences

MakeModel = Callable[..., Transformer]


def slow_mtp(model: Transformer, sequence: TrainingSequence) -> list[dict[int, Tensor]]:
    """For each depth: log-probability of each trained token by its place, one document alone, from the equations.

    Position by position for the combination (equation 21), on the document's full length and without any packing.
    """
    token_ids = [*sequence.prompt_ids, *sequence.completion_ids]
    length, num_prompt = len(token_ids), len(sequence.prompt_ids)
    states = model.hidden_states(
        torch.tensor(token_ids), positions_N=torch.arange(length), attention=PackedAttention([length])
    )
    found = []
    for depth, module in enumerate(model.mtp):
        mtp = cast(MultiTokenPrediction, module)
        usable = length - depth - 1  # positions whose token depth + 1 places ahead exists
        if usable < 1:
            found.append({})
            continue
        combined = []
        for i in range(usable):
            embedded = model.embed_tokens[token_ids[i + depth + 1]]
            width, eps = model.config.hidden_size, model.config.rms_norm_eps
            ahead = F.rms_norm(embedded, (width,), mtp.embedding_norm, eps)
            behind = F.rms_norm(states[i], (width,), mtp.hidden_norm, eps)
            combined.append(torch.cat((ahead, behind)) @ mtp.eh_proj.weight.T)
        run = model.begin_pass(torch.arange(usable), attention=PackedAttention([usable]), linear=F.linear)
        block, _ = mtp.block(torch.stack(combined), run)
        states = F.rms_norm(block, (width,), mtp.final_norm, eps)
        logprobs = (states @ model.output_weight.T).log_softmax(dim=-1)
        is_sampled = sequence.is_sampled or (True,) * len(sequence.completion_ids)
        trained = [num_prompt + n for n, is_trained in enumerate(is_sampled) if is_trained]
        found.append({j: logprobs[j - depth - 2, token_ids[j]] for j in trained if j - depth - 2 >= 0})
    return found


def predictions_of(model: Transformer, chosen: list[TrainingSequence]) -> list[list[float]]:
    batch = pack(chosen)
    found = mtp_predictions(model, chosen, batch=batch, hidden_ND=packed_states(model, batch))
    return [prediction.logprobs_M.tolist() for prediction in found]


def test_predictions_of_packed_documents_equal_the_slow_formula(make_v3: MakeModel) -> None:
    model = make_v3()
    chosen = sequences(num=12)
    assert any(len(s.prompt_ids) + len(s.completion_ids) <= 4 for s in chosen), "one too short for the last module"
    packed = predictions_of(model, chosen)
    slow = [slow_mtp(model, s) for s in chosen]
    for depth, logprobs in enumerate(packed):
        expected = [value.item() for of_document in slow for value in of_document[depth].values()]
        assert logprobs == pytest.approx(expected, abs=1e-5)
        assert len(logprobs) > 20


def test_loss_and_gradients_equal_those_of_each_document_alone(make_v3: MakeModel) -> None:
    """Neighbours share the rows of their prompts, whose last has another successor in each of them."""
    model = make_v3()
    rng = random.Random(3)
    prompt = (1, 20, 7, 9)
    group = [TrainingSequence(prompt, tuple(rng.randrange(300) for _ in range(5))) for _ in range(4)]
    chosen = [*group, TrainingSequence((1, 20, 7, 33, 2), (5, 6, 4))]
    losses = accumulate_gradients(model, chosen, micro_batch_tokens=10_000, mtp_weight=0.3)
    found = gradients(model)
    num_targets = sum(s.num_trained for s in chosen)
    total = torch.zeros(())
    num_predicted = 0
    for sequence in chosen:
        alone = pack([sequence])
        states = packed_states(model, alone)
        logits = states[alone.predictor_rows_M] @ model.output_weight.T
        total = total + F.cross_entropy(logits, alone.targets_M, reduction="sum") / num_targets
        for of_depth in slow_mtp(model, sequence):
            num_predicted += len(of_depth)
            total = total - 0.3 / 2 * torch.stack(list(of_depth.values())).sum() / num_targets
    total.backward()
    expected = gradients(model)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
    mtp_sum = (total.item() - losses["loss"]) * num_targets / 0.15
    assert losses["mtp_loss"] == pytest.approx(mtp_sum / num_predicted, rel=1e-4)


def test_token_of_another_document_changes_no_prediction(make_v3: MakeModel) -> None:
    model = make_v3()
    first, second = TrainingSequence((1, 20, 5), (9, 8, 7, 6)), TrainingSequence((1, 20, 5), (3, 2, 4, 4, 4))
    changed = TrainingSequence((1, 20, 5), (200, 201, 202, 203, 204))
    ours, others = predictions_of(model, [first, second]), predictions_of(model, [first, changed])
    for depth in range(2):
        num_own = 4
        assert ours[depth][:num_own] == pytest.approx(others[depth][:num_own], abs=1e-6)
        assert ours[depth][num_own:] != pytest.approx(others[depth][num_own:], abs=1e-3)


def test_deliberate_leak_is_seen_by_the_slow_formula(make_v3: MakeModel) -> None:
    """The reference discriminates: rolled over the packed rows, the last positions would see the next document."""
    model = make_v3(num_mtp_layers=1)
    chosen = [TrainingSequence((1, 20), (9, 8, 7)), TrainingSequence((2, 21), (6, 5, 4))]
    batch = pack(chosen)
    states = packed_states(model, batch)
    leaky = model.mtp_states(
        states, batch.token_ids_N.roll(-1), depth=0, positions_N=batch.positions_N,
        attention=PackedAttention(batch.lengths),
    )  # fmt: skip
    leaked = (leaky @ model.output_weight.T).log_softmax(dim=-1)[3, 2].item()
    right = [value.item() for s in chosen for value in slow_mtp(model, s)[0].values()]
    assert leaked not in [pytest.approx(value, abs=1e-4) for value in right]


def test_gradient_of_the_modules_flows_into_the_trunk(make_v3: MakeModel) -> None:
    model = make_v3()
    chosen = sequences(num=6)
    batch = pack(chosen)
    for prediction in mtp_predictions(model, chosen, batch=batch, hidden_ND=packed_states(model, batch)):
        prediction.logprobs_M.sum().backward(retain_graph=True)
    found = gradients(model)
    assert all(found[name].abs().max() > 0 for name in ("embed_tokens", "layers.0.attention.o_proj.weight"))


def test_weight_of_zero_leaves_the_modules_untouched(make_v3: MakeModel) -> None:
    model = make_v3()
    losses = accumulate_gradients(model, sequences(), micro_batch_tokens=100, mtp_weight=0.0)
    assert "mtp_loss" not in losses
    assert not any(name.startswith("mtp.") for name in gradients(model))


def test_model_without_modules_has_no_loss_of_them(make_model: MakeModel) -> None:
    losses = accumulate_gradients(
        make_model(), sequences(), micro_batch_tokens=100, mtp_weight=0.3, balance_loss_coef=0.1
    )
    assert losses.keys() == {"loss"}


@pytest.mark.usefixtures("first_token")
def test_loss_of_the_modules_falls_in_training(v3_job: Job) -> None:
    config = SFTConfig(task="countdown", steps=15, examples_per_step=4, learning_rate=1e-2, eval_problems=0)
    sft.train(config, v3_job, optimizer=Optimizer(v3_job.model))
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (v3_job.run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[0]["mtp_loss"] == pytest.approx(7.2, abs=0.3)
    assert rows[-1]["mtp_loss"] < 5.5
    assert rows[-1]["loss"] < 5.5
