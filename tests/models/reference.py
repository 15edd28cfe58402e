"""Tiny random models of the reference implementation, of every family, for the tests that compare ours with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

TOLERANCE = 1e-5
"""Largest absolute difference of a float32 logit; the logits here reach 8."""
ORIGINAL_WINDOW = 16
"""Positions before a stretching begins; every sequence here is longer."""

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_WINDOW,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": ORIGINAL_WINDOW,
}
DEEPSEEK_YARN = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    # Wide enough that logits spread over several units, so that a wrong rotation or norm shows.
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
    "pad_token_id": None,
}
V3: dict[str, Any] = {
    "num_key_value_heads": 3,
    "q_lora_rank": 22,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 10,
    "v_head_dim": 9,
    "moe_intermediate_size": 21,
    "n_routed_experts": 12,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
    # Experts add to each other: narrower, or logits of 50 would leave 1e-5 to rounding.
    "initializer_range": 0.15,
}
QWEN3_MOE: dict[str, Any] = {
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 22,
    "norm_topk_prob": True,
}
DENSE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied_eps": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_wide_heads": ("llama", {"head_dim": 20, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama3_rope": ("llama", {"rope_parameters": {"rope_theta": 500.0, **LLAMA3}}),
    "llama_linear_rope": (
        "llama",
        {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 2.5}},
    ),
    "llama_yarn": ("llama", {"rope_parameters": YARN}),
    "llama_yarn_attention_factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.4}}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True, "num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen2_yarn": ("qwen2", {"rope_parameters": {**YARN, "factor": 4.0}}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_tied": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3_biases": ("qwen3", {"head_dim": 16, "attention_bias": True, "num_key_value_heads": 3}),
    "qwen3_yarn": ("qwen3", {"head_dim": 32, "rope_parameters": {**YARN, "truncate": False}}),
}
SPARSE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE),
    "qwen3_moe_raw_weights": ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": False, "tie_word_embeddings": True}),
    "qwen3_moe_every_second": ("qwen3_moe", {**QWEN3_MOE, "decoder_sparse_step": 2, "attention_bias": True}),
    "qwen3_moe_dense_layers": ("qwen3_moe", {**QWEN3_MOE, "mlp_only_layers": [0, 2], "rope_parameters": YARN}),
    "v3": ("deepseek_v3", V3),
    "v3_yarn": ("deepseek_v3", {**V3, "rope_parameters": DEEPSEEK_YARN}),
    "v3_yarn_of_v2": (
        "deepseek_v3",
        {**V3, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32.0}},
    ),
    "v3_yarn_without_mscale": ("deepseek_v3", {**V3, "rope_parameters": YARN}),
    "v3_kimi": (  # one group, beta_fast = beta_slow, eps of Kimi-K2-Thinking
        "deepseek_v3",
        {
            **V3, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "rms_norm_eps": 1e-5,
            "rope_parameters": {**DEEPSEEK_YARN, "beta_fast": 1.0},
        },
    ),
    "v3_moonlight": (
        "deepseek_v3",
        {
            **V3, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 2, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"},
        },
    ),
    "v3_tied_biases": ("deepseek_v3", {**V3, "tie_word_embeddings": True, "attention_bias": True}),
    "v3_half_split_rope": ("deepseek_v3", {**V3, "rope_interleave": False, "q_lora_rank": None}),
    "v3_raw_weights": ("deepseek_v3", {**V3, "norm_topk_prob": False, "routed_scaling_factor": 0.7}),
    "v3_all_sparse": ("deepseek_v3", {**V3, "first_k_dense_replace": 0, "n_group": 2, "topk_group": 1}),
    "v3_all_dense": ("deepseek_v3", {**V3, "first_k_dense_replace": 3}),
}  # fmt: skip
CASES = DENSE_CASES | SPARSE_CASES
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
}


def reference_class(case: str) -> Any:
    return CLASSES[CASES[case][0]][1]


def make_reference(case: str, *, seed: int, **changes: Any) -> Any:
    """A random model of the reference implementation, in float32; norms and biases are random too."""
    model_type, settings = CASES[case]
    config_class, model_class = CLASSES[model_type]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**BASE, **settings, **changes})).eval()
    compute_by_loops(model)
    randomise(model)
    return model


def compute_by_loops(model: Any) -> None:
    """Experts one after the other: the reference's grouped product takes no odd sizes."""
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")


@torch.no_grad()
def randomise(model: Any) -> None:
    """Norms, biases and the gates' selection biases drawn too: those of a fresh model are ones and zeros."""
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            parameter.normal_(0.0, 0.2)  # as wide as the affinities: a bias in the weights would show
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.3)
        elif "norm" in name:
            parameter.normal_(1.0, 0.3)


def apart(name: str, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the reference holds as one tensor of all experts, as files have it: an expert's matrices one by one."""
    place, _, kind = name.rpartition(".")
    if not place.endswith(".experts"):
        yield name, values
        return
    for index, matrix in enumerate(values):
        if kind == "gate_up_proj":
            gate, up = matrix.chunk(2)
            yield f"{place}.{index}.gate_proj.weight", gate.contiguous()
            yield f"{place}.{index}.up_proj.weight", up.contiguous()
        else:
            yield f"{place}.{index}.down_proj.weight", matrix.contiguous()


def draw_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, BASE["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def reference_logits(reference: Any, token_ids_BT: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = reference(token_ids_BT).logits
    return logits


def worst_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach() - theirs).abs().max())


def rewrite_as_version_4(folder: Path) -> None:
    """Turn config.json, as transformers 5 writes it, into what transformers 4 and the Hub's files say."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] in ("linear", "yarn"):
        raw["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}  # the key of version 4.37 and before
    elif rope["rope_type"] == "llama3":
        raw["rope_scaling"] = rope
    else:
        raw["rope_scaling"] = None
    raw["torch_dtype"] = raw.pop("dtype")
    raw.pop("layer_types", None)
    if raw["model_type"] == "qwen3_moe":
        raw["num_experts"] = raw.pop("num_local_experts")
    if raw["model_type"] == "deepseek_v3":
        for key in ("head_dim", "qk_head_dim"):
            raw.pop(key)
        if raw["rope_interleave"]:
            raw.pop("rope_interleave")
        raw |= {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "ep_size": 1,
                "aux_loss_alpha": 0.001, "seq_aux": True}  # fmt: skip
    path.write_text(json.dumps(raw))
