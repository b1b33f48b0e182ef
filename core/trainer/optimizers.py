"""The optimizer that a workload names: whether it can be used here, its arguments, and what ran. Imports transformers."""

from __future__ import annotations

import importlib.util
from typing import Any

import transformers
from transformers.training_args import OptimizerNames

from ..protocol import optimizers, supported
from ..protocol.messages import JobWorkload
from .errors import BadInput


def arguments(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of ``transformers.TrainingArguments`` for the workload's optimizer.

    GaLore and APOLLO project the gradients of all linear layers.

    Raises:
        BadInput: a package is missing, or this release of transformers does not know the optimizer.
    """
    name = workload.optim
    if name not in {one.value for one in OptimizerNames}:
        raise BadInput(
            f"optim {name} does not exist in transformers {transformers.__version__}; use another optimizer."
        )
    package = optimizers.PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package.module) is None:
        raise BadInput(supported.lacks_package(f"optim {name}", package.distribution, "install it there"))
    return {"optim": name, **({"optim_target_modules": "all-linear"} if optimizers.is_low_rank(name) else {})}


def used(trainer: Any) -> str:
    """Return the class of a trainer's optimizer, with its package unless it is PyTorch's or transformers' own.

    Of the optimizers of bitsandbytes, which have one class for all, also the bits of the state and whether it is paged.
    """
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    # DeepSpeed's optimizers of ZeRO contain one that updates the parts
    while type(inner).__module__.startswith("deepspeed.runtime") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    kind = type(inner)
    package = kind.__module__.partition(".")[0]
    if package in ("torch", "transformers"):
        return kind.__name__
    bits = getattr(getattr(inner, "args", None), "optim_bits", None)
    details = [f"{bits} bits" if bits else "", "paged" if getattr(inner, "is_paged", False) else ""]
    return ", ".join(filter(None, [f"{package}.{kind.__name__}", *details]))
