"""Floating-point operations of training, from a model's configuration. Standard library only.

Only matrix products count: 2·inputs·outputs for a token through a weight, 2·heads·head_dim for each pair of positions
in each of the two attention products, causal pairs only. Recomputation under gradient checkpointing does not count. A
backward pass costs the forward pass once for each gradient that is needed: of activations, and of weights where they
are trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# names of the number of experts that a token is sent to, and of all routed experts
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "num_selected_experts")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


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
    """

    width: int
    layers: int
    window: int | None = None

    def flops(self, length: float) -> float:
        """Return the FLOP of a token's forward pass at this (mean) sequence length: 4·width per visible position."""
        visible = length / 2
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


def per_token(
    architecture: Mapping[str, Any],
    *,
    method: str,
    token_slots: int,
    squared_lengths: int,
    r: int = 0,
    target_modules: str = "all-linear",
    samples: int = 0,
    num_virtual_tokens: int = 0,
    adapters: Sequence[Mapping[str, Any]] | None = None,
) -> float:
    """Return the FLOP of forward and backward pass per token slot. The FLOP of virtual tokens are divided among the token slots.

    Args:
        architecture: a Hugging Face configuration as a dict.
        method: ``full``, ``lora``, ``qlora``, ``gptq_lora`` or ``prompt_tuning``.
        token_slots: token slots of the measured phase, padding included.
        squared_lengths: Σ length² over its sequences or packed documents.
        r: rank of the adapters.
        target_modules: ``all-linear`` or module names separated by commas.
        samples: sequences of the measured phase.
        num_virtual_tokens: tokens that prompt tuning puts before each of them.
        adapters: the adapters as read back from the model that was trained (``core.trainer.adapters.adapted``); None: those that ``r``
            and ``target_modules`` give linear layers.

    Raises:
        UnknownArchitecture: this model type has no count.
    """
    found = model(architecture)
    # Σ (len + v)² = Σ len² + 2·v·Σ len + n·v²
    virtual = num_virtual_tokens if method == "prompt_tuning" else 0
    positions = token_slots + samples * virtual
    squared = squared_lengths + 2 * virtual * token_slots + samples * virtual**2
    # attention costs Σ len²/2, which for one position is half of the length-weighted mean length
    activations = sum(a.flops(squared / positions) for a in found.attention) + found.scan_flops
    weights = sum(p.flops for p in found.products)
    if method == "full":
        each = 3 * (weights + activations)
    else:
        extra = 0.0
        if adapters is not None:
            extra = sum(_adapter_flops(one, architecture) for one in adapters)
        elif method != "prompt_tuning":
            names = {name.strip() for name in target_modules.split(",")}
            extra = sum(2.0 * r * (p.inputs + p.outputs) * p.times for p in found.products if _adapted(p, names))
        each = _frozen(weights, activations, extra)
    return positions / token_slots * each


def _adapter_flops(adapter: Mapping[str, Any], architecture: Mapping[str, Any]) -> float:
    """Return the FLOP of a token's forward pass through an adapter's two factors, those of each expert it is sent to.

    PEFT multiplies the factors of fused experts with each other instead, once in each pass. That work does not depend on tokens, and does
    not count, like recomputation.
    """
    times = adapter["layers"]
    if adapter.get("routed"):
        # the share of the experts that a token is sent to; an adapter of fused experts has a part for each of them
        times *= (
            adapter["experts"] * _first(architecture, _CHOSEN, 1) / _first(architecture, _EXPERTS, adapter["experts"])
        )
    return float(2 * adapter["rank"] * (adapter["inputs"] + adapter["outputs"]) * times)


