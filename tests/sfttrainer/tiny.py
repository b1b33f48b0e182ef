"""Small configurations of any model type: the defaults of its class, with sizes cut down."""

from __future__ import annotations

from typing import Any

import transformers

LAYERS = 4
# sizes that every type accepts together; a name that a type lacks is not set
SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS, "num_attention_heads": 4, "n_head": 4,
    "n_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "n_positions": 256, "word_embed_proj_dim": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "moe_k": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_shared_expert_intermediate_size": 32, "intermediate_size_mlp": 96,
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_d_ssm": 128, "mamba_num_heads": 4, "mamba_head_dim": 32,
    "mamba_chunk_size": 8, "chunk_size": 8, "ssm_state_size": 8, "state_size": 8, "n_groups": 1, "num_heads": 4,
    "attention_hidden_size": 64,     "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "qk_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "lru_width": 64,
    "d_ff": 96, "d_kv": 16, "sliding_window": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
    "rotary_dim": 8,
}  # fmt: skip
# one kind for each layer: a list of the class's default length would not fit
PER_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types")
_HEADS: dict[str, Any] = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
# what the sizes above leave without a layer of attention, and what a type needs besides
OF_A_TYPE: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in ("axk2", "deepseek_v32", "glm_moe_dsa", "dots3_note_text")},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEADS),
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"activation_sparsity_pattern": [0.0] * LAYERS, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"n_routed_experts": 4, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "moe_topk": 2},
    "mamba2": {"head_dim": 32},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "nemotron": {"num_key_value_heads": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
}


# of vision towers
TOWER: dict[str, Any] = {
    "hidden_size": 32, "embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": 2, "depth": 2, "num_attention_heads": 2,
    "num_heads": 2, "num_key_value_heads": 2,
    "image_size": 56, "patch_size": 14, "out_hidden_size": 64, "head_dim": 16, "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16, "vision_output_dim": 64,
}  # fmt: skip


def architecture(model_type: str) -> dict[str, Any]:
    """Return a small configuration of a model type, with each kind of layer that its default has."""
    return _small(transformers.AutoConfig.for_model(model_type))


def with_vision(model_type: str) -> dict[str, Any]:
    """Return a small configuration of a model type with a vision part."""
    blank = transformers.AutoConfig.for_model(model_type)
    text = _small(blank.get_text_config())
    tower = blank.vision_config or type(blank).sub_configs["vision_config"]()
    rotary = blank.get_text_config().to_dict().get("rope_parameters") or {}
    if "mrope_section" in rotary:
        # positions of time, height and width share the pairs of a head
        text["rope_parameters"] = {**rotary, "mrope_section": [4, 2, 2]}
    known = {**dict.fromkeys(tower.attribute_map), **tower.to_dict()}
    sizes = {name: value for name, value in TOWER.items() if known.get(name) is not None}
    # special tokens within the small vocabulary
    names = [name for name, value in vars(blank).items() if name.endswith(("token_id", "token_index")) and value]
    tokens = {name: 290 + number for number, name in enumerate(names)}
    return {
        "model_type": model_type,
        **tokens,
        "text_config": text,
        "vision_config": {"model_type": tower.model_type, **sizes},
    }


def _small(blank: Any) -> dict[str, Any]:
    known = {**dict.fromkeys(blank.attribute_map), **blank.to_dict()}
    sizes = {name: value for name, value in SIZES.items() if known.get(name) is not None}
    if known.get("qk_rope_head_dim"):
        # rotary embeddings have the size of a part of the head
        sizes.pop("head_dim", None)
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    lists = {name: _kinds(known[name]) for name in PER_LAYER if isinstance(known.get(name), list)}
    chosen = {name: value for name, value in special.items() if name in known}
    return {"model_type": blank.model_type, **sizes, **chosen, **lists, **OF_A_TYPE.get(blank.model_type, {})}


def _kinds(layers: list[str]) -> list[str]:
    distinct = list(dict.fromkeys(layers))
    return [distinct[number % len(distinct)] for number in range(LAYERS)]
