"""The roofline of serving against numbers computed by hand and against slower ways to the same thing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.errors import ConfigError
from aha.estimate.hardware import GPU, find_gpu
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.serving.replica import Layout, Replica, WeightFormat, lay_out
from aha.estimate.serving.roofline import (
    StepTerm,
    decode_terms,
    decoded_attention_flops,
    exchange_seconds,
    prefill_terms,
    touched_experts,
)
from aha.models.config import ModelConfig
from aha.models.config_files import parse_config
from aha.models.known import KNOWN_CONFIGS

PERFECT = replace(
    Assumptions.default(), memory=1, products=1, attention=1, links=1, free=1, imbalance=1,
    exchange_microseconds=0, layer_microseconds=0, step_milliseconds=0,
)  # fmt: skip
"""Hardware as its data sheet has it, and nothing in between."""

LLAMA_7B = parse_config(
    {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    source="LLaMA 7B",
)  # fmt: skip
LLAMA_7B_LAYERS = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
"""Parameters of the matrices of its layers: 6.476e9."""


def known(name: str) -> ModelConfig:
    return parse_config(KNOWN_CONFIGS[name], source=name)


V3 = known("deepseek-ai/DeepSeek-V3")


def laid(
    config: ModelConfig = LLAMA_7B,
    *,
    gpu: str = "h100",
    num_gpus: int = 1,
    layout: Layout = "tensor",
    weights: WeightFormat = "bfloat16",
    drafts: bool = False,
    assumptions: Assumptions = PERFECT,
) -> Replica:
    return lay_out(
        config, gpu=find_gpu(gpu), num_gpus=num_gpus, layout=layout, weights=weights, drafts=1 if drafts else 0,
        assumptions=assumptions,
    )  # fmt: skip


def named(terms: tuple[StepTerm, ...], word: str) -> StepTerm:
    return next(term for term in terms if word in term.name)


def test_lone_answer_of_a_7b_is_as_fast_as_its_weights_are_read() -> None:
    terms = decode_terms(laid(), batch=1, context_tokens=1)
    assert named(terms, "dense weights").seconds == pytest.approx(2 * LLAMA_7B_LAYERS / 3350e9)
    assert named(terms, "output head").seconds == pytest.approx(2 * 32000 * 4096 / 3350e9)
    # Nothing else takes any time but one cached token of 32 layers x 2 x 4096 numbers of two bytes.
    assert sum(term.seconds for term in terms) == pytest.approx(
        (2 * (LLAMA_7B_LAYERS + 32000 * 4096) + 32 * 2 * 4096 * 2) / 3350e9
    )


def test_large_batch_of_a_7b_is_as_fast_as_its_products_are_computed() -> None:
    # 2 bytes a parameter, and 2 operations a parameter and row: even at 989.5e12 / 3350e9 = 295.4 rows.
    few, many = (decode_terms(laid(), batch=batch, context_tokens=1) for batch in (295, 2950))
    assert named(few, "dense weights").note.endswith("reading")
    assert named(many, "dense weights").seconds == pytest.approx(2 * 2950 * LLAMA_7B_LAYERS / 989.5e12)


def test_cache_is_read_once_for_every_conversation() -> None:
    term = named(decode_terms(laid(), batch=10, context_tokens=1000), "attention")
    assert term.seconds == pytest.approx(10 * 1000 * 32 * 2 * 4096 * 2 / 3350e9)


def test_latent_cache_of_v3_has_70_kb_a_token() -> None:
    # Report §2.1.1: 512 numbers of the latent and 64 of the rotated key in each of 61 layers, of two bytes.
    assert laid(V3, num_gpus=8, weights="float8").cache_bytes_per_token == 61 * 576 * 2 == 70_272


def test_latent_is_kept_by_every_gpu_that_heads_are_cut_over_and_heads_are_not() -> None:
    assert laid(V3, num_gpus=8).cache_bytes_per_gpu_token == 70_272
    assert laid(LLAMA_7B, num_gpus=8).cache_bytes_per_gpu_token == 32 * 2 * 4096 * 2 / 8
    grouped = known("meta-llama/Llama-3.1-8B")
    assert laid(grouped, num_gpus=16).cache_bytes_per_gpu_token == 32 * 2 * 8 * 128 * 2 / 8  # 8 heads, 16 GPUs


def test_latent_attention_of_v3_takes_278528_operations_a_key_and_layer() -> None:
    # 128 heads, 576 numbers of a key and 512 of a value, a multiplication and an addition each.
    assert decoded_attention_flops(V3, visible_keys=1) == 2 * 128 * (576 + 512) == 278_528


@pytest.mark.parametrize(("num_tokens", "share"), [(1, 8 / 256), (32, 0.638), (1000, 1.0)])
def test_share_of_touched_experts_is_as_computed_by_hand(num_tokens: int, share: float) -> None:
    assert touched_experts(256, num_chosen=8, num_tokens=num_tokens) / 256 == pytest.approx(share, abs=1e-3)


def test_touched_experts_are_as_many_as_dice_give() -> None:
    dice = random.Random(5)
    rounds = [len({e for _ in range(20) for e in dice.sample(range(64), 6)}) for _ in range(400)]
    assert touched_experts(64, num_chosen=6, num_tokens=20) == pytest.approx(sum(rounds) / 400, rel=0.02)


def test_spread_experts_of_144_gpus_are_two_on_each_as_deepseek_has_them() -> None:
    # Inference system overview: 144 GPUs, 2 routed experts and the shared one on each.
    replica = laid(V3, gpu="h800", num_gpus=144, layout="expert", weights="float8")
    assert replica.experts_share == 2 / 256
    # 58 sparse layers of 3 matrices of 7168 x 2048, one byte each.
    assert replica.routed_bytes * replica.experts_share == 2 * 58 * 3 * 7168 * 2048


def test_two_gpus_exchange_all_sums_of_a_layer_once() -> None:
    # Scattered and gathered over two GPUs, each sends half of the sums twice: as much as they have, in two bytes.
    term = exchange_seconds(laid(num_gpus=2), tokens=10, phase="decode")
    assert term.seconds == pytest.approx(32 * 2 * 10 * 4096 * 2 / 450e9)


def test_tokens_go_to_their_experts_in_one_byte_and_come_back_in_two() -> None:
    # Within one node of 8: 7 of 8 copies leave the GPU.
    replica = laid(V3, gpu="h200", num_gpus=8, layout="expert", weights="float8")
    term = exchange_seconds(replica, tokens=100, phase="decode")
    assert term.seconds == pytest.approx(58 * 100 * 8 * (7 / 8) * 7168 * 3 / 450e9)


def test_prompt_is_copied_once_to_each_node_of_its_four() -> None:
    replica = laid(V3, gpu="h800", num_gpus=64, layout="expert", weights="float8")
    term = exchange_seconds(replica, tokens=100, phase="prefill")
    assert term.seconds == pytest.approx(58 * 100 * 4 * (7 / 8) * 7168 * 3 / 50e9)


def test_reading_a_prompt_is_bound_by_two_operations_a_parameter_and_token() -> None:
    terms = prefill_terms(laid(), new_tokens=8192, cached_tokens=0)
    assert named(terms, "dense weights").seconds == pytest.approx(2 * 8192 * LLAMA_7B_LAYERS / 989.5e12)
    visible = 8193 / 2
    assert named(terms, "attention").seconds == pytest.approx(32 * 8192 * 2 * visible * 2 * 4096 / 989.5e12)


def test_cached_tokens_are_seen_by_the_new_ones() -> None:
    bare, behind = (prefill_terms(laid(), new_tokens=2000, cached_tokens=cached) for cached in (0, 3000))
    assert named(behind, "attention").seconds == pytest.approx(named(bare, "attention").seconds * (4000.5 / 1000.5))


def test_single_new_token_has_all_its_cached_keys_read() -> None:
    replica = laid(assumptions=replace(PERFECT, chunk_tokens=1))
    term = named(prefill_terms(replica, new_tokens=1, cached_tokens=9999), "attention")
    assert term.seconds == pytest.approx(10_000 * 32 * 2 * 4096 * 2 / 3350e9)


def test_drafting_runs_one_layer_more_and_the_head_twice() -> None:
    plain, drafting = (laid(V3, num_gpus=8, weights="float8", drafts=drafts) for drafts in (False, True))
    assert drafting.num_layers == plain.num_layers + 1
    once, twice = (named(decode_terms(r, batch=1, context_tokens=9), "head").seconds for r in (plain, drafting))
    assert twice == pytest.approx(2 * once)


def test_int8_weights_are_read_in_half_and_multiplied_in_bfloat16() -> None:
    whole, half = (laid(gpu="a100", weights=weights) for weights in ("bfloat16", "int8"))
    one = [named(decode_terms(r, batch=1, context_tokens=1), "dense").seconds for r in (whole, half)]
    many = [named(decode_terms(r, batch=9999, context_tokens=1), "dense").seconds for r in (whole, half)]
    assert one[0] == pytest.approx(2 * one[1])
    assert many[0] == pytest.approx(many[1])


def test_format_that_a_gpu_does_not_multiply_is_refused() -> None:
    with pytest.raises(ConfigError, match="A100.* has no float8 products; choose from: bfloat16"):
        laid(gpu="a100", weights="float8")


def test_layout_that_a_model_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="layout expert needs a model with experts"):
        laid(layout="expert", num_gpus=2)
    with pytest.raises(ConfigError, match=r"has 1 to 32 GPUs \(its attention heads\), got 64"):
        laid(num_gpus=64)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 4000), more=st.integers(1, 4000), num_gpus=st.sampled_from([1, 8, 32, 144]))
def test_larger_batch_never_answers_fewer_tokens_a_second(batch: int, more: int, num_gpus: int) -> None:
    layout: Layout = "tensor" if num_gpus == 1 else "expert"
    replica = laid(V3, num_gpus=num_gpus, layout=layout, weights="float8", assumptions=Assumptions.default())

    def speed(rows: int) -> float:
        return rows / sum(term.seconds for term in decode_terms(replica, batch=rows, context_tokens=3000))

    assert speed(batch + more) >= speed(batch) * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(context=st.integers(1, 100_000), more=st.integers(1, 100_000))
def test_longer_context_never_shortens_a_step(context: int, more: int) -> None:
    replica = laid(V3, num_gpus=32, layout="expert", weights="float8", assumptions=Assumptions.default())
    short, long = (
        sum(term.seconds for term in decode_terms(replica, batch=500, context_tokens=tokens))
        for tokens in (context, context + more)
    )
    assert long >= short


def test_every_gpu_of_the_list_can_serve() -> None:
    for name in ("a100", "h100", "h200", "h800"):
        gpu: GPU = find_gpu(name)
        assert laid(gpu=gpu.name).largest_batch(4096) >= 1
