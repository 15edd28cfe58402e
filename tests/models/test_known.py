"""The known models' shapes against the parameter counts that are published for them."""

from __future__ import annotations

import pytest

from aha.models.counts import count_parameters, fp8_weight_bytes, layer_matrices, num_selection_biases
from aha.models.known import KNOWN_CONFIGS, KNOWN_MODELS, find_known, known_config

# Exact numbers: the safetensors metadata that Hugging Face shows for each repository ("total"), or the weight index's
# total_size / 2. Rounded ones, in billions: model cards and reports.
EXACT = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,  # index: 61,064,245,248 bytes
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,  # index: 16,060,522,496 bytes
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}
ROUNDED = [
    # id, total, active (0: dense), decimals, source
    ("deepseek-ai/DeepSeek-V3", 671, 37, 0, "arXiv:2412.19437 abstract; the active ones come out as 37.55 or 36.63"),
    ("moonshotai/Moonlight-16B-A3B", 16, 3, 0, "arXiv:2502.16982 abstract"),
    ("moonshotai/Kimi-K2-Instruct", 1000, 32, -1, "model card: 1T in total, 32B activated"),
    ("Qwen/Qwen3-30B-A3B", 30.5, 3.3, 1, "model card"),
    ("Qwen/Qwen3-235B-A22B", 235, 22, 0, "model card"),
    ("Qwen/Qwen3-0.6B", 0.6, 0, 1, "model card"),
    ("Qwen/Qwen3-1.7B", 1.7, 0, 1, "model card"),
    ("Qwen/Qwen3-4B", 4.0, 0, 1, "model card"),
    ("meta-llama/Llama-3.1-405B", 405, 0, -1, "arXiv:2407.21783 abstract"),
    ("OpenGVLab/InternVL3_5-1B-HF", 1.1, 0, 1, "model card of InternVL3.5: vision 0.3B, language 0.8B"),
    ("OpenGVLab/InternVL3_5-30B-A3B-HF", 30.8, 0, 1, "model card of InternVL3.5"),
    ("OpenGVLab/InternVL3_5-241B-A28B-HF", 240.7, 0, 1, "model card of InternVL3.5: vision 5.5B, language 235.1B"),
    ("OpenGVLab/InternVL3-78B-hf", 78.4, 0, 1, "model card of InternVL3"),
]


@pytest.mark.parametrize("name", EXACT)
def test_published_count_is_met_exactly(name: str) -> None:
    assert count_parameters(known_config(name)).total == EXACT[name]


@pytest.mark.parametrize(("name", "total", "active", "decimals", "source"), ROUNDED, ids=[row[0] for row in ROUNDED])
def test_published_count_is_met_as_rounded(name: str, total: float, active: float, decimals: int, source: str) -> None:
    counts = count_parameters(known_config(name))
    # Publishers round up and down: Kimi's 1,026B is "1T", V3's 37.55B active "37B".
    unit = max(10.0**-decimals, 0.03 * total if decimals <= 0 else 0.0)
    assert abs(counts.total / 1e9 - total) <= unit
    if active:
        assert abs(counts.active / 1e9 - active) < min(1.0, 10.0**-decimals)


def test_folder_of_v3_holds_as_many_numbers_and_bytes_as_published() -> None:
    # Hugging Face, deepseek-ai/DeepSeek-V3: 684,531,386,000 numbers in 688,574,839,360 bytes; embedding and head are
    # stored a second time with the module of multi-token prediction, and each block of 128 x 128 has a float32 scale.
    config = known_config("deepseek-ai/DeepSeek-V3")
    counts = count_parameters(config)
    assert fp8_weight_bytes(config) + 2 * (counts.embedding + counts.head) == 688_574_839_360
    # What is neither counted nor a selection bias are the scales: as many as there are blocks.
    num_scales = 684_531_386_000 - counts.held - counts.embedding - counts.head - num_selection_biases(config)
    blocks = [
        matrix.copies * -(-matrix.num_out // 128) * -(-matrix.num_in // 128)
        for index in range(62)
        for matrix in layer_matrices(config, index=index)
    ]
    assert num_scales == sum(blocks)


def test_names_and_ids_are_unique_and_every_configuration_says_how_far_it_is_verified() -> None:
    assert len(KNOWN_CONFIGS) == sum(len(model.configs) for model in KNOWN_MODELS)
    assert len({model.name for model in KNOWN_MODELS}) == len(KNOWN_MODELS)
    for model in KNOWN_MODELS:
        assert model.verified in ("real weights", "random weights", "config only")
        assert model.licence
        assert model.source
        for name in model.configs:
            assert known_config(name).eos_token_ids or known_config(name).vision, name


def test_words_find_models_by_name_and_family() -> None:
    assert [model.name for model in find_known("R1 qwen 32b")] == ["DeepSeek-R1-Distill-Qwen-32B"]
    assert {model.family for model in find_known("moonshotai")} == {"Moonlight", "Kimi-K2"}
    assert not list(find_known("qwen gpt"))
