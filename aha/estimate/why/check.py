"""The same arithmetic held to figures that others have published, with the error shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from aha.estimate.flops import causal_keys, token_flops
from aha.estimate.hardware import find_gpu
from aha.estimate.shape import find_shape
from aha.estimate.why.choices import Side
from aha.estimate.why.comparison import FAST, Setting
from aha.estimate.why.published import (
    MOE_COMPUTE,
    MTP_SPEEDUP,
    NODE_OUTPUT,
    V2_CACHE_BITS,
    V2_CACHE_SAVED,
    V2_THROUGHPUT,
    V2_TRAINING_SAVED,
    V3_CONTEXT,
    V3_MODEL,
    V3_PRETRAINING_HOURS,
    V3_TOKENS,
    Published,
)
from aha.estimate.why.serving import drafts_speedup
from aha.models.config import ExpertsShape, LatentAttentionShape, ModelConfig
from aha.models.counts import cache_bytes_per_token

DEEPSEEK_67B = ModelConfig(
    model_type="llama", vocab_size=102_400, hidden_size=8192, intermediate_size=22_016, num_layers=95, num_heads=64,
    num_kv_heads=8, head_dim=128, max_position_embeddings=4096,
)  # fmt: skip
"""DeepSeek LLM 67B (arXiv:2401.02954 table 2)."""
DEEPSEEK_V2 = ModelConfig(
    model_type="deepseek_v3", vocab_size=102_400, hidden_size=5120, intermediate_size=12_288, num_layers=60,
    num_heads=128, num_kv_heads=128, head_dim=192, max_position_embeddings=131_072, rope_interleaved=True,
    mla=LatentAttentionShape(
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    experts=ExpertsShape(
        num_experts=160, num_experts_per_token=6, intermediate_size=1536, num_shared_experts=2, scoring="softmax",
        has_selection_bias=False, first_layer=1,
    ),
)  # fmt: skip
"""DeepSeek-V2 (arXiv:2405.04434 §3.1.2); its dense width is that of its config.json."""
DEEPSEEK_MOE_145B = ModelConfig(
    model_type="deepseek_v3", vocab_size=102_400, hidden_size=4096, intermediate_size=16 * 1408, num_layers=62,
    num_heads=32, num_kv_heads=32, head_dim=128, max_position_embeddings=4096,
    experts=ExpertsShape(
        num_experts=128, num_experts_per_token=12, intermediate_size=1408, num_shared_experts=4, scoring="softmax",
        has_selection_bias=False, first_layer=1,
    ),
)  # fmt: skip
"""DeepSeekMoE 145B (arXiv:2401.06066 §7.1); no config.json is public, the widths give its 144.6B and 22.2B."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One published figure and ours."""

    what: str
    ours: float
    published: Published
    form: str = "{:,.3g}"
    note: str = ""

    @property
    def error(self) -> float:
        """Of ours, as a share of the published."""
        return self.ours / self.published.value - 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": self.what, "ours": self.ours, "published": self.published.value, "error": self.error,
            "source": self.published.source, "confidence": self.published.confidence, "note": self.note,
        }  # fmt: skip


def checks(setting: Setting) -> Iterator[Check]:
    """All of them, on the H800s and the tokens that the published figures are of; the rest as it is set."""
    setting = replace(setting, gpu=find_gpu("h800"), num_gpus=2048, tokens=V3_TOKENS.value, sequence_tokens=V3_CONTEXT)
    v3 = Side(config=find_shape(V3_MODEL).config, precision=setting.best_precision)
    hours = setting.training_usd(v3) / setting.price.usd_per_hour
    yield Check(what="V3: H800 hours of pre-training", ours=hours, published=V3_PRETRAINING_HOURS, form="{:,.0f}")
    yield Check(
        what="V2 against 67B: training saved", ours=v2_training_saved(setting), published=V2_TRAINING_SAVED,
        form="{:.1%}",
    )  # fmt: skip
    yield Check(
        what="V2 against 67B: cache saved", ours=v2_cache_saved(), published=V2_CACHE_SAVED, form="{:.1%}",
        note=f"{v2_cache_saved(bits=16):.1%} with 16 bits a value in both",
    )  # fmt: skip
    yield Check(
        what="V2 against 67B: output of a node", ours=v2_throughput(setting), published=V2_THROUGHPUT, form="{:.2f}x",
        note="their context length is not published; cache of 8 bits here, 6 there",
    )  # fmt: skip
    yield Check(
        what="145B experts against 67B: operations",
        ours=moe_compute(),
        published=MOE_COMPUTE,
        form="{:.1%}",
        note="they count the 67B as 72 L D^2, with full heads and 4 D channels; it has groups and fewer",
    )
    yield Check(what="V3: tokens a second with drafts", ours=drafts(setting), published=MTP_SPEEDUP, form="{:.2f}x")
    yield Check(
        what="V3: output tokens/s of a node", ours=node_output(setting), published=NODE_OUTPUT, form="{:,.0f}",
        note="whether their day drafted is not published; ours does not, on 144 GPUs as theirs",
    )  # fmt: skip


def v2_training_saved(setting: Setting) -> float:
    """Of DeepSeek 67B's training bill, both in bfloat16."""
    sparse, dense = (
        setting.training_usd(Side(config=config, precision="bfloat16")) for config in (DEEPSEEK_V2, DEEPSEEK_67B)
    )
    return 1 - sparse / dense


def v2_cache_saved(*, bits: int = V2_CACHE_BITS) -> float:
    """Of DeepSeek 67B's cache, which has 16 bits a value."""
    return 1 - cache_bytes_per_token(DEEPSEEK_V2) * bits / 16 / cache_bytes_per_token(DEEPSEEK_67B)


def v2_throughput(setting: Setting) -> float:
    """Largest output of a node of 8: V2 with FP8 weights and cache, 67B in bfloat16; however slow for each reader."""
    service = replace(setting.service(), tokens_per_second=0.0)
    packed = replace(service.plan(setting.best_precision, num_gpus=8), cache="float8")
    sparse = service.predict(DEEPSEEK_V2, plan=packed)
    dense = service.predict(DEEPSEEK_67B, plan=service.plan("bfloat16", num_gpus=8))
    return sparse.decode_tokens_per_second / dense.decode_tokens_per_second


def moe_compute() -> float:
    """Operations of DeepSeekMoE 145B as a share of DeepSeek 67B's, at 4,096 tokens."""
    sparse, dense = (
        token_flops(config, visible_keys=causal_keys(4096)).forward for config in (DEEPSEEK_MOE_145B, DEEPSEEK_67B)
    )
    return sparse / dense


def drafts(setting: Setting) -> float:
    """Tokens a second of a fast reader with drafts over those without, on the same GPUs with the same batch."""
    return drafts_speedup(
        find_shape(V3_MODEL).config, precision=setting.best_precision, service=setting.service(faster=2 * FAST),
        accepted=setting.acceptance,
    )  # fmt: skip


def node_output(setting: Setting) -> float:
    """Output tokens a second of 8 GPUs of the 144 that the inference day decoded on, without drafts."""
    config = replace(find_shape(V3_MODEL).config, num_mtp_layers=0)
    service = setting.service()
    found = service.predict(config, plan=service.plan(setting.best_precision, num_gpus=144))
    return 8 * found.decode_tokens_per_second / found.replica.num_gpus
