"""`aha cost why`: each row's arithmetic by hand, the way from the naive model, and what others have published."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from aha.cost.prices import machine_price
from aha.errors import ConfigError
from aha.estimate.hardware import find_gpu
from aha.estimate.shape import find_shape
from aha.estimate.why import Row, Setting, choice_rows, sides_of, walk
from aha.estimate.why.check import (
    DEEPSEEK_67B,
    DEEPSEEK_MOE_145B,
    DEEPSEEK_V2,
    checks,
    drafts,
    node_output,
    v2_cache_saved,
    v2_throughput,
)
from aha.estimate.why.choices import Side, choices_of, count_text, undo_all
from aha.estimate.why.rl import (
    RLRun,
    baseline_noise,
    critic_bytes,
    distilled_tokens,
    gpus_for,
    rl_rows,
    work_with_critic,
)
from aha.models.counts import count_parameters

V3 = find_shape("DeepSeek-V3")
H800 = find_gpu("h800")
PRICE = machine_price("h800-hour", on=date(2025, 1, 31))
ORDINARY = Setting(gpu=H800, price=PRICE, tokens=14.8e12, num_gpus=2048)
"""One for all tests: it remembers its bills."""


def setting(**changes: Any) -> Setting:
    return replace(ORDINARY, **changes) if changes else ORDINARY


def rows_of(name: str = "DeepSeek-V3", **changes: Any) -> dict[tuple[str, str], Row]:
    shape, chosen = find_shape(name), setting(**changes)
    side, choices = sides_of(shape, setting=chosen)
    rows = [*choice_rows(side, choices, setting=chosen), *rl_rows(shape.config, setting=chosen)]
    return {(row.choice, row.bill): row for row in rows}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], Row]:
    return rows_of()


def test_every_choice_of_v3_has_its_rows(rows: dict[tuple[str, str], Row]) -> None:
    assert list(rows) == [
        ("experts_against_total", "training"),
        ("experts_against_total", "output"),
        ("experts_against_active", "training"),
        ("experts_against_active", "output"),
        ("attention_against_full_heads", "training"),
        ("attention_against_full_heads", "output"),
        ("attention_against_gqa8", "training"),
        ("attention_against_gqa8", "output"),
        ("float8", "training"),
        ("float8", "output"),
        ("multi_token_prediction", "training"),
        ("multi_token_prediction", "output"),
        ("multi_token_prediction", "fast output"),
        ("group_baseline", "rl"),
        ("flat_groups_dropped", "rl"),
        ("distilling", "student"),
    ]
    assert all(row.in_return and row.source for row in rows.values())


def test_a_dense_model_of_all_parameters_costs_many_times_as_much(rows: dict[tuple[str, str], Row]) -> None:
    # 1,350 GFLOP a token forward against 83, and a dense model exchanges and permutes nothing.
    assert 7 < rows["experts_against_total", "training"].ratio < 16
    assert 0.5 < rows["experts_against_active", "training"].ratio < 1


def test_latents_save_more_in_serving_than_in_training(rows: dict[tuple[str, str], Row]) -> None:
    training, output = (rows["attention_against_full_heads", bill] for bill in ("training", "output"))
    assert 1 < training.ratio < 1.6
    assert output.ratio > 5 * training.ratio
    assert rows["attention_against_gqa8", "output"].ratio < output.ratio


def test_float8_saves_less_than_half(rows: dict[tuple[str, str], Row]) -> None:
    assert 1 < rows["float8", "training"].ratio < 2
    assert 1 < rows["float8", "output"].ratio <= 2


def test_prediction_costs_a_little_training_and_saves_the_more_the_faster_the_reader(
    rows: dict[tuple[str, str], Row],
) -> None:
    training, slow, fast = (rows["multi_token_prediction", bill] for bill in ("training", "output", "fast output"))
    # One layer of 61 and the head once more: 3 % of the operations, and a stage of the pipeline with more to do.
    assert 0.85 < training.ratio < 0.98
    assert training.saved_usd < 0
    assert 1 <= slow.ratio < fast.ratio < 1.85


def test_critic_adds_four_passes_to_five_and_its_own_optimiser(rows: dict[tuple[str, str], Row]) -> None:
    assert work_with_critic() == 9 / 5
    row = rows["group_baseline", "rl"]
    assert row.with_usd == pytest.approx((101_000 + 41_000) * 2)
    # A fifth of the hours trains, and takes 1.8 times as long.
    assert row.without_usd == pytest.approx(142_000 * 2 * (0.8 + 0.2 * 1.8))
    assert critic_bytes(1000, precision="float8") == 1000 * (4 + 4 + 2 + 2 + 1)
    assert gpus_for(671e9 * 13, gpu=H800) == 103


def test_group_of_sixteen_costs_a_fifteenth_more_samples() -> None:
    assert baseline_noise(16) == pytest.approx(1 + 1 / 15)
    # Exactly, over all outcomes of fair coins in a group of 3: r1 - (r2 + r3) / 2 has 3/2 of r1's variance of 1/4.
    outcomes = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    assert sum((a - (b + c) / 2) ** 2 for a, b, c in outcomes) / 8 == pytest.approx(baseline_noise(3) / 4)


def test_dropped_groups_save_their_share_of_the_trainer_only(rows: dict[tuple[str, str], Row]) -> None:
    row = rows["flat_groups_dropped", "rl"]
    assert row.with_usd == pytest.approx(284_000 * (1 - 0.2 * 0.4))
    run = RLRun(gpu_hours=100.0, trainer_share=1.0, usd_per_gpu_hour=3.0)
    assert run.cost_usd(trainer_work=0.25) == 75.0


def test_distilling_is_paid_by_the_tokens_and_rl_by_r1_zeros_hours(rows: dict[tuple[str, str], Row]) -> None:
    assert distilled_tokens() == pytest.approx(2 * 804_745 * 5_355.3)
    row = rows["distilling", "student"]
    # 6 operations a parameter and token, and attention, in bfloat16: less than 1.2e21 of 989.5e12 a second cannot do.
    least_usd = 6 * 32e9 * distilled_tokens() / 989.5e12 / 3600 * 2
    assert least_usd < row.with_usd < 12 * least_usd
    assert 0.5 < row.without_usd / (101_000 * 2) < 1.0
    assert row.ratio > 10


def test_another_models_rl_is_scaled_by_its_operations() -> None:
    small = rows_of("Qwen3-30B-A3B")["group_baseline", "rl"]
    assert 0.05 < small.with_usd / 284_000 < 0.15
    assert small.ratio == pytest.approx(1.16)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("meta-llama/Llama-3.1-405B", ["attention_against_full_heads", "float8"]),
        (
            "Qwen3-30B-A3B",
            ["experts_against_total", "experts_against_active", "attention_against_full_heads", "float8"],
        ),
    ],
)
def test_only_choices_that_a_model_has_made_are_undone(name: str, keys: list[str]) -> None:
    _, choices = sides_of(find_shape(name), setting=setting())
    assert [choice.key for choice in choices] == keys


def test_a_gpu_without_float8_has_no_such_choice() -> None:
    side = Side(config=V3.config, precision="bfloat16")
    assert "float8" not in [choice.key for choice in choices_of(side, gpu=find_gpu("a100"))]


def test_naive_model_is_dense_with_full_heads_in_bfloat16_and_as_large() -> None:
    side, choices = sides_of(V3, setting=setting())
    naive = undo_all(side, [choice for choice in choices if choice.in_chain])
    assert (naive.config.experts, naive.config.mla, naive.config.num_mtp_layers) == (None, None, 0)
    assert (naive.config.num_kv_heads, naive.config.head_dim, naive.precision) == (128, 128, "bfloat16")
    assert count_parameters(naive.config).total == pytest.approx(count_parameters(V3.config).total, rel=1e-5)


@pytest.mark.parametrize("bill", ["training", "output"])
def test_steps_from_the_naive_model_add_up_to_this_one(bill: Any) -> None:
    chosen = setting()
    side, choices = sides_of(V3, setting=chosen)
    chain = walk(side, choices, bill, setting=chosen)
    assert [step.choice for step in chain.steps] == [
        "experts_against_total", "attention_against_full_heads", "float8", "multi_token_prediction",
    ]  # fmt: skip
    assert chain.naive_usd - sum(step.saved_usd for step in chain.steps) == pytest.approx(chain.final_usd)
    assert chain.final_usd == chosen.cost_usd(side, bill)
    assert all(a.after_usd == b.before_usd for a, b in zip(chain.steps, chain.steps[1:], strict=False))
    # The last step is the one that is taken up last in either order.
    assert chain.steps[-1].saved_usd == pytest.approx(chain.steps[-1].alone_usd)


def test_full_heads_hide_what_experts_save_in_serving() -> None:
    chosen = setting()
    side, choices = sides_of(V3, setting=chosen)
    first, second, *_ = walk(side, choices, "output", setting=chosen).steps
    assert first.saved_usd < 0.1 * first.before_usd
    assert second.saved_usd > 0.8 * second.before_usd


@pytest.mark.parametrize(("name", "low", "high"), [("flat_share", 0.2, 0.6), ("trainer_share", 0.1, 0.5)])
def test_more_flat_groups_and_more_training_save_more(name: str, low: float, high: float) -> None:
    few, many = (rl_rows(V3.config, setting=setting(**{name: share}))[1] for share in (low, high))
    assert many.saved_usd > few.saved_usd > 0


def test_dollars_are_proportional_to_the_price_and_to_the_tokens() -> None:
    one = setting()
    side, _ = sides_of(V3, setting=one)
    dear = replace(one, price=machine_price("4.00", on=date(2025, 1, 31)))
    for bill in ("training", "output"):
        assert dear.cost_usd(side, bill) == pytest.approx(2 * one.cost_usd(side, bill))
    assert replace(one, tokens=2 * one.tokens).training_usd(side) == pytest.approx(2 * one.training_usd(side), rel=0.02)


def test_better_drafts_never_cost_more() -> None:
    side, _ = sides_of(V3, setting=setting())
    dollars = [setting(acceptance=share).cost_usd(side, "fast output") for share in (0.0, 0.5, 0.85, 0.95)]
    assert dollars == sorted(dollars, reverse=True)
    assert dollars[0] > dollars[-1]


# --- published figures ---


def test_shapes_of_the_comparisons_have_their_published_parameters() -> None:
    assert count_parameters(DEEPSEEK_67B).total == pytest.approx(67.4e9, rel=1e-3)
    v2, moe = count_parameters(DEEPSEEK_V2), count_parameters(DEEPSEEK_MOE_145B)
    assert (v2.total, v2.active) == (pytest.approx(236e9, rel=2e-3), pytest.approx(21e9, rel=2e-2))
    assert (moe.total, moe.active) == (pytest.approx(144.6e9, rel=1e-3), pytest.approx(22.2e9, rel=1e-3))


def test_v2s_cache_saving_is_found_with_its_six_bits_only() -> None:
    # 34,560 values of 6 bits against 2 x 8 x 128 x 95 = 194,560 of 16.
    assert v2_cache_saved() == pytest.approx(1 - 34_560 * 6 / (194_560 * 16))
    assert v2_cache_saved() == pytest.approx(0.933, abs=1e-3)
    assert v2_cache_saved(bits=16) == pytest.approx(0.822, abs=1e-3)


def test_v2s_throughput_and_v3s_decoding_are_within_a_fifth_of_their_reports() -> None:
    assert v2_throughput(setting()) == pytest.approx(5.76, rel=0.2)
    assert node_output(setting()) == pytest.approx(14_800, rel=0.2)
    assert drafts(setting()) == pytest.approx(1.8, rel=0.2)


def test_training_bills_are_within_a_tenth_of_v3s_and_v2s_reports() -> None:
    found = {check.what: check for check in checks(setting())}
    assert found["V3: H800 hours of pre-training"].ours == pytest.approx(2_664_000, rel=0.1)
    assert found["V2 against 67B: training saved"].ours == pytest.approx(0.425, rel=0.1)


def test_deepseekmoes_share_of_operations_follows_from_their_count_of_the_dense_model() -> None:
    """72 L D**2 + 12 L D S + 6 V D (arXiv:2401.02954 formula 2 and the head): its 2,057.5 TFLOP for 4K tokens."""
    dense = 72 * 95 * 8192**2 + 12 * 95 * 8192 * 4096 + 6 * 102_400 * 8192
    assert dense * 4096 == pytest.approx(2057.5e12, rel=1e-3)
    found = {check.what: check for check in checks(setting())}
    assert found["145B experts against 67B: operations"].ours == pytest.approx(0.327, abs=2e-3)


def test_every_published_figure_has_a_source_and_an_error() -> None:
    for check in checks(setting()):
        assert (
            "report" in check.published.source
            or "Overview" in check.published.source
            or "arXiv" in check.published.source
        )
        assert check.error == check.ours / check.published.value - 1


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"acceptance": 1.5}, "acceptance is a share from 0 to 1, got 1.5"),
        ({"trainer_share": -0.1}, "trainer_share is a share from 0 to 1, got -0.1"),
        ({"flat_share": float("nan")}, "flat_share is a share from 0 to 1, got nan"),
        ({"tokens": 0.0}, "tokens must be above 0 and finite, got 0"),
        ({"tokens": float("inf")}, "tokens must be above 0 and finite, got inf"),
        ({"tokens_per_second": float("nan")}, "tokens_per_second must be above 0 and finite, got nan"),
    ],
)
def test_setting_outside_its_range_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        setting(**changes)


@pytest.mark.parametrize(
    ("count", "text"), [(14.8e12, "14.8T"), (671.03e9, "671B"), (1e12, "1T"), (999.9e9, "1T"), (1_907_712, "1.91M")]
)
def test_counts_are_written_with_their_unit(count: float, text: str) -> None:
    assert count_text(count) == text
