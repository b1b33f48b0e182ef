"""Gradient checkpointing of a part of the layers, or of all operations but attention. Imports transformers and TRL."""

from __future__ import annotations

import inspect
from typing import Any

from .core.protocol.messages import JobWorkload

# TRL keeps the outputs of PyTorch's and of flash attention's operations; these have none
_NOT_KEPT = ("eager", "flex_attention")


def options(workload: JobWorkload, attention: str | None) -> dict[str, Any]:
    """Return the arguments that choose what is recomputed; empty if everything is.

    Args:
        workload: the workload.
        attention: the model's attention implementation.

    Raises:
        BadInput: the installed release of a library has no such choice.
        Refused: the choice has no effect with this attention.
    """
    import transformers
    import trl

    from .core.trainer.errors import BadInput, Refused

    every, selective = workload.gradient_checkpointing_every_n_layers, workload.gradient_checkpointing_selective
    known = inspect.signature(transformers.PreTrainedModel._set_gradient_checkpointing).parameters
    if every > 1 and "every_n_layers" not in known:
        raise BadInput(
            f"gradient_checkpointing_every_n_layers {every} does not exist in transformers {transformers.__version__} "
            "of the training environment."
        )
    if selective and not hasattr(trl.models, "enable_selective_activation_checkpointing"):
        raise BadInput(f"gradient_checkpointing_selective does not exist in trl {trl.__version__} of the environment.")
    if selective and attention in _NOT_KEPT:
        raise Refused(
            f"gradient_checkpointing_selective needs attn_implementation sdpa or a flash attention, not {attention}: "
            "TRL keeps the outputs of no other."
        )
    chosen: dict[str, Any] = {"every_n_layers": every} if every > 1 else {}
    if selective:
        chosen["selective"] = True
    reentrant = {"use_reentrant": workload.gradient_checkpointing_use_reentrant}
    return {"gradient_checkpointing_kwargs": reentrant | chosen} if chosen else {}


def facts(model: Any, workload: JobWorkload) -> dict[str, Any]:
    """Return the fact ``recomputed_layers``, read back from a trained model; empty with a release that does not tell.

    Raises:
        Refused: TRL did not keep the outputs of attention, as it was asked to.
    """
    import trl

    from .core.trainer.errors import Refused

    layers = [
        one
        for one in model.modules()
        if any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(one).__mro__)
    ]
    chosen = [one for one in layers if one.gradient_checkpointing]
    # TRL passes its choice of operations to each of them
    kept = all("context_fn" in getattr(one._gradient_checkpointing_func, "keywords", {}) for one in chosen)
    if workload.gradient_checkpointing_selective and not (chosen and kept):
        raise Refused(
            f"gradient_checkpointing_selective has no effect with method {workload.method} in trl {trl.__version__}: all is recomputed."
        )
    return {"recomputed_layers": len(chosen)} if layers else {}
