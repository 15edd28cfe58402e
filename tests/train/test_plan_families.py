"""A plan of latent attention, sparse experts and multi-token prediction against what the modules keep and compute."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from aha.engine.cache import KeyValueCache
from aha.models import (
    ExpertsShape,
    LatentAttentionShape,
    LoraTargets,
    ModelConfig,
    PackedAttention,
    Transformer,
    attach_lora,
    build_model,
    num_trainable,
)
from aha.models.known import known_config
from aha.train.batches import TrainingSequence, pack
from aha.train.dry_run import dry_run
from aha.train.logprobs import token_logprobs
from aha.train.machines import find_machine
from aha.train.plan import cache_bytes, memory_of, num_trained, plan, training_flops
from aha.train.plan_sizes import activation_bytes, read_parameters, sizes_of
from aha.train.plan_table import describe
from aha.train.run_shape import RunShape

MLA = LatentAttentionShape(q_lora_rank=24, kv_lora_rank=40, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12)
SIGMOID = ExpertsShape(
    num_experts=16, num_experts_per_token=4, intermediate_size=24, num_shared_experts=1, scoring="sigmoid",
    has_selection_bias=True, first_layer=1,
)  # fmt: skip
SOFTMAX = ExpertsShape(
    num_experts=12, num_experts_per_token=3, intermediate_size=24, scoring="softmax", has_selection_bias=False
)
V3 = ModelConfig(
    model_type="deepseek_v3", vocab_size=300, hidden_size=64, intermediate_size=160, num_layers=4, num_heads=4,
    num_kv_heads=4, head_dim=24, max_position_embeddings=4096, mla=MLA, experts=SIGMOID, rope_interleaved=True,
)  # fmt: skip
DENSE_MLA = dataclasses.replace(V3, experts=None)
QWEN_MOE = ModelConfig(
    model_type="qwen3_moe", vocab_size=300, hidden_size=64, intermediate_size=160, num_layers=4, num_heads=4,
    num_kv_heads=2, head_dim=16, max_position_embeddings=4096, experts=SOFTMAX, has_qk_norm=True,
)  # fmt: skip
FAMILIES = {"v3": V3, "dense_mla": DENSE_MLA, "qwen3_moe": QWEN_MOE}
RUN = RunShape(
    stage="grpo", steps=10, prompts_per_step=4, group_size=4, max_tokens=96, prompt_tokens=16, micro_batch_tokens=2048,
    dtype="float32",
)  # fmt: skip
H200 = find_machine("h200", dtype="bfloat16", on=date(2026, 6, 1))


def changed(**changes: Any) -> RunShape:
    return dataclasses.replace(RUN, **changes)


def made(config: ModelConfig) -> Transformer:
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    return model


def sequences(num_prompts: int, *, group_size: int, max_tokens: int) -> list[TrainingSequence]:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 300, (count,), generator=generator).tolist())

    return [
        TrainingSequence(prompt, draw(max_tokens - index), 1.0)
        for prompt in [draw(16) for _ in range(num_prompts)]
        for index in range(group_size)
    ]


class Kept:
    """Bytes that autograd keeps, parameters aside."""

    def __init__(self, model: Transformer) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        # Held as long as they are counted, so that no address is given out twice.
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.hooks = saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._storages[storage.data_ptr()] = storage
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("max_tokens", [96, 160])
def test_activations_are_what_autograd_keeps(name: str, max_tokens: int) -> None:
    config = FAMILIES[name]
    model = made(config)
    batch = pack(sequences(4, group_size=4, max_tokens=max_tokens))
    kept = Kept(model)
    with kept.hooks:
        token_logprobs(model, batch)
    run = changed(micro_batch_tokens=len(batch.token_ids_N), max_tokens=max_tokens)
    planned = activation_bytes(config, run=run, is_cpu=True)
    assert 0.9 < planned / kept.num_bytes < 1.15


def test_activations_of_multi_token_prediction_are_what_autograd_keeps() -> None:
    config = dataclasses.replace(V3, num_mtp_layers=2)
    model = made(config)
    lengths = [96] * 8
    token_ids_N = torch.randint(0, 300, (sum(lengths),))
    positions_N = torch.arange(96).repeat(8)
    hidden_ND = torch.randn(sum(lengths), 64, requires_grad=True)
    kept = Kept(model)
    with kept.hooks:
        for depth in range(2):
            hidden_ND = model.mtp_states(
                hidden_ND, token_ids_N, depth=depth, positions_N=positions_N, attention=PackedAttention(lengths)
            )
    run = changed(micro_batch_tokens=sum(lengths), stage="sft", group_size=1, max_tokens=80)
    with_mtp = activation_bytes(config, run=dataclasses.replace(run, mtp_weight=0.3), is_cpu=True)
    planned = with_mtp - activation_bytes(config, run=run, is_cpu=True)
    assert 0.9 < planned / kept.num_bytes < 1.15


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_the_model(name: str) -> None:
    config = dataclasses.replace(FAMILIES[name], num_mtp_layers=1 if name == "v3" else 0)
    model = build_model(config, device="meta")
    sizes = sizes_of(config)
    assert sizes.held == model.num_parameters()
    result = plan(config, run=RUN, machine=H200)
    by_name = {item.name: item.num_bytes for item in result.memory}
    assert by_name["weights (float32)"] == 4 * model.num_parameters()
    assert by_name["Adam moments (float32)"] == 8 * model.num_parameters()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", ["all_linear", "attention", "mlp"])
@pytest.mark.parametrize("q_lora_rank", [24, None])
def test_adapters_are_as_large_as_those_that_are_attached(
    name: str, targets: LoraTargets, q_lora_rank: int | None
) -> None:
    config = FAMILIES[name]
    if config.mla is not None:
        config = dataclasses.replace(config, mla=dataclasses.replace(config.mla, q_lora_rank=q_lora_rank))
    model = made(config)
    if name == "qwen3_moe" and targets == "mlp":
        assert num_trained(config, run=changed(lora_rank=4, lora_targets=targets)) == 0, "routed experts have none"
        return
    attach_lora(model, rank=4, alpha=8.0, targets=targets)
    assert num_trained(config, run=changed(lora_rank=4, lora_targets=targets)) == num_trainable(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_cache_is_the_engines(name: str) -> None:
    config = FAMILIES[name]
    cache = KeyValueCache(config, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(2):
        cache.reset(6, num_columns=11)
        for num_columns in range(11, 301):
            cache.reserve(6, num_columns=num_columns)
    largest = sum(block.nbytes for block in (*cache._blocks, cache._spare))
    run = changed(prompts_per_step=2, group_size=3, prompt_tokens=10, max_tokens=290, num_evaluations=0)
    per_layer = cache_bytes(config, run=run) / (config.num_layers + 2)
    assert largest <= cache_bytes(config, run=run) < largest + 1.2 * per_layer
    # 6 rows of 320 columns, each a latent of 40 and a rotated key of 8, or 2 x 2 heads of 16.
    assert per_layer == 6 * 320 * (48 if config.mla else 64) * 4


def test_latent_cache_of_v3_takes_a_57th_of_what_its_heads_would() -> None:
    config = known_config("deepseek-ai/DeepSeek-V3")
    heads = dataclasses.replace(config, mla=None, head_dim=128)
    run = changed(max_tokens=1024, dtype="bfloat16")
    assert cache_bytes(heads, run=run) / cache_bytes(config, run=run) == pytest.approx(2 * 128 * 128 / 576)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_work_is_what_pytorch_counts(name: str) -> None:
    config = FAMILIES[name]
    model = made(config)
    batch = pack(sequences(1, group_size=1, max_tokens=100))
    with FlopCounterMode(display=False) as counter:
        token_logprobs(model, batch).logprobs_M.sum().backward()
    # Without attention, whose products of whole squares are counted where the plan takes the visible half. PyTorch does
    # not count grouped products: those of the experts' three matrices, forward and twice backward, are added by hand.
    run = changed(max_tokens=100, group_size=1)
    length, width = 116, config.head_dim
    value_width = width if config.mla is None else config.mla.v_head_dim
    attention = 6 * config.num_layers * config.num_heads * length * length
    counted = sum(counter.get_flop_counts()["Global"].values()) - attention * (width + value_width)
    if config.experts is not None:
        num_sparse = sum(config.is_sparse(index) for index in range(config.num_layers))
        chosen = config.experts.num_experts_per_token * config.experts.intermediate_size
        counted += 3 * 2 * 3 * num_sparse * length * chosen * config.hidden_size
    planned = training_flops(config, run=run) - attention * width
    assert planned == pytest.approx(counted, rel=0.03)


def test_work_of_experts_is_that_of_the_chosen_ones() -> None:
    config = known_config("deepseek-ai/DeepSeek-V3")
    sizes = sizes_of(config)
    # 37.55B of the card without embedding (looked up), head and norms.
    assert sizes.active / 1e9 == pytest.approx(37.55 - 2 * 0.927, abs=0.01)
    assert sizes.held / 1e9 == pytest.approx(671.03 + 11.61, abs=0.01)
    flops = training_flops(config, run=changed(prompt_tokens=1, max_tokens=100, group_size=1))
    assert flops == pytest.approx(100 * (6 * sizes.active + 8 * sizes.head), rel=0.02)


def test_multi_token_prediction_adds_its_modules_and_the_head_again() -> None:
    config = known_config("deepseek-ai/DeepSeek-V3")
    run = changed(stage="sft", group_size=1, max_tokens=1000, prompt_tokens=1)
    extra = training_flops(config, run=dataclasses.replace(run, mtp_weight=0.3)) - training_flops(config, run=run)
    sizes = sizes_of(config)
    assert extra == pytest.approx(1000 * (6 * sizes.mtp_active + 8 * sizes.head), rel=0.02)
    assert training_flops(QWEN_MOE, run=dataclasses.replace(run, mtp_weight=0.3)) == training_flops(QWEN_MOE, run=run)


def test_decoding_reads_the_experts_that_its_rows_choose() -> None:
    sizes = sizes_of(V3)
    assert sizes.routed == 3 * 16 * 3 * 64 * 24
    assert read_parameters(V3, num_rows=1) == pytest.approx(sizes.shared + sizes.routed * 4 / 16)
    assert read_parameters(V3, num_rows=10_000) == pytest.approx(sizes.shared + sizes.routed)
    generator = torch.Generator().manual_seed(0)
    chosen = [len(torch.rand(5, 16, generator=generator).topk(4).indices.unique()) for _ in range(2000)]
    expected = sum(chosen) / len(chosen) / 16
    assert read_parameters(V3, num_rows=5) == pytest.approx(sizes.shared + sizes.routed * expected, rel=0.01)


def test_packed_copies_are_of_what_is_no_experts() -> None:
    items = {item.name: item.num_bytes for item in memory_of(V3, run=RUN, machine=_Cpu())}
    model = build_model(V3, device="meta")
    projections = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert items["packed weights"] == 4 * (projections + V3.vocab_size * V3.hidden_size)


class _Cpu:
    is_cpu = True
    runtime_bytes = 0


def test_dry_run_plans_a_sparse_model_that_nobody_could_download() -> None:
    text = dry_run("countdown", overrides=["model=Qwen/Qwen3-30B-A3B", "price=h200-hour", "max_tokens=512"])
    assert "qwen3_moe with 30,532,122,624 parameters" in text
    assert "does NOT fit" in text
    text = describe(plan(known_config("deepseek-ai/DeepSeek-R1"), run=RUN, machine=H200))
    assert "682,636,472,320 parameters" in text
    assert "use a smaller model" in text


@pytest.mark.slow
def test_dry_run_counts_the_evaluation_after_every_stage_and_adds_the_stages_up() -> None:
    text = dry_run("v3_tiny", overrides=["stage.rl.eval_every=20"])
    assert "stage pretraining: countdown on v3_tiny from scratch" in text
    # Before and after pretraining; of 48 steps at 20 and 40, and after.
    assert [line.split()[0] for line in text.splitlines() if "evaluation" in line] == ["2", "3"]
    assert text.splitlines()[-1].startswith("all 2 stages: ")
    assert "all 1 stages" not in dry_run("countdown")
