"""How unevenly a mixture-of-experts model distributes tokens over its experts. Imports torch."""

from __future__ import annotations

import traceback
from typing import Any

import torch

from .fsdp import is_whole


def facts(model: torch.nn.Module, wrapped_by: str, tokens: list[int]) -> dict[str, float]:
    """Return the fact ``router_load_max_over_mean`` of a trained model; empty for a model without experts or a sharded one.

    Every rank runs its own copy of the model without the wrapper, so that no rank waits for another.

    Args:
        model: the trained model, without the wrapper.
        wrapped_by: the wrapper, as ``fsdp.wrapper`` names it.
        tokens: token ids of one sample.
    """
    if not is_whole(wrapped_by):
        return {}
    try:
        ratio = max_over_mean(model, torch.tensor([tokens], device=next(model.parameters()).device))
    except Exception:  # the code of any model; what it cannot tell must not cost the measurement
        traceback.print_exc()
        return {}
    return {} if ratio is None else {"router_load_max_over_mean": ratio}


def max_over_mean(model: torch.nn.Module, input_ids: torch.Tensor) -> float | None:
    """Return how unevenly tokens are distributed over experts: the largest load over the mean load, averaged over layers.

    Runs one forward pass without gradients. The ratio is 1 for perfect balance, and at most the number of experts ÷ experts per token.

    Args:
        model: a causal language model, with or without adapters.
        input_ids: token ids, shape (rows, length), on the model's device.

    Returns:
        The ratio, or None for a model without experts or one that does not return its router logits.
    """
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not chosen or not experts:
        return None
    training = model.training
    model.eval()
    for module in model.modules():
        # on a CPU bitsandbytes would convert the weights, which it can only for some shapes
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
    picked: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: picked.extend(_choices(output, chosen)))
        for name, module in model.named_modules()
        if name.endswith(("gate", "router"))
    ]
    try:
        with torch.no_grad():
            output = _body(model)(input_ids=input_ids, output_router_logits=True, use_cache=False)
            logits = getattr(output, "router_logits", None)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    # a router that does not return its choice takes the largest logits
    picked = picked or [
        layer.reshape(-1, layer.shape[-1]).topk(chosen).indices for layer in logits or () if layer is not None
    ]
    ratios = [_of_layer(layer, experts) for layer in picked]
    return sum(ratios) / len(ratios) if ratios else None


def _body(model: Any) -> Any:
    """Return a model without its output layer, which would add the routers' loss; that of Granite in transformers 4 needs a GPU."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.base_model


def _choices(output: Any, chosen: int) -> list[torch.Tensor]:
    """Return the experts that a router has chosen, if they are among its outputs: one integer tensor, ``chosen`` for each token."""
    parts = output if isinstance(output, tuple) else ()
    found = [one for one in parts if isinstance(one, torch.Tensor) and one.dim() > 1 and not one.is_floating_point()]
    return [one for one in found if one.shape[-1] == chosen][:1]


def _of_layer(picked: torch.Tensor, experts: int) -> float:
    """Return the largest over the mean load of one layer's experts; shape of ``picked``: (tokens, experts per token)."""
    load = torch.bincount(picked.flatten(), minlength=experts).double()
    return float(load.max() / load.mean())
