"""What a million tokens costs, predicted: memory, choice of GPUs, batches, properties of every price."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.cost.prices import custom_machine_price
from aha.errors import ConfigError
from aha.estimate.hardware import GIB, find_gpu
from aha.estimate.serving import UTILISATIONS, ServingPlan, ServingPrediction, ServingRate, predict_serving
from aha.estimate.serving.assumptions import Assumptions
from aha.models.config_files import parse_config
from aha.models.known import KNOWN_CONFIGS

PRICE = custom_machine_price(2, on=date(2025, 1, 1))


@functools.cache
def predict(
    model: str = "deepseek-ai/DeepSeek-V3", gpu: str = "h200", precision: Any = "float8", **plan: Any
) -> ServingPrediction:
    config = parse_config(KNOWN_CONFIGS[model], source=model)
    planned = ServingPlan(gpu=find_gpu(gpu), precision=precision, **plan)
    return predict_serving(config, plan=planned, price=PRICE, overhead=1)


def llama(**plan: Any) -> ServingPrediction:
    return predict("meta-llama/Llama-3.1-8B", gpu="h100", precision="bfloat16", **plan)


def test_rate_is_dollars_for_the_seconds_a_token_takes() -> None:
    rate = ServingRate(
        usd_per_hour=36,
        seconds_per_input_token=1e-4,
        seconds_per_cached_token=0,
        seconds_per_output_token=1e-3,
        basis="",
    )
    assert rate.usd_per_million("output") == pytest.approx(10)
    assert rate.usd_per_million("input", utilisation=0.5) == pytest.approx(2)
    blended = rate.blended_usd_per_million(input_tokens=2, cached_tokens=1, output_tokens=1)
    assert blended == pytest.approx((2 * 1 + 0 + 10) / 4)


def test_largest_batch_is_what_the_weights_leave_over_a_conversation() -> None:
    found = llama(num_gpus=1, input_tokens=3000, output_tokens=1096)
    # 8.03e9 parameters of 2 bytes; 32 layers x 2 x 8 heads x 128 numbers of 2 bytes a token: 131,072 bytes.
    free = 0.9 * 79 * GIB - found.replica.weight_bytes_per_gpu
    assert found.replica.weight_bytes_per_gpu == pytest.approx(16.06e9, rel=1e-3)
    assert found.largest_batch == int(free / (4096 * 131_072)) == found.batch


def test_full_step_is_the_sum_of_its_terms_and_gives_the_rate() -> None:
    found = predict(num_gpus=16, accepted=0.8)
    assert found.decode_step_seconds == sum(term.seconds for term in found.decode)
    assert found.rate.seconds_per_output_token == pytest.approx(found.decode_step_seconds / found.batch / 1.8)
    assert found.user_tokens_per_second * found.batch == pytest.approx(found.decode_tokens_per_second)


def test_hour_is_priced_with_all_gpus_and_the_overhead() -> None:
    config = parse_config(KNOWN_CONFIGS["deepseek-ai/DeepSeek-V3"], source="V3")
    plan = ServingPlan(gpu=find_gpu("h200"), num_gpus=16, precision="float8")
    assert predict_serving(config, plan=plan, price=PRICE, overhead=1.35).rate.usd_per_hour == pytest.approx(
        16 * 2 * 1.35
    )


def test_model_that_a_node_holds_is_served_by_a_node() -> None:
    assert predict(num_gpus=0, gpu="h200").replica.num_gpus == 8


def test_cheapest_of_the_fewest_nodes_twice_and_four_times_is_taken_where_one_is_too_small() -> None:
    chosen = predict(num_gpus=0, gpu="h100")
    each = [predict(num_gpus=n, gpu="h100").blended_usd_per_million() for n in (16, 32, 64)]
    assert chosen.blended_usd_per_million() == min(each)
    with pytest.raises(ConfigError, match="8 x NVIDIA H100"):
        predict(num_gpus=8, gpu="h100")


@pytest.mark.parametrize(
    ("gpu", "precision", "advice"),
    [
        ("h100", "float8", "try more GPUs or larger ones$"),
        ("h100", "bfloat16", "try more GPUs, larger ones, or precision float8$"),
        ("a100", "bfloat16", "try more GPUs, larger ones, or precision int8$"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_would_do(gpu: str, precision: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        predict(num_gpus=8, gpu=gpu, precision=precision)


def test_cheapest_number_within_a_node_is_taken() -> None:
    chosen = llama(num_gpus=0)
    each = [llama(num_gpus=n).blended_usd_per_million() for n in (1, 2, 4, 8)]
    assert chosen.blended_usd_per_million() == min(each)


def test_smaller_layout_price_is_taken_for_experts() -> None:
    model = "Qwen/Qwen3-235B-A22B"
    either = predict(model, num_gpus=8)
    each = [predict(model, num_gpus=8, layout=layout).blended_usd_per_million() for layout in ("tensor", "expert")]
    assert either.blended_usd_per_million() == min(each)


def test_batch_is_the_largest_that_keeps_to_a_users_speed() -> None:
    found = predict(num_gpus=8, user_tokens_per_second=40)
    assert found.user_tokens_per_second >= 40
    assert predict(num_gpus=8, batch=found.batch + 1).user_tokens_per_second < 40


def test_accepted_drafts_make_a_lone_answer_faster() -> None:
    # V3 report §5.4.3: 85 to 90 % of second tokens accepted, 1.8 times the tokens a second.
    plain, drafting = (predict(num_gpus=16, batch=16, accepted=accepted) for accepted in (0, 0.85))
    assert 1.3 < drafting.user_tokens_per_second / plain.user_tokens_per_second < 1.85


def test_cached_prompt_tokens_cost_their_loading_and_no_more() -> None:
    found = predict(num_gpus=8, cache_hits=0.5)
    # 61 layers x 576 numbers x 2 bytes over 8 links of 50 GB/s.
    assert found.rate.seconds_per_cached_token == pytest.approx(70_272 / 8 / 50e9)


def test_last_prompt_token_is_never_cached() -> None:
    assert ServingPlan(gpu=find_gpu("h100"), input_tokens=1, cache_hits=1).new_tokens == 1


def test_conversation_longer_than_the_models_window_is_noted() -> None:
    assert llama(num_gpus=1).notes == ()
    assert any("longer than the model's window of 131,072" in note for note in llama(input_tokens=140_000).notes)


PLANS = st.fixed_dictionaries(
    {
        "input_tokens": st.integers(1, 20_000),
        "output_tokens": st.integers(1, 4000),
        "cache_hits": st.floats(0, 1),
        "accepted": st.sampled_from([0.0, 0.6, 0.9]),
    }
)
MODELS = st.sampled_from(
    [("deepseek-ai/DeepSeek-V3", "float8"), ("Qwen/Qwen3-30B-A3B", "bfloat16"), ("Qwen/Qwen2.5-7B", "int8"),
     ("HuggingFaceTB/SmolLM2-135M", "bfloat16")]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(model=MODELS, plan=PLANS)
def test_cached_is_never_dearer_than_input_and_busier_never_dearer_than_idle(
    model: tuple[str, str], plan: dict[str, Any]
) -> None:
    rate = predict(model[0], precision=model[1], num_gpus=0, **plan).rate
    assert 0 <= rate.usd_per_million("cached") <= rate.usd_per_million("input") * (1 + 1e-9)
    costs = [rate.usd_per_million("output", utilisation=share) for share in UTILISATIONS]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(20 * costs[-1])


@settings(max_examples=30, deadline=None)
@given(model=MODELS, context=st.integers(1, 30_000), more=st.integers(1, 30_000))
def test_longer_context_is_never_cheaper(model: tuple[str, str], context: int, more: int) -> None:
    short, long = (
        predict(model[0], precision=model[1], num_gpus=0, context_tokens=tokens).blended_usd_per_million()
        for tokens in (context, context + more)
    )
    assert long >= short * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(hits=st.floats(0, 0.95), more=st.floats(0, 0.05))
def test_more_cache_hits_never_make_a_request_dearer(hits: float, more: float) -> None:
    few, many = (predict(num_gpus=16, input_tokens=8000, cache_hits=share) for share in (hits, hits + more))
    assert many.requests_per_second >= few.requests_per_second * (1 - 1e-9)


def test_prediction_for_scripts_has_finite_numbers_and_every_term() -> None:
    shown = json.loads(json.dumps(predict(num_gpus=8, accepted=0.85, cache_hits=0.56).to_dict(), allow_nan=False))
    assert shown["decode_step_seconds"] == pytest.approx(sum(term["seconds"] for term in shown["decode_terms"]))
    assert [row["utilisation"] for row in shown["costs"]] == [0.05, 0.2, 0.5, 0.8, 1.0]
    assert {a["name"] for a in shown["assumptions"]} == set(Assumptions.default().__dict__)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"num_gpus": 1}, "hold 6.* GiB of float8 weights each, and .* are free .* try more GPUs"),
        ({"num_gpus": 8, "batch": 10**6}, "batch 1,000,000 does not fit: 8 GPUs have room for"),
        ({"num_gpus": 8, "user_tokens_per_second": 1e5}, "one conversation alone gets .* tokens a second"),
        ({"cache_hits": 1.5}, "cache_hits must be a share from 0 to 1, got 1.5"),
        ({"accepted": -0.1}, "accepted must be a share from 0 to 1"),
        ({"input_tokens": 0}, "input_tokens must be from 1 to"),
        ({"num_gpus": -1}, "num_gpus must be from 0 to"),
    ],
)
def test_plan_that_cannot_be_is_refused_in_one_line(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        predict(**plan)
    assert "\n" not in str(refused.value)


def test_overhead_below_the_gpus_own_price_is_refused() -> None:
    config = parse_config(KNOWN_CONFIGS["Qwen/Qwen2.5-7B"], source="Qwen")
    with pytest.raises(ConfigError, match="overhead must be from 1 to 100"):
        predict_serving(config, plan=ServingPlan(gpu=find_gpu("h100")), price=PRICE, overhead=0.5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("memry=1", "unknown assumption 'memry'; did you mean 'memory'"),
        ("memory=fast", "assumption memory must be a number, got 'fast'"),
        ("memory", "assumption memory must be a number, got ''"),
        ("memory=0", "assumption memory must be a share above 0"),
        ("links=1.1", "assumption links must be a share above 0 and up to 1"),
        ("memory=nan", "must be a number from 0 to 1e9"),
        ("imbalance=0.5", "imbalance, chunk_tokens and sequences must be at least 1"),
        ("hidden=2", "hidden must be a share from 0 to 1"),
    ],
)
def test_assumption_that_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Assumptions.parse([word])


def test_assumption_that_was_set_says_so() -> None:
    listed = {a.name: a for a in Assumptions.parse(["memory=0.5"]).listed()}
    assert (listed["memory"].value, listed["memory"].confidence) == (0.5, "user")
    assert listed["links"].confidence == "primary"
    slower = predict(num_gpus=8, assumptions=replace(Assumptions.default(), memory=0.5))
    assert slower.decode_step_seconds > predict(num_gpus=8).decode_step_seconds
