"""The matrix products of models by type, from their configurations. Standard library only.

``models_since_2025.py`` has the families since 2025, ``flops.py`` counts with all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# name of the output layer's product
OUTPUT_LAYER = "lm_head"


class UnknownArchitecture(Exception):
    """The FLOPs of this model type are unknown; the message names it."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product with a weight.

    Attributes:
        module: last part of the module's name in the model, which LoRA's target_modules speak of.
        inputs: length of an input vector.
        outputs: length of an output vector.
        times: how often a token passes through such a product, over all layers and active experts.
        linear: whether ``all-linear`` adapts it; experts in one tensor, routers and lm_head are not adapted.
    """

    module: str
    inputs: int
    outputs: int
    times: float
    linear: bool = True

    @property
    def flops(self) -> float:
        """FLOP of a token's forward pass."""
        return 2.0 * self.inputs * self.outputs * self.times


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention products of layers that are alike.

    Attributes:
        width: heads times head dimension of the queries.
        layers: how many layers.
        window: positions a query sees at most, or None.
        chunk: length of the pieces that do not see each other, or None.
    """

    width: int
    layers: int
    window: int | None = None
    chunk: int | None = None

    def flops(self, length: float) -> float:
        """Return the FLOP of a token's forward pass at this (mean) sequence length: 4·width per visible position."""
        visible = min(length, self.chunk or length) / 2
        if self.window is not None and length > self.window:
            visible = self.window - self.window**2 / (2 * length)
        return 4.0 * self.width * visible * self.layers


@dataclasses.dataclass(frozen=True)
class Model:
    """The matrix products of a model.

    Attributes:
        products: products with weights.
        attention: attention products.
        scan_flops: FLOP of a token's forward pass in state-space recurrences.
    """

    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    scan_flops: float = 0.0


