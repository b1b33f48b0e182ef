"""Floating-point operations of training, from a model's configuration. Standard library only.

Only matrix products count: 2·inputs·outputs for a token through a weight, 2·heads·head_dim for each pair of positions
in each of the two attention products, causal pairs only. Recomputation under gradient checkpointing does not count. A
backward pass costs the forward pass once for each gradient that is needed: of activations, and of weights where they
are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import models_since_2025
from .products import BUILDERS, OUTPUT_LAYER, Attention, Model, Product, UnknownArchitecture

# names of the number of experts that a token is sent to, and of all routed experts
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "num_selected_experts")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

__all__ = ["KNOWN", "OUTPUT_LAYER", "Attention", "Model", "Product", "UnknownArchitecture", "model", "per_token"]

# the model types that have a count
KNOWN = {**BUILDERS, **models_since_2025.BUILDERS}


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
    counted: Mapping[str, float] | None = None,
    output_share: float = 1.0,
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
        counted: what the trainer has counted for a type without a count here (``core.trainer.flop_counter``), or None.
        output_share: share of the token slots that pass through the output layer.

    Raises:
        UnknownArchitecture: this model type has no count.
    """
    architecture = text_part(architecture)
    found = _counted(counted) if counted and architecture.get("model_type") not in KNOWN else model(architecture)
    # Σ (len + v)² = Σ len² + 2·v·Σ len + n·v²
    virtual = num_virtual_tokens if method == "prompt_tuning" else 0
    positions = token_slots + samples * virtual
    squared = squared_lengths + 2 * virtual * token_slots + samples * virtual**2
    # attention costs Σ len²/2, which for one position is half of the length-weighted mean length
    activations = sum(a.flops(squared / positions) for a in found.attention) + found.scan_flops
    weights = sum(p.flops * (output_share if p.module == OUTPUT_LAYER else 1) for p in found.products)
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


def _counted(counted: Mapping[str, float]) -> Model:
    """Return a model of one product and one attention with the FLOP that the trainer has counted."""
    # without a mask attention costs 4·width for each pair of positions
    attention = Attention(round(counted["pair"] / 4), 1)
    return Model((Product("counted", 1, 1, counted["token"] / 2, linear=False),), (attention,))


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


def text_part(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model; in that of a model with a vision part it is nested."""
    nested = architecture.get("text_config")
    known = architecture.get("model_type") in KNOWN
    return nested if isinstance(nested, Mapping) and not known else architecture


def model(architecture: Mapping[str, Any]) -> Model:
    """Return the matrix products of a model.

    Raises:
        UnknownArchitecture: this model type has no count, or its configuration lacks a number.
    """
    architecture = text_part(architecture)
    kind = str(architecture.get("model_type"))
    if kind not in KNOWN:
        raise UnknownArchitecture(f"FLOPs of model type {kind!r} are not known.")
    try:
        return KNOWN[kind](architecture)
    except (KeyError, TypeError) as error:
        raise UnknownArchitecture(f"FLOPs need a number the configuration of this {kind} lacks: {error}.") from None
