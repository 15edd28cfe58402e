"""What llama.cpp calls the families, tensors and numbers that Hugging Face has other names for.

Source: llama.cpp's src/llama-arch.cpp and gguf-py's constants.
"""

from __future__ import annotations

from aha.models.config import ModelType

ARCHITECTURES: dict[str, ModelType] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
"""llama.cpp's name of a family that GGUF files are read and written of -> ours."""
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
EXPERT_NAMES = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
"""Tensors that hold a matrix of every expert, one above the other; Hugging Face has one for each expert."""
ROPE_FACTORS = "rope_freqs.weight"
EXPERT_KEYS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
