"""A plan's numbers against what the code really keeps, computes and grows."""

from __future__ import annotations

import dataclasses
import time
from datetime import date
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from aha.cost.prices import machine_price
from aha.engine.cache import LENGTH_QUANTUM, KeyValueCache
from aha.errors import ConfigError
from aha.models import LoraTargets, ModelConfig, attach_lora, build_model, num_trainable
from aha.models.known import known_config
from aha.train.batches import TrainingSequence, pack
from aha.train.logprobs import token_logprobs
from aha.train.machines import GIB, GPUS, Machine, choose_plan_dtype, find_machine, measure_cpu
from aha.train.plan import CACHE_QUANTUM, Plan, cache_bytes, num_trained, plan, training_flops
from aha.train.plan_sizes import activation_bytes
from aha.train.plan_table import describe
from aha.train.run_shape import RunShape

ON = date(2026, 6, 1)
QWEN = known_config("Qwen/Qwen2.5-1.5B-Instruct")
RUN = RunShape(
    stage="grpo",
    steps=100,
    prompts_per_step=32,
    group_size=8,
    max_tokens=896,
    prompt_tokens=128,
    micro_batch_tokens=8192,
    dtype="bfloat16",
)
H100 = find_machine("h100", dtype="bfloat16", on=ON)
SMALL = ModelConfig(
    model_type="llama", vocab_size=300, hidden_size=64, intermediate_size=160, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=16, max_position_embeddings=4096,
)  # fmt: skip


def changed(**changes: Any) -> RunShape:
    return dataclasses.replace(RUN, **changes)


def gib_of(result: Plan, name: str) -> float:
    return sum(item.num_bytes for item in result.memory if item.name.startswith(name)) / GIB


def seconds_of(result: Plan, name: str) -> float:
    return sum(item.seconds for item in result.time if item.name.endswith(name))


def make_sequences(num_prompts: int, *, group_size: int, prompt_tokens: int, max_tokens: int) -> list[TrainingSequence]:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, SMALL.vocab_size, (count,), generator=generator).tolist())

    return [
        TrainingSequence(prompt, draw(max_tokens - index), 1.0)
        for prompt in [draw(prompt_tokens) for _ in range(num_prompts)]
        for index in range(group_size)
    ]


def test_weights_and_optimizer_take_what_their_dtypes_take() -> None:
    result = plan(QWEN, run=RUN, machine=H100)
    billions = 1_543_714_304 / GIB
    assert result.num_parameters == 1_543_714_304
    assert gib_of(result, "weights") == pytest.approx(2 * billions)
    assert gib_of(result, "masters") == pytest.approx(4 * billions)
    assert gib_of(result, "Adam") == pytest.approx(8 * billions)
    assert gib_of(result, "gradients") == pytest.approx(4 * billions)
    in_float32 = plan(QWEN, run=changed(dtype="float32"), machine=H100)
    assert gib_of(in_float32, "weights") == pytest.approx(4 * billions)
    assert gib_of(in_float32, "masters") == 0, "float32 parameters are their own masters"


def test_reference_model_lies_in_memory_only_with_a_kl_term() -> None:
    assert gib_of(plan(QWEN, run=RUN, machine=H100), "reference") == 0
    with_kl = plan(QWEN, run=changed(kl_coef=0.01), machine=H100)
    assert gib_of(with_kl, "reference") == pytest.approx(2 * 1_543_714_304 / GIB)
    assert seconds_of(with_kl, "training") > seconds_of(plan(QWEN, run=RUN, machine=H100), "training")


