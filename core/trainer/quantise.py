"""Quantises the frozen model of QLoRA with bitsandbytes: weights of linear layers as 4-bit NormalFloat (NF4). Imports torch.

transformers quantises pretrained weights while it loads them. This module quantises models with random weights, one layer at a time,
so that a GPU never holds the whole model in its original data type. As in transformers, the output layer is not quantised.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from .errors import BadInput


def check_installed() -> None:
    """Check that bitsandbytes is installed.

    Raises:
        BadInput: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            "method qlora needs the package bitsandbytes in the training environment; install it with pip install bitsandbytes."
        )


def configuration(dtype: torch.dtype) -> Any:
    """Return the configuration with which transformers quantises weights while it loads them; ``dtype`` is that of matrix products."""
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def in_place(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Quantise the linear layers of ``model``, move it to ``device``, and mark it as quantised as transformers does; return it."""
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
    """Return the number of quantised layers of a model."""
    import bitsandbytes

    return sum(isinstance(layer, bitsandbytes.nn.Linear4bit) for layer in model.modules())


def _quantised(layer: torch.nn.Linear, dtype: torch.dtype, device: torch.device) -> Any:
    import bitsandbytes

    with torch.device("meta"):
        quantised = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
    quantised.bias = layer.bias
    # bitsandbytes quantises a parameter when it is moved to its device
    weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    quantised.weight = weight.to(device)
    return quantised
