"""Products of linear layers in 8-bit floats with torchao, as accelerate converts models. Imports torch and torchao when it is used."""

from __future__ import annotations

import importlib.util
from typing import Any

from ..protocol import supported
from ..protocol.messages import JobWorkload
from .errors import BadInput, Refused


def convert(model: Any, workload: JobWorkload) -> None:
    """Replace linear layers, except the first and the output layer, by torchao's ``Float8Linear``; nothing without ``fp8_recipe``.

    Weights keep their type; they, inputs and gradients are scaled and cast before each product.

    Args:
        model: the model; changed in place.
        workload: the workload.

    Raises:
        Refused: the GPU has no products of this kind.
        BadInput: torchao is missing.
    """
    recipe = workload.fp8_recipe
    if recipe == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise BadInput(supported.lacks_package(f"fp8_recipe {recipe}", "torchao"))
    _check_device(recipe)
    from accelerate.utils.ao import convert_model_to_fp8_ao
    from torchao.float8 import Float8LinearConfig

    convert_model_to_fp8_ao(model, config=Float8LinearConfig.from_recipe_name(recipe))


def _check_device(recipe: str) -> None:
    import torch

    needed = supported.FP8_CAPABILITY[recipe]
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if (major, minor) < tuple(int(part) for part in str(needed).split(".")):
        here = f"this one has {major}.{minor}" if major else "this trainer has none"
        raise Refused(f"fp8_recipe {recipe} needs a GPU of compute capability {needed} or higher; {here}.")


def facts(model: Any) -> dict[str, int]:
    """Return the number of layers with 8-bit products in a trained model; empty without any."""
    count = sum(type(module).__name__.endswith("Float8Linear") for module in model.modules())
    return {"float8_layers": count} if count else {}
