"""What every test gets: two threads, no network, and in CI no silent skips."""

from __future__ import annotations

import os

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import json
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# InternVL's own, with the control tokens of the tiny tokenizer.
VISION_TEMPLATE = """{{ '<|bos|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{%
if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{%
if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{%
endif %}{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}{%
if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random InternVL in Hugging Face layout, whose answers depend on what it sees: 4 tokens a tile of 28."""
    import torch
    from tokenizers import AddedToken

    from aha.models import InternVL, ModelConfig, VisionShape, build_model
    from aha.models.tokenizer import build_tokenizer, save_tokenizer

    folder = tmp_path_factory.mktemp("models") / "seer"
    save_tokenizer(folder)
    tokenizer = build_tokenizer()
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra_special_tokens": names}))
    (folder / "chat_template.jinja").write_text(VISION_TEMPLATE)
    vision = VisionShape(
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"), hidden_size=24, intermediate_size=40, num_layers=2,
        num_heads=3, image_size=28, patch_size=7, has_qkv_bias=True, layer_scale=1.0, initializer_range=0.3,
    )  # fmt: skip
    config = ModelConfig(
        model_type="qwen2", vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_layers=2,
        num_heads=2, num_kv_heads=1, head_dim=16, max_position_embeddings=256, has_qkv_bias=True, vision=vision,
        initializer_range=0.4, eos_token_ids=(tokenizer.token_to_id("<|end|>"),),
    )  # fmt: skip
    model = build_model(config, dtype="float32", device="cpu")
    assert isinstance(model, InternVL)
    model.initialise(seed=1)
    with torch.no_grad():
        model.vision_tower.embeddings.position_embeddings.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    model.save(folder)
    return folder


# How long a busy machine takes says nothing about the code.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure: a test that CI does not run protects nothing."""
    is_expected_failure = hasattr(report, "wasxfail")
    if os.environ.get("CI") == "true" and report.skipped and not is_expected_failure:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which must run every test not marked gpu: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") is None:
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report
