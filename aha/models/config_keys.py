"""Which settings of a config.json are read, and which are known to change nothing; any other is refused by its name.

Source: the configuration classes of transformers 4 and 5, and the config.json of each family's repositories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aha.errors import ModelError
from aha.models.config_values import shortened

_COMMON = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "tie_word_embeddings", "attention_bias",
    "initializer_range", "bos_token_id", "eos_token_id", "auto_map", "quantization_config",
}  # fmt: skip
_WINDOWS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
_MLA = {
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "v_head_dim",
    "rope_interleave", "num_nextn_predict_layers", "num_mtp_layers", "moe_intermediate_size", "n_routed_experts",
    "num_local_experts", "num_experts_per_tok", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob",
    "routed_scaling_factor", "scoring_func", "topk_method", "first_k_dense_replace", "moe_layer_freq", "head_dim",
    *_WINDOWS,
}  # fmt: skip
_READ = {
    "llama": {"head_dim", "mlp_bias", *_WINDOWS},
    "qwen2": {"head_dim", *_WINDOWS},
    "qwen3": {"head_dim", *_WINDOWS},
    "qwen3_moe": {
        "head_dim", "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
        "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", *_WINDOWS,
    },
    "deepseek_v3": _MLA,
    "kimi_k2": _MLA,
    "internvl": {
        "text_config", "vision_config", "image_token_id", "downsample_ratio", "projector_hidden_act",
        "vision_feature_layer", "vision_feature_select_strategy",
    },
    "internvl_vision": {
        "image_size", "patch_size", "num_channels", "norm_type", "layer_norm_eps", "use_qk_norm", "use_mask_token",
        "use_absolute_position_embeddings", "use_mean_pooling", "layer_scale_init_value",
    },
}  # fmt: skip
"""model_type, of an eye too -> what its reader looks at, beside _COMMON."""

_HARMLESS = {
    # Where a file comes from, and what it is stored as.
    "architectures", "torch_dtype", "dtype", "transformers_version", "transformers.js_config", "_name_or_path",
    "name_or_path", "_commit_hash", "model_name", "unsloth_version", "unsloth_fixed", "is_llama_config", "pad_token_id",
    "tokenizer_class", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
    "_experts_implementation", "use_flash_attn", "use_cache", "return_dict", "return_dict_in_generate",
    "output_hidden_states", "output_attentions", "output_router_logits", "output_scores", "torchscript",
    # How a machine computes the same.
    "pretraining_tp", "ep_size", "chunk_size_feed_forward", "use_bfloat16", "tf_legacy_loss",
    # What a trainer adds to the loss, or drops at random.
    "attention_dropout", "aux_loss_alpha", "seq_aux", "router_aux_loss_coef", "neftune_noise_alpha",
    "use_reentrant_checkpointing", "hidden_dropout_prob", "projection_dropout", "dropout", "drop_path_rate",
    # Follows from other settings of InternVL, or is what its tower's weights begin with.
    "image_seq_length", "initializer_factor",
    # Of classifiers.
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    # How to generate, in files from before generation_config.json.
    "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "diversity_penalty", "encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "max_length", "min_length",
    "max_new_tokens", "num_beams", "num_beam_groups", "num_return_sequences", "early_stopping", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "decoder_start_token_id", "sep_token_id", "prefix",
}  # fmt: skip
_CODE = "auto_map"
_ROPE = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "attention_factor", "truncate",
    },
}  # fmt: skip
ROPE_KINDS = tuple(_ROPE)


def refuse_unknown_keys(raw: Mapping[str, Any], *, model_type: str) -> None:
    """Let settings pass that are read, known to be harmless, or switched off.

    Raises:
        ModelError: naming a setting that may change what the model computes.
    """
    if raw.get(_CODE):
        raise ModelError(
            f"{_CODE} names code in the model's repository, which aha never runs; {model_type} is built in, so delete "
            f"{_CODE} from the file if that code is the family's own"
        )
    _refuse_unknown(raw, known=_COMMON | _READ[model_type] | _HARMLESS, where=model_type)


def _refuse_unknown(raw: Mapping[str, Any], *, known: set[str], where: str) -> None:
    for key, value in raw.items():
        if key not in known and not _is_off(value):
            raise ModelError(
                f"unknown setting {key!r} = {shortened(value)}: aha does not know what it changes in {where}; "
                "delete it from the file if it changes nothing"
            )


def refuse_unknown_rope_keys(scaling: Mapping[str, Any], *, kind: str) -> None:
    """The same for what stretches positions.

    Raises:
        ModelError: naming a setting that this kind of stretching does not have.
    """
    known = _ROPE[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
    if kind == "default":
        known = known | {"factor", "original_max_position_embeddings"}  # leftovers, which transformers ignores too
    for key, value in scaling.items():
        if key not in known and not _is_off(value):
            raise ModelError(f"unknown setting {key!r} = {shortened(value)} of rope scaling {kind!r}")


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in (0, "", [], {})
