"""The frozen model of QLoRA: weights of linear layers as 4-bit NormalFloat (NF4), by bitsandbytes. Trainer room.

Published weights are quantised by transformers while they load. A model with random weights is quantised here, layer by
layer, so that a GPU never holds the model in its original type. As in transformers, the output layer stays as it is.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from .errors import BadInput


def check_installed() -> None:
    """Refuse when bitsandbytes is missing.

    Raises:
        BadInput: with the package to install.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            "method qlora needs the package bitsandbytes in the training environment: pip install bitsandbytes."
        )


def configuration(dtype: torch.dtype) -> Any:
    """Return what makes transformers quantise weights while it loads them; products are computed in ``dtype``."""
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def in_place(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Quantise the linear layers of ``model`` and return it, on ``device``, marked as transformers marks its own."""
    output = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and layer is not output:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _quantised(layer, dtype, device))
    model.to(device)
    model.is_loaded_in_4bit = True
    model.config.quantization_config = configuration(dtype)
    return model


def layers(model: torch.nn.Module) -> int:
    """Return how many layers of a model are quantised, read from the model itself."""
    import bitsandbytes

    return sum(isinstance(layer, bitsandbytes.nn.Linear4bit) for layer in model.modules())


def _quantised(layer: torch.nn.Linear, dtype: torch.dtype, device: torch.device) -> Any:
    import bitsandbytes

    with torch.device("meta"):
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
    made.bias = layer.bias
    # quantised when it is moved to its device
    weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    made.weight = weight.to(device)
    return made