def _first(architecture: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    return next((int(architecture[name]) for name in names if architecture.get(name)), default)


def _frozen(weights: float, activations: float, adapters: float) -> float:
    """Return the FLOP of a position, forward and backward, of a frozen model with adapters."""
    # both factors of an attention product are activations, which need their gradients although no weight is trained
    return 2 * weights + 3 * adapters + 3 * activations


def _adapted(product: Product, names: set[str]) -> bool:
    return product.linear if names == {"all-linear"} else product.module in names


def model(architecture: Mapping[str, Any]) -> Model:
    """Return the matrix products of a model.

    Raises:
        UnknownArchitecture: this model type has no count, or its configuration lacks a number.
    """
    kind = str(architecture.get("model_type"))
    if kind not in BUILDERS:
        raise UnknownArchitecture(f"FLOPs of model type {kind!r} are not known.")
    try:
        return BUILDERS[kind](architecture)
    except (KeyError, TypeError) as error:
        raise UnknownArchitecture(f"FLOPs need a number the configuration of this {kind} lacks: {error}.") from None


# -- families --------------------------------------------------------------------------------------------------


def _heads(c: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return query heads, key-value heads and head dimension."""
    heads = c["num_attention_heads"]
    return heads, c.get("num_key_value_heads") or heads, c.get("head_dim") or c["hidden_size"] // heads


def _attention_products(c: Mapping[str, Any], layers: int) -> list[Product]:
    heads, kv_heads, dim = _heads(c)
    hidden = c["hidden_size"]
    return [
        Product("q_proj", hidden, heads * dim, layers),
        Product("k_proj", hidden, kv_heads * dim, layers),
        Product("v_proj", hidden, kv_heads * dim, layers),
        Product("o_proj", heads * dim, hidden, layers),
    ]


def _lm_head(c: Mapping[str, Any]) -> Product:
    # tied or not: the weight may be shared with the embedding, the product is computed once either way
    return Product("lm_head", c["hidden_size"], c["vocab_size"], 1, linear=False)


def _gated_mlp(hidden: int, width: int, times: float, *, linear: bool = True) -> list[Product]:
    return [
        Product("gate_proj", hidden, width, times, linear),
        Product("up_proj", hidden, width, times, linear),
        Product("down_proj", width, hidden, times, linear),
    ]


def _attentions(c: Mapping[str, Any], layers: int) -> tuple[Attention, ...]:
    heads, _, dim = _heads(c)
    window = c.get("sliding_window") if c.get("use_sliding_window", True) else None
    if not window:
        return (Attention(heads * dim, layers),)
    kinds = c.get("layer_types") or ["sliding_attention"] * layers
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    return (Attention(heads * dim, layers - sliding), Attention(heads * dim, sliding, window))


def _dense(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    mlp = _gated_mlp(c["hidden_size"], c["intermediate_size"], layers)
    return Model((*_attention_products(c, layers), *mlp, _lm_head(c)), _attentions(c, layers))


def _experts(c: Mapping[str, Any], width: int, layers: int, router: str) -> list[Product]:
    experts = c.get("num_local_experts") or c["num_experts"]
    active = _gated_mlp(c["hidden_size"], width, layers * c["num_experts_per_tok"], linear=False)
    return [Product(router, c["hidden_size"], experts, layers, linear=False), *active]


def _mixtral(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    experts = _experts(c, c["intermediate_size"], layers, "gate")
    return Model((*_attention_products(c, layers), *experts, _lm_head(c)), _attentions(c, layers))


def _qwen_moe(c: Mapping[str, Any]) -> Model:
    layers = c["num_hidden_layers"]
    stride, dense_layers = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    sparse = sum(layer not in dense_layers and (layer + 1) % stride == 0 for layer in range(layers))
    mlp = _gated_mlp(c["hidden_size"], c["intermediate_size"], layers - sparse)
    experts = _experts(c, c["moe_intermediate_size"], sparse, "gate")
    return Model((*_attention_products(c, layers), *mlp, *experts, _lm_head(c)), _attentions(c, layers))


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
    experts = _experts(c, c["intermediate_size"], layers, "router")
    return Model(
        (*_attention_products(c, layers), *experts, *_shared_mlp(c, layers), _lm_head(c)), _attentions(c, layers)
    )


def _granite_hybrid(c: Mapping[str, Any]) -> Model:
    layers, hidden = c["num_hidden_layers"], c["hidden_size"]
    # transformers 4 and 5 name the kinds of layers differently
    kinds = c.get("layer_types") or c.get("layers_block_type") or ["mamba"] * layers
    attention = sum(kind in ("attention", "full_attention") for kind in kinds)
    mamba = layers - attention
    products = [
        *_attention_products(c, attention),
        *(_experts(c, c["intermediate_size"], layers, "router") if c.get("num_local_experts") else []),
        *_shared_mlp(c, layers),
        _lm_head(c),
    ]
    if not mamba:
        return Model(tuple(products), _attentions(c, attention))
    inner, state = c["mamba_expand"] * hidden, c["mamba_d_state"]
    projected = 2 * inner + 2 * c["mamba_n_groups"] * state + c["mamba_n_heads"]
    products += [Product("in_proj", hidden, projected, mamba), Product("out_proj", inner, hidden, mamba)]
    # the recurrence: write B·x into the state and read C·state, each an outer product of inner by state
    return Model(tuple(products), _attentions(c, attention), scan_flops=4.0 * inner * state * mamba)


def _gpt2(c: Mapping[str, Any]) -> Model:
    hidden, layers = c.get("n_embd") or c["hidden_size"], c.get("n_layer") or c["num_hidden_layers"]
    inner = c.get("n_inner") or 4 * hidden
    products = (
        Product("c_attn", hidden, 3 * hidden, layers),
        Product("c_proj", hidden, hidden, layers),
        Product("c_fc", hidden, inner, layers),
        Product("c_proj", inner, hidden, layers),
        Product("lm_head", hidden, c["vocab_size"], 1, linear=False),
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
        _lm_head(c),
    )
    return Model(products, (Attention(hidden, layers),))


BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], Model]] = {
    "llama": _dense,
    "mistral": _dense,
    "qwen2": _dense,
    "qwen3": _dense,
    "granite": _dense,
    "smollm3": _dense,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen_moe,
    "granitemoe": _granite_moe,
    "granitemoeshared": _granite_moe,
    "granitemoehybrid": _granite_hybrid,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neox": _gpt_neox,
}