def heads(c: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return query heads, key-value heads and head dimension."""
    heads = c["num_attention_heads"]
    return heads, c.get("num_key_value_heads") or heads, c.get("head_dim") or c["hidden_size"] // heads


def attention_products(c: Mapping[str, Any], layers: int) -> list[Product]:
    """Return the projections of queries, keys, values and output of a number of layers."""
    queries, keys, dim = heads(c)
    hidden = c["hidden_size"]
    return [
        Product("q_proj", hidden, queries * dim, layers),
        Product("k_proj", hidden, keys * dim, layers),
        Product("v_proj", hidden, keys * dim, layers),
        Product("o_proj", queries * dim, hidden, layers),
    ]


def lm_head(c: Mapping[str, Any]) -> Product:
    """Return the product of the output layer."""
    # tied or not: the weight may be shared with the embedding, the product is computed once either way
    return Product(OUTPUT_LAYER, c["hidden_size"], c["vocab_size"], 1, linear=False)


def gated_mlp(hidden: int, width: int, times: float, *, linear: bool = True) -> list[Product]:
    """Return the products of an MLP whose activation is a product of two."""
    return [
        Product("gate_proj", hidden, width, times, linear),
        Product("up_proj", hidden, width, times, linear),
        Product("down_proj", width, hidden, times, linear),
    ]


def attentions(c: Mapping[str, Any], layers: int) -> tuple[Attention, ...]:
    """Return the attention products of a number of layers, those with a window on their own."""
    queries, _, dim = heads(c)
    window = c.get("sliding_window") if c.get("use_sliding_window", True) else None
    if not window:
        return (Attention(queries * dim, layers),)
    kinds = c.get("layer_types") or ["sliding_attention"] * layers
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    return (Attention(queries * dim, layers - sliding), Attention(queries * dim, sliding, window))


def dense(c: Mapping[str, Any]) -> Model:
    """Return the products of a model of attention and gated MLPs."""
    layers = c["num_hidden_layers"]
    mlp = gated_mlp(c["hidden_size"], c["intermediate_size"], layers)
    return Model((*attention_products(c, layers), *mlp, lm_head(c)), attentions(c, layers))


def experts(c: Mapping[str, Any], width: int, layers: int, router: str) -> list[Product]:
    """Return the products of a router and of the experts that a token is sent to."""
    experts = c.get("num_local_experts") or c["num_experts"]
    active = gated_mlp(c["hidden_size"], width, layers * c["num_experts_per_tok"], linear=False)
    return [Product(router, c["hidden_size"], experts, layers, linear=False), *active]


def _mixtral(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    sparse = experts(c, c["intermediate_size"], layers, "gate")
    return Model((*attention_products(c, layers), *sparse, lm_head(c)), attentions(c, layers))


def _qwen_moe(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    stride, dense_layers = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    number = sum(layer not in dense_layers and (layer + 1) % stride == 0 for layer in range(layers))
    mlp = gated_mlp(c["hidden_size"], c["intermediate_size"], layers - number)
    sparse = experts(c, c["moe_intermediate_size"], number, "gate")
    return Model((*attention_products(c, layers), *mlp, *sparse, lm_head(c)), attentions(c, layers))


def _shared_mlp(c: Mapping[str, Any], layers: int) -> list[Product]:
    width = c.get("shared_intermediate_size") or 0
    if not width:
        return []
    return [
        Product("input_linear", c["hidden_size"], 2 * width, layers),
        Product("output_linear", width, c["hidden_size"], layers),
    ]


def _granite_moe(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    sparse = experts(c, c["intermediate_size"], layers, "router")
    return Model((*attention_products(c, layers), *sparse, *_shared_mlp(c, layers), lm_head(c)), attentions(c, layers))


def mamba2(
    c: Mapping[str, Any], layers: int, inner: int, state: int, groups: int, number: int
) -> tuple[list[Product], float]:
    """Return the products of Mamba 2 layers, and the FLOP of their recurrence: it writes B·x into the state and reads C·state."""
    hidden = c["hidden_size"]
    projected = 2 * inner + 2 * groups * state + number
    products = [Product("in_proj", hidden, projected, layers), Product("out_proj", inner, hidden, layers)]
    return products, 4.0 * inner * state * layers


def _granite_hybrid(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    # transformers 4 and 5 name the kinds of layers differently
    kinds = c.get("layer_types") or c.get("layers_block_type") or ["mamba"] * layers
    attention = sum(kind in ("attention", "full_attention") for kind in kinds)
    mamba = layers - attention
    products = [
        *attention_products(c, attention),
        *(experts(c, c["intermediate_size"], layers, "router") if c.get("num_local_experts") else []),
        *_shared_mlp(c, layers),
        lm_head(c),
    ]
    if not mamba:
        return Model(tuple(products), attentions(c, attention))
    inner = c["mamba_expand"] * c["hidden_size"]
    recurrent, scan = mamba2(c, mamba, inner, c["mamba_d_state"], c["mamba_n_groups"], c["mamba_n_heads"])
    return Model((*products, *recurrent), attentions(c, attention), scan_flops=scan)


def _gpt2(c: Mapping[str, Any]) -> Model:
    hidden, layers = c.get("n_embd") or c["hidden_size"], c.get("n_layer") or c["num_hidden_layers"]
    inner = c.get("n_inner") or 4 * hidden
    products = (
        Product("c_attn", hidden, 3 * hidden, layers),
        Product("c_proj", hidden, hidden, layers),
        Product("c_fc", hidden, inner, layers),
        Product("c_proj", inner, hidden, layers),
        Product(OUTPUT_LAYER, hidden, c["vocab_size"], 1, linear=False),
    )
    return Model(products, (Attention(hidden, layers),))


def _gpt_bigcode(c: Mapping[str, Any]) -> Model:
    gpt2 = _gpt2(c)
    if not c.get("multi_query", True):
        return gpt2
    hidden, layers = c.get("n_embd") or c["hidden_size"], c.get("n_layer") or c["num_hidden_layers"]
    heads = c.get("n_head") or c["num_attention_heads"]
    # all heads share one key and one value
    narrow = Product("c_attn", hidden, hidden + 2 * hidden // heads, layers)
    return dataclasses.replace(gpt2, products=(narrow, *gpt2.products[1:]))


def _gpt_neox(c: Mapping[str, Any]) -> Model:
    hidden, layers, inner = c["hidden_size"], c["num_hidden_layers"], c["intermediate_size"]
    products = (
        Product("query_key_value", hidden, 3 * hidden, layers),
        Product("dense", hidden, hidden, layers),
        Product("dense_h_to_4h", hidden, inner, layers),
        Product("dense_4h_to_h", inner, hidden, layers),
        lm_head(c),
    )
    return Model(products, (Attention(hidden, layers),))


BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], Model]] = {
    "llama": dense,
    "mistral": dense,
    "qwen2": dense,
    "qwen3": dense,
    "granite": dense,
    "smollm3": dense,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen_moe,
    "granitemoe": _granite_moe,
    "granitemoeshared": _granite_moe,
    "granitemoehybrid": _granite_hybrid,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neox": _gpt_neox,
}
