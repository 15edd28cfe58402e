"""Each term of a training bill against numbers worked out by hand, and against kernels and papers that state them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aha.errors import ConfigError
from aha.estimate.hardware import find_gpu
from aha.estimate.shape import find_shape
from aha.estimate.training.assumptions import ORIGINS, Assumptions, with_settings
from aha.estimate.training.communication import all_to_all, distinct, exchange, pipeline_seconds, tensor_seconds, wire
from aha.estimate.training.compute import Device, Work, layer_passes, moved_bytes, product_pass
from aha.estimate.training.layout import Layout, check_layout
from aha.estimate.training.memory import layers_in_flight, own_parameters, routed_parameters, training_memory
from aha.estimate.training.terms import Setting, bubble_share, slowest_load, step_terms
from aha.models.config import ModelConfig
from aha.models.counts import Matrix, count_parameters

H100, H800, A100 = find_gpu("h100"), find_gpu("h800"), find_gpu("a100")
DEFAULT = Assumptions()

DEEPGEMM = [
    # N, K, TFLOP/s on an H800, M = 4096, the last two in groups: README of deepseek-ai/DeepGEMM, February 2025.
    (24576, 1536, 990),
    (32768, 512, 590),
    (7168, 16384, 1358),
    (4096, 7168, 1304),
    (7168, 2048, 1025),
    (4096, 7168, 1288),
    (7168, 2048, 1093),
]


def config_of(name: str) -> ModelConfig:
    return find_shape(name).config


@pytest.mark.parametrize(("num_out", "num_in", "teraflops"), DEEPGEMM)
def test_product_takes_the_time_that_deepgemm_publishes(num_out: int, num_in: int, teraflops: float) -> None:
    device = Device(H800, DEFAULT, "float8")
    matrix = Matrix(num_out, num_in)
    done = product_pass(matrix, copies=1, is_row=False, device=device, work=Work(1, 4096, 0), format="float8")
    assert 2 * num_out * num_in / done.forward / 1e12 == pytest.approx(teraflops, rel=0.06)


def test_product_multiplies_twice_backward_and_accumulates_gradients_once_a_micro_batch() -> None:
    device = Device(A100, DEFAULT, "bfloat16")
    done = product_pass(
        Matrix(1000, 500), copies=1, is_row=False, device=device, work=Work(1, 2048, 0), format="bfloat16"
    )
    multiply = 2 * 1000 * 500 / (312e12 * 0.869)
    written = 2039e9 * 0.59
    assert done.forward == pytest.approx(multiply + 2 * 1000 / written)
    assert done.backward == pytest.approx(2 * multiply + 2 * 500 / written + 8 * 1000 * 500 / 2048 / written)


def test_tensor_parallelism_writes_all_outputs_of_a_row_split_product_on_every_gpu() -> None:
    device = Device(H100, DEFAULT, "bfloat16")
    alone, shared = (
        product_pass(Matrix(8, 8), copies=1, is_row=True, device=device, work=Work(t, 1, 0), format="bfloat16")
        for t in (1, 4)
    )
    assert shared.forward - alone.forward == pytest.approx(3 * 2 * 8 / (3350e9 * 0.59))


def test_attention_is_executed_three_and_a_half_times() -> None:
    config = config_of("Llama-3.1-8B")
    passes = layer_passes(
        config, is_sparse=False, visible_keys=4096.5, device=Device(H100, DEFAULT, "bfloat16"), work=Work(1, 8192, 0)
    )
    operations = 2 * 4096.5 * 32 * (128 + 128)
    assert passes.attention.total == pytest.approx(3.5 * operations / (0.45 * 989.5e12))


def test_moved_bytes_of_a_dense_layer_are_counted_by_hand() -> None:
    moved = moved_bytes(config_of("Llama-3.1-8B"), is_sparse=False)
    turned = (32 + 16) * 128
    assert moved.forward == 2 * (8 * 4096 + 2 * turned + 3 * 14336)
    assert moved.backward == 2 * (10 * 4096 + 2 * turned + 5 * 14336)


@pytest.mark.parametrize(
    ("layout", "count", "share"),
    [
        (Layout(), 8, 0.0),
        (Layout(pipeline=4, data=2), 8, 3 / 8),
        (Layout(pipeline=4, virtual=2), 8, 3 / 16),
        (Layout(pipeline=16, schedule="zb1p"), 64, 15 / (3 * 64)),
        (Layout(pipeline=16, schedule="dualpipe"), 120, 7 * 2 / (3 * 120)),
        # Llama 3.1 405B on 8,192 and 16,384 GPUs, chunks of one layer.
        (Layout(tensor=8, pipeline=16, virtual=8, data=64), 32, 15 / 256),
        (Layout(tensor=8, pipeline=16, virtual=8, data=128), 16, 15 / 128),
    ],
)
def test_bubble_is_that_of_the_papers(layout: Layout, count: int, share: float) -> None:
    assert bubble_share(layout, num_micro_batches=count) == pytest.approx(share)


@pytest.mark.parametrize(
    ("layers", "heads", "groups", "load"),
    [
        (8, 0.0, 4, 2.0),
        (126, 0.6, 16, 8.0),  # Llama 3.1 405B: one layer fewer beside embedding and head
        (80, 0.5, 4, 20.5),  # nothing is spare: the head comes on top
        (62, 3.2, 8, 9.0),
        (3, 5.0, 2, 5.0),  # the heads outweigh all layers
    ],
)
def test_slowest_stage_has_whole_layers(layers: int, heads: float, groups: int, load: float) -> None:
    assert slowest_load(layers, heads=heads, groups=groups) == load


def test_tensor_collective_sends_seven_eighths_of_the_width() -> None:
    config = config_of("Llama-3.1-405B")
    seconds = tensor_seconds(config, layout=Layout(tensor=8), gpu=H100, assumptions=DEFAULT)
    assert seconds == pytest.approx(8 * 2 * 16384 * 7 / 8 / (450e9 * 0.8))


def test_all_to_all_of_deepseek_v3_crosses_to_four_nodes_at_most() -> None:
    config = config_of("DeepSeek-V3")
    layout = Layout(pipeline=16, expert=64, data=128)
    sent = all_to_all(config, layout=layout, gpu=H800, precision="float8", assumptions=DEFAULT)
    # Dispatch in FP8 with a scale for 128, combination in bfloat16, forward and backward; 7 of 8 nodes are others.
    both = 2 * 7168 * (1 + 4 / 128 + 2)
    assert sent.network_bytes == pytest.approx(both * 4 * 7 / 8)
    assert sent.link_bytes == pytest.approx(both * 64 * (1 - (63 / 64) ** 8) * 7 / 8)
    assert sent.seconds == pytest.approx(both * 3.5 / (50e9 * 0.85))


def test_all_to_all_inside_a_node_needs_no_network() -> None:
    sent = all_to_all(
        config_of("Qwen3-30B-A3B"), layout=Layout(expert=8, data=8), gpu=H100, precision="bfloat16", assumptions=DEFAULT
    )
    assert sent.network_bytes == 0
    assert sent.seconds == pytest.approx(2 * 2048 * 4 * distinct(8, draws=8) * 7 / 8 / (450e9 * 0.8))


def test_distinct_places_are_all_of_them_for_many_draws_and_one_for_one() -> None:
    assert distinct(8, draws=1) == pytest.approx(1)
    assert distinct(8, draws=1000) == pytest.approx(8)


def test_group_inside_a_node_uses_its_links_and_a_larger_one_every_card_of_the_node() -> None:
    assert wire(H100, size=8, stride=1, assumptions=DEFAULT) == (450e9 * 0.8, False)
    assert wire(H100, size=64, stride=8, assumptions=DEFAULT) == (50e9 * 0.85, True)
    assert wire(H100, size=64, stride=1, assumptions=DEFAULT) == (50e9 * 0.85 * 8, True)


def test_zero_1_exchanges_gradients_and_weights_once_a_step_and_zero_3_in_each_micro_batch() -> None:
    once = exchange(1e9, 0.0, layout=Layout(tensor=8, data=16), gpu=H100, assumptions=DEFAULT)
    assert once.micro_batch_seconds == 0
    assert once.step_seconds == pytest.approx(1e9 * 15 / 16 * (4 + 2) / (50e9 * 0.85))
    often = exchange(1e9, 0.0, layout=Layout(tensor=8, data=16, zero=3), gpu=H100, assumptions=DEFAULT)
    assert often.step_seconds == 0
    assert often.micro_batch_seconds == pytest.approx(1e9 * 15 / 16 * (4 + 4) / (50e9 * 0.85))


def test_stages_send_activations_forward_and_their_gradients_back() -> None:
    config = config_of("Llama-3.1-8B")
    seconds = pipeline_seconds(config, layout=Layout(tensor=8, pipeline=4), gpu=H100, assumptions=DEFAULT)
    assert seconds == pytest.approx(3 * 2 * 2 * 4096 / (50e9 * 0.85))


def test_memory_of_a_dense_model_is_counted_by_hand() -> None:
    config = config_of("Llama-3.1-8B")
    memory = training_memory(
        config,
        layout=Layout(data=8),
        sequence_tokens=4096,
        num_micro_batches=4,
        precision="bfloat16",
        assumptions=DEFAULT,
    )
    parameters = count_parameters(config).total
    assert memory.weights == 2 * parameters
    assert memory.gradients == 4 * parameters
    assert memory.optimizer == pytest.approx(12 * parameters / 8)
    # Residuals twice and norms' outputs twice, queries, keys, values, what was attended, both halves and their product.
    layer = 2 * (2 * 4096 + 2 * 4096 + 6144 + 4096 + 3 * 14336)
    assert memory.activations == 32 * 4096 * layer
    assert memory.logits == 2 * 2 * 4096 * 128256


def test_zero_3_spreads_what_zero_1_repeats() -> None:
    config = config_of("Llama-3.1-8B")

    def memory(zero: int) -> float:
        return training_memory(
            config,
            layout=Layout(data=8, zero=zero),  # type: ignore[arg-type]
            sequence_tokens=4096,
            num_micro_batches=4,
            precision="bfloat16",
            assumptions=DEFAULT,
        ).gradients

    assert memory(2) == memory(3) == pytest.approx(memory(1) / 8)


def test_experts_of_deepseek_v3_are_spread_over_64_gpus_and_16_stages() -> None:
    config = config_of("DeepSeek-V3")
    assert routed_parameters(config) == 59 * 256 * 3 * 7168 * 2048
    own = own_parameters(config, layout=Layout(pipeline=16, expert=64, data=128, schedule="dualpipe"))
    # Two stages of four layers on a GPU.
    assert own.experts == pytest.approx(8 / 62 * 59 * 256 * 3 * 7168 * 2048 / 64)


@pytest.mark.parametrize(
    ("layout", "layers", "kept"),
    [
        (Layout(), 32, 32.0),
        (Layout(pipeline=4), 32, 32.0),  # four micro-batches in a quarter of the layers
        (Layout(pipeline=4, virtual=2), 32, 32 * (1 + 3 / 8)),
        (Layout(pipeline=16, schedule="dualpipe"), 64, 17 * 4.0),
    ],
)
def test_layers_in_flight_are_those_of_the_schedule(layout: Layout, layers: int, kept: float) -> None:
    assert layers_in_flight(layout, num_layers=layers, num_micro_batches=100) == kept


def test_first_steps_of_a_pipeline_hold_no_more_micro_batches_than_there_are() -> None:
    assert layers_in_flight(Layout(pipeline=8), num_layers=32, num_micro_batches=2) == 8


def test_full_recomputation_repeats_the_forward_pass_and_selective_a_part_of_it() -> None:
    base = Setting(
        config=config_of("DeepSeek-V3"),
        gpu=H800,
        layout=Layout(data=8),
        precision="bfloat16",
        sequence_tokens=4096,
        batch_tokens=2**22,
        assumptions=DEFAULT,
    )

    def again(recomputation: str) -> float:
        layout = replace(base.layout, recomputation=recomputation)  # type: ignore[arg-type]
        terms = {term.name: term.seconds_per_token for term in step_terms(replace(base, layout=layout))}
        return terms.get("recomputation", 0.0)

    assert again("none") == 0
    assert 0 < again("selective") < again("full") / 4


def test_every_assumption_says_where_it_comes_from() -> None:
    assert ORIGINS.keys() == vars(DEFAULT).keys()
    assert {origin.confidence for origin in ORIGINS.values()} == {"measured", "calibrated", "assumption"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("goodputt=1", "unknown assumption 'goodputt'; did you mean 'goodput'"),
        ("goodput=much", "--set goodput needs a number, got 'much'"),
        ("goodput=0", "goodput is a share, above 0 and up to 1"),
        ("goodput=nan", "goodput must be at least 0 and finite"),
        ("pue=0.5", "pue are at least 1"),
        ("exposed_data_share=2", "exposed_data_share is a share, from 0 to 1"),
    ],
)
def test_assumption_that_cannot_be_is_refused(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_settings(DEFAULT, [setting])


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(data=4), "is for 4 GPUs, the run has 8"),
        (Layout(tensor=8, pipeline=1), None),
        (Layout(pipeline=8, virtual=8), "8 stages of 8 chunks are more than the model has layers"),
        (Layout(expert=2, data=8), "expert 2 must divide the model's 1 experts"),
    ],
)
def test_layout_must_suit_the_model(layout: Layout, words: str | None) -> None:
    config = config_of("Llama-3.1-8B")
    if words is None:
        check_layout(layout, config=config, num_gpus=8)
        return
    with pytest.raises(ConfigError, match=words):
        check_layout(layout, config=config, num_gpus=8)


def test_layout_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero 3 gathers whole layers"):
        Layout(zero=3, pipeline=2)
    with pytest.raises(ConfigError, match="even number of stages"):
        Layout(pipeline=3, schedule="dualpipe")