# For long sequences the plan fears many short ones in their place, which would keep their attention weights.
@pytest.mark.parametrize(("max_tokens", "most"), [(128, 1.2), (700, 2.5)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_activations_are_what_autograd_keeps(family: str, max_tokens: int, most: float) -> None:
    config = dataclasses.replace(SMALL, model_type=family, has_qk_norm=family == "qwen3", num_layers=6)
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    batch = pack(make_sequences(4, group_size=4, prompt_tokens=16, max_tokens=max_tokens))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs = token_logprobs(model, batch).logprobs_M
    run = changed(micro_batch_tokens=len(batch.token_ids_N), prompt_tokens=16, max_tokens=max_tokens, dtype="float32")
    planned = activation_bytes(config, run=run, is_cpu=True)
    assert len(logprobs) > 0
    assert 0.9 < planned / sum(kept.values()) < most


def test_training_work_is_what_pytorch_counts() -> None:
    model = build_model(SMALL, dtype="float32", device="cpu")
    model.initialise(seed=0)
    batch = pack(make_sequences(1, group_size=1, prompt_tokens=40, max_tokens=100))
    with FlopCounterMode(display=False) as counter:
        token_logprobs(model, batch).logprobs_M.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for operator, flops in counts.items() if str(operator).startswith(("aten.mm", "aten.addmm")))
    run = changed(prompt_tokens=40, max_tokens=100, group_size=1)
    attention = 12 * SMALL.num_layers * SMALL.num_heads * SMALL.head_dim * 140 * 140 / 2
    assert training_flops(SMALL, run=run) - attention == pytest.approx(products, rel=0.02)


def test_completions_of_a_prompt_compute_it_once_when_a_micro_batch_holds_them() -> None:
    together, apart = changed(prompt_tokens=800, max_tokens=200), changed(
        prompt_tokens=800, max_tokens=200, micro_batch_tokens=1000
    )  # fmt: skip
    assert training_flops(QWEN, run=together) < 0.5 * training_flops(QWEN, run=apart)


def test_cache_grows_as_the_engine_grows_it() -> None:
    assert CACHE_QUANTUM == LENGTH_QUANTUM
    cache = KeyValueCache(SMALL, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(2):  # the second step of a run finds the memory of the first
        cache.reset(6, num_columns=11)
        for num_columns in range(11, 401):
            cache.reserve(6, num_columns=num_columns)
    largest = sum(block.nbytes for block in (*cache._blocks, cache._spare))
    run = changed(
        prompts_per_step=2, group_size=3, prompt_tokens=10, max_tokens=390, num_evaluations=0, dtype="float32"
    )
    per_layer = cache_bytes(SMALL, run=run) / (SMALL.num_layers + 2)
    assert largest <= cache_bytes(SMALL, run=run) < largest + 1.2 * per_layer


def test_rows_are_limited_by_batch_and_by_cached_positions() -> None:
    per_row = cache_bytes(QWEN, run=changed(prompts_per_step=1, group_size=1, num_evaluations=0))
    assert cache_bytes(QWEN, run=changed(group_size=64)) == 256 * per_row, "262,144 positions of 1,024-token rows"
    assert cache_bytes(QWEN, run=changed(group_size=64, max_batch_size=100)) == 100 * per_row
    assert cache_bytes(QWEN, run=changed(num_evaluations=0, prompts_per_step=2)) == 16 * per_row


def test_supervised_training_without_evaluation_samples_nothing() -> None:
    run = changed(stage="sft", group_size=1, num_evaluations=0)
    result = plan(QWEN, run=run, machine=H100)
    assert result.num_sampled_tokens == 0
    assert [item.name for item in result.time] == ["training"]
    assert gib_of(result, "key/value cache") == 0


def test_time_follows_the_steps_and_cost_follows_time() -> None:
    one, two = (plan(QWEN, run=changed(steps=n, num_evaluations=0), machine=H100) for n in (50, 100))
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert two.cost_usd == pytest.approx(two.seconds / 3600 * 4.76)
    assert two.num_trained_tokens == 100 * 32 * 8 * 896


def test_shorter_completions_and_faster_machines_take_less_time() -> None:
    longest = plan(QWEN, run=RUN, machine=H100).seconds
    assert plan(QWEN, run=changed(mean_tokens=300), machine=H100).seconds < 0.6 * longest
    assert plan(QWEN, run=RUN, machine=find_machine("h200", dtype="bfloat16", on=ON)).seconds < longest


def test_training_time_is_work_over_speed() -> None:
    flops = training_flops(QWEN, run=RUN) * 100 * 32 * 8
    expected = flops / (989.5e12 * 0.30)
    assert seconds_of(plan(QWEN, run=RUN, machine=H100), "training") == pytest.approx(expected)
    # 6 x 1.54e9 x tokens, give or take attention, the head's second pass and the shared prompts.
    assert flops == pytest.approx(6 * 1.54e9 * 100 * 32 * 8 * 1024, rel=0.25)


def cramped(machine: Machine, gib: float) -> Machine:
    return dataclasses.replace(machine, memory_bytes=int(gib * GIB))


@pytest.mark.parametrize("changes", [{}, {"dtype": "float32"}, {"kl_coef": 0.1}, {"max_tokens": 8064}])
def test_following_the_advice_makes_it_fit(changes: dict[str, Any]) -> None:
    run = changed(micro_batch_tokens=32_768, **changes)
    unfit = plan(QWEN, run=run, machine=cramped(H100, 0.97 * plan(QWEN, run=run, machine=H100).peak_bytes / GIB))
    assert not unfit.fits
    assert unfit.advice
    for advice in unfit.advice:
        if advice.startswith("unchanged"):
            continue
        settings = dict(word.split("=") for word in advice.split(" (")[0].split())
        words = ("dtype", "activations")
        values = {k: v if k in words else float(v) if k == "kl_coef" else int(v) for k, v in settings.items()}
        assert plan(QWEN, run=dataclasses.replace(run, **values), machine=unfit.machine).fits, advice


@pytest.mark.parametrize(("rank", "targets"), [(8, "all_linear"), (3, "attention"), (5, "mlp")])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_adapters_are_as_large_as_those_that_are_attached(family: str, rank: int, targets: LoraTargets) -> None:
    config = dataclasses.replace(SMALL, model_type=family, num_kv_heads=1, head_dim=24)
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    attach_lora(model, rank=rank, alpha=8.0, targets=targets)
    assert num_trained(config, run=changed(lora_rank=rank, lora_targets=targets)) == num_trainable(model)
    assert num_trained(config, run=RUN) == build_model(config, device="meta").num_parameters()


def test_lora_has_neither_masters_nor_moments_nor_a_head_gradient_of_the_base() -> None:
    full, lora = (plan(QWEN, run=changed(lora_rank=rank, kl_coef=0.1), machine=H100) for rank in (0, 16))
    for name in ("Adam", "gradients", "masters", "reference"):
        assert gib_of(lora, name) < 0.02 * gib_of(full, name), name
    assert gib_of(lora, "weights") == gib_of(full, "weights")
    assert gib_of(full, "head's gradient") > 0
    assert gib_of(lora, "head's gradient") == 0
    assert gib_of(lora, "activations") < 0.3 * gib_of(full, "activations"), "recomputed"
    kept = plan(QWEN, run=changed(lora_rank=16, activations="keep"), machine=H100)
    assert gib_of(kept, "activations") > gib_of(full, "activations")


def test_work_with_frozen_matrices_is_what_pytorch_counts() -> None:
    model = build_model(SMALL, dtype="float32", device="cpu")
    model.initialise(seed=0)
    attach_lora(model, rank=4, alpha=8.0)
    batch = pack(make_sequences(1, group_size=1, prompt_tokens=40, max_tokens=100))
    for activations in ("keep", "recompute"):
        model.activations = activations
        with FlopCounterMode(display=False) as counter:
            token_logprobs(model, batch).logprobs_M.sum().backward()
        counts = counter.get_flop_counts()["Global"]
        products = sum(n for operator, n in counts.items() if str(operator).startswith(("aten.mm", "aten.addmm")))
        run = changed(prompt_tokens=40, max_tokens=100, group_size=1, lora_rank=4, activations=activations)
        attention = 12 * SMALL.num_layers * SMALL.num_heads * SMALL.head_dim * 140 * 140 / 2
        planned = training_flops(SMALL, run=run) - attention * (4 / 3 if activations == "recompute" else 1)
        # The first layer's input needs no gradient, which saves a part that grows small with depth.
        assert planned == pytest.approx(products, rel=0.06)


def test_advice_names_a_larger_machine_when_no_setting_helps() -> None:
    unfit = plan(QWEN, run=RUN, machine=cramped(H100, 8))
    assert unfit.advice[0].startswith("no setting makes it fit in 8 GiB; unchanged on another machine: h100")
    seven = plan(known_config("Qwen/Qwen2.5-7B-Instruct"), run=changed(micro_batch_tokens=32_768), machine=H100)
    assert seven.advice == ("lora_rank=16 (trains an adapter beside the frozen model)",)
    many = dataclasses.replace(seven.config, num_layers=300)
    assert plan(many, run=RUN, machine=H100).advice == (
        "no setting makes it fit in 79 GiB, and no machine listed here holds it; use a smaller model",
    )


def test_advice_names_machines_that_hold_the_run_unchanged_too() -> None:
    unfit = plan(QWEN, run=changed(micro_batch_tokens=32_768), machine=H100)
    assert unfit.advice[0].startswith("micro_batch_tokens=")
    assert unfit.advice[-1] == "unchanged on another machine: h200, h200-spot, b200, b200-spot"


def test_plan_that_fits_has_no_advice() -> None:
    result = plan(QWEN, run=RUN, machine=H100)
    assert result.fits
    assert result.advice == ()


def test_description_states_verdict_cost_and_every_assumption() -> None:
    text = describe(plan(QWEN, run=RUN, machine=H100))
    for words in (
        "1,543,714,304 parameters", "fits in 79.0 GiB", "$4.76 an hour (h100-hour@2026-03-01)", "990 TFLOP/s",
        "data sheet", "30% of that", "prompts of 128 tokens", "upper bounds", "RunPod",
    ):  # fmt: skip
        assert words in text
    assert all(len(line) <= 140 for line in text.splitlines())
    unfit = describe(plan(QWEN, run=changed(micro_batch_tokens=65_536), machine=H100))
    assert "does NOT fit" in unfit
    assert "to make it fit: micro_batch_tokens=" in unfit


@pytest.mark.parametrize("name", [*GPUS])
def test_every_listed_gpu_has_a_price(name: str) -> None:
    assert find_machine(name, dtype="float32", on=ON).price.usd_per_hour > 0


def test_another_price_replaces_the_machines_own() -> None:
    assert find_machine("h100", dtype="bfloat16", on=ON, price="h800-hour").price.usd_per_hour == 2.0


def test_this_machine_is_measured_quickly() -> None:
    started = time.perf_counter()
    machine = measure_cpu(dtype="float32", price=machine_price("cpu-2core-hour", on=ON))
    assert time.perf_counter() - started < 5.0, "two probes of 0.4 s each; the rest is room for a busy machine"
    assert 1e-4 < machine.teraflops < 1e3
    assert machine.memory_gb_per_second > 0.1
    assert machine.memory_bytes > GIB


def test_auto_dtype_follows_the_machine() -> None:
    assert choose_plan_dtype("auto", machine="h100") == "bfloat16"
    assert choose_plan_dtype("float32", machine="h100") == "float32"
    assert choose_plan_dtype("auto", machine="cpu") in ("float32", "bfloat16")


def test_unknown_machine_lists_choices() -> None:
    with pytest.raises(ConfigError, match="unknown machine 'h10'; did you mean 'h100'"):
        find_machine("h10", dtype="bfloat16", on=ON)


def test_sequence_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceed the model's window of 32768 tokens; lower max_tokens"):
        plan(QWEN, run=changed(max_tokens=32_768), machine=H100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"mean_tokens": 10_000}, "mean_tokens must be from 0 to max_tokens 896, got 10000"),
    ],
)
def test_impossible_setting_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        changed(**changes)
