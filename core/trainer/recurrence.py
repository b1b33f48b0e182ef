"""Which code ran a model's recurrent layers (state spaces, linear attention, short convolutions). Imports torch.

transformers takes the kernels of ``mamba-ssm``, ``causal-conv1d`` and ``flash-linear-attention`` where they are installed, else its own
implementation in PyTorch, which is many times slower on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from ..protocol.supported import RECURRENT_PACKAGES


def facts(model: torch.nn.Module) -> dict[str, Any]:
    """Return the fact ``recurrent_layers`` of a trained model: the packages whose kernels ran, or ``pytorch``; empty without such layers.

    Args:
        model: the trained model, with or without adapters.
    """
    used, missing = _packages(model)
    return {"recurrent_layers": " and ".join(used) if used and not missing else "pytorch"} if used or missing else {}


def notes(model: torch.nn.Module) -> list[str]:
    """Return a remark for the user if recurrent layers ran without their kernels."""
    used, missing = _packages(model)
    if not missing:
        return []
    if not any(parameter.is_cuda for parameter in model.parameters()):
        return [f"The recurrent layers ran in PyTorch: the kernels of {' and '.join([*used, *missing])} need a GPU."]
    return [f"The recurrent layers ran in PyTorch, which is slow on a GPU: install {' and '.join(missing)}."]


def _packages(model: torch.nn.Module) -> tuple[list[str], list[str]]:
    """Return the packages whose kernels the model's code uses, and those that it would use if they were installed."""
    found: dict[str, bool] = {}
    for module in _modules(model):
        for package, used in _functions(module):
            name = RECURRENT_PACKAGES.get(package, package)
            found[name] = found.get(name, True) and used
    return [name for name, used in found.items() if used], [name for name, used in found.items() if not used]


def _modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules of transformers that define the layers of a model with a recurrence."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # every such layer has a convolution over positions, or decays its state
    names = {
        type(layer).__module__
        for layer in base.modules()
        if hasattr(layer, "A_log") or any(isinstance(child, torch.nn.Conv1d) for child in layer.children())
    }
    return [sys.modules[name] for name in sorted(names) if name.startswith("transformers.")]


def _functions(module: Any) -> Iterator[tuple[str, bool]]:
    """Return the package of each function that transformers replaces by a kernel, and whether it did."""
    if hasattr(module, "is_fast_path_available"):  # transformers 4
        for package in ("mamba_ssm", "causal_conv1d"):
            yield package, bool(module.is_fast_path_available)
        return
    for function in vars(module).values():
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        if "package" in names and "is_new_implementation" in names:
            cells = dict(zip(names, (cell.cell_contents for cell in function.__closure__), strict=True))
            yield cells["package"], bool(cells["is_new_implementation"])
