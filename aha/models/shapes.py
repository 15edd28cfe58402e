"""Shapes of small models to make from nothing: what a recipe's `architecture` may name besides a folder.

They read with the built-in tokenizer, whose 1,363 tokens write out searches for countdown problems.
"""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # DeepSeek-V3 with everything it has, as small as the built-in dense base: a token meets a shared expert and two of
    # eight, whose widths add up to that base's 384, so that both have the same active parameters within 1 %.
    "v3_tiny": {
        "model_type": "deepseek_v3",
        "vocab_size": 1363,
        "hidden_size": 128,
        "intermediate_size": 384,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 4,
    },
}
"""Name -> its configuration, in the dialect of config.json."""
