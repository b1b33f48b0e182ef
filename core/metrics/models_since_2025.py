"""The matrix products of model families since 2025: fused projections, latent attention, shared experts, linear attention, hybrids.

Standard library only. Recurrences count as the state that each token reads and writes; transformers computes them in chunks, with more
products. Depthwise convolutions do not count, since they are no matrix products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .products import (
    Attention,
    Model,
    Product,
    attention_products,
    attentions,
    dense,
    experts,
    gated_mlp,
    heads,
    lm_head,
    mamba2,
)

Configuration = Mapping[str, Any]


def _with_layer_types(c: Configuration, sliding: Callable[[int], bool]) -> dict[str, Any]:
    """Return a configuration with the kinds of its layers, which a published one leaves to its class."""
    kinds = ["sliding_attention" if sliding(i) else "full_attention" for i in range(c["num_hidden_layers"])]
    return {**c, "layer_types": c.get("layer_types") or kinds}


def _gemma3(c: Configuration) -> Model:
    return dense(_with_layer_types(c, lambda layer: (layer + 1) % 6 != 0))


def _olmo3(c: Configuration) -> Model:
    return dense(_with_layer_types(c, lambda layer: (layer + 1) % 4 != 0))


def _fused_mlp(c: Configuration, layers: int) -> list[Product]:
    hidden, width = c["hidden_size"], c["intermediate_size"]
    return [Product("gate_up_proj", hidden, 2 * width, layers), Product("down_proj", width, hidden, layers)]


def _phi3(c: Configuration) -> Model:
    layers, hidden = c["num_hidden_layers"], c["hidden_size"]
    queries, keys, dim = heads(c)
    products = (
        Product("qkv_proj", hidden, (queries + 2 * keys) * dim, layers),
        Product("o_proj", queries * dim, hidden, layers),
        *_fused_mlp(c, layers),
        lm_head(c),
    )
    return Model(products, attentions(c, layers))


def _glm4(c: Configuration) -> Model:
    layers = c["num_hidden_layers"]
    return Model((*attention_products(c, layers), *_fused_mlp(c, layers), lm_head(c)), attentions(c, layers))


def _gpt_oss(c: Configuration) -> Model:
    layers = c["num_hidden_layers"]
    products = (*attention_products(c, layers), *experts(c, c["intermediate_size"], layers, "router"), lm_head(c))
    return Model(products, attentions(_with_layer_types(c, lambda layer: layer % 2 == 0), layers))


def _routed_and_shared(c: Configuration) -> list[Product]:
    """Return the MLPs of models whose first layers are dense, and whose others have routed and shared experts."""
    layers, hidden, width = c["num_hidden_layers"], c["hidden_size"], c["moe_intermediate_size"]
    # a list of kinds replaces the number of dense layers in later releases of transformers
    kinds = c.get("mlp_layer_types")
    first = kinds.count("dense") if kinds else min(layers, c.get("first_k_dense_replace") or 0)
    sparse = layers - first
    return [
        *gated_mlp(hidden, c["intermediate_size"], first),
        Product("gate", hidden, c["n_routed_experts"], sparse, linear=False),
        *gated_mlp(hidden, width, sparse * c["num_experts_per_tok"], linear=False),
        *gated_mlp(hidden, width * (c.get("n_shared_experts") or 0), sparse),
    ]


def _glm4_moe(c: Configuration) -> Model:
    layers = c["num_hidden_layers"]
    return Model((*attention_products(c, layers), *_routed_and_shared(c), lm_head(c)), attentions(c, layers))


def _deepseek(c: Configuration) -> Model:
    """Latent attention: queries, keys and values pass through narrow products."""
    layers, hidden, number = c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"]
    turned, plain, values = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    compared, narrow, kept = turned + plain, c.get("q_lora_rank"), c["kv_lora_rank"]
    queries = (
        [Product("q_a_proj", hidden, narrow, layers), Product("q_b_proj", narrow, number * compared, layers)]
        if narrow
        else [Product("q_proj", hidden, number * compared, layers)]
    )
    products = (
        *queries,
        Product("kv_a_proj_with_mqa", hidden, kept + turned, layers),
        Product("kv_b_proj", kept, number * (plain + values), layers),
        Product("o_proj", number * values, hidden, layers),
        *_routed_and_shared(c),
        lm_head(c),
    )
    # one of the two products of attention has the width of queries, the other that of values
    return Model(products, (Attention(number * (compared + values) // 2, layers),))


def _llama4(c: Configuration) -> Model:
    """Active experts count, although transformers runs each token through all of them and drops what was not chosen."""
    layers, hidden, step = c["num_hidden_layers"], c["hidden_size"], c.get("interleave_moe_layer_step") or 1
    chosen = c.get("moe_layers")
    sparse = len(range(step - 1, layers, step) if chosen is None else chosen)
    full = c.get("no_rope_layer_interval") or 4
    kinds = c.get("layer_types") or [
        "full_attention" if (layer + 1) % full == 0 else "chunked_attention" for layer in range(layers)
    ]
    chunked = sum(kind == "chunked_attention" for kind in kinds)
    products = (
        *attention_products(c, layers),
        *gated_mlp(hidden, c["intermediate_size_mlp"], layers - sparse),
        *experts(c, c["intermediate_size"], sparse, "router"),
        *gated_mlp(hidden, c["intermediate_size"], sparse),
        lm_head(c),
    )
    queries, _, dim = heads(c)
    width = queries * dim
    return Model(
        products,
        (Attention(width, layers - chunked), Attention(width, chunked, chunk=c.get("attention_chunk_size"))),
    )


# -- layers with a state ---------------------------------------------------------------------------------------


def _falcon_h1(c: Configuration) -> Model:
    layers = c["num_hidden_layers"]
    inner = c.get("mamba_d_ssm") or int(c["mamba_expand"] * c["hidden_size"])
    mamba, scan = mamba2(c, layers, inner, c["mamba_d_state"], c["mamba_n_groups"], c["mamba_n_heads"])
    both = dense(c)
    return dataclasses.replace(both, products=(*both.products, *mamba), scan_flops=scan)


def _nemotron_h(c: Configuration) -> Model:
    hidden, kinds = c["hidden_size"], [_nemotron_kind(kind) for kind in _nemotron_layers(c)]
    attention, plain, sparse = (kinds.count(kind) for kind in ("attention", "mlp", "moe"))
    inner = c["mamba_num_heads"] * c["mamba_head_dim"]
    groups, number = c["n_groups"], c["mamba_num_heads"]
    mamba, scan = mamba2(c, kinds.count("mamba"), inner, c["ssm_state_size"], groups, number)
    products = [
        *attention_products(c, attention),
        *mamba,
        *_plain_mlp(hidden, c["intermediate_size"], plain),
        lm_head(c),
    ]
    if sparse:
        if c.get("moe_latent_size"):
            raise KeyError("moe_latent_size")
        chosen, shared = c["num_experts_per_tok"], c["moe_shared_expert_intermediate_size"]
        products += [
            Product("gate", hidden, c["n_routed_experts"], sparse, linear=False),
            *_plain_mlp(hidden, c["moe_intermediate_size"], sparse * chosen, linear=False),
            *_plain_mlp(hidden, shared * (c.get("n_shared_experts") or 0), sparse),
        ]
    return Model(tuple(products), attentions(c, attention), scan_flops=scan)


def _nemotron_layers(c: Configuration) -> list[str]:
    return list(c.get("layers_block_type") or c["hybrid_override_pattern"])


def _nemotron_kind(kind: str) -> str:
    letters = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"} | {
        "full_attention": "attention",
        "linear_attention": "mamba",
    }
    return letters.get(kind, kind)


def _plain_mlp(hidden: int, width: int, times: float, *, linear: bool = True) -> list[Product]:
    return [Product("up_proj", hidden, width, times, linear), Product("down_proj", width, hidden, times, linear)]


def _lfm2(c: Configuration) -> Model:
    layers, hidden, width = c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"]
    if c.get("block_auto_adjust_ff_dim", True):
        multiple = c.get("block_multiple_of", 256)
        width = int(c.get("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
        width = -(-width // multiple) * multiple
    kinds, chosen = c.get("layer_types"), c.get("full_attn_idxs")
    attention = kinds.count("full_attention") if kinds else layers if chosen is None else len(chosen)
    queries, keys, dim = heads(c)
    products = (
        Product("q_proj", hidden, queries * dim, attention),
        *(Product(name, hidden, keys * dim, attention) for name in ("k_proj", "v_proj")),
        Product("out_proj", queries * dim, hidden, attention),
        Product("in_proj", hidden, 3 * hidden, layers - attention),
        Product("out_proj", hidden, hidden, layers - attention),
        *(Product(name, hidden, width, layers) for name in ("w1", "w3")),
        Product("w2", width, hidden, layers),
        lm_head(c),
    )
    return Model(products, attentions(c, attention))


def _gated_delta(c: Configuration, mlp: list[Product], names: tuple[str, ...]) -> Model:
    """Return three layers of gated delta rule to one of gated attention, with the MLPs of all layers.

    Args:
        c: the configuration.
        mlp: the products of all MLPs.
        names: the names of the projections into the delta rule: of queries, keys, values and gate; of both rates.
    """
    layers, hidden = c["num_hidden_layers"], c["hidden_size"]
    every = c.get("full_attention_interval") or 4
    kinds = c.get("layer_types") or [
        "full_attention" if (layer + 1) % every == 0 else "linear_attention" for layer in range(layers)
    ]
    recurrent = sum(kind == "linear_attention" for kind in kinds)
    attention = layers - recurrent
    queries, keys, dim = heads(c)
    state_heads, key_dim, value_dim = c["linear_num_value_heads"], c["linear_key_head_dim"], c["linear_value_head_dim"]
    all_keys, all_values = c["linear_num_key_heads"] * key_dim, state_heads * value_dim
    wide, rates = names
    products = (
        # with the gate of the output
        Product("q_proj", hidden, 2 * queries * dim, attention),
        *(Product(name, hidden, keys * dim, attention) for name in ("k_proj", "v_proj")),
        Product("o_proj", queries * dim, hidden, attention),
        Product(wide, hidden, 2 * all_keys + 2 * all_values, recurrent),
        Product(rates, hidden, 2 * state_heads, recurrent),
        Product("out_proj", all_values, hidden, recurrent),
        *mlp,
        lm_head(c),
    )
    # each token reads its key from the state, writes the difference back, and reads its query
    scan = 6.0 * state_heads * key_dim * value_dim * recurrent
    return Model(products, (Attention(queries * dim, attention),), scan_flops=scan)


def _qwen_experts(c: Configuration) -> list[Product]:
    layers, hidden, shared = c["num_hidden_layers"], c["hidden_size"], c["shared_expert_intermediate_size"]
    return [
        *experts(c, c["moe_intermediate_size"], layers, "gate"),
        *gated_mlp(hidden, shared, layers),
        Product("shared_expert_gate", hidden, 1, layers),
    ]


def _qwen3_next(c: Configuration) -> Model:
    return _gated_delta(c, _qwen_experts(c), ("in_proj_qkvz", "in_proj_ba"))


def _qwen3_5(c: Configuration) -> Model:
    mlp = gated_mlp(c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"])
    return _gated_delta(c, mlp, ("in_proj_qkv", "in_proj_a"))


def _qwen3_5_moe(c: Configuration) -> Model:
    return _gated_delta(c, _qwen_experts(c), ("in_proj_qkv", "in_proj_a"))


BUILDERS: Mapping[str, Callable[[Configuration], Model]] = {
    "deepseek_v3": _deepseek,
    "falcon_h1": _falcon_h1,
    "gemma3_text": _gemma3,
    "glm4": _glm4,
    "glm4_moe": _glm4_moe,
    "gpt_oss": _gpt_oss,
    "lfm2": _lfm2,
    "llama4_text": _llama4,
    "ministral3": dense,
    "nemotron_h": _nemotron_h,
    "olmo2": dense,
    "olmo3": _olmo3,
    "phi3": _phi3,
    "qwen3_5_moe_text": _qwen3_5_moe,
    "qwen3_5_text": _qwen3_5,
    "qwen3_next": _qwen3_next,
}
